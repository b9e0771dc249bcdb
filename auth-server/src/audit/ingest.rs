//! Takes the records that agents send: idempotent by (agent, number), each linked to the one before,
//! acknowledged only once they are durable.
//!
//! What does not fit the stored chain is an alarm in our own chain first, and then let in: an agent that
//! came back from an older disk, or a server from an older backup, must not lose its later records too.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use iap_audit::{Event, EventKind, PAYLOAD_BYTES_MAX, Payload, RecordView};
use iap_identity::{AgentId, CertificateDer, SignedKind, verify_signed_by_peer};
use iap_proto::v1;
use iap_runtime::traces::Traces;

use super::incoming::Incoming;
use super::{AuditLog, IncomingError, RecordError, read_record};
use crate::authority::format_time;
use crate::context::Clock;
use crate::spans;
use crate::store::{Appended, Fault, NewRecord, RestoredSource, SharedStore, StoreError};

/// The most one batch may take.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// The most records in one batch.
pub const BATCH_RECORDS_MAX: usize = 1000;
/// Alarms remembered so that a batch sent again and again raises one alarm.
const ALARMS_REMEMBERED_MAX: usize = 1024;
/// How much of a record that cannot be stored its alarm carries. JSON may double it within another.
const ALARM_CONTENT_BYTES_MAX: usize = 64 * 1024;

/// Takes agents' records.
#[derive(Clone, Debug)]
pub struct Ingest {
    store: SharedStore,
    audit: AuditLog,
    clock: Clock,
    traces: Traces,
    alarmed: Arc<Mutex<BTreeSet<(AgentId, String)>>>,
    /// Agents that were asked to send again what a restored database lacks.
    asked: Arc<Mutex<BTreeSet<AgentId>>>,
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
    /// Another batch of the same agent came in between; sending again helps.
    #[error("another batch of this agent was stored at the same time: send again")]
    Overtaken,
    /// Something of ours failed; sending again may help.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An alarm could not be recorded.
    #[error(transparent)]
    Alarm(#[from] RecordError),
}

impl Ingest {
    /// Takes records into that store.
    pub fn new(store: SharedStore, audit: AuditLog, clock: Clock, traces: Traces) -> Self {
        Self {
            store,
            audit,
            clock,
            traces,
            alarmed: Arc::default(),
            asked: Arc::default(),
        }
    }

    /// Stores a batch and returns up to which number it is durable: never beyond the batch, because an agent
    /// from an older disk has other records under numbers that are stored already. `leaf` is the certificate of the
    /// connection that brought it: its key signs the head of each batch.
    pub async fn append(
        &self,
        agent: AgentId,
        leaf: &CertificateDer<'_>,
        batch: &v1::AuditBatch,
    ) -> Result<u64, IngestError> {
        let read = read_batch(agent, batch)
            .and_then(|records| check_head(leaf, &records, &batch.head_signature).map(|()| records));
        let records = match read {
            Ok(records) => records,
            Err(refused) => {
                // The agent keeps what it has and sends it again: without an alarm nobody would learn of it.
                let why = format!("a batch of records was refused: {refused}");
                if self.is_new_alarm(agent, why.clone()) {
                    self.raise(agent, &why, |event| event).await?;
                }
                return Err(refused);
            }
        };
        let durable = records.last().map_or(0, |record| record.source_seq);
        let faults = match self.store(agent, &records, &[]).await? {
            Appended::Stored { .. } => return Ok(durable),
            Appended::Faulty(faults) => faults,
        };
        for fault in &faults {
            match self.lost_by_restore(agent, *fault).await? {
                Some(held) if self.is_first_time(agent) => return Ok(held.source_seq),
                Some(held) => self.note_lost(agent, *fault, held).await?,
                None => self.alarm_of(agent, *fault, &records).await?,
            }
        }
        match self.store(agent, &records, &faults).await? {
            Appended::Stored { .. } => Ok(durable),
            Appended::Faulty(_) => Err(IngestError::Overtaken),
        }
    }

    async fn store(
        &self,
        agent: AgentId,
        records: &[NewRecord],
        alarmed: &[Fault],
    ) -> Result<Appended, StoreError> {
        let (now, began) = (self.clock.now(), Instant::now());
        let appended = self
            .store
            .append_records(*agent.as_uuid(), records, now, alarmed)
            .await?;
        if let Appended::Stored { stored, .. } = &appended {
            // What an agent sends again comes before what is new.
            let new = records.iter().skip(records.len().saturating_sub(*stored));
            spans::appended(&self.traces, agent, began, new);
        }
        Ok(appended)
    }

    /// A gap right behind what the backup held of this agent is no alarm: the database was lost, not the chain.
    async fn lost_by_restore(
        &self,
        agent: AgentId,
        fault: Fault,
    ) -> Result<Option<RestoredSource>, StoreError> {
        let Fault::Missing { first, .. } = fault else {
            return Ok(None);
        };
        let restored = self.store.restored_source(*agent.as_uuid()).await?;
        // An agent that the backup does not know joined after it was made, and before it was restored.
        let joined = agent.as_uuid().get_timestamp().map_or(0, |time| time.to_unix().0);
        let explains = |restored: &RestoredSource| {
            let restored_at = u64::try_from(restored.restored_at.unix_timestamp()).unwrap_or(0);
            restored.source_seq.checked_add(1) == Some(first) && joined <= restored_at
        };
        Ok(restored.filter(explains))
    }

