//! The extensions behind a header's addresses: type, length and value (haproxy's `proxy-protocol.txt` §2.2.1).

use super::ProxyHeaderError;

/// The server name the client asked for (`PP2_TYPE_AUTHORITY`).
pub const AUTHORITY: u8 = 0x02;
/// CRC-32C of the whole header (`PP2_TYPE_CRC32C`).
pub const CRC32C: u8 = 0x03;
/// An opaque id of the connection, at most 128 bytes (`PP2_TYPE_UNIQUE_ID`): ours is the session's id.
pub const UNIQUE_ID: u8 = 0x05;
/// The user's name; of the range left to applications (§2.2.7).
pub const USER_NAME: u8 = 0xE0;
/// The user's id.
pub const USER_ID: u8 = 0xE1;
/// `user` or `bot`.
pub const USER_KIND: u8 = 0xE2;
/// The service's name.
pub const SERVICE: u8 = 0xE3;

/// Value bytes of one extension that we write.
pub const VALUE_BYTES_MAX: usize = 512;
/// All extensions that we write, so that a header fits the smallest buffers in use (4,096 bytes at nginx).
pub const EXTENSIONS_BYTES_MAX: usize = 2048;

pub(super) const CRC32C_EXTENSION_BYTES: usize = 7;
const HEAD_BYTES: usize = 3;

/// Extensions to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extensions(Vec<u8>);

/// An extension is too long to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("extension {kind:#04x} of a PROXY header would be too long: {bytes} bytes")]
pub struct ExtensionTooLong {
    /// Its type.
    pub kind: u8,
    /// Its length, or that of all.
    pub bytes: usize,
}

impl Extensions {
    /// Adds one.
    ///
    /// # Errors
    /// When it, or all of them together, are too long. Nothing is ever cut short: half a name is another name.
    pub fn push(&mut self, kind: u8, value: &str) -> Result<(), ExtensionTooLong> {
        let too_long = |bytes| ExtensionTooLong { kind, bytes };
        let total = self.0.len() + HEAD_BYTES + value.len();
        if value.len() > VALUE_BYTES_MAX || total > EXTENSIONS_BYTES_MAX {
            return Err(too_long(total));
        }
        let length = u16::try_from(value.len()).map_err(|_| too_long(value.len()))?;
        self.0.push(kind);
        self.0.extend(length.to_be_bytes());
        self.0.extend(value.as_bytes());
        Ok(())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Checks extensions that were read: each has its length, and a checksum, where there is one, is right. Their
/// values are nothing to us. `header` is everything from the signature to the last extension.
pub(super) fn check(header: &[u8], mut extensions: &[u8]) -> Result<(), ProxyHeaderError> {
    while !extensions.is_empty() {
        let [kind, high, low, rest @ ..] = extensions else {
            return Err(ProxyHeaderError::Malformed("an extension is cut short"));
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((value, rest)) = rest.split_at_checked(length) else {
            return Err(ProxyHeaderError::Malformed("an extension is cut short"));
        };
        if *kind == CRC32C {
            check_crc(header, header.len() - rest.len() - length, value)?;
        }
        extensions = rest;
    }
    Ok(())
}

/// The sum is over the header with the sum's own four bytes as zeros (§2.2.3).
fn check_crc(header: &[u8], place: usize, value: &[u8]) -> Result<(), ProxyHeaderError> {
    let said: [u8; 4] = value
        .try_into()
        .map_err(|_| ProxyHeaderError::Malformed("a checksum has four bytes"))?;
    let (before, rest) = header.split_at(place);
    let after = rest.get(said.len()..).unwrap_or_default();
    let zeroed = before.iter().chain(&[0; 4]).chain(after).copied();
    match crc32c(zeroed) == u32::from_be_bytes(said) {
        true => Ok(()),
        false => Err(ProxyHeaderError::Malformed("the checksum does not match")),
    }
}

/// Castagnoli's polynomial, reflected (RFC 3720 appendix B.4).
pub(super) fn crc32c(bytes: impl IntoIterator<Item = u8>) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(byte);
        for _ in 0..8 {
            sum = sum >> 1 ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 };
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standards_vectors() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c([0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c([0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(*b"123456789"), 0xE306_9283);
    }

    #[test]
    fn what_is_too_long_is_refused_and_never_cut() {
        let mut extensions = Extensions::default();
        assert!(
            extensions
                .push(USER_NAME, &"a".repeat(VALUE_BYTES_MAX + 1))
                .is_err()
        );
        assert_eq!(extensions, Extensions::default());
        let value = "a".repeat(VALUE_BYTES_MAX);
        let written = (0..10)
            .take_while(|_| extensions.push(USER_NAME, &value).is_ok())
            .count();
        assert_eq!(written, EXTENSIONS_BYTES_MAX / (HEAD_BYTES + VALUE_BYTES_MAX));
        assert!(extensions.bytes().len() <= EXTENSIONS_BYTES_MAX);
    }
}
