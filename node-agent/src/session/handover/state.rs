//! A session's state in bytes: magic, version, four lengths, and what is as long as those say. All numbers are big-endian.
//!
//! An agent reads its own version and those before. Within a version fields are only added, and those that a reader does
//! not know say nothing that it needs.

use std::time::Duration;

use iap_identity::{AgentId, ConnectId, ConnectionId, LoginName, ServiceName, SessionId};
use iap_policy::Protocol;
use iap_runtime::pump::{Side, Stretch, UnderWay};
use iap_tunnel::Boundaries;
use iap_tunnel::resume::{KEPT_BEYOND_WINDOW_BYTES_MAX, Standing, Ticket, WINDOW_BYTES_MAX};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::keeping::Baseline;
use super::peer::Who;

const MAGIC: &[u8] = b"IAPS";
const VERSION: u16 = 1;
pub(super) const HEAD_BYTES: usize = MAGIC.len() + size_of::<u16>() + SECTIONS * size_of::<u32>();
/// Facts, bytes for the client, bytes on the way to the backend, bytes on the way from it.
const SECTIONS: usize = 4;
/// What is known of a session, groups and all, is some thousand bytes.
pub(super) const FACTS_BYTES_MAX: usize = 256 * 1024;
/// What lies between two sockets is a buffer of the pump at most.
const STRETCH_BYTES_MAX: usize = 1024 * 1024;
/// What a client has not acknowledged is no more than the window, or a little more if the agent before was killed.
pub(super) const KEPT_BYTES_MAX: usize = WINDOW_BYTES_MAX + KEPT_BEYOND_WINDOW_BYTES_MAX;
/// Whatever is longer is no session.
pub(super) const STATE_BYTES_MAX: usize =
    HEAD_BYTES + FACTS_BYTES_MAX + KEPT_BYTES_MAX + 2 * STRETCH_BYTES_MAX;

/// A session as one agent leaves it to the next.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SessionState {
    pub(crate) facts: Facts,
    /// Bytes that the client has not acknowledged.
    pub(crate) kept: Vec<u8>,
    /// From the client, not yet delivered.
    pub(crate) inward: Vec<u8>,
    /// From the backend, not yet taken for the client.
    pub(crate) outward: Vec<u8>,
}

/// Everything but bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Whose session it is.
    pub(crate) agent: AgentId,
    /// The program that left it.
    pub(crate) agent_version: String,
    pub(crate) session_id: SessionId,
    pub(crate) connection_id: ConnectionId,
    pub(crate) connect_id: Option<ConnectId>,
    pub(crate) service: ServiceName,
    pub(crate) protocol: Protocol,
    pub(crate) asked_login: Option<LoginName>,
    pub(crate) asked_database: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) started: OffsetDateTime,
    /// Who began it; nobody else may come back.
    pub(crate) began: Who,
    /// The same person by the newest certificate, from where they were last.
    pub(crate) last: Who,
    pub(crate) resumes: u64,
    pub(crate) ticket: Ticket,
    pub(crate) next_ticket: Option<Ticket>,
    /// How long the client is waited for each time.
    pub(crate) patience_seconds: u64,
    /// Until when it is this time, by the host's monotonic clock.
    pub(crate) deadline_milliseconds: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) standing: Standing,
    pub(crate) inward_ended: bool,
    pub(crate) outward_ended: bool,
    pub(crate) first_closed: Option<Side>,
    pub(crate) rested_milliseconds: u64,
    /// Where a PostgreSQL backend stands between its messages.
    pub(crate) boundaries: Option<Boundaries>,
    /// Of a session that is kept while it runs: what everything else is counted from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<Baseline>,
}

/// Why bytes are no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StateError {
    /// They begin with something else.
    #[error("it is no session's state")]
    Foreign,
    /// An agent wrote them that is newer than this.
    #[error("it has version {0}, and this agent knows those up to {VERSION}")]
    Newer(u16),
    /// They are fewer, or more, than they say.
    #[error("it is {found} bytes long and should be {expected}")]
    Length {
        /// How many they should be.
        expected: usize,
        /// How many they are.
        found: usize,
    },
    /// A part is longer than any session's.
    #[error("a part of it is longer than that of any session")]
    TooLong,
    /// The facts.
    #[error("its facts cannot be read: {0}")]
    Facts(String),
    /// The facts contradict each other.
    #[error("it contradicts itself: {0}")]
    Contradiction(&'static str),
}

