//! What the proxy believes at a moment: the trust bundle, the locks, the snapshot. One writer, many readers;
//! nothing is published before it was checked, and nothing older replaces anything newer.

use std::sync::Arc;

use iap_identity::{AgentId, Lock, Locks, TrustBundle};
use iap_proto::v1::{FeedEvent, Signed, feed_event::Event};
use iap_proto::{LockList, OpenError, Snapshot, open_beat, open_bundle, open_locks, open_snapshot};
use iap_runtime::files::{DataDir, FileError};
use iap_runtime::tls::{Material, MaterialError};
use prost::Message as _;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::watch;

const BUNDLE_FILE: &str = "bundle.bin";
const LOCKS_FILE: &str = "locks.bin";
const SNAPSHOT_FILE: &str = "snapshot.bin";

/// An immutable state of belief.
#[derive(Debug, Clone)]
pub struct Trust {
    /// Whose certificates count.
    pub bundle: Arc<TrustBundle>,
    /// Who is locked out; `None` until the first list came.
    pub locks: Option<Arc<LockList>>,
    /// Which services and proxies there are; `None` until the first came.
    pub snapshot: Option<Arc<Snapshot>>,
}

impl Trust {
    /// The lock that keeps this agent out, if any.
    pub fn lock_on(&self, agent: &AgentId, serial: &str, now: OffsetDateTime) -> Option<&Lock> {
        self.locks()
            .and_then(|locks| locks.matching_agent(agent, serial, now))
    }

    /// The locks known so far.
    pub fn locks(&self) -> Option<&Locks> {
        self.locks.as_ref().map(|list| &list.locks)
    }
}

/// The one writer of [`Trust`]: takes what the auth server sends, checks it, stores it, publishes it.
#[derive(Debug)]
pub struct TrustKeeper {
    directory: DataDir,
    material: Arc<Material>,
    published: watch::Sender<Arc<Trust>>,
}

/// What the keeper did with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is what holds now.
    Published,
    /// It is what held already, or older.
    NotNewer,
    /// A sign of life.
    Beat,
}

/// Why nothing is believed.
#[derive(Debug, Error)]
pub enum TrustError {
    /// Not signed, not ours, or malformed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Believed, but not stored.
    #[error(transparent)]
    File(#[from] FileError),
    /// Believed, but of no use beside what is shown.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The stored copy is damaged.
    #[error("{file} in the state directory is damaged: {source}")]
    Damaged {
        /// Which.
        file: &'static str,
        /// How.
        source: prost::DecodeError,
    },
    /// The event is of no kind this build knows.
    #[error("the auth server sent an event of an unknown kind")]
    UnknownEvent,
}

impl TrustKeeper {
    /// A keeper that starts from a verified bundle and the copies on disk. Copies that no longer verify are
    /// left out: the feed will bring others.
    pub fn open(
        directory: DataDir,
        bundle: TrustBundle,
        material: Arc<Material>,
    ) -> Result<Self, TrustError> {
        let locks =
            stored(&directory, LOCKS_FILE)?.and_then(|signed| usable("locks", open_locks(&signed, &bundle)));
        let snapshot = stored(&directory, SNAPSHOT_FILE)?
            .and_then(|signed| usable("snapshot", open_snapshot(&signed, &bundle)));
        let trust = Trust {
            bundle: Arc::new(bundle),
            locks: locks.map(Arc::new),
            snapshot: snapshot.map(Arc::new),
        };
        Ok(Self {
            directory,
            material,
            published: watch::Sender::new(Arc::new(trust)),
        })
    }

    /// A reader.
    pub fn reader(&self) -> watch::Receiver<Arc<Trust>> {
        self.published.subscribe()
    }

    /// Takes one event of the feed.
    pub fn take(&self, event: FeedEvent, now: OffsetDateTime) -> Result<Taken, TrustError> {
        match event.event.ok_or(TrustError::UnknownEvent)? {
            Event::Bundle(signed) => self.take_bundle(&signed, now),
            Event::Locks(signed) => self.take_locks(&signed),
            Event::Snapshot(signed) => self.take_snapshot(&signed),
            Event::Beat(signed) => {
                open_beat(&signed, &self.now().bundle)?;
                Ok(Taken::Beat)
            }
        }
    }

    fn take_bundle(&self, signed: &Signed, now: OffsetDateTime) -> Result<Taken, TrustError> {
        let held = self.now();
        let bundle = open_bundle(signed, held.bundle.pin(), held.bundle.cluster(), now)?;
        if (bundle.epoch(), bundle.version()) <= (held.bundle.epoch(), held.bundle.version()) {
            return Ok(Taken::NotNewer);
        }
        self.directory.write(BUNDLE_FILE, &signed.encode_to_vec())?;
        self.material.publish_bundle(bundle.clone())?;
        self.publish(|trust| trust.bundle = Arc::new(bundle));
        Ok(Taken::Published)
    }

    fn take_locks(&self, signed: &Signed) -> Result<Taken, TrustError> {
        let held = self.now();
        let list = open_locks(signed, &held.bundle)?;
        if held.locks.as_ref().is_some_and(|held| !list.is_newer_than(held)) {
            return Ok(Taken::NotNewer);
        }
        self.directory.write(LOCKS_FILE, &signed.encode_to_vec())?;
        self.publish(|trust| trust.locks = Some(Arc::new(list)));
        Ok(Taken::Published)
    }

    fn take_snapshot(&self, signed: &Signed) -> Result<Taken, TrustError> {
        let held = self.now();
        let snapshot = open_snapshot(signed, &held.bundle)?;
        if held
            .snapshot
            .as_ref()
            .is_some_and(|held| !snapshot.is_newer_than(held))
        {
            return Ok(Taken::NotNewer);
        }
        self.directory.write(SNAPSHOT_FILE, &signed.encode_to_vec())?;
        self.publish(|trust| trust.snapshot = Some(Arc::new(snapshot)));
        Ok(Taken::Published)
    }

    fn now(&self) -> Arc<Trust> {
        Arc::clone(&self.published.borrow())
    }

    fn publish(&self, change: impl FnOnce(&mut Trust)) {
        self.published.send_modify(|trust| change(Arc::make_mut(trust)));
    }
}

/// The signed bundle as stored at join or by the feed.
pub fn stored_bundle(directory: &DataDir) -> Result<Option<Signed>, TrustError> {
    stored(directory, BUNDLE_FILE)
}

/// Stores what a join brought.
pub fn store_joined(directory: &DataDir, bundle: &Signed, locks: Option<&Signed>) -> Result<(), FileError> {
    directory.write(BUNDLE_FILE, &bundle.encode_to_vec())?;
    match locks {
        Some(locks) => directory.write(LOCKS_FILE, &locks.encode_to_vec()),
        None => Ok(()),
    }
}

fn stored(directory: &DataDir, file: &'static str) -> Result<Option<Signed>, TrustError> {
    let bytes = directory.read(file)?;
    let decode = |bytes: Vec<u8>| {
        Signed::decode(bytes.as_slice()).map_err(|source| TrustError::Damaged { file, source })
    };
    bytes.map(decode).transpose()
}

fn usable<T>(what: &'static str, opened: Result<T, OpenError>) -> Option<T> {
    opened
        .inspect_err(|error| tracing::warn!(%error, "the stored {what} is left out"))
        .ok()
}
