//! Audit records, byte for byte, and the view of sessions that they add up to.

use async_trait::async_trait;
use iap_audit::Payload;
use iap_identity::SessionId;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Erasing, Erasure, Hash, StoreError};

/// A record as it arrives.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// Its number at its source, from 1.
    pub source_seq: u64,
    /// The hash of the source's record before it; zeros for the first.
    pub previous: Hash,
    /// SHA-256 of `bytes`.
    pub hash: Hash,
    /// The record: one line of JSON without the newline.
    pub bytes: Vec<u8>,
    /// When the source says it happened.
    pub time: OffsetDateTime,
    /// `session.start` and so on.
    pub event: String,
    /// The session it belongs to.
    pub session: Option<SessionId>,
    /// What it changes in the view of sessions.
    pub change: Option<SessionChange>,
    /// What lies beside it.
    pub payload: Option<Payload>,
    /// What is taken away by its being on record.
    pub erases: Option<Erasing>,
}

/// What a record says about a session's life.
#[derive(Clone, Debug)]
pub enum SessionChange {
    /// It began.
    Start {
        /// The user's id.
        user_id: String,
        /// The user's name.
        user_name: String,
        /// The service.
        service: String,
        /// The agent's id.
        agent: String,
        /// The decision, JSON.
        decision: String,
    },
    /// It ended.
    End {
        /// The agent's id; only the agent that started a session ends it.
        agent: String,
        /// Client → backend.
        bytes_in: u64,
        /// Backend → client.
        bytes_out: u64,
        /// Why.
        close_reason: String,
    },
    /// We ended it, because its agent was not heard of. Changes nothing where the agent did before, and what the
    /// agent says later counts.
    Lost {
        /// The agent's id.
        agent: String,
        /// Why.
        close_reason: String,
    },
}

/// What became of a batch: all of it or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Everything up to and including `last` is durable; `stored` of the batch were new.
    Stored {
        /// The source's newest number.
        last: u64,
        /// How many were new.
        stored: usize,
    },
    /// Nothing was stored: the batch does not go on from what is stored, and this was not said to be
    /// alarmed. All of its faults, in the order of their numbers.
    Faulty(Vec<Fault>),
}

/// Where a batch does not fit what is stored of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A record's number is taken by other content.
    OtherContent {
        /// The number.
        source_seq: u64,
    },
    /// A record does not name the hash of the stored one before it.
    BrokenLink {
        /// The number.
        source_seq: u64,
    },
    /// Records are missing before this one.
    Missing {
        /// The first that is missing.
        first: u64,
        /// The one that came instead.
        source_seq: u64,
    },
}

impl Fault {
    /// The record in the batch that shows it.
    pub fn source_seq(&self) -> u64 {
        match self {
            Fault::OtherContent { source_seq }
            | Fault::BrokenLink { source_seq }
            | Fault::Missing { source_seq, .. } => *source_seq,
        }
    }
}

/// A stored record.
#[derive(Clone, Debug)]
pub struct StoredRecord {
    /// Our number.
    pub seq: u64,
    /// Whose chain it belongs to.
    pub source: Uuid,
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// What lies beside it, where it has that and it was not erased: a JSON object.
    pub payload: Option<Vec<u8>>,
    /// How what lay beside it was erased.
    pub erasure: Option<Erasure>,
}

/// Where a record says that its payload was erased. No record or payload has it of its own.
pub const ERASED_FIELD: &str = "payload_erased";

impl StoredRecord {
    /// What it says together with what lies beside it or how that was erased: one row, or one for each thing that tells of;
    /// none where it is no JSON object.
    #[must_use]
    pub fn rows(&self) -> Vec<Map<String, Value>> {
        let Ok(mut fields) = serde_json::from_slice::<Map<String, Value>>(&self.bytes) else {
            return Vec::new();
        };
        if let Some(erasure) = &self.erasure {
            fields.insert(ERASED_FIELD.to_owned(), erasure.to_json());
        }
        let mut rows = Payload::rows(self.payload.as_deref(), fields, self.bytes.len());
        if self.erasure.is_none() {
            // Whoever made the payload may not say so.
            for row in &mut rows {
                row.remove(ERASED_FIELD);
            }
        }
        rows
    }

