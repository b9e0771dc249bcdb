//! Sends recordings to the auth server, while they are made and after, until it has them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use iap_proto::v1;
use iap_runtime::backoff::Backoff;
use iap_runtime::outage::Outage;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{AuthClient, CallError};
use crate::recording::{Name, Recordings, RecordingsError, Waiting};

/// As the auth server bounds a part.
const PART_BYTES: usize = 128 * 1024;
const PLACES_MAX: usize = 4096;
/// Parts that are read before they are sent.
const PARTS_AHEAD_MAX: usize = 4;
/// Between one look and the next: pieces are written every second.
const PACE: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum NotSent {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Recordings(#[from] RecordingsError),
    #[error("a recording was not read: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("what arrived is not what was sent; it is sent again")]
    Garbled,
}

/// The one that sends them.
#[derive(Debug)]
pub(crate) struct RecordingUploader {
    recordings: Recordings,
    client: Arc<AuthClient>,
    /// How much of each the auth server has.
    held: HashMap<Name, u64>,
}

impl RecordingUploader {
    pub(crate) fn new(recordings: Recordings, client: Arc<AuthClient>) -> Self {
        Self {
            recordings,
            client,
            held: HashMap::new(),
        }
    }

    /// Runs for ever.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut outage = Outage::default();
        loop {
            match self.send_all().await {
                Ok(()) => {
                    backoff.reset();
                    if outage.over() {
                        tracing::info!("recordings are delivered again");
                    }
                    self.recordings.news().await;
                    tokio::time::sleep(PACE).await;
                }
                Err(error) => {
                    match outage.is_news(&error) {
                        true => tracing::warn!(%error, "recordings wait"),
                        false => tracing::debug!(%error, "recordings still wait"),
                    }
                    backoff.wait().await;
                }
            }
        }
    }

    /// Sends what there is now. One that is refused does not keep the others.
    async fn send_all(&mut self) -> Result<(), NotSent> {
        let recordings = self.recordings.clone();
        let waiting = tokio::task::spawn_blocking(move || recordings.waiting()).await??;
        let mut failed = None;
        for one in waiting {
            if let Err(error) = self.send(one).await {
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn send(&mut self, one: Waiting) -> Result<(), NotSent> {
        let name = one.name;
        let from = self.held.get(&name).copied().unwrap_or(0);
        let is_over = one.finished.is_some();
        if from >= one.bytes && !is_over {
            return Ok(());
        }
        let (sender, parts) = mpsc::channel(PARTS_AHEAD_MAX);
        let recordings = self.recordings.clone();
        let reading = tokio::task::spawn_blocking(move || read(&recordings, &one, from, &sender));
        let held = self.client.upload_recording(ReceiverStream::new(parts)).await?;
        reading.await?;
        if held.complete {
            self.held.remove(&name);
            let recordings = self.recordings.clone();
            tokio::task::spawn_blocking(move || recordings.forget(name)).await?;
            return Ok(());
        }
        self.held.insert(name, held.bytes);
        match is_over {
            true => Err(NotSent::Garbled),
            false => Ok(()),
        }
    }
}

/// Reads what is new. Whoever takes no more ends it.
fn read(recordings: &Recordings, one: &Waiting, from: u64, parts: &mpsc::Sender<v1::RecordingPart>) {
    let mut file = match recordings.read(one.name) {
        Ok(file) => file,
        Err(error) => {
            tracing::error!(session = %one.name.session, %error, "a recording cannot be read");
            return;
        }
    };
    let index = recordings.index(one.name);
    let mut at = from.min(one.bytes);
    let mut first = true;
    loop {
        let Some(data) = read_part(&mut file, at, one.bytes) else {
            return;
        };
        let next = at + data.len() as u64;
        let is_last = next >= one.bytes;
        let places = index.iter().filter(|(offset, _)| (at..next).contains(offset));
        let places = places
            .take(PLACES_MAX)
            .map(|(offset, micros)| v1::RecordingPlace {
                offset: *offset,
                micros: *micros,
            });
        let end = one.finished.as_ref().filter(|_| is_last);
        let part = v1::RecordingPart {
            session_id: match std::mem::take(&mut first) {
                true => one.name.session.as_bytes().to_vec(),
                false => Vec::new(),
            },
            recording: one.name.number,
            offset: at,
            data,
            index: places.collect(),
            end: end.map(|finished| v1::RecordingEnd {
                bytes: finished.bytes,
                sha256: finished.digest(),
            }),
        };
        if parts.blocking_send(part).is_err() || is_last {
            return;
        }
        at = next;
    }
}

fn read_part(file: &mut File, at: u64, end: u64) -> Option<Vec<u8>> {
    let left = usize::try_from(end.saturating_sub(at)).unwrap_or(PART_BYTES);
    let mut data = vec![0; left.min(PART_BYTES)];
    let read = file
        .seek(SeekFrom::Start(at))
        .and_then(|_| file.read_exact(&mut data));
    match read {
        Ok(()) => Some(data),
        Err(error) => {
            tracing::error!(%error, "a recording is shorter than it was");
            None
        }
    }
}
