//! Certificate requests. Two things are taken from one: the public key, and the proof that the sender
//! holds the private half. Names, usages and flags in it are ignored, whatever they ask for.

use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::Signer;

/// A request of ours is below 300 bytes.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// Why a certificate request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Over [`REQUEST_BYTES_MAX`].
    #[error("the certificate request is larger than 8 KiB")]
    TooLarge,
    /// Not one PKCS #10 request (RFC 2986).
    #[error("the certificate request cannot be read")]
    Malformed,
    /// A kind or encoding of key that is not issued to.
    #[error("the certificate request's key is not P-256, P-384 or Ed25519")]
    Key,
    /// The signature is not by the key in the request.
    #[error("the certificate request is not signed by its own key")]
    Possession,
}

/// A public key whose holder has proven to hold the private half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    spki: Vec<u8>,
    public_key: SubjectPublicKeyInfo,
}

impl Request {
    /// Reads a DER request and checks its signature.
    pub fn parse(csr_der: &[u8]) -> Result<Self, RequestError> {
        if csr_der.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::TooLarge);
        }
        let (rest, request) =
            X509CertificationRequest::from_der(csr_der).map_err(|_| RequestError::Malformed)?;
        if !rest.is_empty() {
            return Err(RequestError::Malformed);
        }
        let spki = request.certification_request_info.subject_pki.raw.to_vec();
        let public_key = SubjectPublicKeyInfo::from_der(&spki).map_err(|_| RequestError::Key)?;
        check_key(&public_key)?;
        // One spelling per key: thumbprints are over these bytes.
        if public_key.subject_public_key_info() != spki {
            return Err(RequestError::Key);
        }
        request.verify_signature().map_err(|_| RequestError::Possession)?;
        Ok(Self { spki, public_key })
    }

    /// The SubjectPublicKeyInfo.
    pub fn public_key_spki(&self) -> &[u8] {
        &self.spki
    }

    /// The key's thumbprint.
    pub fn spki_sha256(&self) -> [u8; 32] {
        crate::sha256(&self.spki)
    }

    pub(crate) const fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.public_key
    }
}

/// A request for `key` that asks for nothing.
pub fn certificate_request(key: &dyn Signer) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key)?.der().to_vec())
}

/// Uncompressed points and raw Ed25519 keys of the right length.
fn check_key(key: &SubjectPublicKeyInfo) -> Result<(), RequestError> {
    let (algorithm, bytes) = (key.algorithm(), key.der_bytes());
    let uncompressed = bytes.first() == Some(&4);
    let allowed = (*algorithm == rcgen::PKCS_ECDSA_P256_SHA256 && uncompressed && bytes.len() == 65)
        || (*algorithm == rcgen::PKCS_ECDSA_P384_SHA384 && uncompressed && bytes.len() == 97)
        || (*algorithm == rcgen::PKCS_ED25519 && bytes.len() == 32);
    if allowed { Ok(()) } else { Err(RequestError::Key) }
}
