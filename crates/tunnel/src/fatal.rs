//! How a PostgreSQL client is told that there is no session, or no longer one (PostgreSQL protocol 3, "Message Flow"
//! and "Message Formats").
//!
//! Sans-IO. [`StartupMachine`] follows a client up to its startup message, behind which an `ErrorResponse` may come;
//! [`Boundaries`] follows what a backend says, so that one may be put between two of its messages and never into one.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// PostgreSQL's own bound on a startup message (`MAX_STARTUP_PACKET_LENGTH`).
pub const STARTUP_BYTES_MAX: usize = 10_000;
/// The longest text of one field of an `ErrorResponse` that we send.
const FIELD_BYTES_MAX: usize = 1_000;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const HEAD_BYTES: usize = 8;
/// TLS and GSSAPI, once each.
const ENCRYPTION_REQUESTS_MAX: u8 = 2;

/// `invalid_authorization_specification`: the caller may not.
pub const SQLSTATE_DENIED: &str = "28000";
/// `cannot_connect_now`: nobody could, now.
pub const SQLSTATE_UNAVAILABLE: &str = "57P03";
/// `admin_shutdown`: a session that ran is ended by order.
pub const SQLSTATE_ENDED: &str = "57P01";

/// The last words to a PostgreSQL client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fatal {
    /// The class of error, for programs.
    pub sqlstate: &'static str,
    /// One sentence for people.
    pub message: String,
    /// Where it is on record.
    pub detail: Option<String>,
    /// Whom to ask, or what to do.
    pub hint: Option<String>,
}

impl Fatal {
    /// The `ErrorResponse`. Texts are cut at 1,000 bytes each and cleared of what the format cannot carry.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let optional = |kind, text: &Option<String>| text.as_ref().map(|text| (kind, plain(text)));
        let fields = [
            Some((b'S', "FATAL".to_owned())),
            Some((b'V', "FATAL".to_owned())),
            Some((b'C', self.sqlstate.to_owned())),
            Some((b'M', plain(&self.message))),
            optional(b'D', &self.detail),
            optional(b'H', &self.hint),
        ];
        let mut body = Vec::new();
        for (kind, text) in fields.into_iter().flatten() {
            body.push(kind);
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        body.push(0);
        // Six fields of bounded length.
        let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
        [&[b'E'][..], &length.to_be_bytes(), &body].concat()
    }
}

/// Without zero bytes, which end a field, and other control characters, which move a terminal.
fn plain(text: &str) -> String {
    let end = text.floor_char_boundary(FIELD_BYTES_MAX);
    let text = text.get(..end).unwrap_or_default();
    text.chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

/// Follows a client up to the end of its startup message. Holds no more than its head.
#[derive(Debug, Default)]
pub struct StartupMachine {
    head: Vec<u8>,
    skip: usize,
    encryption_requests: u8,
    in_startup: bool,
}

/// What the shell does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartupStep {
    /// Read more and push it.
    NeedMore,
    /// Send `N` and read on: what asks for encryption has it already.
    RefuseEncryption,
    /// The startup message is over: an `ErrorResponse` may be sent.
    Started,
}

/// What the client sends is not PostgreSQL's start, and nothing is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the client does not begin as PostgreSQL clients do")]
pub struct NotPostgres;

impl StartupMachine {
    /// A client that has said nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what arrived. Bytes behind a request or the startup message are not looked at: a client waits for
    /// the answer.
    ///
    /// # Errors
    /// When this is no PostgreSQL client, or one that asks for encryption again and again.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<StartupStep, NotPostgres> {
        if !self.in_startup {
            let wanted = HEAD_BYTES.saturating_sub(self.head.len()).min(bytes.len());
            let (head, rest) = bytes.split_at(wanted);
            self.head.extend_from_slice(head);
            bytes = rest;
            let Some(head) = self.head.first_chunk::<HEAD_BYTES>() else {
                return Ok(StartupStep::NeedMore);
            };
            let [a, b, c, d, e, f, g, h] = *head;
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            let code = u32::from_be_bytes([e, f, g, h]);
            if !(HEAD_BYTES..=STARTUP_BYTES_MAX).contains(&length) {
                return Err(NotPostgres);
            }
            match code {
                SSL_REQUEST | GSSENC_REQUEST => return self.refuse_encryption(),
                // Major version 3, whatever the minor one.
                _ if code >> 16 == 3 => {
                    self.in_startup = true;
                    self.skip = length - HEAD_BYTES;
                }
                _ => return Err(NotPostgres),
            }
        }
        self.skip = self.skip.saturating_sub(bytes.len());
        Ok(if self.skip == 0 {
            StartupStep::Started
        } else {
            StartupStep::NeedMore
        })
    }

    fn refuse_encryption(&mut self) -> Result<StartupStep, NotPostgres> {
        self.encryption_requests += 1;
        if self.encryption_requests > ENCRYPTION_REQUESTS_MAX {
            return Err(NotPostgres);
        }
        self.head.clear();
        Ok(StartupStep::RefuseEncryption)
    }
}

