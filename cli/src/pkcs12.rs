//! `identity.p12`: certificate and key in one file for programs that import one (RFC 7292).
//!
//! The password is empty: the file is 0600 like the PEM files beside it, and a password that everybody knows
//! would protect nothing. The key is in a shrouded bag all the same (PBES2, AES-256-CBC), because importers
//! expect one; certificates are public and lie in the open.

use std::num::NonZeroU32;

use anyhow::Context as _;
use aws_lc_rs::cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::{digest, hmac, iv::FixedLength, pbkdf2, rand};
use rustls_pki_types::CertificateDer;

const ITERATIONS: u32 = 2_048;
const SALT_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
/// What importers show.
const FRIENDLY_NAME: &str = "iap";
/// The empty password as a BMPString with its terminator (RFC 7292 appendix B.1).
const EMPTY_PASSWORD: [u8; 2] = [0, 0];

// Object identifiers, encoded.
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const SHROUDED_KEY_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x02];
const CERT_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x03];
const X509_CERTIFICATE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01];
const FRIENDLY_NAME_ATTRIBUTE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x14];
const LOCAL_KEY_ID_ATTRIBUTE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x15];
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
const HMAC_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x09];
const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];

// DER tags.
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const NULL: u8 = 0x05;
const OBJECT_IDENTIFIER: u8 = 0x06;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const EXPLICIT_0: u8 = 0xa0;

/// The file's bytes for a chain, leaf first, and the leaf's PKCS#8 key.
///
/// # Errors
/// When the system gives no randomness.
pub fn encode(chain: &[CertificateDer<'_>], key_pkcs8: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut bags = shrouded_key(key_pkcs8, chain)?;
    for (index, certificate) in chain.iter().enumerate() {
        bags.extend(certificate_bag(certificate, (index == 0).then_some(chain)));
    }
    let authenticated_safe = der(SEQUENCE, &content_info(&der(SEQUENCE, &bags)));
    let mac = mac_data(&authenticated_safe)?;
    Ok(der(
        SEQUENCE,
        &[integer(3), content_info(&authenticated_safe), mac].concat(),
    ))
}

/// `ContentInfo` of type data.
fn content_info(content: &[u8]) -> Vec<u8> {
    let content = der(EXPLICIT_0, &der(OCTET_STRING, content));
    der(SEQUENCE, &[der(OBJECT_IDENTIFIER, DATA), content].concat())
}

fn shrouded_key(key_pkcs8: &[u8], chain: &[CertificateDer<'_>]) -> anyhow::Result<Vec<u8>> {
    let salt = random::<SALT_BYTES>()?;
    let mut key = [0; KEY_BYTES];
    let iterations = NonZeroU32::new(ITERATIONS).context("no iterations")?;
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, b"", &mut key);
    let vector = random::<16>()?;
    let mut encrypted = key_pkcs8.to_vec();
    let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_256, &key)?)?;
    cipher.less_safe_encrypt(
        &mut encrypted,
        EncryptionContext::Iv128(FixedLength::from(&vector)),
    )?;
    let function = algorithm(
        PBKDF2,
        &der(
            SEQUENCE,
            &[
                der(OCTET_STRING, &salt),
                integer(ITERATIONS),
                algorithm(HMAC_SHA256, &der(NULL, &[])),
            ]
            .concat(),
        ),
    );
    let scheme = algorithm(AES_256_CBC, &der(OCTET_STRING, &vector));
    let encryption = algorithm(PBES2, &der(SEQUENCE, &[function, scheme].concat()));
    let info = der(SEQUENCE, &[encryption, der(OCTET_STRING, &encrypted)].concat());
    Ok(bag(SHROUDED_KEY_BAG, &info, &attributes(chain)))
}

