//! The chain of one source: every record carries its number and the hash of the one before, so that nothing
//! can be taken out, put in or altered without a gap that anyone can see.

use iap_identity::{AgentId, AuthId};
use serde_json::Value;
use thiserror::Error;
use uuid::Uuid;

use crate::event::RecordBody;
use crate::record::{
    GENESIS_HASH_HEX, PREVIOUS_FIELD, RECORD_BYTES_MAX, Record, RecordView, SEQUENCE_FIELD, SOURCE_FIELD,
    hash_hex,
};

/// Who writes a chain: an agent, or an auth server. Every join makes a new id and thereby a new chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(Uuid);

impl SourceId {
    /// The source of this id.
    pub fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    /// Its id.
    pub fn as_uuid(&self) -> Uuid {
        self.0
    }
}

impl std::fmt::Display for SourceId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

impl From<AgentId> for SourceId {
    fn from(agent: AgentId) -> Self {
        Self(*agent.as_uuid())
    }
}

impl From<AuthId> for SourceId {
    fn from(auth: AuthId) -> Self {
        Self(*auth.as_uuid())
    }
}

/// Where a chain stands: its source, the number and the hash of its last record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainHead {
    /// Whose chain.
    pub source: SourceId,
    /// The last record's number; 0 before the first.
    pub seq: u64,
    /// The last record's hash; 64 zeros before the first.
    pub hash_hex: String,
}

impl ChainHead {
    /// Before the first record.
    pub fn genesis(source: impl Into<SourceId>) -> Self {
        Self {
            source: source.into(),
            seq: 0,
            hash_hex: GENESIS_HASH_HEX.to_owned(),
        }
    }

    /// Where the chain stands after `next`, provided it is the very next record.
    pub fn follow(&self, next: &RecordView) -> Result<ChainHead, LinkError> {
        let expected = self.seq.saturating_add(1);
        if next.agent_id != self.source {
            return Err(LinkError::OtherSource {
                expected: self.source,
                found: next.agent_id,
            });
        }
        if next.agent_seq != expected {
            return Err(LinkError::Sequence {
                expected,
                found: next.agent_seq,
            });
        }
        if next.agent_prev != self.hash_hex {
            return Err(LinkError::Hash { seq: next.agent_seq });
        }
        Ok(next.head())
    }
}

/// Whether `next` is the record that directly follows `previous`; `None` stands for the chain's beginning.
pub fn verify_link(previous: Option<&RecordView>, next: &RecordView) -> Result<(), LinkError> {
    let head = previous.map_or_else(|| ChainHead::genesis(next.agent_id), RecordView::head);
    head.follow(next).map(|_| ())
}

/// The writing end of a chain.
#[derive(Debug, Clone)]
pub struct Chain {
    head: ChainHead,
}

impl Chain {
    /// A chain without records.
    pub fn new(source: impl Into<SourceId>) -> Self {
        Self {
            head: ChainHead::genesis(source),
        }
    }

    /// A chain that goes on after the record `seq` of hash `prev_hash`.
    pub fn resume(source: impl Into<SourceId>, seq: u64, prev_hash: &str) -> Self {
        Self {
            head: ChainHead {
                source: source.into(),
                seq,
                hash_hex: prev_hash.to_owned(),
            },
        }
    }

    /// A chain that goes on from where it stands.
    pub fn from_head(head: ChainHead) -> Self {
        Self { head }
    }

    /// Where it stands.
    pub fn head(&self) -> &ChainHead {
        &self.head
    }

    /// Gives the event its place in the chain. The chain has moved on only when a record comes back; the
    /// caller must store records in this order or not seal them.
    pub fn seal(&mut self, body: impl Into<RecordBody>) -> Result<Record, SealError> {
        let mut fields = body.into().into_fields();
        let seq = self.head.seq.checked_add(1).ok_or(SealError::Exhausted)?;
        fields.insert(SOURCE_FIELD.to_owned(), Value::from(self.head.source.to_string()));
        fields.insert(SEQUENCE_FIELD.to_owned(), Value::from(seq));
        fields.insert(
            PREVIOUS_FIELD.to_owned(),
            Value::from(self.head.hash_hex.as_str()),
        );
        let bytes = serde_json::to_vec(&Value::Object(fields)).map_err(SealError::Json)?;
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(SealError::TooLong { bytes: bytes.len() });
        }
        let hash_hex = hash_hex(&bytes);
        self.head.seq = seq;
        self.head.hash_hex.clone_from(&hash_hex);
        Ok(Record { bytes, seq, hash_hex })
    }
}

/// Why an event cannot become a record.
#[derive(Debug, Error)]
pub enum SealError {
    /// Beyond [`RECORD_BYTES_MAX`].
    #[error("a record of {bytes} bytes exceeds the limit of {RECORD_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not expressible as JSON.
    #[error("the event cannot be written as JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// After 2^64 records.
    #[error("the chain has no number left")]
    Exhausted,
}

