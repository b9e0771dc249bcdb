//! The audit records of one source, durable on this machine before they take effect, until the auth server has
//! acknowledged them.
//!
//! One thread writes. It gathers whatever is waiting, appends it, syncs once and then answers every waiter: a
//! receipt means that the record survives a power cut. Part of the space is reserved, so that sessions which
//! were allowed to begin can also be recorded to end.

mod disk;
mod error;
mod position;
mod reader;
mod recovery;
mod segments;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use iap_audit::{Payload, RecordBody, SALT_BYTES, SourceId};
use tokio::sync::{mpsc, oneshot, watch};

pub use error::{SpoolError, SpoolOpenError};
pub use recovery::Recovery;

use crate::files::DataDir;
use disk::{Disk, FileDisk};
use reader::Cursor;
use segments::Index;
use writer::{Job, Writer};

const QUEUE_RECORDS_MAX: usize = 4096;

/// How much a spool may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolLimits {
    /// All segment files together.
    pub bytes_max: u64,
    /// The part of `bytes_max` that only [`Room::Reserve`] may use. It is also kept allocated on the disk.
    pub reserve_bytes: u64,
    /// A new file is begun beyond this size; files go when all their records are acknowledged.
    pub segment_bytes: u64,
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self {
            bytes_max: 1 << 30,
            reserve_bytes: 16 << 20,
            segment_bytes: 8 << 20,
        }
    }
}

/// Which space a record may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// What is free beside the reserve: records without which nothing has happened yet, such as `session.start`.
    Free,
    /// The reserve too: records of what cannot be undone, such as `session.end`.
    Reserve,
}

/// Proof that a record is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The record's number at its source.
    pub seq: u64,
    /// SHA-256 of its exact bytes, lower-case hex.
    pub hash_hex: String,
}

/// A record that waits to be acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpooledRecord {
    /// Its number at its source.
    pub seq: u64,
    /// Its exact bytes.
    pub bytes: Vec<u8>,
    /// What lies beside it.
    pub payload: Option<Payload>,
}

impl SpooledRecord {
    /// What it takes, its payload included.
    #[must_use]
    pub fn length(&self) -> usize {
        let payload = self.payload.as_ref();
        self.bytes.len() + payload.map_or(0, |payload| payload.bytes().len() + SALT_BYTES)
    }
}

/// How full a spool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolUsage {
    /// Bytes in segment files.
    pub bytes: u64,
    /// The limit.
    pub bytes_max: u64,
    /// The last durable record; 0 before the first.
    pub committed: u64,
    /// The last acknowledged record; 0 before the first.
    pub acknowledged: u64,
}

/// A directory of records. Clones share it; the last one to go waits for the writing thread.
#[derive(Debug, Clone)]
pub struct Spool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

/// What the writing thread and the readers both look at.
#[derive(Debug)]
struct Shared {
    directory: DataDir,
    limits: SpoolLimits,
    index: Mutex<Index>,
    cursor: Mutex<Option<Cursor>>,
    /// The number and hash of the last record that was read to be sent.
    last_read: Mutex<Option<(u64, String)>>,
    /// Serialises acknowledgements.
    acknowledging: Mutex<()>,
    committed: watch::Sender<u64>,
    /// Keeps a second process out for as long as this one may write.
    _lock: std::fs::File,
}

/// Keeps everybody else from opening a spool, for as long as it lives.
#[derive(Debug)]
pub struct SpoolLock {
    _file: std::fs::File,
}

impl Spool {
    /// Takes the spool in `directory` without opening it, for one who moves it; nothing where there is none.
    ///
    /// # Errors
    /// When another process writes there.
    pub fn lock(directory: &Path) -> Result<Option<SpoolLock>, SpoolOpenError> {
        if !directory.exists() {
            return Ok(None);
        }
        let file = recovery::lock(&DataDir::open_or_create(directory)?)?;
        Ok(Some(SpoolLock { _file: file }))
    }

    /// Opens or creates the spool of `source` in `directory`, cutting off a torn tail.
    pub fn open(
        directory: &Path,
        limits: SpoolLimits,
        source: impl Into<SourceId>,
    ) -> Result<(Self, Recovery), SpoolOpenError> {
        Self::open_on(Box::new(FileDisk), directory, limits, source.into())
    }

