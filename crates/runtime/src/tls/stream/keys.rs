//! The protection of records (RFC 8446 §5.2 and §5.3).

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::{CipherSuite, ConnectionTrafficSecrets, Error, PeerMisbehaved, Tls13CipherSuite};

pub(super) use aws_lc_rs::aead::NONCE_LEN as NONCE_BYTES;

/// Content types (RFC 8446 §5.1).
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;

/// Type, version and length.
pub(super) const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
/// What is protected besides the content: its type.
pub(super) const TYPE_BYTES: usize = 1;
/// The most content in one record.
pub(super) const FRAGMENT_BYTES_MAX: usize = 16 * 1024;
/// The longest key there is.
pub(super) const KEY_BYTES_MAX: usize = 32;
/// By so much is a record without padding longer than its content.
pub(super) const PROTECTION_BYTES: usize = HEADER_BYTES + TYPE_BYTES + TAG_BYTES;

/// The keys of one direction, and how many records they have protected.
pub(super) struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_BYTES],
    sequence: u64,
}

impl Keys {
    pub(super) fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("an unknown cipher".to_owned())),
        };
        let iv = iv.as_ref().try_into();
        let iv = iv.map_err(|_| Error::General("an initialisation vector of the wrong length".to_owned()))?;
        Ok(Self {
            sequence,
            ..Self::first(algorithm, key.as_ref(), iv)?
        })
    }

    /// Keys that have protected nothing yet.
    pub(super) fn first(
        algorithm: &'static Algorithm,
        key: &[u8],
        iv: [u8; NONCE_BYTES],
    ) -> Result<Self, Error> {
        let key = UnboundKey::new(algorithm, key);
        Ok(Self {
            key: LessSafeKey::new(key.map_err(|_| Error::General("keys of the wrong length".to_owned()))?),
            iv,
            sequence: 0,
        })
    }

    /// What a suite's records are protected with.
    pub(super) fn algorithm(suite: &Tls13CipherSuite) -> Result<&'static Algorithm, Error> {
        match suite.common.suite {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Ok(&AES_128_GCM),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => Ok(&AES_256_GCM),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Ok(&CHACHA20_POLY1305),
            _ => Err(Error::General("an unknown cipher".to_owned())),
        }
    }

    /// How many records they have protected.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The nonce of the next record. None is used twice: the sequence does not wrap.
    fn nonce(&mut self) -> Result<Nonce, Error> {
        let sequence = self.sequence;
        self.sequence = sequence.checked_add(1).ok_or(Error::EncryptError)?;
        let mut nonce = self.iv;
        let of_sequence = sequence.to_be_bytes();
        for (byte, other) in nonce.iter_mut().rev().zip(of_sequence.iter().rev()) {
            *byte ^= other;
        }
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Protects `content`. Returns how long the record is, which is written to the front of `space`.
    pub(super) fn seal(
        &mut self,
        content_type: u8,
        content: &[u8],
        space: &mut [u8],
    ) -> Result<usize, Error> {
        let room = Room::of(space, content.len())?;
        let (nonce, aad) = (self.nonce()?, Aad::from(room.header));
        self.key
            .seal_out_of_place_scatter(nonce, aad, content, room.content, &[content_type], room.end)
            .map_err(|_| Error::EncryptError)?;
        Ok(content.len() + PROTECTION_BYTES)
    }

    /// The same for content that `write` puts to its place.
    pub(super) fn seal_written(
        &mut self,
        content_type: u8,
        length: usize,
        space: &mut [u8],
        write: impl FnOnce(&mut [u8]),
    ) -> Result<usize, Error> {
        let room = Room::of(space, length)?;
        write(room.content);
        let (nonce, aad) = (self.nonce()?, Aad::from(room.header));
        self.key
            .seal_in_place_scatter(nonce, aad, room.content, &[content_type], room.end)
            .map_err(|_| Error::EncryptError)?;
        Ok(length + PROTECTION_BYTES)
    }

    /// Opens a record into the front of `target`, which must have [`opened_bytes`] at least.
    pub(super) fn open_into(&mut self, record: &[u8], target: &mut [u8]) -> Result<Content, Error> {
        let (header, protected) = record.split_at_checked(HEADER_BYTES).ok_or(Error::DecryptError)?;
        let length = opened_bytes(record.len()).ok_or(Error::DecryptError)?;
        let (ciphertext, tag) = protected.split_at_checked(length).ok_or(Error::DecryptError)?;
        let target = target.get_mut(..length).ok_or(Error::DecryptError)?;
        let nonce = self.nonce()?;
        self.key
            .open_separate_gather(nonce, Aad::from(header), ciphertext, tag, target)
            .map_err(|_| Error::DecryptError)?;
        Content::of(target)
    }

    /// Opens a record in place; its content begins behind its header.
    pub(super) fn open_in_place(&mut self, record: &mut [u8]) -> Result<Content, Error> {
        let split = record.split_at_mut_checked(HEADER_BYTES);
        let (header, protected) = split.ok_or(Error::DecryptError)?;
        let nonce = self.nonce()?;
        let opened = self.key.open_in_place(nonce, Aad::from(&*header), protected);
        Content::of(opened.map_err(|_| Error::DecryptError)?)
    }
}

/// How much a record of so many bytes holds, its content's type and padding included; nothing for one that is too short.
pub(super) fn opened_bytes(record_bytes: usize) -> Option<usize> {
    record_bytes.checked_sub(HEADER_BYTES + TAG_BYTES)
}

/// What was in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) length: usize,
    pub(super) content_type: u8,
}

impl Content {
    /// Takes type and padding off (RFC 8446 §5.4).
    fn of(opened: &[u8]) -> Result<Self, Error> {
        if opened.len() > FRAGMENT_BYTES_MAX + TYPE_BYTES {
            return Err(Error::PeerSentOversizedRecord);
        }
        let at = opened.iter().rposition(|byte| *byte != 0);
        match at.and_then(|at| opened.get(at).map(|content_type| (at, *content_type))) {
            Some((length, content_type)) => Ok(Self { length, content_type }),
            None => Err(PeerMisbehaved::IllegalTlsInnerPlaintext.into()),
        }
    }
}

/// The places of a record's parts, its header written.
struct Room<'a> {
    header: [u8; HEADER_BYTES],
    content: &'a mut [u8],
    /// The content's type and the tag.
    end: &'a mut [u8],
}

impl<'a> Room<'a> {
    fn of(space: &'a mut [u8], content_bytes: usize) -> Result<Self, Error> {
        let protected = u16::try_from(content_bytes + TYPE_BYTES + TAG_BYTES);
        let [high, low] = protected.map_err(|_| Error::EncryptError)?.to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        let parts = space
            .split_at_mut_checked(HEADER_BYTES)
            .and_then(|(front, rest)| {
                front.copy_from_slice(&header);
                let (content, rest) = rest.split_at_mut_checked(content_bytes)?;
                Some((content, rest.get_mut(..TYPE_BYTES + TAG_BYTES)?))
            });
        let (content, end) = parts.ok_or(Error::EncryptError)?;
        Ok(Self { header, content, end })
    }
}
