//! The first bytes of a connection that an agent dials back to the proxy: `IAPD`, a version byte, the id of
//! the connection it comes to fetch and the one-use token it was given for it.

use iap_identity::ConnectionId;
use thiserror::Error;

/// `IAPD`, version, connection id, token.
pub const PREFACE_BYTES: usize = 4 + 1 + ID_BYTES + TOKEN_BYTES;

/// The first four bytes; the first of them tells the proxy's port a dial-back from TLS and PostgreSQL.
pub const PREFACE_MAGIC: [u8; 4] = *b"IAPD";

/// Of a connection that comes to fetch a client.
pub const PREFACE_VERSION: u8 = 1;

/// Of a connection that comes in advance and waits for one.
pub const POOL_PREFACE_VERSION: u8 = 2;

/// A token's length.
pub const TOKEN_BYTES: usize = 16;

const ID_BYTES: usize = 16;

/// What an agent proves itself with when it dials back: 128 random bits, told to it on its control
/// connection, good for one connection and a few seconds. A secret: no `Debug`, no `==`.
#[derive(Clone)]
pub struct Token([u8; TOKEN_BYTES]);

impl Token {
    /// A token from 128 freshly drawn bits.
    pub fn from_random(bytes: [u8; TOKEN_BYTES]) -> Self {
        Self(bytes)
    }

    /// A token as it came over the wire.
    pub fn parse(bytes: &[u8]) -> Result<Self, PrefaceError> {
        let bytes = bytes
            .try_into()
            .map_err(|_| PrefaceError::TokenLength { bytes: bytes.len() })?;
        Ok(Self(bytes))
    }

    /// The bytes, for the wire only.
    pub fn expose(&self) -> &[u8; TOKEN_BYTES] {
        &self.0
    }

    /// Compares in a time that does not depend on where two tokens differ.
    pub fn matches(&self, other: &Token) -> bool {
        let difference = self
            .0
            .iter()
            .zip(&other.0)
            .fold(0u8, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
        difference == 0
    }
}

/// The preface, parsed. Carries a token, so no `Debug`.
#[derive(Clone)]
pub struct Preface {
    /// Which waiting connection the agent comes to fetch.
    pub connection_id: ConnectionId,
    /// Its proof that it was the one asked.
    pub token: Token,
}

impl Preface {
    /// The bytes an agent sends first.
    pub fn encode(&self) -> [u8; PREFACE_BYTES] {
        encode(PREFACE_VERSION, &self.connection_id, &self.token)
    }

    /// Reads the bytes an agent sent first.
    pub fn parse(bytes: &[u8; PREFACE_BYTES]) -> Result<Self, PrefaceError> {
        let (connection_id, token) = parse(bytes, PREFACE_VERSION)?;
        Ok(Self { connection_id, token })
    }
}

/// What a connection brings that an agent dials in advance. Carries a token, so no `Debug`.
#[derive(Clone)]
pub struct PoolPreface {
    /// Which invitation it follows.
    pub id: ConnectionId,
    /// The proof that it was invited.
    pub token: Token,
}

impl PoolPreface {
    /// The bytes an agent sends first.
    pub fn encode(&self) -> [u8; PREFACE_BYTES] {
        encode(POOL_PREFACE_VERSION, &self.id, &self.token)
    }

    /// Reads the bytes an agent sent first.
    pub fn parse(bytes: &[u8; PREFACE_BYTES]) -> Result<Self, PrefaceError> {
        let (id, token) = parse(bytes, POOL_PREFACE_VERSION)?;
        Ok(Self { id, token })
    }
}

fn encode(version: u8, id: &ConnectionId, token: &Token) -> [u8; PREFACE_BYTES] {
    let mut bytes = [0; PREFACE_BYTES];
    let fields = PREFACE_MAGIC
        .iter()
        .chain(std::iter::once(&version))
        .chain(id.as_bytes())
        .chain(token.expose());
    for (to, from) in bytes.iter_mut().zip(fields) {
        *to = *from;
    }
    bytes
}

fn parse(bytes: &[u8; PREFACE_BYTES], expected: u8) -> Result<(ConnectionId, Token), PrefaceError> {
    let rest = bytes.strip_prefix(&PREFACE_MAGIC).ok_or(PrefaceError::Magic)?;
    let (version, rest) = rest.split_first().ok_or(PrefaceError::Magic)?;
    if *version != expected {
        return Err(PrefaceError::Version { version: *version });
    }
    let (id, token) = rest.split_at_checked(ID_BYTES).ok_or(PrefaceError::Magic)?;
    let id = ConnectionId::from_bytes(id).map_err(|_| PrefaceError::ConnectionId)?;
    Ok((id, Token::parse(token)?))
}

/// Why bytes are no preface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PrefaceError {
    /// Not one of our agents.
    #[error("the connection starts like a dial-back but is none")]
    Magic,
    /// An agent newer than this proxy.
    #[error("dial-back preface version {version} is not supported here")]
    Version {
        /// What was offered.
        version: u8,
    },
    /// Sixteen bytes that are no id.
    #[error("the dial-back names no valid connection id")]
    ConnectionId,
    /// A token of the wrong length.
    #[error("a dial-back token has {TOKEN_BYTES} bytes, not {bytes}")]
    TokenLength {
        /// What was offered.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use uuid::Uuid;

    fn preface() -> Preface {
        let connection_id =
            ConnectionId::from_uuid(Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001));
        Preface {
            connection_id,
            token: Token::from_random([9; 16]),
        }
    }

    #[test]
    fn a_preface_survives_the_wire_in_the_documented_layout() {
        let bytes = preface().encode();
        assert_eq!(bytes.len(), 37);
        assert_eq!(&bytes[..5], b"IAPD\x01");
        let parsed = Preface::parse(&bytes).unwrap();
        assert_eq!(parsed.connection_id, preface().connection_id);
        assert!(parsed.token.matches(&preface().token));
    }

    #[test]
    fn another_magic_or_version_is_refused() {
        let mut bytes = preface().encode();
        bytes[3] = b'X';
        assert_eq!(Preface::parse(&bytes).err(), Some(PrefaceError::Magic));
        let mut bytes = preface().encode();
        bytes[4] = 2;
        assert_eq!(
            Preface::parse(&bytes).err(),
            Some(PrefaceError::Version { version: 2 })
        );
    }

    #[test]
    fn a_preface_of_one_kind_is_none_of_the_other() {
        let fetching = preface();
        let waiting = PoolPreface {
            id: fetching.connection_id,
            token: fetching.token.clone(),
        };
        assert_eq!(&waiting.encode()[..5], b"IAPD\x02");
        let parsed = PoolPreface::parse(&waiting.encode()).unwrap();
        assert_eq!(parsed.id, waiting.id);
        assert!(Preface::parse(&waiting.encode()).is_err());
        assert!(PoolPreface::parse(&fetching.encode()).is_err());
    }

    #[test]
    fn tokens_match_only_when_every_bit_agrees() {
        let token = Token::from_random([0x5a; 16]);
        for bit in 0..128 {
            let mut other = [0x5a; 16];
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!token.matches(&Token::from_random(other)), "bit {bit}");
        }
        assert!(token.matches(&token.clone()));
    }

    #[test]
    fn a_token_of_another_length_is_refused() {
        assert_eq!(
            Token::parse(&[1; 15]).err(),
            Some(PrefaceError::TokenLength { bytes: 15 })
        );
    }
}
