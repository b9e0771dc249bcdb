//! Reading certificates with x509-parser: the parts several modules need.

use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ParsedExtension, X509Extension};
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

/// A certificate of ours is below 6 KiB.
pub(crate) const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;

/// The content octets of [`crate::IDENTITY_EXTENSION_OID`].
pub(crate) const IDENTITY_OID_BYTES: [u8; 10] = [0x2b, 0x06, 0x01, 0x04, 0x01, 0x81, 0xfd, 0x59, 0x01, 0x01];

/// One version 3 certificate, with nothing behind it and no extension twice (RFC 5280 §4.2).
pub(crate) fn certificate(der: &[u8]) -> Result<X509Certificate<'_>, &'static str> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err("it is larger than 16 KiB");
    }
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| "it is not an X.509 certificate")?;
    if !rest.is_empty() {
        return Err("bytes follow it");
    }
    if certificate.version() != X509Version::V3 {
        return Err("it is not of version 3");
    }
    if certificate.tbs_certificate.signature != certificate.signature_algorithm {
        return Err("its two signature algorithms differ");
    }
    Ok(certificate)
}

/// Whether an extension occurs twice.
pub(crate) fn has_repeated_extension(certificate: &X509Certificate<'_>) -> bool {
    let extensions = certificate.extensions();
    extensions.iter().enumerate().any(|(index, extension)| {
        extensions
            .iter()
            .skip(index + 1)
            .any(|later| later.oid == extension.oid)
    })
}

/// The serial's bytes in lower-case hex.
pub(crate) fn serial_hex(certificate: &X509Certificate<'_>) -> String {
    crate::text::hex(certificate.raw_serial())
}

pub(crate) fn not_before(certificate: &X509Certificate<'_>) -> OffsetDateTime {
    date_time(certificate.validity().not_before)
}

pub(crate) fn not_after(certificate: &X509Certificate<'_>) -> OffsetDateTime {
    date_time(certificate.validity().not_after)
}

fn date_time(time: ASN1Time) -> OffsetDateTime {
    time.to_datetime()
}

/// RFC 7093 §2 method 1: the leftmost 160 bits of SHA-256 over the subjectPublicKey bit string.
pub(crate) fn key_identifier(subject_public_key: &[u8]) -> [u8; 20] {
    let digest = crate::sha256(subject_public_key);
    let mut identifier = [0; 20];
    for (to, from) in identifier.iter_mut().zip(digest) {
        *to = from;
    }
    identifier
}

pub(crate) fn subject_key_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
            _ => None,
        })
}

/// The keyIdentifier of the AKI, provided it has no other field.
pub(crate) fn authority_key_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(identifier)
                if identifier.authority_cert_issuer.is_none()
                    && identifier.authority_cert_serial.is_none() =>
            {
                identifier.key_identifier.as_ref().map(|key| key.0.to_vec())
            }
            _ => None,
        })
}

/// Whether the extension is the identity extension.
pub(crate) fn is_identity_extension(extension: &X509Extension<'_>) -> bool {
    extension.oid.as_bytes() == IDENTITY_OID_BYTES
}
