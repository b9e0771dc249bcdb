//! Forwards audit records: in order, signed at their head, again and again until they are acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use iap_audit::RecordView;
use iap_proto::v1;
use iap_runtime::backoff::Backoff;
use iap_runtime::outage::Outage;
use iap_runtime::spool::{SpoolError, SpooledRecord};
use tokio::sync::{Mutex, watch};

use super::{AuthClient, CallError};
use crate::identity::{IdentityError, OwnIdentity};
use crate::journal::live_set::LiveSet;
use crate::journal::{Journal, JournalError};
use crate::state::{StateDir, StateError, names};
use crate::view::View;

/// As the auth server bounds a batch.
const BATCH_RECORDS_MAX: usize = 1000;
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// By how much at least the next batch after one that got through may be larger.
const BATCH_GROWS_BYTES_MIN: usize = 1024;
/// Between one batch and the next: each costs both machines a few syncs, so a busy agent sends fuller ones.
const PACE: Duration = Duration::from_millis(50);
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Why a batch is not delivered yet.
#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the auth server acknowledged nothing of the batch")]
    NotAcknowledged,
}

/// The one reader of the spool.
#[derive(Debug)]
pub struct Uploader {
    journal: Journal,
    client: Arc<AuthClient>,
    identity: Arc<OwnIdentity>,
    state: StateDir,
    views: watch::Receiver<Option<Arc<View>>>,
    /// The sessions that live as of the last acknowledged record.
    live: Mutex<LiveSet>,
    fill: Fill,
}

/// How large batches may be. One that was not answered in time was too large for the line, as far as anybody can
/// tell: it comes again as half of what it was, down to a single record, and each that gets through lets the next
/// be somewhat larger.
#[derive(Debug)]
struct Fill(AtomicUsize);

impl Fill {
    fn new() -> Self {
        Self(AtomicUsize::new(BATCH_BYTES_MAX))
    }

    /// Bytes of the next batch; at least one record is taken in any case.
    fn bytes_max(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn got_through(&self) {
        let bytes = self.bytes_max();
        let larger = bytes + (bytes / 8).max(BATCH_GROWS_BYTES_MIN);
        self.0.store(larger.min(BATCH_BYTES_MAX), Ordering::Relaxed);
    }

    fn timed_out(&self, bytes: usize) {
        self.0.store((bytes / 2).max(1), Ordering::Relaxed);
    }
}

impl Uploader {
    /// An uploader of the journal's records.
    ///
    /// # Errors
    /// When the list of live sessions cannot be read.
    pub fn new(
        journal: Journal,
        client: Arc<AuthClient>,
        identity: Arc<OwnIdentity>,
        state: StateDir,
        views: watch::Receiver<Option<Arc<View>>>,
    ) -> Result<Self, JournalError> {
        let live = Mutex::new(LiveSet::load(&state)?);
        Ok(Self {
            journal,
            client,
            identity,
            state,
            views,
            live,
            fill: Fill::new(),
        })
    }

    /// Runs for ever.
    pub async fn run(&self) {
        let mut committed = self.journal.spool().committed();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut outage = Outage::default();
        let mut epochs = self.views.clone();
        let mut epoch = epoch_of(&mut epochs);
        let mut place = Place::Unacknowledged;
        loop {
            committed.mark_unchanged();
            let newest = epoch_of(&mut epochs);
            if newest > epoch && epoch.is_some() {
                place.probe();
            }
            epoch = newest;
            match self.upload_batch(&mut place).await {
                Ok(Sent::Some) => {
                    backoff.reset();
                    if outage.over() {
                        tracing::info!("audit records are delivered again");
                    }
                    tokio::time::sleep(PACE).await;
                }
                Ok(Sent::Nothing) => tokio::select! {
                    more = committed.changed() => if more.is_err() {
                        return;
                    },
                    // Beyond the agent's life there is no feed either.
                    changed = epochs.changed() => if changed.is_err() {
                        return;
                    },
                },
                Err(error) => {
                    let waiting = self.journal.unacknowledged();
                    match outage.is_news(&error) {
                        true => tracing::warn!(%error, waiting, "audit records wait"),
                        false => tracing::debug!(%error, waiting, "audit records still wait"),
                    }
                    backoff.wait().await;
                }
            }
        }
    }

    /// Returns once everything that is durable now has been acknowledged.
    pub async fn finish(&self) {
        let last = self.journal.spool().usage().committed;
        let _ = self
            .journal
            .acknowledged()
            .wait_for(|acknowledged| *acknowledged >= last)
            .await;
    }

