//! `iap-watch/1`: watching a recorded session while it runs, at the name of the agent that holds it. The client's request,
//! the agent's status, and then the frames of this module, each of which the client answers by one byte once it has taken it:
//! so no more lies between the two than [`WATCH_AHEAD_BYTES_MAX`], whatever the buffers on the way, and what is seen is of now.
//!
//! A frame is a u32 big-endian length and that many bytes: one for the kind, then the content.

use iap_identity::SessionId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::frame::{self, FrameError};
use crate::status::StatusError;

/// The most one frame holds, its length not counted.
pub const WATCH_FRAME_BYTES_MAX: usize = 64 * 1024;
/// The most of a recording's lines that one frame carries.
pub const WATCH_LINES_BYTES_MAX: usize = WATCH_FRAME_BYTES_MAX - 1;
/// How much is sent before the client has taken what came before.
pub const WATCH_AHEAD_BYTES_MAX: usize = 256 * 1024;
/// What a client says of each frame that it has taken, and nothing else.
pub const WATCH_TAKEN: u8 = b'.';
/// The version a request names.
pub const WATCH_VERSION: u32 = 1;
/// Recordings that are named in one frame.
pub const WATCH_RECORDINGS_MAX: usize = 64;

const BEGIN: u8 = b'B';
const LINES: u8 = b'L';
const MISSED: u8 = b'M';
const RECORDINGS: u8 = b'R';
const END: u8 = b'E';

/// What a watcher says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRequest {
    /// [`WATCH_VERSION`].
    pub version: u32,
    /// Which session.
    pub session_id: SessionId,
    /// Which of its recordings, from 1; without it those that run, one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recording: Option<u32>,
}

impl WatchRequest {
    /// The frame, its length included.
    pub fn encode(&self) -> Result<Vec<u8>, StatusError> {
        let json = serde_json::to_vec(self).map_err(StatusError::Json)?;
        Ok(frame::encode(&json, crate::FRAME_BYTES_MAX)?)
    }

    /// Reads a frame's payload.
    pub fn decode(payload: &[u8]) -> Result<Self, StatusError> {
        let request: Self = serde_json::from_slice(payload).map_err(StatusError::Json)?;
        match request.version {
            WATCH_VERSION => Ok(request),
            version => Err(StatusError::Version { version }),
        }
    }
}

/// A recording is shown from here on: what its terminal shows now comes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Its number in the session.
    pub recording: u32,
    /// The asciicast header, with the terminal's size of now.
    pub header: String,
    /// Whether the lines that follow bring the terminal to what it shows now. Without it they show what comes alone.
    pub whole: bool,
}

/// Why nothing more comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// A stable word for programs.
    pub code: String,
    /// A sentence for people.
    pub text: String,
}

/// What an agent sends a watcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchFrame {
    /// A recording begins, or is begun with again after something was missed.
    Begin(Begin),
    /// Lines of its asciicast; those of several frames joined are whole lines.
    Lines(Vec<u8>),
    /// So many bytes of its lines were left out, because the watcher did not take them.
    Missed(u64),
    /// The recordings that run now, at most [`WATCH_RECORDINGS_MAX`] of them.
    Recordings(Vec<u32>),
    /// The last.
    End(End),
}

#[derive(Serialize, Deserialize)]
struct MissedBytes {
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Running {
    recordings: Vec<u32>,
}

impl WatchFrame {
    /// The frame, its length included.
    pub fn encode(&self) -> Result<Vec<u8>, WatchFrameError> {
        let json = |kind, content: serde_json::Result<Vec<u8>>| {
            content
                .map(|content| (kind, content))
                .map_err(|_| WatchFrameError::Content)
        };
        let (kind, content) = match self {
            Self::Begin(begin) => json(BEGIN, serde_json::to_vec(begin))?,
            Self::Lines(lines) => (LINES, lines.clone()),
            Self::Missed(bytes) => json(MISSED, serde_json::to_vec(&MissedBytes { bytes: *bytes }))?,
            Self::Recordings(recordings) => {
                let recordings = recordings.iter().copied().take(WATCH_RECORDINGS_MAX).collect();
                json(RECORDINGS, serde_json::to_vec(&Running { recordings }))?
            }
            Self::End(end) => json(END, serde_json::to_vec(end))?,
        };
        let payload = [&[kind][..], &content].concat();
        Ok(frame::encode(&payload, WATCH_FRAME_BYTES_MAX)?)
    }