    /// Whether there is more to say than its own bytes do.
    #[must_use]
    pub fn is_more_than_its_bytes(&self) -> bool {
        self.payload.is_some() || self.erasure.is_some()
    }
}

/// Which records to read, the newest first.
#[derive(Clone, Copy, Debug)]
pub struct RecordRange {
    /// Only records with a smaller `seq`.
    pub before_seq: u64,
    /// Not older.
    pub since: OffsetDateTime,
    /// Not newer.
    pub until: OffsetDateTime,
}

/// A session as `sessions ls` shows it.
#[derive(Clone, Debug)]
pub struct SessionRow {
    /// Its id.
    pub session_id: SessionId,
    /// The user's id.
    pub user_id: String,
    /// The user's name.
    pub user_name: String,
    /// The service.
    pub service: String,
    /// The agent's id.
    pub agent: String,
    /// When it began.
    pub start: OffsetDateTime,
    /// When it ended; none while live.
    pub end: Option<OffsetDateTime>,
    /// Client → backend.
    pub bytes_in: u64,
    /// Backend → client.
    pub bytes_out: u64,
    /// Why it ended.
    pub close_reason: Option<String>,
    /// The decision, JSON.
    pub decision: String,
}

/// Which sessions to list, the newest first.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    /// Only this user's, by id.
    pub user_id: Option<String>,
    /// Only this user's, by name or id.
    pub user: Option<String>,
    /// Only this service's.
    pub service: Option<String>,
    /// Only those without an end.
    pub live_only: bool,
    /// Only those that began at or after.
    pub since: Option<OffsetDateTime>,
    /// At most so many.
    pub limit: u32,
}

/// Audit records and sessions.
#[async_trait]
pub trait RecordStore: Send + Sync + 'static {
    /// Appends a source's records in one transaction. Records that are already stored with the same
    /// content are passed over, so that sending a batch again is harmless.
    ///
    /// `alarmed` are the faults for which an alarm is on record: with exactly these the batch is stored all
    /// the same, except what would replace stored content. A record that fills a gap, and fits between its neighbours, is
    /// no fault. What a record erases is taken away in the same transaction.
    async fn append_records(
        &self,
        source: Uuid,
        records: &[NewRecord],
        received_at: OffsetDateTime,
        alarmed: &[Fault],
    ) -> Result<Appended, StoreError>;

    /// The number and hash of a source's newest record; none before the first.
    async fn newest_record(&self, source: Uuid) -> Result<Option<(u64, Hash)>, StoreError>;

    /// Up to `limit` records of a range, the newest first.
    async fn records(&self, range: RecordRange, limit: u32) -> Result<Vec<StoredRecord>, StoreError>;

    /// Up to `limit` records of one session behind our number `after_seq`, the oldest first.
    async fn session_records(
        &self,
        id: SessionId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<StoredRecord>, StoreError>;

    /// Up to `limit` records of one session of that kind, the oldest first.
    async fn session_records_of_kind(
        &self,
        id: SessionId,
        event: &str,
        limit: u32,
    ) -> Result<Vec<StoredRecord>, StoreError>;

    /// Sessions, the newest first.
    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRow>, StoreError>;

    /// Open sessions that began before `absent_since` and whose agent was not heard of since then, the oldest first.
    async fn sessions_of_absent_agents(
        &self,
        absent_since: OffsetDateTime,
        limit: u32,
    ) -> Result<Vec<SessionRow>, StoreError>;

    /// The session with that id.
    async fn session(&self, id: SessionId) -> Result<Option<SessionRow>, StoreError>;
}
