//! What a client says first: an inner request for encryption, a request to cancel, or its startup message
//! ("Message Formats": SSLRequest, GSSENCRequest, CancelRequest, StartupMessage).

use thiserror::Error;

/// PostgreSQL's own bound on a startup message (`MAX_STARTUP_PACKET_LENGTH`).
const STARTUP_BYTES_MAX: usize = 10_000;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
const HEAD_BYTES: usize = 8;
/// Protocol 3.2 lengthens the cancel key to at most 256 bytes.
const CANCEL_KEY_BYTES_MAX: usize = 256;
/// TLS and GSSAPI, once each.
const ENCRYPTION_REQUESTS_MAX: u8 = 2;
const MAJOR: u16 = 3;

/// A client's startup message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// The minor version of protocol 3 that it asks for.
    pub minor: u16,
    /// The database user.
    pub user: String,
    /// The database; the user's name where none was named.
    pub database: String,
    /// Everything else, in its order: run-time parameters, `options`, `replication`, protocol options.
    pub parameters: Vec<(String, String)>,
}

impl Startup {
    /// The value of a parameter.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The protocol options that it asks for (`_pq_.`).
    #[must_use]
    pub fn protocol_options(&self) -> Vec<&str> {
        let names = self.parameters.iter().map(|(name, _)| name.as_str());
        names.filter(|name| name.starts_with("_pq_.")).collect()
    }

    /// Whether it asks for a replication connection (`replication` set to anything but false).
    #[must_use]
    pub fn wants_replication(&self) -> bool {
        self.parameter("replication").is_some_and(|value| {
            !["false", "off", "no", "0", "f", "n"].contains(&value.to_ascii_lowercase().as_str())
        })
    }
}

/// What a client has said.
#[derive(Clone, PartialEq, Eq)]
pub enum StartupSaid {
    /// Not enough yet: read more and push it.
    NeedMore,
    /// It asks for encryption, which it has already: send `N` and read on.
    RefuseEncryption,
    /// Its startup message, and the bytes behind it.
    Started(Startup, Vec<u8>),
    /// A request to cancel what another connection does.
    Cancel {
        /// The handle it was given there.
        process_id: u32,
        /// The key it was given there.
        key: Vec<u8>,
    },
}

impl std::fmt::Debug for StartupSaid {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::NeedMore => "NeedMore",
            Self::RefuseEncryption => "RefuseEncryption",
            Self::Started(..) => "Started",
            Self::Cancel { .. } => "Cancel",
        })
    }
}

/// Why a client's first message is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StartupError {
    /// Another protocol, or a length that no first message has.
    #[error("the client does not begin as PostgreSQL clients do")]
    NotPostgres,
    /// A major version other than 3.
    #[error("the client speaks a version of the PostgreSQL protocol other than 3")]
    Version,
    /// Parameters that are not pairs of zero-terminated UTF-8 texts, or no user.
    #[error("the client's startup message is malformed, or names no user")]
    Parameters,
    /// A client waits for the answer to its request for encryption.
    #[error("bytes were sent behind a request for encryption before it was answered")]
    StuffedBytes,
}

/// Reads a client's first message.
#[derive(Debug, Default)]
pub struct StartupReader {
    held: Vec<u8>,
    encryption_requests: u8,
}