    /// Reads a frame's payload. A kind that is not known is nothing: a newer agent may send more.
    pub fn decode(payload: &[u8]) -> Result<Option<Self>, WatchFrameError> {
        let (kind, content) = payload.split_first().ok_or(WatchFrameError::Empty)?;
        Ok(Some(match *kind {
            BEGIN => Self::Begin(read(content)?),
            LINES => Self::Lines(content.to_vec()),
            MISSED => Self::Missed(read::<MissedBytes>(content)?.bytes),
            RECORDINGS => Self::Recordings(read::<Running>(content)?.recordings),
            END => Self::End(read(content)?),
            _ => return Ok(None),
        }))
    }
}

fn read<T: DeserializeOwned>(content: &[u8]) -> Result<T, WatchFrameError> {
    serde_json::from_slice(content).map_err(|_| WatchFrameError::Content)
}

/// Why a frame of `iap-watch/1` cannot be built or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WatchFrameError {
    /// Beyond [`WATCH_FRAME_BYTES_MAX`].
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Not even a kind.
    #[error("a frame of iap-watch/1 is empty")]
    Empty,
    /// Not the JSON that belongs there.
    #[error("a frame of iap-watch/1 is not the JSON expected")]
    Content,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::LengthPrefixed;
    use uuid::Uuid;

    fn payload(frame: &[u8]) -> Vec<u8> {
        let mut decoder = LengthPrefixed::new(WATCH_FRAME_BYTES_MAX);
        decoder.push(frame);
        decoder.next_frame().unwrap().unwrap()
    }

    #[test]
    fn every_frame_is_read_as_it_was_written() {
        let frames = [
            WatchFrame::Begin(Begin {
                recording: 2,
                header: r#"{"version":2,"width":80,"height":24}"#.to_owned(),
                whole: true,
            }),
            WatchFrame::Lines(b"[1.0, \"o\", \"a\"]\n[2".to_vec()),
            WatchFrame::Lines(Vec::new()),
            WatchFrame::Missed(u64::MAX),
            WatchFrame::Recordings(vec![1, 3]),
            WatchFrame::End(End {
                code: "session_over".to_owned(),
                text: "The session is over.".to_owned(),
            }),
        ];
        for frame in frames {
            let encoded = frame.encode().unwrap();
            assert_eq!(WatchFrame::decode(&payload(&encoded)), Ok(Some(frame)));
        }
    }

    #[test]
    fn a_frame_of_a_newer_agent_is_skipped_and_a_malformed_one_refused() {
        assert_eq!(WatchFrame::decode(b"Zwhatever"), Ok(None));
        assert_eq!(WatchFrame::decode(b""), Err(WatchFrameError::Empty));
        for bad in [&b"B"[..], b"B{}", b"M{\"bytes\":-1}", b"R[]", b"E1"] {
            assert_eq!(WatchFrame::decode(bad), Err(WatchFrameError::Content));
        }
    }

    #[test]
    fn lines_fill_a_frame_and_not_more() {
        let lines = |bytes| WatchFrame::Lines(vec![b'x'; bytes]).encode();
        assert!(lines(WATCH_LINES_BYTES_MAX).is_ok());
        assert!(matches!(
            lines(WATCH_LINES_BYTES_MAX + 1),
            Err(WatchFrameError::Frame(_))
        ));
    }

    #[test]
    fn a_request_of_another_version_or_for_no_session_is_refused() {
        let id = SessionId::from_uuid(Uuid::from_u128(7));
        let request = WatchRequest {
            version: WATCH_VERSION,
            session_id: id,
            recording: Some(2),
        };
        let encoded = request.encode().unwrap();
        assert_eq!(WatchRequest::decode(&payload(&encoded)).unwrap(), request);
        let newer = format!(r#"{{"version":2,"session_id":"{id}"}}"#);
        assert!(matches!(
            WatchRequest::decode(newer.as_bytes()),
            Err(StatusError::Version { version: 2 })
        ));
        for bad in ["{}", r#"{"version":1}"#, r#"{"version":1,"session_id":"x"}"#] {
            assert!(matches!(
                WatchRequest::decode(bad.as_bytes()),
                Err(StatusError::Json(_))
            ));
        }
    }
}