/// Why two records are not neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LinkError {
    /// The chains of two sources were mixed.
    #[error("the record is of source {found}, the chain of {expected}")]
    OtherSource {
        /// The chain's source.
        expected: SourceId,
        /// The record's.
        found: SourceId,
    },
    /// A record is missing, or comes twice.
    #[error("record {expected} should follow, {found} came")]
    Sequence {
        /// The number that follows.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// The record before it is not the one its source had.
    #[error("record {seq} does not carry the hash of the record before it")]
    Hash {
        /// Its number.
        seq: u64,
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
    use crate::{Event, EventKind};
    use proptest::prelude::*;
    use time::OffsetDateTime;

    const ID: Uuid = Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001);

    fn source() -> SourceId {
        SourceId::from_uuid(ID)
    }

    fn event(note: &str) -> Event {
        Event::new(EventKind::AgentStart, OffsetDateTime::UNIX_EPOCH, ID).reason(note)
    }

    fn views(notes: &[&str]) -> Vec<RecordView> {
        let mut chain = Chain::new(source());
        notes
            .iter()
            .map(|note| RecordView::parse(&chain.seal(event(note)).unwrap().bytes).unwrap())
            .collect()
    }

    #[test]
    fn a_chain_starts_at_one_behind_sixty_four_zeros() {
        let first = views(&["one"]).remove(0);
        assert_eq!(first.agent_seq, 1);
        assert_eq!(first.agent_prev, "0".repeat(64));
        assert_eq!(verify_link(None, &first), Ok(()));
    }

    #[test]
    fn each_record_carries_the_hash_of_the_exact_bytes_before_it() {
        let mut chain = Chain::new(source());
        let first = chain.seal(event("one")).unwrap();
        let second = chain.seal(event("two")).unwrap();
        let second = RecordView::parse(&second.bytes).unwrap();
        assert_eq!(second.agent_prev, hash_hex(&first.bytes));
        assert_eq!(
            verify_link(Some(&RecordView::parse(&first.bytes).unwrap()), &second),
            Ok(())
        );
    }

    #[test]
    fn a_missing_or_repeated_record_breaks_the_link() {
        let records = views(&["one", "two", "three"]);
        let missing = verify_link(Some(&records[0]), &records[2]);
        assert_eq!(
            missing,
            Err(LinkError::Sequence {
                expected: 2,
                found: 3
            })
        );
        let repeated = verify_link(Some(&records[1]), &records[1]);
        assert_eq!(
            repeated,
            Err(LinkError::Sequence {
                expected: 3,
                found: 2
            })
        );
        assert_eq!(
            verify_link(None, &records[1]),
            Err(LinkError::Sequence {
                expected: 1,
                found: 2
            })
        );
    }

    #[test]
    fn an_altered_record_breaks_the_link_that_follows_it() {
        let mut chain = Chain::new(source());
        let first = chain.seal(event("one")).unwrap();
        let second = RecordView::parse(&chain.seal(event("two")).unwrap().bytes).unwrap();
        let altered = String::from_utf8(first.bytes)
            .unwrap()
            .replace("\"one\"", "\"0ne\"");
        let altered = RecordView::parse(altered.as_bytes()).unwrap();
        assert_eq!(
            verify_link(Some(&altered), &second),
            Err(LinkError::Hash { seq: 2 })
        );
    }

    #[test]
    fn the_records_of_two_sources_are_no_chain() {
        let first = views(&["one"]).remove(0);
        let stranger = ChainHead {
            source: SourceId::from_uuid(Uuid::nil()),
            ..ChainHead::genesis(source())
        };
        assert!(matches!(
            stranger.follow(&first),
            Err(LinkError::OtherSource { .. })
        ));
    }

    #[test]
    fn a_resumed_chain_goes_on_where_it_stood() {
        let mut chain = Chain::new(source());
        let first = chain.seal(event("one")).unwrap();
        let mut resumed = Chain::resume(source(), first.seq, &first.hash_hex);
        assert_eq!(
            resumed.seal(event("two")).unwrap(),
            chain.seal(event("two")).unwrap()
        );
    }

    #[test]
    fn an_event_cannot_choose_its_own_place() {
        let forged = event("one")
            .field("agent_seq", 99)
            .field("agent_prev", "f")
            .field("agent_id", "someone");
        let record = Chain::new(source()).seal(forged).unwrap();
        let view = RecordView::parse(&record.bytes).unwrap();
        assert_eq!((view.agent_seq, view.agent_id), (1, source()));
    }

    #[test]
    fn an_oversized_event_leaves_the_chain_where_it_was() {
        let mut chain = Chain::new(source());
        let long = event(&"x".repeat(RECORD_BYTES_MAX));
        assert!(matches!(chain.seal(long), Err(SealError::TooLong { .. })));
        assert_eq!(chain.head(), &ChainHead::genesis(source()));
    }

    proptest! {
        #[test]
        fn any_text_survives_on_one_line_and_every_link_holds(notes in proptest::collection::vec(any::<String>(), 1..12)) {
            let mut chain = Chain::new(source());
            let mut head = ChainHead::genesis(source());
            for note in &notes {
                let record = chain.seal(event(note)).unwrap();
                prop_assert!(!record.bytes.contains(&b'\n'));
                let view = RecordView::parse(&record.bytes).unwrap();
                prop_assert_eq!(view.fields["reason"].as_str(), Some(note.as_str()));
                head = head.follow(&view).unwrap();
            }
            prop_assert_eq!(&head, chain.head());
        }
    }
}