    async fn upload_batch(&self, place: &mut Place) -> Result<Sent, UploadError> {
        let batch = self.batch_at(place).await?;
        let (Some(first), Some(last)) = (batch.first().map(|first| first.seq), batch.last()) else {
            *place = Place::Unacknowledged;
            return Ok(Sent::Nothing);
        };
        let head_signature = self.identity.sign_head(digest(&SHA256, &last.bytes).as_ref())?;
        let last = last.seq;
        let bytes = batch.iter().map(SpooledRecord::length).sum();
        let payloads = payloads_of(&batch);
        let records = batch.iter().map(|record| record.bytes.clone()).collect();
        let appended = self.client.append_audit(v1::AuditBatch {
            records,
            head_signature,
            payloads,
        });
        let seq = match appended.await {
            Ok(seq) => seq,
            Err(error) => {
                if matches!(error, CallError::TimedOut) {
                    self.fill.timed_out(bytes);
                }
                return Err(error.into());
            }
        };
        self.fill.got_through();
        if seq < first {
            return place.taken_back(seq).map(|()| Sent::Some);
        }
        let acknowledged = self.journal.spool().usage().acknowledged;
        *place = match place {
            Place::Again(_) if last < acknowledged => Place::Again(seq.saturating_add(1)),
            Place::Again(_) | Place::Probe | Place::Unacknowledged => Place::Unacknowledged,
        };
        self.acknowledge(&batch, acknowledged, seq).await?;
        Ok(Sent::Some)
    }

    async fn batch_at(&self, place: &Place) -> Result<Vec<SpooledRecord>, SpoolError> {
        let (spool, bytes_max) = (self.journal.spool(), self.fill.bytes_max());
        let from = match *place {
            Place::Unacknowledged => {
                return spool.unacknowledged(0, BATCH_RECORDS_MAX, bytes_max).await;
            }
            Place::Probe => spool.usage().acknowledged,
            Place::Again(from) => from,
        };
        spool.held(from, BATCH_RECORDS_MAX, bytes_max).await
    }

    /// First remembers which sessions live, then lets the spool delete: see [`LiveSet`]. What was acknowledged
    /// before and is sent again has been counted.
    async fn acknowledge(&self, batch: &[SpooledRecord], before: u64, seq: u64) -> Result<(), UploadError> {
        let mut live = self.live.lock().await;
        let news = batch
            .iter()
            .filter(|record| before < record.seq && record.seq <= seq);
        for record in news {
            if let Ok(view) = RecordView::parse(&record.bytes) {
                live.replay(&view);
            }
        }
        if let Some(bytes) = live.unsaved() {
            let state = self.state.clone();
            let written = tokio::task::spawn_blocking(move || state.write(names::LIVE, &bytes)).await;
            written.map_err(|_| SpoolError::Stopped)??;
            live.saved();
        }
        self.journal.acknowledge(seq.max(before)).await?;
        Ok(())
    }
}

fn payloads_of(batch: &[SpooledRecord]) -> Vec<v1::AuditPayload> {
    let with_payload = (0u32..).zip(batch).filter_map(|(place, record)| {
        let payload = record.payload.as_ref()?;
        Some(v1::AuditPayload {
            record: place,
            salt: payload.salt().to_vec(),
            payload: payload.bytes().to_vec(),
        })
    });
    with_payload.collect()
}

enum Sent {
    Some,
    Nothing,
}

/// From where the next batch is taken.
enum Place {
    /// What was never acknowledged: the rule.
    Unacknowledged,
    /// The newest acknowledged record: the auth server began a new epoch, and may come from a backup that lacks it.
    Probe,
    /// From this record on, as far as it is still here: the auth server has lost what it had acknowledged.
    Again(u64),
}

impl Place {
    /// Whoever is sending again already knows what the server lacks.
    fn probe(&mut self) {
        match self {
            Place::Unacknowledged => *self = Place::Probe,
            Place::Probe | Place::Again(_) => {}
        }
    }

    /// The auth server acknowledges less than the batch's first record: it holds nothing beyond `seq`.
    fn taken_back(&mut self, seq: u64) -> Result<(), UploadError> {
        match self {
            Place::Unacknowledged | Place::Probe => {
                tracing::warn!(
                    holds = seq,
                    "the auth server has lost records; what is still here is sent again"
                );
                *self = Place::Again(seq.saturating_add(1));
                Ok(())
            }
            // It was sent everything there is; waiting, not sending in circles.
            Place::Again(_) => Err(UploadError::NotAcknowledged),
        }
    }
}

/// The feed's epoch, once there is a view.
fn epoch_of(views: &mut watch::Receiver<Option<Arc<View>>>) -> Option<u64> {
    views
        .borrow_and_update()
        .as_ref()
        .map(|view| view.snapshot_version().0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn batches_shrink_to_what_the_line_carries_and_grow_back() {
        let fill = Fill::new();
        assert_eq!(fill.bytes_max(), BATCH_BYTES_MAX);
        fill.timed_out(40_000);
        assert_eq!(fill.bytes_max(), 20_000);
        for _ in 0..20 {
            fill.timed_out(fill.bytes_max());
        }
        assert_eq!(fill.bytes_max(), 1, "a single record is as small as it gets");
        for _ in 0..100 {
            fill.got_through();
        }
        assert_eq!(fill.bytes_max(), BATCH_BYTES_MAX);
    }

    #[test]
    fn a_new_epoch_does_not_interrupt_what_is_being_sent_again() {
        let mut place = Place::Unacknowledged;
        place.probe();
        assert!(matches!(place, Place::Probe));
        place.taken_back(3).unwrap();
        place.probe();
        assert!(matches!(place, Place::Again(4)), "only what the server lacks");
        assert!(place.taken_back(3).is_err(), "never in circles");
    }
}
