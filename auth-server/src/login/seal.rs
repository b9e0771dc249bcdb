//! Refresh tokens at rest: sealed with AES-256-GCM under a key file beside the database, never in it.
//!
//! The file holds one key on each line, 64 hex digits; `#` begins a comment. The first key seals, all of them
//! open, so a key is replaced by writing a new line above it and, once every login made under it is over,
//! taking the old line away. What is sealed names its key and is bound to its login, so that a row copied to
//! another login opens for nobody.

use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use iap_identity::{LoginId, hex};
use iap_runtime::files::{self, PRIVATE_FILE_MODE};

use crate::authority::KeysError;
use crate::context::Random;
use crate::store::hash_of;

/// The default name in `data_dir`.
pub const KEY_FILE: &str = "refresh.key";

const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 12;
const KEYS_MAX: usize = 16;
/// The first byte of everything sealed.
const FORMAT: u8 = 1;

/// The keys that seal and open.
pub struct SealKeys {
    keys: Vec<SealKey>,
}

struct SealKey {
    id: [u8; KEY_ID_BYTES],
    key: RandomizedNonceKey,
}

/// What is sealed does not open.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The key it names is not in the key file.
    #[error("it was sealed under the key {0}, which is not in the key file any more")]
    UnknownKey(String),
    /// It was altered, or belongs to another login.
    #[error("it was altered, or belongs to another login")]
    Altered,
}

/// Nothing was sealed.
#[derive(Debug, thiserror::Error)]
#[error("sealing failed")]
pub struct SealError;

