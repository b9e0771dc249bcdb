//! Forwards audit records: in order, signed at their head, again and again until they are acknowledged.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use iap_audit::RecordView;
use iap_proto::v1;
use iap_runtime::backoff::Backoff;
use iap_runtime::spool::{SpoolError, SpooledRecord};
use tokio::sync::Mutex;

use super::{AuthClient, CallError};
use crate::identity::{IdentityError, OwnIdentity};
use crate::journal::live_set::LiveSet;
use crate::journal::{Journal, JournalError};
use crate::state::{StateDir, StateError, names};

/// As the auth server bounds a batch.
const BATCH_RECORDS_MAX: usize = 1000;
const BATCH_BYTES_MAX: usize = 1024 * 1024;
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
    /// The sessions that live as of the last acknowledged record.
    live: Mutex<LiveSet>,
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
    ) -> Result<Self, JournalError> {
        let live = Mutex::new(LiveSet::load(&state)?);
        Ok(Self {
            journal,
            client,
            identity,
            state,
            live,
        })
    }

    /// Runs for ever.
    pub async fn run(&self) {
        let mut committed = self.journal.spool().committed();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            committed.mark_unchanged();
            match self.upload_batch().await {
                Ok(Sent::Some) => {
                    backoff.reset();
                    tokio::time::sleep(PACE).await;
                }
                Ok(Sent::Nothing) => {
                    if committed.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, waiting = self.journal.unacknowledged(), "audit records wait");
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

    async fn upload_batch(&self) -> Result<Sent, UploadError> {
        let spool = self.journal.spool();
        let batch = spool
            .unacknowledged(0, BATCH_RECORDS_MAX, BATCH_BYTES_MAX)
            .await?;
        let Some(last) = batch.last() else {
            return Ok(Sent::Nothing);
        };
        let head_signature = self.identity.sign_head(digest(&SHA256, &last.bytes).as_ref())?;
        let records = batch.iter().map(|record| record.bytes.clone()).collect();
        let seq = self
            .client
            .append_audit(v1::AuditBatch {
                records,
                head_signature,
            })
            .await?;
        if batch.first().is_some_and(|first| seq < first.seq) {
            return Err(UploadError::NotAcknowledged);
        }
        self.acknowledge(&batch, seq).await?;
        Ok(Sent::Some)
    }

    /// First remembers which sessions live, then lets the spool delete: see [`LiveSet`].
    async fn acknowledge(&self, batch: &[SpooledRecord], seq: u64) -> Result<(), UploadError> {
        let mut live = self.live.lock().await;
        for record in batch.iter().take_while(|record| record.seq <= seq) {
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
        self.journal.acknowledge(seq).await?;
        Ok(())
    }
}

enum Sent {
    Some,
    Nothing,
}