impl StartupReader {
    /// A client that has said nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what arrived.
    ///
    /// # Errors
    /// When this is no PostgreSQL client, or not one that can be served.
    pub fn push(&mut self, bytes: &[u8]) -> Result<StartupSaid, StartupError> {
        self.held.extend_from_slice(bytes);
        let Some(([a, b, c, d, e, f, g, h], _)) = self.held.split_first_chunk::<HEAD_BYTES>() else {
            return Ok(StartupSaid::NeedMore);
        };
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
        let code = u32::from_be_bytes([*e, *f, *g, *h]);
        if !(HEAD_BYTES..=STARTUP_BYTES_MAX).contains(&length) {
            return Err(StartupError::NotPostgres);
        }
        if self.held.len() < length {
            return Ok(StartupSaid::NeedMore);
        }
        let behind = self.held.split_off(length);
        let message = std::mem::take(&mut self.held);
        let body = message.get(HEAD_BYTES..).unwrap_or_default();
        match code {
            SSL_REQUEST | GSSENC_REQUEST if length == HEAD_BYTES => self.refuse_encryption(&behind),
            SSL_REQUEST | GSSENC_REQUEST => Err(StartupError::NotPostgres),
            CANCEL_REQUEST => cancel(body),
            _ => read_startup(code, body).map(|startup| StartupSaid::Started(startup, behind)),
        }
    }

    fn refuse_encryption(&mut self, behind: &[u8]) -> Result<StartupSaid, StartupError> {
        self.encryption_requests += 1;
        if self.encryption_requests > ENCRYPTION_REQUESTS_MAX {
            return Err(StartupError::NotPostgres);
        }
        if !behind.is_empty() {
            return Err(StartupError::StuffedBytes);
        }
        Ok(StartupSaid::RefuseEncryption)
    }
}

fn cancel(body: &[u8]) -> Result<StartupSaid, StartupError> {
    match body.split_first_chunk::<4>() {
        Some((process_id, key)) if !key.is_empty() && key.len() <= CANCEL_KEY_BYTES_MAX => {
            Ok(StartupSaid::Cancel {
                process_id: u32::from_be_bytes(*process_id),
                key: key.to_vec(),
            })
        }
        Some(_) | None => Err(StartupError::NotPostgres),
    }
}

