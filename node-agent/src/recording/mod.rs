//! Terminals on record: what a channel shows is written in pieces, each durable a second after it was seen at the
//! latest, and its hash goes into the trail when the channel is over.
//!
//! A recording is a file of lines (asciicast v2) in the state directory until the auth server has it. Beside it lie
//! what its record is to say should this agent be killed (`.json`), where its pieces begin (`.index`), and once it is
//! over what its record says (`.done`).

mod pen;
mod replay;
mod store;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iap_audit::EventKind;
use iap_audit::asciicast::Header;
use iap_proto::RecordingMode;
use iap_runtime::config::InForce;

pub(crate) use pen::Recording;
pub(crate) use store::{Name, Waiting};
pub use store::{Recordings, RecordingsError};

use crate::limits::Limits;
use crate::session::{Live, Scribe};
use crate::watch::Audience;

/// Why a channel must not begin.
#[derive(Debug, thiserror::Error)]
#[error("the recording cannot be begun: {0}")]
pub(crate) struct NotRecorded(#[from] io::Error);

/// Begins the recordings of one session. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Recorder(Arc<OfSession>);

#[derive(Debug)]
pub(super) struct OfSession {
    pub(super) recordings: Recordings,
    pub(super) scribe: Scribe,
    pub(super) live: Arc<Live>,
    pub(super) audience: Arc<Audience>,
    pub(super) mode: RecordingMode,
    pub(super) limits: InForce<Limits>,
    begun: AtomicU32,
}

impl Recorder {
    /// For one session, which is cut when what must be recorded cannot be.
    pub(crate) fn new(
        recordings: Recordings,
        scribe: Scribe,
        live: Arc<Live>,
        mode: RecordingMode,
        limits: InForce<Limits>,
    ) -> Self {
        Self(Arc::new(OfSession {
            recordings,
            scribe,
            audience: live.opens_to_watchers(),
            live,
            mode,
            limits,
            begun: AtomicU32::new(0),
        }))
    }

    /// Those who watch.
    pub(crate) fn audience(&self) -> &Arc<Audience> {
        &self.0.audience
    }

    /// Begins a recording. Nothing where it cannot be begun and need not be, which is put on record.
    ///
    /// # Errors
    /// When it must be and cannot.
    pub(crate) async fn begin(&self, header: Header) -> Result<Option<Arc<Recording>>, NotRecorded> {
        let number = self.0.begun.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let name = Name::new(self.0.scribe.facts().session_id, number);
        match pen::begin(Arc::clone(&self.0), name, &header).await {
            Ok(recording) => Ok(Some(recording)),
            Err(error) if self.0.mode == RecordingMode::BestEffort => {
                let session = name.session;
                tracing::error!(%session, %error, "a channel is not recorded");
                let event = self.0.scribe.event(EventKind::SessionRecording);
                let event = event.field("recording", number).field("complete", false);
                let event = event.reason(&format!("not recorded: {error}"));
                self.0.scribe.record(event).await;
                Ok(None)
            }
            Err(error) => {
                tracing::error!(session = %name.session, %error, "a channel that must be recorded cannot begin");
                Err(error.into())
            }
        }
    }
}