fn certificate_bag(certificate: &[u8], key_of: Option<&[CertificateDer<'_>]>) -> Vec<u8> {
    let value = der(EXPLICIT_0, &der(OCTET_STRING, certificate));
    let certificate = der(
        SEQUENCE,
        &[der(OBJECT_IDENTIFIER, X509_CERTIFICATE), value].concat(),
    );
    bag(
        CERT_BAG,
        &certificate,
        &key_of.map(attributes).unwrap_or_default(),
    )
}

fn bag(kind: &[u8], value: &[u8], attributes: &[u8]) -> Vec<u8> {
    der(
        SEQUENCE,
        &[&der(OBJECT_IDENTIFIER, kind), &der(EXPLICIT_0, value), attributes].concat(),
    )
}

/// What ties the key to its certificate, and a name to show.
fn attributes(chain: &[CertificateDer<'_>]) -> Vec<u8> {
    let leaf = chain.first().map(AsRef::as_ref).unwrap_or_default();
    let identifier = digest::digest(&digest::SHA256, leaf);
    let name: Vec<u8> = FRIENDLY_NAME.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let attribute = |kind: &[u8], value: Vec<u8>| {
        der(
            SEQUENCE,
            &[der(OBJECT_IDENTIFIER, kind), der(SET, &value)].concat(),
        )
    };
    let attributes = [
        attribute(FRIENDLY_NAME_ATTRIBUTE, der(BMP_STRING, &name)),
        attribute(LOCAL_KEY_ID_ATTRIBUTE, der(OCTET_STRING, identifier.as_ref())),
    ];
    der(SET, &attributes.concat())
}

fn mac_data(content: &[u8]) -> anyhow::Result<Vec<u8>> {
    let salt = random::<SALT_BYTES>()?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &mac_key(&salt));
    let tag = hmac::sign(&key, content);
    let digest = der(
        SEQUENCE,
        &[
            algorithm(SHA256, &der(NULL, &[])),
            der(OCTET_STRING, tag.as_ref()),
        ]
        .concat(),
    );
    Ok(der(
        SEQUENCE,
        &[digest, der(OCTET_STRING, &salt), integer(ITERATIONS)].concat(),
    ))
}

/// RFC 7292 appendix B.2 for the empty password, SHA-256 and 32 bytes: a single round of its outer loop.
fn mac_key(salt: &[u8; SALT_BYTES]) -> Vec<u8> {
    const BLOCK_BYTES: usize = 64;
    const MAC_PURPOSE: u8 = 3;
    let repeated = |bytes: &[u8]| {
        bytes
            .iter()
            .copied()
            .cycle()
            .take(BLOCK_BYTES)
            .collect::<Vec<_>>()
    };
    let input = [
        vec![MAC_PURPOSE; BLOCK_BYTES],
        repeated(salt),
        repeated(&EMPTY_PASSWORD),
    ]
    .concat();
    let first = digest::digest(&digest::SHA256, &input).as_ref().to_vec();
    (1..ITERATIONS).fold(first, |hash, _| {
        digest::digest(&digest::SHA256, &hash).as_ref().to_vec()
    })
}

fn algorithm(kind: &[u8], parameters: &[u8]) -> Vec<u8> {
    der(SEQUENCE, &[&der(OBJECT_IDENTIFIER, kind), parameters].concat())
}

/// A non-negative INTEGER: its top bit is never set.
fn integer(value: u32) -> Vec<u8> {
    let bytes = u64::from(value).to_be_bytes();
    let leading = bytes
        .iter()
        .take_while(|byte| **byte == 0)
        .count()
        .min(bytes.len() - 1);
    let needed = bytes.get(leading..).unwrap_or_default();
    let sign: &[u8] = if needed.first().is_some_and(|byte| byte & 0x80 != 0) {
        &[0]
    } else {
        &[]
    };
    der(INTEGER, &[sign, needed].concat())
}

/// Tag, length, content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = length
        .iter()
        .skip_while(|byte| **byte == 0)
        .copied()
        .collect::<Vec<_>>();
    let mut encoded = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => encoded.push(short),
        Ok(_) | Err(_) => {
            encoded.push(0x80 | u8::try_from(significant.len()).unwrap_or(0));
            encoded.extend(significant);
        }
    }
    encoded.extend_from_slice(content);
    encoded
}

fn random<const BYTES: usize>() -> anyhow::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    rand::fill(&mut bytes)
        .ok()
        .context("the system gave no randomness")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    #[test]
    fn lengths_and_integers_are_der() {
        assert_eq!(der(OCTET_STRING, &[0; 127]).get(..2), Some(&[4, 127][..]));
        assert_eq!(der(OCTET_STRING, &[0; 128]).get(..3), Some(&[4, 0x81, 128][..]));
        assert_eq!(der(OCTET_STRING, &[0; 300]).get(..4), Some(&[4, 0x82, 1, 44][..]));
        assert_eq!(integer(3), [2, 1, 3]);
        assert_eq!(integer(128), [2, 2, 0, 128]);
        assert_eq!(integer(2_048), [2, 2, 8, 0]);
    }

    #[test]
    fn openssl_reads_key_and_chain_back() {
        if Command::new("openssl").arg("version").output().is_err() {
            return;
        }
        let cluster = iap_testkit::TestCluster::new("iap.localhost").unwrap();
        let user = cluster.user("alice@example.com", &[]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("identity.p12");
        std::fs::write(&file, encode(&user.chain, &user.key.serialize_der()).unwrap()).unwrap();
        let output = Command::new("openssl")
            .args(["pkcs12", "-nodes", "-passin", "pass:", "-in"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2, "{text}");
        let (_, key) = text.split_once("-----BEGIN PRIVATE KEY-----").unwrap();
        let (key, _) = key.split_once("-----END PRIVATE KEY-----").unwrap();
        let pem = format!("-----BEGIN PRIVATE KEY-----{key}-----END PRIVATE KEY-----\n");
        let read = rcgen::KeyPair::from_pem(&pem).unwrap();
        assert_eq!(read.serialize_der(), user.key.serialize_der());
    }
}