fn read_startup(version: u32, body: &[u8]) -> Result<Startup, StartupError> {
    let [a, b, c, d] = version.to_be_bytes();
    let (major, minor) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    match major {
        MAJOR => {}
        0..MAJOR if major > 0 => return Err(StartupError::Version),
        _ => return Err(StartupError::NotPostgres),
    }
    let text = std::str::from_utf8(body).map_err(|_| StartupError::Parameters)?;
    // Pairs, each text with its zero, and one more zero.
    let pairs = text.strip_suffix('\0').ok_or(StartupError::Parameters)?;
    if !pairs.is_empty() && !pairs.ends_with('\0') {
        return Err(StartupError::Parameters);
    }
    let mut texts = pairs.split_terminator('\0');
    let (mut user, mut database, mut parameters) = (None, None, Vec::new());
    while let Some(name) = texts.next() {
        let value = texts.next().ok_or(StartupError::Parameters)?;
        match name {
            "" => return Err(StartupError::Parameters),
            "user" => user = Some(value.to_owned()),
            "database" => database = Some(value.to_owned()),
            _ => parameters.push((name.to_owned(), value.to_owned())),
        }
    }
    let user = user.filter(|user| !user.is_empty());
    let user = user.ok_or(StartupError::Parameters)?;
    let database = database.filter(|database| !database.is_empty());
    Ok(Startup {
        minor,
        database: database.unwrap_or_else(|| user.clone()),
        user,
        parameters,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    fn message(code: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEAD_BYTES + body.len()).unwrap();
        [&length.to_be_bytes()[..], &code.to_be_bytes(), body].concat()
    }

    fn started(bytes: &[u8]) -> Result<Startup, StartupError> {
        match StartupReader::new().push(bytes)? {
            StartupSaid::Started(startup, _) => Ok(startup),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn parameters_are_read_and_the_database_is_the_users_where_none_is_named() {
        let startup = started(&message(196_610, b"user\0bob\0application_name\0psql\0\0")).unwrap();
        assert_eq!((startup.minor, startup.user.as_str()), (2, "bob"));
        assert_eq!(startup.database, "bob");
        assert_eq!(startup.parameter("application_name"), Some("psql"));
        let startup = started(&message(196_608, b"database\0shop\0user\0bob\0\0")).unwrap();
        assert_eq!(startup.database, "shop");
    }

    #[test]
    fn a_startup_message_without_a_user_or_with_half_a_pair_is_refused() {
        for body in [
            &b"\0"[..],
            b"",
            b"database\0shop\0\0",
            b"user\0\0\0",
            b"user\0bob",
            b"user\0bob\0",
            b"user\0bob\0x\0\0",
            b"user\0b\xff\0\0",
            b"\0bob\0user\0bob\0\0",
        ] {
            assert_eq!(
                started(&message(196_608, body)),
                Err(StartupError::Parameters),
                "{body:?}"
            );
        }
    }

    #[test]
    fn other_protocols_versions_and_endless_messages_are_refused() {
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"SSH-2.0-x\r\n",
            &[0; 16],
            &[0xff; 16],
        ] {
            assert_eq!(started(other), Err(StartupError::NotPostgres), "{other:?}");
        }
        assert_eq!(
            started(&message(131_072, b"user\0bob\0\0")),
            Err(StartupError::Version)
        );
        let long = [&10_001u32.to_be_bytes()[..], &196_608u32.to_be_bytes()].concat();
        assert_eq!(started(&long), Err(StartupError::NotPostgres));
    }

    #[test]
    fn encryption_inside_is_refused_twice_and_no_more() {
        let mut reader = StartupReader::new();
        for code in [GSSENC_REQUEST, SSL_REQUEST] {
            assert_eq!(
                reader.push(&message(code, b"")),
                Ok(StartupSaid::RefuseEncryption)
            );
        }
        assert_eq!(
            reader.push(&message(SSL_REQUEST, b"")),
            Err(StartupError::NotPostgres)
        );
        let stuffed = [message(SSL_REQUEST, b""), vec![1]].concat();
        assert_eq!(
            StartupReader::new().push(&stuffed),
            Err(StartupError::StuffedBytes)
        );
    }

    #[test]
    fn a_request_to_cancel_is_read_with_short_and_long_keys() {
        for key in [vec![9; 4], vec![9; 256]] {
            let bytes = message(CANCEL_REQUEST, &[&7u32.to_be_bytes()[..], &key].concat());
            let expected = StartupSaid::Cancel { process_id: 7, key };
            assert_eq!(StartupReader::new().push(&bytes), Ok(expected));
        }
        for body in [vec![0; 4], vec![0; 3], vec![0; 4 + 257]] {
            let refused = StartupReader::new().push(&message(CANCEL_REQUEST, &body));
            assert_eq!(refused, Err(StartupError::NotPostgres));
        }
    }

    #[test]
    fn replication_is_asked_for_by_anything_that_is_not_a_no() {
        for (value, wanted) in [
            ("true", true),
            ("database", true),
            ("1", true),
            ("off", false),
            ("False", false),
        ] {
            let body = format!("user\0bob\0replication\0{value}\0\0");
            assert_eq!(
                started(&message(196_608, body.as_bytes()))
                    .unwrap()
                    .wants_replication(),
                wanted
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_read_alike_and_held_to_a_bound(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 1usize..20,
        ) {
            let whole = StartupReader::new().push(&bytes);
            let mut reader = StartupReader::new();
            let mut pieced = Ok(StartupSaid::NeedMore);
            for piece in bytes.chunks(cut) {
                pieced = reader.push(piece);
                prop_assert!(reader.held.len() <= STARTUP_BYTES_MAX);
                if pieced != Ok(StartupSaid::NeedMore) {
                    break;
                }
            }
            match (whole, pieced) {
                (Ok(StartupSaid::Started(one, _)), Ok(StartupSaid::Started(other, _))) => prop_assert_eq!(one, other),
                (Err(StartupError::StuffedBytes), Ok(StartupSaid::RefuseEncryption)) => {}
                (one, other) => prop_assert_eq!(one, other),
            }
        }
    }
}