    /// The acknowledgement then goes back to what is held, so that the agent sends what it still has.
    fn is_first_time(&self, agent: AgentId) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() >= ALARMS_REMEMBERED_MAX {
            asked.clear();
        }
        asked.insert(agent)
    }

    async fn note_lost(&self, agent: AgentId, fault: Fault, held: RestoredSource) -> Result<(), RecordError> {
        let (first, last) = (held.source_seq + 1, fault.source_seq().saturating_sub(1));
        tracing::warn!(%agent, first, last, "records are lost with the database that was restored");
        let event = self
            .audit
            .event(EventKind::AuditLost)?
            .agent(&agent)
            .field("first", first)
            .field("last", last)
            .field("backup_made", format_time(held.backup_at))
            .reason("they were acknowledged after the backup was made, and the agent no longer has them");
        self.audit.record(event).await
    }

    async fn alarm_of(&self, agent: AgentId, fault: Fault, records: &[NewRecord]) -> Result<(), RecordError> {
        let number = fault.source_seq();
        let why = match fault {
            Fault::OtherContent { .. } => format!("record {number} was sent before with other content"),
            Fault::BrokenLink { .. } => {
                format!("record {number} does not follow the stored record before it")
            }
            Fault::Missing { first, .. } => {
                format!("records {first} to {} never arrived", number.saturating_sub(1))
            }
        };
        // Its number is taken, so its content is kept here or nowhere.
        let unstored = records
            .iter()
            .find(|record| record.source_seq == number)
            .filter(|_| matches!(fault, Fault::OtherContent { .. }));
        // Told apart by content: each other content is an alarm of its own.
        let hash = unstored.map(|record| iap_identity::hex(&record.hash));
        let remembered = format!("{why} {}", hash.as_deref().unwrap_or_default());
        if !self.is_new_alarm(agent, remembered) {
            return Ok(());
        }
        self.raise(agent, &why, |event| {
            let event = event.field("agent_record", number);
            match (unstored, hash) {
                (Some(record), Some(hash)) => event
                    .field("other_sha256", hash)
                    .field("other_content", excerpt(&record.bytes)),
                (Some(_), None) | (None, _) => event,
            }
        })
        .await
    }

    async fn raise(
        &self,
        agent: AgentId,
        why: &str,
        describe: impl FnOnce(Event) -> Event,
    ) -> Result<(), RecordError> {
        tracing::error!(agent = %agent, "audit alarm: {why}");
        self.audit.alarms().inc();
        let event = self.audit.event(EventKind::AuditAlarm)?;
        self.audit.record(describe(event.agent(&agent).reason(why))).await
    }

    fn is_new_alarm(&self, agent: AgentId, why: String) -> bool {
        let mut alarmed = self.alarmed.lock().unwrap_or_else(PoisonError::into_inner);
        if alarmed.len() >= ALARMS_REMEMBERED_MAX {
            alarmed.clear();
        }
        alarmed.insert((agent, why))
    }
}

fn excerpt(bytes: &[u8]) -> String {
    let kept = bytes.get(..ALARM_CONTENT_BYTES_MAX).unwrap_or(bytes);
    String::from_utf8_lossy(kept).into_owned()
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
        if i64::try_from(record.source_seq).is_err() {
            let why = format!("record {position} of the batch has a number that cannot be stored");
            return Err(IngestError::Invalid(why));
        }
        if source != agent.into() {
            let why = format!("record {position} of the batch names the source {source}, not its sender");
            return Err(IngestError::Invalid(why));
        }
        records.push(record);
    }
    attach_payloads(&mut records, &batch.payloads)?;
    Ok(records)
}

/// A payload is kept only with the record that was made with it.
fn attach_payloads(records: &mut [NewRecord], payloads: &[v1::AuditPayload]) -> Result<(), IngestError> {
    let bytes: usize = payloads.iter().map(|payload| payload.payload.len()).sum();
    if bytes > BATCH_BYTES_MAX + PAYLOAD_BYTES_MAX {
        let why = format!("the payloads of a batch have {bytes} bytes");
        return Err(IngestError::Invalid(why));
    }
    for sent in payloads {
        let position = usize::try_from(sent.record).unwrap_or(usize::MAX);
        let refused = |why: &dyn std::fmt::Display| {
            let position = position.saturating_add(1);
            IngestError::Invalid(format!("the payload of record {position} of the batch: {why}"))
        };
        let record = records.get_mut(position);
        let record = record.filter(|record| record.payload.is_none());
        let record = record.ok_or_else(|| refused(&"there is no such record, or it has one"))?;
        let payload =
            Payload::from_parts(&sent.salt, sent.payload.clone()).map_err(|error| refused(&error))?;
        let view = RecordView::parse(&record.bytes).map_err(|error| refused(&error))?;
        payload.belongs_to(&view).map_err(|error| refused(&error))?;
        record.payload = Some(payload);
    }
    Ok(())
}

fn check_head(leaf: &CertificateDer<'_>, records: &[NewRecord], signature: &[u8]) -> Result<(), IngestError> {
    let head = records.last().map(|record| record.hash).unwrap_or_default();
    verify_signed_by_peer(leaf, SignedKind::AuditHead, &head, signature)
        .map_err(|error| IngestError::Invalid(format!("the signature over the batch's head: {error}")))
}
