//! The frames: kind u8, length u24 big-endian, payload.

use serde::{Deserialize, Serialize};

use super::Violation;

/// Kind and length.
pub const HEADER_BYTES: usize = 4;
/// The most one data frame may hold.
pub const DATA_FRAME_BYTES_MAX: usize = 256 * 1024;
/// The most the content of a close frame may take.
pub const CLOSE_BYTES_MAX: usize = 1024;
const POSITION_BYTES: usize = 8;
const TEXT_CHARACTERS_MAX: usize = 200;

/// Why a session ends for good, from whoever ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    /// A stable word for programs: a `close_reason` (docs/events.md).
    pub code: String,
    /// A sentence for people.
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The next bytes.
    Data = 0,
    /// Everything before a position was passed on.
    Acknowledge = 1,
    /// There are no more bytes. It takes a position of its own.
    Finish = 2,
    /// To be answered by an acknowledgement at once.
    Ask = 3,
    /// The session is over.
    Close = 4,
    /// The bytes behind begin at a position, before it is known where the receiver stands.
    Repeat = 5,
}

/// The header of a frame whose kind and length are known to go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) bytes: usize,
}

impl Header {
    pub(super) fn read([kind, high, middle, low]: [u8; HEADER_BYTES]) -> Result<Self, Violation> {
        let bytes = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let (known, right) = match kind {
            0 => (Kind::Data, (1..=DATA_FRAME_BYTES_MAX).contains(&bytes)),
            1 => (Kind::Acknowledge, bytes == POSITION_BYTES),
            2 => (Kind::Finish, bytes == 0),
            3 => (Kind::Ask, bytes == 0),
            4 => (Kind::Close, bytes <= CLOSE_BYTES_MAX),
            5 => (Kind::Repeat, bytes == POSITION_BYTES),
            kind => return Err(Violation::UnknownKind { kind }),
        };
        match right {
            true => Ok(Self { kind: known, bytes }),
            false => Err(Violation::WrongLength { kind, bytes }),
        }
    }

    fn write(self) -> [u8; HEADER_BYTES] {
        // No frame is longer than 24 bits can say.
        let [.., high, middle, low] = self.bytes.to_be_bytes();
        [self.kind as u8, high, middle, low]
    }
}

pub(super) fn push_data_header(head: &mut Vec<u8>, bytes: usize) {
    push(head, Kind::Data, bytes);
}

pub(super) fn push_acknowledge(head: &mut Vec<u8>, position: u64) {
    push(head, Kind::Acknowledge, POSITION_BYTES);
    head.extend_from_slice(&position.to_be_bytes());
}

pub(super) fn push_repeat(head: &mut Vec<u8>, position: u64) {
    push(head, Kind::Repeat, POSITION_BYTES);
    head.extend_from_slice(&position.to_be_bytes());
}

pub(super) fn push_finish(head: &mut Vec<u8>) {
    push(head, Kind::Finish, 0);
}

pub(super) fn push_ask(head: &mut Vec<u8>) {
    push(head, Kind::Ask, 0);
}

pub(super) fn push_close(head: &mut Vec<u8>, close: &Close) {
    let content = close.encode();
    push(head, Kind::Close, content.len());
    head.extend_from_slice(&content);
}

fn push(head: &mut Vec<u8>, kind: Kind, bytes: usize) {
    head.extend_from_slice(&Header { kind, bytes }.write());
}

/// The position in an acknowledgement; its length was checked with its header.
pub(super) fn position(payload: &[u8]) -> u64 {
    payload
        .first_chunk()
        .map_or(0, |bytes: &[u8; POSITION_BYTES]| u64::from_be_bytes(*bytes))
}

impl Close {
    /// An end that is gone and says nothing of why.
    #[must_use]
    pub fn without_a_word() -> Self {
        Self {
            code: String::new(),
            text: String::new(),
        }
    }

    /// Whether it says nothing.
    #[must_use]
    pub fn is_without_a_word(&self) -> bool {
        self.code.is_empty() && self.text.is_empty()
    }

    fn encode(&self) -> Vec<u8> {
        let shortened = Self {
            code: self.code.chars().take(TEXT_CHARACTERS_MAX / 4).collect(),
            text: self.text.chars().take(TEXT_CHARACTERS_MAX).collect(),
        };
        // Control characters take six bytes each in JSON: those who put them there get an empty object.
        let json = serde_json::to_vec(&shortened).unwrap_or_default();
        match json.len() <= CLOSE_BYTES_MAX {
            true => json,
            false => Vec::new(),
        }
    }

    /// An empty one says nothing of why.
    pub(super) fn decode(payload: &[u8]) -> Result<Self, Violation> {
        if payload.is_empty() {
            return Ok(Self::without_a_word());
        }
        serde_json::from_slice(payload).map_err(|_| Violation::MalformedClose)
    }
}
