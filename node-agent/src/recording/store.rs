//! The folder of recordings that the auth server does not have yet.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::Context;
use iap_audit::{Event, EventKind};
use iap_identity::SessionId;
use iap_runtime::config::InForce;
use iap_runtime::files::{self, FileError, PRIVATE_FILE_MODE};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Notify;

use super::pen::digest;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::state::{StateDir, names};

const READ_BYTES: usize = 128 * 1024;

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordingsError {
    /// The folder, or a file in it.
    #[error(transparent)]
    File(#[from] FileError),
    /// Reading it.
    #[error("recordings cannot be looked through: {0}")]
    Io(#[from] io::Error),
}

/// What the records of a session repeat.
type Envelope = Map<String, Value>;

/// Which recording: the session's, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) session: SessionId,
    pub(crate) number: u32,
}

impl Name {
    pub(super) fn new(session: SessionId, number: u32) -> Self {
        Self { session, number }
    }

    fn parse(stem: &str) -> Option<Self> {
        let (session, number) = stem.rsplit_once('.')?;
        Some(Self {
            session: SessionId::parse(session).ok()?,
            number: number.parse().ok()?,
        })
    }

    fn file(self, ending: &str) -> String {
        format!("{}.{}.{ending}", self.session, self.number)
    }
}

/// What is known of a recording that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finished {
    #[serde(skip, default = "nobody")]
    pub(crate) name: Name,
    pub(crate) bytes: u64,
    pub(crate) pieces: Option<u64>,
    pub(crate) milliseconds: Option<u64>,
    pub(crate) sha256: String,
    pub(crate) lost_bytes: u64,
    pub(crate) is_complete: bool,
    pub(crate) reason: Option<String>,
}

fn nobody() -> Name {
    Name::new(SessionId::from_uuid(uuid::Uuid::nil()), 0)
}

impl Finished {
    /// Its hash, as bytes.
    pub(crate) fn digest(&self) -> Vec<u8> {
        let digits = self.sha256.as_bytes().chunks(2);
        let bytes = digits.map(|pair| {
            std::str::from_utf8(pair)
                .ok()
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        });
        bytes.collect::<Option<_>>().unwrap_or_default()
    }

    pub(super) fn describe(&self, event: Event) -> Event {
        let mut event = event
            .field("recording", self.name.number)
            .field("format", "asciicast-v2")
            .field("recording_bytes", self.bytes)
            .field("recording_sha256", self.sha256.as_str())
            .field("complete", self.is_complete);
        if let Some(pieces) = self.pieces {
            event = event.field("pieces", pieces);
        }
        if let Some(milliseconds) = self.milliseconds {
            event = event.field("recording_ms", milliseconds);
        }
        if self.lost_bytes > 0 {
            event = event.field("lost_bytes", self.lost_bytes);
        }
        match &self.reason {
            Some(reason) => event.reason(reason),
            None => event,
        }
    }
}

/// A recording, or a part of one, that the auth server may not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) name: Name,
    /// How much of it is durable here.
    pub(crate) bytes: u64,
    /// Once it is over.
    pub(crate) finished: Option<Finished>,
}

/// The recordings of this agent. Clones share them.
#[derive(Debug, Clone)]
pub struct Recordings(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    limits: InForce<Limits>,
    bytes: AtomicU64,
    /// How much of those that are being written is durable.
    live: Mutex<HashMap<Name, u64>>,
    news: Notify,
}

impl Recordings {
    /// Opens the folder, and puts what a killed predecessor left unfinished on record.
    ///
    /// # Errors
    /// When it cannot be used.
    pub async fn open(
        state: &StateDir,
        limits: InForce<Limits>,
        journal: &Journal,
    ) -> Result<Self, RecordingsError> {
        let folder = state.path(names::RECORDINGS);
        files::create_private_directory(&folder)?;
        let recordings = Self(Arc::new(Inner {
            folder,
            limits,
            bytes: AtomicU64::new(0),
            live: Mutex::default(),
            news: Notify::new(),
        }));
        for (name, envelope) in recordings.unfinished()? {
            let finished = recordings.end_lost(name)?;
            let (now, id) = journal.stamp();
            let event = Event::new(EventKind::SessionRecording, now, id).answering(&envelope);
            journal.record(finished.describe(event)).await;
            recordings.mark(&finished)?;
        }
        let held = recordings
            .names()?
            .into_iter()
            .map(|name| recordings.length(name));
        recordings.0.bytes.store(held.sum(), Ordering::Relaxed);
        Ok(recordings)
    }