/// Follows what a backend says, message by message, without looking into any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boundaries {
    /// Before the first message: one byte may still refuse encryption.
    #[default]
    Start,
    /// Within the head of a message; so many of its bytes are known.
    Head {
        /// Type and length as far as they came.
        bytes: [u8; MESSAGE_HEAD_BYTES],
        /// How far.
        known: usize,
    },
    /// Within a message's body; so many bytes are to come.
    Body {
        /// How many.
        left: usize,
    },
    /// Encrypted, or nothing we know: there are no messages to be seen.
    Opaque,
}

/// A type byte and a length.
const MESSAGE_HEAD_BYTES: usize = 5;

impl Boundaries {
    /// A backend that has said nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::Start
    }

    /// Whether anybody who followed from the beginning can have come here.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        match self {
            Self::Head { known, .. } => *known < MESSAGE_HEAD_BYTES,
            Self::Body { left } => *left > 0,
            Self::Start | Self::Opaque => true,
        }
    }

    /// Takes what was delivered to the client.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            match self {
                Self::Opaque => return,
                Self::Start => match first {
                    // Encryption refused: the startup message comes in the clear.
                    b'N' => bytes = rest,
                    // Authentication, an error, or another version than asked for: messages from here on.
                    b'R' | b'E' | b'v' => *self = Self::between(),
                    _ => *self = Self::Opaque,
                },
                Self::Head { bytes: head, known } => {
                    if let Some(slot) = head.get_mut(*known) {
                        *slot = *first;
                    }
                    *known += 1;
                    bytes = rest;
                    if *known == MESSAGE_HEAD_BYTES {
                        *self = Self::behind(*head);
                    }
                }
                Self::Body { left } => {
                    let taken = (*left).min(bytes.len());
                    bytes = bytes.get(taken..).unwrap_or_default();
                    *left -= taken;
                    if *left == 0 {
                        *self = Self::between();
                    }
                }
            }
        }
    }

    /// Whether a message may be put here.
    #[must_use]
    pub fn is_between(&self) -> bool {
        match self {
            Self::Start => true,
            Self::Head { known, .. } => *known == 0,
            Self::Body { .. } | Self::Opaque => false,
        }
    }

    fn between() -> Self {
        Self::Head {
            bytes: [0; MESSAGE_HEAD_BYTES],
            known: 0,
        }
    }

    /// The length counts itself and not the type.
    fn behind(head: [u8; MESSAGE_HEAD_BYTES]) -> Self {
        let [_, a, b, c, d] = head;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        match length.checked_sub(4) {
            Some(0) => Self::between(),
            Some(left) => Self::Body { left },
            None => Self::Opaque,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    fn request(code: u32) -> Vec<u8> {
        [8u32.to_be_bytes(), code.to_be_bytes()].concat()
    }

    fn startup() -> Vec<u8> {
        let body = b"user\0bob\0database\0shop\0\0";
        let length = u32::try_from(HEAD_BYTES + body.len()).unwrap();
        [&length.to_be_bytes()[..], &196_608u32.to_be_bytes(), body].concat()
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    #[test]
    fn a_startup_message_ends_where_its_length_says_in_pieces_or_whole() {
        assert_eq!(StartupMachine::new().push(&startup()), Ok(StartupStep::Started));
        let mut machine = StartupMachine::new();
        let startup = startup();
        for byte in &startup[..startup.len() - 1] {
            assert_eq!(machine.push(&[*byte]), Ok(StartupStep::NeedMore));
        }
        assert_eq!(
            machine.push(&startup[startup.len() - 1..]),
            Ok(StartupStep::Started)
        );
    }

    #[test]
    fn encryption_inside_is_refused_twice_and_no_more() {
        let mut machine = StartupMachine::new();
        for code in [GSSENC_REQUEST, SSL_REQUEST] {
            assert_eq!(machine.push(&request(code)), Ok(StartupStep::RefuseEncryption));
        }
        assert_eq!(machine.push(&request(SSL_REQUEST)), Err(NotPostgres));
        let mut machine = StartupMachine::new();
        machine.push(&request(SSL_REQUEST)).unwrap();
        assert_eq!(machine.push(&startup()), Ok(StartupStep::Started));
    }

    #[test]
    fn other_protocols_and_endless_messages_are_not_answered() {
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"SSH-2.0-x\r\n",
            &[0; 16],
            &[0xff; 16],
        ] {
            assert_eq!(StartupMachine::new().push(other), Err(NotPostgres), "{other:?}");
        }
        let long = [&10_001u32.to_be_bytes()[..], &196_608u32.to_be_bytes()].concat();
        assert_eq!(StartupMachine::new().push(&long), Err(NotPostgres));
    }

    #[test]
    fn the_last_words_are_an_error_response_with_its_fields() {
        let fatal = Fatal {
            sqlstate: SQLSTATE_DENIED,
            message: "Policy does not\0allow\u{1b}[31m bob.".to_owned(),
            detail: Some("Session 1.".to_owned()),
            hint: None,
        };
        let encoded = fatal.encode();
        assert_eq!(encoded[0], b'E');
        let length = u32::from_be_bytes(encoded[1..5].try_into().unwrap());
        assert_eq!(length as usize, encoded.len() - 1);
        let text = String::from_utf8_lossy(&encoded[5..]).into_owned();
        assert!(
            text.contains("C28000\0") && text.contains("DSession 1.\0"),
            "{text:?}"
        );
        assert!(text.contains("MPolicy does not allow [31m bob.\0"), "{text:?}");
        assert!(text.ends_with("\0\0") && !text.contains('H'), "{text:?}");
        let long = Fatal {
            message: "é".repeat(5_000),
            ..fatal
        };
        assert!(long.encode().len() < 2 * FIELD_BYTES_MAX);
    }

    #[test]
    fn a_message_may_be_put_between_two_of_the_backend_and_nowhere_else() {
        let said = [message(b'R', &[0; 4]), message(b'Z', b"I"), message(b'n', b"")].concat();
        let ends: Vec<usize> = [0, 9, 15, 20].into();
        let mut boundaries = Boundaries::new();
        for (index, byte) in said.iter().enumerate() {
            assert_eq!(
                boundaries.is_between(),
                ends.contains(&index),
                "before byte {index}"
            );
            boundaries.push(&[*byte]);
        }
        assert!(boundaries.is_between());
    }

    #[test]
    fn refused_encryption_is_followed_and_granted_encryption_is_opaque() {
        let mut refused = Boundaries::new();
        refused.push(b"NN");
        refused.push(&message(b'R', &[0; 4]));
        assert!(refused.is_between());
        let mut granted = Boundaries::new();
        granted.push(b"S");
        assert!(!granted.is_between());
        granted.push(&message(b'Z', b"I"));
        assert_eq!(granted, Boundaries::Opaque);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20),
            cuts in proptest::collection::vec(1usize..30, 0..60),
            taken in 0usize..900,
        ) {
            let mut said = message(b'R', &[0; 4]);
            bodies.iter().for_each(|body| said.extend(message(b'D', body)));
            said.truncate(taken.max(1).min(said.len()));
            let mut whole = Boundaries::new();
            whole.push(&said);
            let mut pieces = Boundaries::new();
            let mut rest = &said[..];
            for cut in cuts {
                let (piece, more) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = more;
            }
            pieces.push(rest);
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn any_bytes_leave_the_machine_with_its_head_alone(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..30),
        ) {
            let mut machine = StartupMachine::new();
            for piece in &pieces {
                if machine.push(piece).is_err() {
                    break;
                }
                prop_assert!(machine.head.len() <= HEAD_BYTES);
            }
        }
    }
}
