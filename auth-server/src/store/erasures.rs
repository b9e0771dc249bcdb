//! Erasing what lies beside records. The records stay, byte for byte, and say by their hash that there was something.

use async_trait::async_trait;
use iap_identity::SessionId;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::authority::format_time;

/// An act of erasing, as it is shown where something was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// Its id; its record has it too.
    pub id: Uuid,
    /// When.
    pub at: OffsetDateTime,
    /// Who, by name.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
}

impl Erasure {
    /// As records and recordings show it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "erasure_id": self.id.to_string(),
            "time": format_time(self.at),
            "by": self.by,
            "reason": self.reason,
        })
    }

    /// `erased at … by …`, and why.
    #[must_use]
    pub fn as_words(&self) -> String {
        let (at, by) = (format_time(self.at), &self.by);
        match self.reason.as_str() {
            "" => format!("erased at {at} by {by}"),
            reason => format!("erased at {at} by {by}: {reason}"),
        }
    }
}

/// What an act takes away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erasing {
    /// The act.
    pub erasure: Erasure,
    /// The payloads of these records, by our numbers.
    pub payloads: Vec<u64>,
    /// These recordings of a session: they are marked, and nothing more of them is taken.
    pub recordings: Option<(SessionId, Vec<u32>)>,
}

/// Whose payloads.
#[derive(Clone, Debug)]
pub enum PayloadsOf {
    /// Of all records of a session that are here.
    Session(SessionId),
    /// Of these records, by our numbers.
    Records(Vec<u64>),
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Payloads {
    /// So many payloads.
    pub count: u64,
    /// So many bytes in all.
    pub bytes: u64,
}

/// A payload that is here, and which record it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadPlace {
    /// Our number of its record.
    pub seq: u64,
    /// The record's source.
    pub source: Uuid,
    /// Its number there.
    pub source_seq: u64,
    /// The payload's length.
    pub bytes: u64,
}

/// Erasing.
#[async_trait]
pub trait ErasureStore: Send + Sync + 'static {
    /// Our number of the record with that id, which says when the record was made.
    async fn record_with_id(&self, id: Uuid) -> Result<Option<u64>, StoreError>;

    /// How many payloads are here.
    async fn payloads(&self, of: &PayloadsOf) -> Result<Payloads, StoreError>;

    /// The first `limit` of them, in the order of their records.
    async fn payload_places(&self, of: &PayloadsOf, limit: u32) -> Result<Vec<PayloadPlace>, StoreError>;

    /// Takes what was erased out of the database's files too, as far as it lies there beside the database itself.
    async fn empty_log(&self) -> Result<(), StoreError>;

    /// The erased recordings of a session, with how.
    async fn erased_recordings(&self, session: SessionId) -> Result<Vec<(u32, Erasure)>, StoreError>;
}
