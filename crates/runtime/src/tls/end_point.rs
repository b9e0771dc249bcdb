//! What an exchange inside TLS can be bound to: the server's certificate (`tls-server-end-point`, RFC 5929 §4).

use aws_lc_rs::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::oid_registry::{
    OID_PKCS1_MD5WITHRSAENC, OID_PKCS1_SHA1WITHRSA, OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA,
    OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ECDSA_WITH_SHA512,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The certificate's hash by the function that its signature uses, SHA-256 in place of MD5 and SHA-1; nothing where the
/// signature names no single one, as with Ed25519 and RSASSA-PSS.
#[must_use]
pub fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let signature = &parsed.signature_algorithm.algorithm;
    let is_one_of = |oids: &[&_]| oids.contains(&signature);
    let algorithm: &'static Algorithm = if is_one_of(&[
        &OID_PKCS1_MD5WITHRSAENC,
        &OID_PKCS1_SHA1WITHRSA,
        &OID_PKCS1_SHA256WITHRSA,
        &OID_SIG_ECDSA_WITH_SHA256,
    ]) {
        &SHA256
    } else if is_one_of(&[&OID_PKCS1_SHA384WITHRSA, &OID_SIG_ECDSA_WITH_SHA384]) {
        &SHA384
    } else if is_one_of(&[&OID_PKCS1_SHA512WITHRSA, &OID_SIG_ECDSA_WITH_SHA512]) {
        &SHA512
    } else {
        return None;
    };
    Some(digest(algorithm, certificate).as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn signed_by(algorithm: &'static rcgen::SignatureAlgorithm) -> CertificateDer<'static> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap();
        certificate.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        for (signature, hash) in [
            (&PKCS_ECDSA_P256_SHA256, &SHA256),
            (&PKCS_ECDSA_P384_SHA384, &SHA384),
        ] {
            let certificate = signed_by(signature);
            let expected = digest(hash, &certificate);
            assert_eq!(server_end_point(&certificate).as_deref(), Some(expected.as_ref()));
        }
    }

    #[test]
    fn a_signature_without_a_hash_of_its_own_binds_nothing() {
        assert_eq!(server_end_point(&signed_by(&PKCS_ED25519)), None);
        assert_eq!(server_end_point(&CertificateDer::from(vec![0x30, 0x00])), None);
    }
}
