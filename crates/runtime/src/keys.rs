//! Private keys in files: made on first use, kept 0600, refused when looser.

use std::path::Path;

use aws_lc_rs::encoding::{AsBigEndian as _, Curve25519SeedBin};
use aws_lc_rs::signature::Ed25519KeyPair;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::files::{self, FileError, PRIVATE_FILE_MODE};

/// What kind of key to make. An existing key of another kind is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256: certificates.
    P256,
    /// Ed25519: signed snapshots.
    Ed25519,
}

/// Why a key could not be loaded or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file is not usable.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file holds no private key in PKCS#8 PEM.
    #[error("{path} holds no usable private key: {source}")]
    Malformed {
        /// The file.
        path: String,
        /// What the parser said.
        source: rcgen::Error,
    },
    /// The file holds a key, but of another kind.
    #[error("{path} holds a key that is not {wanted:?}")]
    WrongKind {
        /// The file.
        path: String,
        /// What was needed.
        wanted: KeyKind,
    },
    /// The key is of a kind that is not used with SSH here.
    #[error("the key is not Ed25519, the only kind used with SSH here")]
    NotForSsh,
    /// The generator failed.
    #[error("cannot generate a private key: {0}")]
    Generate(rcgen::Error),
}

/// A new key.
pub fn generate(kind: KeyKind) -> Result<KeyPair, KeyError> {
    KeyPair::generate_for(kind.algorithm()).map_err(KeyError::Generate)
}

/// The key at `path`; made and stored durably (0600) when there is none.
pub fn load_or_create(path: &Path, kind: KeyKind) -> Result<KeyPair, KeyError> {
    match load(path, kind) {
        Err(KeyError::File(error)) if error.is_not_found() => create(path, kind),
        other => other,
    }
}

/// The key at `path`.
pub fn load(path: &Path, kind: KeyKind) -> Result<KeyPair, KeyError> {
    let bytes = Zeroizing::new(files::read_private(path)?);
    parse(&String::from_utf8_lossy(&bytes), kind, || {
        path.display().to_string()
    })
}

/// A key in PKCS#8 PEM that lies within something else.
pub fn from_pem(pem: &str, kind: KeyKind) -> Result<KeyPair, KeyError> {
    parse(pem, kind, || "what is stored".to_owned())
}

fn parse(pem: &str, kind: KeyKind, path: impl Fn() -> String) -> Result<KeyPair, KeyError> {
    let key = KeyPair::from_pem(pem).map_err(|source| KeyError::Malformed { path: path(), source })?;
    match key.is_compatible(kind.algorithm()) {
        true => Ok(key),
        false => Err(KeyError::WrongKind {
            path: path(),
            wanted: kind,
        }),
    }
}

/// An Ed25519 key in the form SSH takes.
pub fn ssh_private_key(key: &KeyPair) -> Result<ssh_key::PrivateKey, KeyError> {
    let refused = || KeyError::NotForSsh;
    let pkcs8 = Zeroizing::new(key.serialize_der());
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8).map_err(|_| refused())?;
    let seed = pair.seed().map_err(|_| refused())?;
    let seed: Curve25519SeedBin<'_> = seed.as_be_bytes().map_err(|_| refused())?;
    let seed: &[u8; 32] = seed.as_ref().try_into().map_err(|_| refused())?;
    Ok(ssh_key::private::Ed25519Keypair::from_seed(seed).into())
}

/// A new key, stored at `path` in place of any other.
pub fn create(path: &Path, kind: KeyKind) -> Result<KeyPair, KeyError> {
    let key = generate(kind)?;
    store(path, &key)?;
    Ok(key)
}

/// Stores `key` as PKCS#8 PEM (0600), durably and in one step.
pub fn store(path: &Path, key: &KeyPair) -> Result<(), KeyError> {
    let pem = Zeroizing::new(key.serialize_pem());
    Ok(files::write_atomic(path, pem.as_bytes(), PRIVATE_FILE_MODE)?)
}

/// The key in the form TLS takes.
pub fn private_key_der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

impl KeyKind {
    fn algorithm(self) -> &'static SignatureAlgorithm {
        match self {
            Self::P256 => &PKCS_ECDSA_P256_SHA256,
            Self::Ed25519 => &PKCS_ED25519,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rcgen::PublicKeyData;

    use super::*;

    #[test]
    fn a_key_made_once_is_loaded_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        for kind in [KeyKind::P256, KeyKind::Ed25519] {
            let made = create(&path, kind).unwrap();
            let loaded = load_or_create(&path, kind).unwrap();
            assert_eq!(made.subject_public_key_info(), loaded.subject_public_key_info());
        }
    }

    #[test]
    fn a_key_of_another_kind_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        create(&path, KeyKind::P256).unwrap();
        assert!(matches!(
            load_or_create(&path, KeyKind::Ed25519),
            Err(KeyError::WrongKind { .. })
        ));
        load(&path, KeyKind::P256).unwrap();
    }

    #[test]
    fn a_file_that_is_no_key_is_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        files::write_atomic(&path, b"not a key", PRIVATE_FILE_MODE).unwrap();
        assert!(matches!(
            load_or_create(&path, KeyKind::P256),
            Err(KeyError::Malformed { .. })
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"not a key");
    }

    #[cfg(unix)]
    #[test]
    fn a_key_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        create(&path, KeyKind::P256).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            load(&path, KeyKind::P256),
            Err(KeyError::File(FileError::TooLoose { .. }))
        ));
    }
}
