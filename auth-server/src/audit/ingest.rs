//! Takes the records that agents send: idempotent by (agent, number), each linked to the one before,
//! acknowledged only once they are durable.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use iap_audit::EventKind;
use iap_identity::{AgentId, CertificateDer, SignedKind, verify_signed_by_peer};
use iap_proto::v1;

use super::incoming::Incoming;
use super::{AuditLog, IncomingError, RecordError, read_record};
use crate::context::Clock;
use crate::store::{Appended, NewRecord, SharedStore, StoreError};

/// The most one batch may take.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// The most records in one batch.
pub const BATCH_RECORDS_MAX: usize = 1000;
/// Alarms remembered so that a batch sent again and again raises one alarm.
const ALARMS_REMEMBERED_MAX: usize = 1024;

/// Takes agents' records.
#[derive(Clone, Debug)]
pub struct Ingest {
    store: SharedStore,
    audit: AuditLog,
    clock: Clock,
    alarmed: Arc<Mutex<BTreeSet<(AgentId, u64)>>>,
}

/// Nothing of the batch was stored.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// Outside the bounds, or not records.
    #[error("{0}")]
    Invalid(String),
    /// One of the records is not one.
    #[error("record {position} of the batch: {error}")]
    Record {
        /// Counted from 1.
        position: usize,
        /// What is wrong with it.
        error: IncomingError,
    },
    /// The chain does not go on from what is stored. Recorded as an alarm.
    #[error("{0}")]
    Conflict(String),
    /// Records before this batch have not arrived.
    #[error("record {expected} must come next")]
    Missing {
        /// The number that must come next.
        expected: u64,
    },
    /// Something of ours failed; sending again may help.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An alarm could not be recorded.
    #[error(transparent)]
    Alarm(#[from] RecordError),
}

impl Ingest {
    /// Takes records into that store.
    pub fn new(store: SharedStore, audit: AuditLog, clock: Clock) -> Self {
        Self {
            store,
            audit,
            clock,
            alarmed: Arc::default(),
        }
    }

    /// Stores a batch and returns the agent's newest durable number. `leaf` is the certificate of the
    /// connection that brought it: its key signs the head of each batch.
    pub async fn append(
        &self,
        agent: AgentId,
        leaf: &CertificateDer<'_>,
        batch: &v1::AuditBatch,
    ) -> Result<u64, IngestError> {
        let records = read_batch(agent, batch)?;
        check_head(leaf, &records, &batch.head_signature)?;
        match self
            .store
            .append_records(*agent.as_uuid(), &records, self.clock.now())
            .await?
        {
            Appended::Stored { last, .. } => Ok(last),
            Appended::Missing { expected } => Err(IngestError::Missing { expected }),
            Appended::OtherContent { source_seq } => {
                let why = format!("record {source_seq} was sent before with other content");
                self.alarm(agent, source_seq, why).await
            }
            Appended::BrokenLink { source_seq } => {
                let why = format!("record {source_seq} does not follow the stored record before it");
                self.alarm(agent, source_seq, why).await
            }
        }
    }

    async fn alarm(&self, agent: AgentId, source_seq: u64, why: String) -> Result<u64, IngestError> {
        if self.is_new_alarm(agent, source_seq) {
            tracing::error!(agent = %agent, source_seq, "audit alarm: {why}");
            let event = self
                .audit
                .event(EventKind::AuditAlarm)
                .map_err(RecordError::from)?;
            let event = event.agent(&agent).field("agent_record", source_seq).reason(&why);
            self.audit.record(event).await?;
        }
        Err(IngestError::Conflict(why))
    }

    fn is_new_alarm(&self, agent: AgentId, source_seq: u64) -> bool {
        let mut alarmed = self.alarmed.lock().unwrap_or_else(PoisonError::into_inner);
        if alarmed.len() >= ALARMS_REMEMBERED_MAX {
            alarmed.clear();
        }
        alarmed.insert((agent, source_seq))
    }
}

fn read_batch(agent: AgentId, batch: &v1::AuditBatch) -> Result<Vec<NewRecord>, IngestError> {
    let bytes: usize = batch.records.iter().map(Vec::len).sum();
    if batch.records.is_empty() || batch.records.len() > BATCH_RECORDS_MAX || bytes > BATCH_BYTES_MAX {
        let found = batch.records.len();
        return Err(IngestError::Invalid(format!(
            "a batch holds 1 to {BATCH_RECORDS_MAX} records and {BATCH_BYTES_MAX} bytes; this one {found} and {bytes}"
        )));
    }
    let mut records = Vec::with_capacity(batch.records.len());
    for (index, bytes) in batch.records.iter().enumerate() {
        let position = index + 1;
        let Incoming { source, record } =
            read_record(bytes).map_err(|error| IngestError::Record { position, error })?;
        if source != agent.into() {
            let why = format!("record {position} of the batch names the source {source}, not its sender");
            return Err(IngestError::Invalid(why));
        }
        records.push(record);
    }
    Ok(records)
}

fn check_head(leaf: &CertificateDer<'_>, records: &[NewRecord], signature: &[u8]) -> Result<(), IngestError> {
    let head = records.last().map(|record| record.hash).unwrap_or_default();
    verify_signed_by_peer(leaf, SignedKind::AuditHead, &head, signature)
        .map_err(|error| IngestError::Invalid(format!("the signature over the batch's head: {error}")))
}