    /// Opens the files of a new recording and writes its first line. Blocks.
    pub(super) fn create(
        &self,
        name: Name,
        line: &[u8],
        envelope: &Map<String, Value>,
    ) -> io::Result<(File, Context, u64)> {
        self.reserve(line.len())?;
        let created = self.create_files(name, line, envelope);
        if created.is_err() {
            self.give_back(line.len());
            self.remove(name);
        }
        let file = created?;
        let mut digest = digest();
        digest.update(line);
        let bytes = line.len() as u64;
        self.live().insert(name, bytes);
        self.0.news.notify_one();
        Ok((file, digest, bytes))
    }

    fn create_files(&self, name: Name, line: &[u8], envelope: &Map<String, Value>) -> io::Result<File> {
        let mut file = private(&self.path(name, "cast"), |options| {
            options.create_new(true).write(true)
        })?;
        file.write_all(line)?;
        file.sync_data()?;
        let text = serde_json::to_vec(envelope).map_err(io::Error::other)?;
        files::write_atomic(&self.path(name, "json"), &text, PRIVATE_FILE_MODE).map_err(io::Error::other)?;
        Ok(file)
    }

    /// Takes up room for so many bytes.
    pub(super) fn reserve(&self, bytes: usize) -> io::Result<()> {
        let bytes_max = self.0.limits.now().recordings_bytes_max;
        let taken = self.0.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if taken.saturating_add(bytes as u64) <= bytes_max {
            return Ok(());
        }
        self.give_back(bytes);
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("limits.recordings_bytes_max, {bytes_max} bytes, wait for the auth server"),
        ))
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.0.bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// A piece is durable, and begins at this place and time.
    pub(super) fn piece_written(&self, name: Name, offset: u64, bytes: usize, at: Duration) {
        if let Some(durable) = self.live().get_mut(&name) {
            *durable = offset + bytes as u64;
        }
        let index = private(&self.path(name, "index"), |options| {
            options.create(true).append(true)
        });
        // It can be made anew from the recording itself.
        if let Ok(mut index) = index {
            let _ = index.write_all(format!("{offset} {}\n", at.as_micros()).as_bytes());
        }
        self.0.news.notify_one();
    }

    /// A recording is over and on record. Blocks.
    pub(super) fn finish(&self, name: Name, finished: &Finished) -> Result<(), RecordingsError> {
        self.mark(finished)?;
        self.live().remove(&name);
        self.0.news.notify_one();
        Ok(())
    }

    /// What the auth server may lack. Blocks.
    pub(crate) fn waiting(&self) -> Result<Vec<Waiting>, RecordingsError> {
        let names = self.names()?;
        Ok(names.into_iter().filter_map(|name| self.look(name)).collect())
    }

    fn look(&self, name: Name) -> Option<Waiting> {
        if let Some(bytes) = self.live().get(&name).copied() {
            return Some(Waiting {
                name,
                bytes,
                finished: None,
            });
        }
        let text = std::fs::read(self.path(name, "done")).ok()?;
        let finished: Finished = serde_json::from_slice(&text).ok()?;
        Some(Waiting {
            name,
            bytes: finished.bytes,
            finished: Some(Finished { name, ..finished }),
        })
    }

    /// Opens a recording to read it. Blocks.
    pub(crate) fn read(&self, name: Name) -> io::Result<File> {
        File::open(self.path(name, "cast"))
    }

    /// How much of a recording that is being made is on the disk.
    pub(super) fn durable(&self, name: Name) -> u64 {
        self.live().get(&name).copied().unwrap_or(0)
    }

    /// When the piece began that starts at each place. Blocks.
    pub(crate) fn index(&self, name: Name) -> Vec<(u64, u64)> {
        let text = std::fs::read_to_string(self.path(name, "index")).unwrap_or_default();
        let places = text.lines().filter_map(|line| {
            let (offset, at) = line.split_once(' ')?;
            Some((offset.parse().ok()?, at.parse().ok()?))
        });
        places.collect()
    }

    /// The auth server has it. Blocks.
    pub(crate) fn forget(&self, name: Name) {
        let bytes = self.length(name);
        self.remove(name);
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns once there may be something new.
    pub(crate) async fn news(&self) {
        self.0.news.notified().await;
    }

    /// The mark last: until it has gone, what is left is looked at again.
    fn remove(&self, name: Name) {
        for ending in ["index", "cast", "json", "done"] {
            let _ = std::fs::remove_file(self.path(name, ending));
        }
    }

    fn unfinished(&self) -> Result<Vec<(Name, Envelope)>, RecordingsError> {
        let mut found = Vec::new();
        for name in self.names()? {
            if self.path(name, "done").exists() {
                continue;
            }
            let text = std::fs::read(self.path(name, "json")).unwrap_or_default();
            let mut envelope: Envelope = serde_json::from_slice(&text).unwrap_or_default();
            envelope.insert("session_id".to_owned(), name.session.to_string().into());
            found.push((name, envelope));
        }
        Ok(found)
    }

    /// What a killed agent has left, as far as it is whole lines.
    fn end_lost(&self, name: Name) -> Result<Finished, RecordingsError> {
        let path = self.path(name, "cast");
        let file = private(&path, |options| options.read(true).write(true))?;
        let (whole, _) = hash(&file, u64::MAX)?;
        file.set_len(whole)?;
        file.sync_all()?;
        let (_, sha256) = hash(&File::open(&path)?, whole)?;
        Ok(Finished {
            name,
            bytes: whole,
            pieces: None,
            milliseconds: None,
            sha256,
            lost_bytes: 0,
            is_complete: false,
            reason: Some("the agent ended while this was recorded; up to a second is missing".to_owned()),
        })
    }

    fn mark(&self, finished: &Finished) -> Result<(), RecordingsError> {
        let text = serde_json::to_vec(finished).map_err(io::Error::other)?;
        Ok(files::write_atomic(
            &self.path(finished.name, "done"),
            &text,
            PRIVATE_FILE_MODE,
        )?)
    }

    fn names(&self) -> Result<Vec<Name>, RecordingsError> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.0.folder)? {
            let file = entry?.file_name();
            let stem = file.to_str().and_then(|file| file.strip_suffix(".cast"));
            names.extend(stem.and_then(Name::parse));
        }
        names.sort_unstable();
        Ok(names)
    }

    fn length(&self, name: Name) -> u64 {
        std::fs::metadata(self.path(name, "cast")).map_or(0, |metadata| metadata.len())
    }

    fn path(&self, name: Name, ending: &str) -> PathBuf {
        self.0.folder.join(name.file(ending))
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Name, u64>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn private(path: &Path, how: impl FnOnce(&mut OpenOptions) -> &mut OpenOptions) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.mode(PRIVATE_FILE_MODE);
    how(&mut options).open(path)
}

/// Where the last whole line of the first `bytes` ends, and the hash of all of them.
fn hash(mut file: &File, bytes: u64) -> io::Result<(u64, String)> {
    let (mut digest, mut at, mut whole) = (digest(), 0_u64, 0);
    let mut buffer = vec![0; READ_BYTES];
    while at < bytes {
        let read = file.read(&mut buffer)?;
        let piece = buffer.get(..read).unwrap_or_default();
        if piece.is_empty() {
            break;
        }
        if let Some(end) = piece.iter().rposition(|byte| *byte == b'\n') {
            whole = at + end as u64 + 1;
        }
        digest.update(piece);
        at += read as u64;
    }
    Ok((whole, iap_identity::hex(digest.finish().as_ref())))
}