impl SealKeys {
    /// Reads the key file, or makes it with one new key.
    ///
    /// # Errors
    /// When it cannot be read or made, is open to others, or holds something else.
    pub fn load_or_create(path: &Path, random: &Random) -> Result<Self, KeysError> {
        match files::read_private(path) {
            Ok(bytes) => Self::parse(&bytes, path),
            Err(error) if error.is_not_found() => {
                let fresh = format!(
                    "# Seals refresh tokens. Replace a key by adding a new line above it.\n{}\n",
                    hex(&random.bytes::<KEY_BYTES>()?)
                );
                files::write_atomic(path, fresh.as_bytes(), PRIVATE_FILE_MODE)?;
                Self::parse(fresh.as_bytes(), path)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, KeysError> {
        let wrong = |why: &str| KeysError::Inconsistent(format!("{}: {why}", path.display()));
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("is not text"))?;
        let keys = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim())
            .filter(|line| !line.is_empty())
            .map(|line| {
                SealKey::parse(line).ok_or_else(|| wrong("a key is 64 hex digits on a line of its own"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() || keys.len() > KEYS_MAX {
            return Err(wrong("must hold at least one key, and at most 16"));
        }
        Ok(Self { keys })
    }

    /// Seals for one login.
    ///
    /// # Errors
    /// When the library gives no nonce.
    pub fn seal(&self, login: LoginId, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        let newest = self.keys.first().ok_or(SealError)?;
        let mut body = secret.to_vec();
        let nonce = newest
            .key
            .seal_in_place_append_tag(Aad::from(bound_to(login)), &mut body)
            .map_err(|_| SealError)?;
        let head = [&[FORMAT][..], &newest.id, nonce.as_ref()];
        Ok([head.concat(), body].concat())
    }

    /// Opens what was sealed for that login.
    ///
    /// # Errors
    /// When its key is gone, or it is not what was sealed.
    pub fn open(&self, login: LoginId, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (key_id, rest) = split(sealed).ok_or(OpenError::Altered)?;
        let key = self
            .keys
            .iter()
            .find(|key| key.id == key_id)
            .ok_or_else(|| OpenError::UnknownKey(hex(&key_id)))?;
        let (nonce, body) = rest
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(OpenError::Altered)?;
        let mut body = body.to_vec();
        let opened = key
            .key
            .open_in_place(Nonce::from(nonce), Aad::from(bound_to(login)), &mut body)
            .map_err(|_| OpenError::Altered)?
            .len();
        body.truncate(opened);
        Ok(body)
    }

    /// Whether it is sealed under an older key than new things are.
    pub fn is_outdated(&self, sealed: &[u8]) -> bool {
        let key_id = split(sealed).map(|(key_id, _)| key_id);
        key_id != self.keys.first().map(|key| key.id)
    }
}

impl std::fmt::Debug for SealKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SealKeys")
    }
}

impl SealKey {
    fn parse(line: &str) -> Option<Self> {
        let digits = line.as_bytes();
        if digits.len() != 2 * KEY_BYTES || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let bytes = digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect::<Option<Vec<u8>>>()?;
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(hash_of(&bytes).get(..KEY_ID_BYTES)?);
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes).ok()?;
        Some(Self { id, key })
    }
}

fn split(sealed: &[u8]) -> Option<([u8; KEY_ID_BYTES], &[u8])> {
    let rest = sealed.strip_prefix(&[FORMAT])?;
    let (key_id, rest) = rest.split_first_chunk::<KEY_ID_BYTES>()?;
    Some((*key_id, rest))
}

fn bound_to(login: LoginId) -> Vec<u8> {
    [b"iap-refresh-v1\0".as_slice(), login.as_bytes().as_slice()].concat()
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use std::os::unix::fs::PermissionsExt as _;

    use uuid::Uuid;

    use super::*;

    fn login(number: u128) -> LoginId {
        LoginId::from_uuid(Uuid::from_u128(number))
    }

    #[test]
    fn what_was_sealed_opens_for_its_login_alone_and_shows_nothing() {
        let dir = iap_testkit::temp().unwrap();
        let path = dir.path().join(KEY_FILE);
        let keys = SealKeys::load_or_create(&path, &Random::system()).unwrap();
        let sealed = keys.seal(login(1), b"a refresh token").unwrap();
        assert_eq!(keys.open(login(1), &sealed).unwrap(), b"a refresh token");
        assert_eq!(keys.open(login(2), &sealed), Err(OpenError::Altered));
        assert!(!sealed.windows(7).any(|window| window == b"refresh"));
        assert_ne!(sealed, keys.seal(login(1), b"a refresh token").unwrap());
        for index in [0, sealed.len() - 1] {
            let mut altered = sealed.clone();
            altered[index] ^= 1;
            assert_eq!(keys.open(login(1), &altered), Err(OpenError::Altered));
        }
        assert_eq!(keys.open(login(1), &sealed[..12]), Err(OpenError::Altered));
        let again = SealKeys::load_or_create(&path, &Random::system()).unwrap();
        assert_eq!(again.open(login(1), &sealed).unwrap(), b"a refresh token");
    }

    #[test]
    fn a_key_is_replaced_by_a_line_above_it() {
        let dir = iap_testkit::temp().unwrap();
        let path = dir.path().join(KEY_FILE);
        let keys = SealKeys::load_or_create(&path, &Random::system()).unwrap();
        let sealed = keys.seal(login(1), b"t").unwrap();
        assert!(!keys.is_outdated(&sealed));

        let before = std::fs::read_to_string(&path).unwrap();
        let newest = "ab".repeat(KEY_BYTES);
        std::fs::write(&path, format!("{newest}\n{before}")).unwrap();
        let both = SealKeys::load_or_create(&path, &Random::system()).unwrap();
        assert_eq!(both.open(login(1), &sealed).unwrap(), b"t");
        assert!(both.is_outdated(&sealed));
        assert!(!both.is_outdated(&both.seal(login(1), b"t").unwrap()));

        std::fs::write(&path, format!("{newest}\n")).unwrap();
        let replaced = SealKeys::load_or_create(&path, &Random::system()).unwrap();
        assert!(matches!(
            replaced.open(login(1), &sealed),
            Err(OpenError::UnknownKey(_))
        ));
    }

    #[test]
    fn a_key_file_that_others_read_or_that_holds_no_key_is_refused() {
        let dir = iap_testkit::temp().unwrap();
        let path = dir.path().join(KEY_FILE);
        SealKeys::load_or_create(&path, &Random::system()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            SealKeys::load_or_create(&path, &Random::system()),
            Err(KeysError::File(_))
        ));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        for bad in ["", "# nothing\n", "short\n", &"g".repeat(64), &"é".repeat(32)] {
            std::fs::write(&path, bad).unwrap();
            let refused = SealKeys::load_or_create(&path, &Random::system());
            assert!(matches!(refused, Err(KeysError::Inconsistent(_))), "{bad:?}");
        }
    }
}
