//! Join tokens: `iapj1.<pin hex>.<base64url secret>`. One string tells a new host whom to trust and
//! proves that it was invited.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::pin::Pin;
use crate::text::hex_to_32;

const PREFIX: &str = "iapj1";

/// A pin and a secret. No `Debug`, no `Display`, no `==`: [`JoinToken::expose`] is the one way out.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct JoinToken {
    #[zeroize(skip)]
    pin: Pin,
    secret: [u8; 32],
}

/// Why a join token could not be read. Says nothing about its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenError {
    /// Not three parts separated by dots, the first `iapj1`.
    #[error("a join token has the form iapj1.<pin>.<secret>")]
    Form,
    /// The second part is not 64 hex digits.
    #[error("the join token's pin is not 64 lower-case hex digits")]
    Pin,
    /// The third part is not 32 bytes in base64url without padding.
    #[error("the join token's secret is damaged or cut short")]
    Secret,
}

impl JoinToken {
    /// A token from its parts; the secret comes from the caller's random source.
    pub const fn new(pin: Pin, secret: [u8; 32]) -> Self {
        Self { pin, secret }
    }

    /// Reads a token; white space around it (a file's last newline) is ignored.
    pub fn parse(text: &str) -> Result<Self, JoinTokenError> {
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(pin), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JoinTokenError::Form);
        };
        let pin = Pin::from_bytes(hex_to_32(pin).ok_or(JoinTokenError::Pin)?);
        let mut bytes = URL_SAFE_NO_PAD
            .decode(secret)
            .map_err(|_| JoinTokenError::Secret)?;
        let secret = bytes.as_slice().try_into().map_err(|_| JoinTokenError::Secret);
        bytes.zeroize();
        Ok(Self { pin, secret: secret? })
    }

    /// Whom the newcomer may trust.
    pub const fn pin(&self) -> &Pin {
        &self.pin
    }

    /// What the newcomer sends.
    pub const fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// What the auth server stores and looks up.
    pub fn secret_hash(&self) -> [u8; 32] {
        Self::hash_of(&self.secret)
    }

    /// The hash of a secret as it arrives in a request.
    pub fn hash_of(secret: &[u8]) -> [u8; 32] {
        crate::sha256(secret)
    }

    /// The whole token, to be shown once to the person who asked for it.
    pub fn expose(&self) -> String {
        format!(
            "{PREFIX}.{}.{}",
            self.pin.hex(),
            URL_SAFE_NO_PAD.encode(self.secret)
        )
    }
}
