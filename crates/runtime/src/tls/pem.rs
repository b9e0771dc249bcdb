//! Certificates and keys as text.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

const LINE_CHARACTERS: usize = 64;

/// The text holds no usable certificate or key.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// Not PEM.
    #[error("malformed PEM: {0}")]
    Malformed(rustls_pki_types::pem::Error),
    /// PEM, but without what was looked for.
    #[error("no {0} in the PEM text")]
    Missing(&'static str),
}

/// The certificates in a PEM text, in their order; at least one.
pub fn certificates_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(PemError::Malformed)?;
    if certificates.is_empty() {
        Err(PemError::Missing("certificate"))
    } else {
        Ok(certificates)
    }
}

/// The first private key in a PEM text.
pub fn private_key_from_pem(pem: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        rustls_pki_types::pem::Error::NoItemsFound => PemError::Missing("private key"),
        other => PemError::Malformed(other),
    })
}

/// Certificates as PEM text (RFC 7468), in their order.
pub fn certificates_to_pem<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut text = String::new();
    for der in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = STANDARD.encode(der);
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, behind) = rest.split_at(rest.len().min(LINE_CHARACTERS));
            text.push_str(line);
            text.push('\n');
            rest = behind;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}
