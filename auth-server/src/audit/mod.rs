//! The audit log: our own records, and those that agents send.
//!
//! Both end in the same table, byte for byte, each source a chain of its own. Ours carries the auth
//! server's id where an agent's carries the agent's.

pub mod erase;
mod incoming;
pub mod ingest;
pub mod lost;
pub mod search;
pub mod sessions;

use std::sync::Arc;

use iap_audit::{Chain, Event, EventKind, SealError};
use iap_identity::AuthId;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Mutex;

use crate::context::{Clock, NoRandomness, Random};
use crate::store::{Appended, Erasing, NewRecord, SharedStore, StoreError};

pub use incoming::{IncomingError, read_record};

use incoming::read_own_record;

/// Writes our own records. What [`AuditLog::record`] has returned for is durable.
#[derive(Clone)]
pub struct AuditLog {
    shared: Arc<Shared>,
}

struct Shared {
    source: AuthId,
    store: SharedStore,
    clock: Clock,
    random: Random,
    /// Where our chain stands; unknown at start and after a write of which we cannot tell whether it
    /// was committed, when the store is asked.
    chain: Mutex<Option<Chain>>,
    alarms: Counter,
}

/// The record is not in the log; what it was to announce must not happen.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error("the audit log could not be written: {0}")]
    Store(#[from] StoreError),
    /// The event cannot be a record.
    #[error("the audit record could not be made: {0}")]
    Seal(#[from] SealError),
    /// What was sealed could not be read back.
    #[error("the audit record could not be read back: {0}")]
    Unreadable(#[from] IncomingError),
    /// No id could be made for the event.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// Somebody else writes under our id.
    #[error("the audit chain of this server is written by somebody else too")]
    NotAlone,
}

impl AuditLog {
    /// The log of the auth server with that id.
    pub fn new(source: AuthId, store: SharedStore, clock: Clock, random: Random) -> Self {
        Self {
            shared: Arc::new(Shared {
                source,
                store,
                clock,
                random,
                chain: Mutex::new(None),
                alarms: Counter::default(),
            }),
        }
    }

    /// How often an agent's records gave reason for an alarm.
    pub fn alarms(&self) -> Counter {
        self.shared.alarms.clone()
    }

    /// An event that happens now, with an id of its own; fill in the rest and [`AuditLog::record`] it.
    pub fn event(&self, kind: EventKind) -> Result<Event, NoRandomness> {
        let now = self.shared.clock.now();
        Ok(Event::new(kind, now, self.shared.random.uuid_v7(now)?))
    }

    /// Appends a record to our own chain and waits until it is durable.
    pub async fn record(&self, event: Event) -> Result<(), RecordError> {
        self.record_all(vec![event]).await
    }

    /// The same for several that become durable together.
    pub async fn record_all(&self, events: Vec<Event>) -> Result<(), RecordError> {
        if events.is_empty() {
            return Ok(());
        }
        self.append(events, None).await
    }

    /// Appends the record of an act together with what it takes away: there is no time at which one of both is there and
    /// not the other.
    pub async fn record_erasing(&self, event: Event, erasing: Erasing) -> Result<(), RecordError> {
        self.append(vec![event], Some(erasing)).await
    }

    async fn append(&self, events: Vec<Event>, mut erases: Option<Erasing>) -> Result<(), RecordError> {
        let mut place = self.shared.chain.lock().await;
        // Taken out: if this future is dropped half-way, the next one asks the store where we stand.
        let mut chain = match place.take() {
            Some(chain) => chain,
            None => self.resume().await?,
        };
        let mut records = Vec::with_capacity(events.len());
        for event in events {
            let body = event.into_body();
            let payload = body.payload().cloned();
            let sealed = chain.seal(body)?;
            let record = read_own_record(&sealed.bytes)?.record;
            records.push(NewRecord {
                payload,
                erases: erases.take(),
                ..record
            });
        }
        let source = *self.shared.source.as_uuid();
        let now = self.shared.clock.now();
        match self
            .shared
            .store
            .append_records(source, &records, now, &[])
            .await?
        {
            Appended::Stored { stored, .. } if stored == records.len() => {
                *place = Some(chain);
                Ok(())
            }
            Appended::Stored { .. } | Appended::Faulty(_) => Err(RecordError::NotAlone),
        }
    }

    async fn resume(&self) -> Result<Chain, StoreError> {
        let newest = self
            .shared
            .store
            .newest_record(*self.shared.source.as_uuid())
            .await?;
        Ok(match newest {
            Some((seq, hash)) => Chain::resume(self.shared.source, seq, &iap_identity::hex(&hash)),
            None => Chain::new(self.shared.source),
        })
    }
}

impl std::fmt::Debug for AuditLog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("AuditLog")
            .field("source", &self.shared.source)
            .finish_non_exhaustive()
    }
}