    fn open_on(
        disk: Box<dyn Disk>,
        directory: &Path,
        limits: SpoolLimits,
        source: SourceId,
    ) -> Result<(Self, Recovery), SpoolOpenError> {
        let directory = DataDir::open_or_create(directory)?;
        let lock = recovery::lock(&directory)?;
        let (index, recovery) = recovery::recover(&directory, source)?;
        let shared = Arc::new(Shared {
            directory,
            limits,
            index: Mutex::new(index),
            cursor: Mutex::new(None),
            last_read: Mutex::new(None),
            acknowledging: Mutex::new(()),
            committed: watch::Sender::new(recovery.head.seq),
            _lock: lock,
        });
        let (jobs, queue) = mpsc::channel(QUEUE_RECORDS_MAX);
        let writer = Writer::new(Arc::clone(&shared), disk, recovery.head.clone());
        let thread = std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(SpoolOpenError::Thread)?;
        let inner = Inner {
            jobs: Some(jobs),
            thread: Some(thread),
            shared,
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            recovery,
        ))
    }

    /// Returns once the record is durable. When it fails, the record is not part of the chain.
    ///
    /// Giving up waiting does not take a record back.
    pub async fn append(&self, body: impl Into<RecordBody>, room: Room) -> Result<Receipt, SpoolError> {
        self.write(body.into(), room, false).await
    }

    /// The same with [`Room::Free`], and only where the longest record that found no room since this last went well
    /// would find some beside this one: a short record often fits into a spool that is full for all others. Records
    /// longer than half of the space beside the reserve count as that half.
    pub async fn append_after_refusals(&self, body: impl Into<RecordBody>) -> Result<Receipt, SpoolError> {
        self.write(body.into(), Room::Free, true).await
    }

    async fn write(&self, body: RecordBody, room: Room, after_refusals: bool) -> Result<Receipt, SpoolError> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            body,
            room,
            after_refusals,
            reply,
        };
        let jobs = self.inner.jobs.as_ref().ok_or(SpoolError::Stopped)?;
        jobs.send(job).await.map_err(|_| SpoolError::Stopped)?;
        answer.await.map_err(|_| SpoolError::Stopped)?
    }

    /// Durable records from number `from` on, at least one if there is one, then as many as fit both limits.
    /// Records acknowledged before are left out.
    pub async fn unacknowledged(
        &self,
        from: u64,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<SpooledRecord>, SpoolError> {
        self.read(move |shared| reader::unacknowledged(shared, from, records_max, bytes_max))
            .await
    }

    /// Durable records from number `from` on that are still here, acknowledged or not: for an auth server that has
    /// lost what it acknowledged. As many as [`Spool::unacknowledged`] gives.
    pub async fn held(
        &self,
        from: u64,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<SpooledRecord>, SpoolError> {
        self.read(move |shared| reader::held(shared, from, records_max, bytes_max))
            .await
    }

    async fn read<F>(&self, read: F) -> Result<Vec<SpooledRecord>, SpoolError>
    where
        F: FnOnce(&Shared) -> Result<Vec<SpooledRecord>, SpoolError> + Send + 'static,
    {
        let shared = Arc::clone(&self.inner.shared);
        tokio::task::spawn_blocking(move || read(&shared))
            .await
            .map_err(|_| SpoolError::Stopped)?
    }

    /// The auth server has every record up to and including `seq`: remembers that durably and removes files that
    /// are no longer needed. Numbers that were acknowledged before or do not exist yet change nothing.
    pub async fn acknowledge(&self, seq: u64) -> Result<(), SpoolError> {
        let shared = Arc::clone(&self.inner.shared);
        let acknowledge = move || position::acknowledge(&shared, seq);
        tokio::task::spawn_blocking(acknowledge)
            .await
            .map_err(|_| SpoolError::Stopped)?
    }

    /// The number of the last durable record; changes as records are written.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.inner.shared.committed.subscribe()
    }

    /// How full it is.
    pub fn usage(&self) -> SpoolUsage {
        let shared = &self.inner.shared;
        let index = shared.index();
        SpoolUsage {
            bytes: index.bytes(),
            bytes_max: shared.limits.bytes_max,
            committed: *shared.committed.borrow(),
            acknowledged: index.acknowledged,
        }
    }
}

impl Shared {
    fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
