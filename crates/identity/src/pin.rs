//! The pin: the hash of the root's public key, the one thing a newcomer needs to know in advance.

use std::fmt;

use crate::read;
use crate::text::{hex, hex_to_32, text_traits};

/// SHA-256 over the root certificate's SubjectPublicKeyInfo. Text form: `sha256:` and 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; 32]);

/// Why a pin could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// The text is not `sha256:` and 64 lower-case hex digits.
    #[error("a pin is \"sha256:\" and 64 lower-case hex digits")]
    Malformed,
    /// The certificate to be pinned could not be read.
    #[error("the certificate to be pinned cannot be read")]
    Certificate,
}

impl Pin {
    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, PinError> {
        let digits = text.strip_prefix("sha256:").ok_or(PinError::Malformed)?;
        hex_to_32(digits).map(Self).ok_or(PinError::Malformed)
    }

    /// The pin with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The pin of a (root) certificate.
    pub fn of_certificate(der: &[u8]) -> Result<Self, PinError> {
        let certificate = read::certificate(der).map_err(|_| PinError::Certificate)?;
        Ok(Self(crate::sha256(certificate.public_key().raw)))
    }

    /// The hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits alone, as join tokens carry them.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

text_traits!(Pin, PinError);