/// The head of a state, and its facts; what is kept and under way goes behind, in that order.
pub(super) fn encode_head(facts: &Facts, bytes: [usize; 3]) -> Result<Vec<u8>, StateError> {
    let facts = serde_json::to_vec(facts).map_err(|error| StateError::Facts(error.to_string()))?;
    let [kept, inward, outward] = bytes;
    let lengths = [facts.len(), kept, inward, outward];
    check_lengths(lengths)?;
    let mut head = Vec::with_capacity(HEAD_BYTES + facts.len());
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_be_bytes());
    for length in lengths {
        let length = u32::try_from(length).map_err(|_| StateError::TooLong)?;
        head.extend_from_slice(&length.to_be_bytes());
    }
    head.extend_from_slice(&facts);
    Ok(head)
}

impl SessionState {
    /// Reads what [`encode_head`] and the bytes behind it made.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(StateError::Foreign)?;
        let too_short = || StateError::Length {
            expected: HEAD_BYTES,
            found: bytes.len(),
        };
        let (version, rest) = rest.split_first_chunk().ok_or_else(too_short)?;
        match u16::from_be_bytes(*version) {
            VERSION => {}
            0 => return Err(StateError::Foreign),
            newer => return Err(StateError::Newer(newer)),
        }
        let (lengths, rest) = rest
            .split_at_checked(SECTIONS * size_of::<u32>())
            .ok_or_else(too_short)?;
        let (lengths, _) = lengths.as_chunks::<4>();
        let length = |at: usize| {
            let bytes = lengths.get(at).copied().unwrap_or_default();
            usize::try_from(u32::from_be_bytes(bytes)).unwrap_or(usize::MAX)
        };
        let lengths = [length(0), length(1), length(2), length(3)];
        check_lengths(lengths)?;
        let expected = HEAD_BYTES + lengths.iter().sum::<usize>();
        let wrong = || StateError::Length {
            expected,
            found: bytes.len(),
        };
        if bytes.len() != expected {
            return Err(wrong());
        }
        let [facts, kept, inward, _] = lengths;
        let (facts, rest) = rest.split_at_checked(facts).ok_or_else(wrong)?;
        let (kept, rest) = rest.split_at_checked(kept).ok_or_else(wrong)?;
        let (inward, outward) = rest.split_at_checked(inward).ok_or_else(wrong)?;
        let facts: Facts =
            serde_json::from_slice(facts).map_err(|error| StateError::Facts(error.to_string()))?;
        facts.check()?;
        Ok(Self {
            facts,
            kept: kept.to_vec(),
            inward: inward.to_vec(),
            outward: outward.to_vec(),
        })
    }

    /// What the pump goes on with.
    pub(crate) fn under_way(&mut self) -> UnderWay {
        let facts = &self.facts;
        UnderWay {
            inward: Stretch {
                bytes: std::mem::take(&mut self.inward),
                is_ended: facts.inward_ended,
            },
            outward: Stretch {
                bytes: std::mem::take(&mut self.outward),
                is_ended: facts.outward_ended,
            },
            first_closed: facts.first_closed,
            rested: Duration::from_millis(facts.rested_milliseconds),
        }
    }
}

impl Facts {
    fn check(&self) -> Result<(), StateError> {
        if self
            .boundaries
            .is_some_and(|boundaries| !boundaries.is_possible())
        {
            return Err(StateError::Contradiction("no backend can be where it says"));
        }
        if (self.inward_ended || self.outward_ended) != self.first_closed.is_some() {
            return Err(StateError::Contradiction("somebody has closed, and nobody has"));
        }
        Ok(())
    }
}

fn check_lengths([facts, kept, inward, outward]: [usize; SECTIONS]) -> Result<(), StateError> {
    let fits = facts <= FACTS_BYTES_MAX
        && kept <= KEPT_BYTES_MAX
        && inward <= STRETCH_BYTES_MAX
        && outward <= STRETCH_BYTES_MAX;
    match fits {
        true => Ok(()),
        false => Err(StateError::TooLong),
    }
}
