//! A session goes on when its agent is replaced: the backend's socket and everything that is to be known of the session go
//! through the service manager's descriptor store to whatever agent is started next (docs/operate.md), or straight to one
//! that is started beside it.
//!
//! Reading order: [`state`] (what is to be known), [`leaving`] (how the old agent leaves it), [`handed`] (how the new one
//! finds it), [`succession`] (where there is no store: a new agent asks the old one), [`keeping`] (what is in the store for
//! the case that an agent is killed).

pub(crate) mod handed;
pub(crate) mod keeping;
pub(crate) mod leaving;
mod peer;
pub(crate) mod state;
pub(crate) mod succession;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iap_identity::SessionId;
use iap_runtime::handover::{DescriptorStore, Left, PARCEL_DESCRIPTORS_MAX, Parcel, Successor};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long the service manager may take to note what it was given.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
/// What is written on a session's parcel, before its id.
const SESSION_LABEL: &str = "session-";
/// What is written on a parcel of sessions' parcels, and what it is stored under, before an id of its own.
const SESSIONS_LABEL: &str = "sessions-";
/// What is written on the parcel of a session that is kept while it runs, and what it is stored under, before its id.
const LIVE_LABEL: &str = "live-";
/// For so long sessions are gathered that are to be stored together.
const GATHER_FOR: Duration = Duration::from_millis(10);

/// What an agent is started with: what its predecessor has left, and where it can leave things itself.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// Parcels by name.
    pub left: Vec<Left>,
    /// Where descriptors outlive this process.
    pub store: Option<DescriptorStore>,
}

impl Inheritance {
    /// What the environment names; see [`Left`] and [`DescriptorStore`]. Ask once.
    #[must_use]
    pub fn from_environment() -> Self {
        let left = Left::from_environment();
        let store = DescriptorStore::from_environment();
        if let Some(store) = &store {
            store.holds(left.len());
        }
        Self { left, store }
    }
}

/// The way to this agent's successor. Clones share it.
#[derive(Debug, Clone)]
pub struct Handover {
    way: Way,
    asked: CancellationToken,
    survives_kill: bool,
}

/// How what is left gets there.
#[derive(Debug, Clone)]
enum Way {
    /// It lies there until a successor is started. Sessions lie together: the names of what is stored reach the successor as
    /// one variable of its environment, which the kernel lets be 128 KiB long, and systemd compares each
    /// descriptor with all that it has.
    Store(DescriptorStore, Arc<Mutex<Vec<Waiting>>>),
    /// The successor is there already, if there is one.
    Direct(Successor),
}

/// A session that is about to be stored, and who waits for that.
#[derive(Debug)]
struct Waiting {
    parcel: Parcel,
    stored: oneshot::Sender<Result<(), String>>,
}

impl Handover {
    /// Through that store.
    #[must_use]
    pub fn through(store: DescriptorStore) -> Self {
        Self {
            way: Way::Store(store, Arc::default()),
            asked: CancellationToken::new(),
            survives_kill: false,
        }
    }

    /// Sessions are kept there while they run, if so: they outlive the agent's being killed.
    #[must_use]
    pub fn surviving_kill(self, survives_kill: bool) -> Self {
        Self {
            survives_kill,
            ..self
        }
    }

    /// To a successor that asks for it.
    pub(crate) fn direct(successor: Successor) -> Self {
        Self {
            way: Way::Direct(successor),
            asked: CancellationToken::new(),
            survives_kill: false,
        }
    }

    /// Whether what is left will be found.
    pub(crate) fn has_successor(&self) -> bool {
        match &self.way {
            Way::Store(..) => true,
            Way::Direct(successor) => successor.is_here(),
        }
    }

    /// Whether what was left to this agent is there for the next one, too, until it is taken.
    pub(crate) fn keeps(&self) -> bool {
        matches!(self.way, Way::Store(..))
    }

    /// From now on sessions that can be are left to the successor.
    pub(crate) fn ask(&self) {
        self.asked.cancel();
    }

    /// Whether they are.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.is_cancelled()
    }

    /// Returns as soon as sessions are to be left.
    pub(crate) async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// Returns once whatever was left is safe, or known not to be. A successor that is there waits until what this returns
    /// is dropped.
    pub(crate) async fn settled(&self) -> Option<UnixStream> {
        let way = self.way.clone();
        let settled = aside(move || match way {
            Way::Store(store, _) => store.settled(SETTLE_TIMEOUT).map(|()| None),
            Way::Direct(successor) if successor.is_here() => successor.done().map(Some),
            Way::Direct(_) => Ok(None),
        });
        settled
            .await
            .inspect_err(|error| tracing::error!(%error, "nobody says that the sessions are safe"))
            .ok()?
    }

    async fn leave(&self, session: SessionId, parcel: Parcel) -> io::Result<()> {
        match &self.way {
            Way::Store(store, waiting) => {
                let (stored, told) = oneshot::channel();
                let is_first = {
                    let mut waiting = locked(waiting);
                    waiting.push(Waiting { parcel, stored });
                    waiting.len() == 1
                };
                if is_first {
                    tokio::time::sleep(GATHER_FOR).await;
                    let all = std::mem::take(&mut *locked(waiting));
                    store_all(store, all).await;
                }
                told.await.map_err(io::Error::other)?.map_err(io::Error::other)
            }
            Way::Direct(successor) => {
                let successor = successor.clone();
                aside(move || successor.give(&label_of(session), parcel.as_fd())).await
            }
        }
    }

    /// Nobody is to find the session any more.
    pub(crate) async fn forget(&self, name: String) {
        let Way::Store(store, _) = self.way.clone() else {
            return;
        };
        if let Err(error) = aside(move || store.forget(&name)).await {
            tracing::warn!(%error, "the service manager keeps what it need not");
        }
    }
}

/// Stores parcels, as many together as may be, and tells whoever waits.
async fn store_all(store: &DescriptorStore, mut waiting: Vec<Waiting>) {
    while !waiting.is_empty() {
        let rest = waiting.split_off(waiting.len().min(PARCEL_DESCRIPTORS_MAX));
        let together = std::mem::replace(&mut waiting, rest);
        let store = store.clone();
        let storing = aside(move || {
            let name = format!("{SESSIONS_LABEL}{}", Uuid::now_v7());
            let parcels: Vec<_> = together.iter().map(|one| one.parcel.as_fd()).collect();
            let stored = Parcel::of(&name, &parcels).and_then(|all| store.keep(&name, all.as_fd()));
            let stored = stored.map_err(|error| error.to_string());
            for one in together {
                // Whoever does not wait has gone down with the runtime.
                let _ = one.stored.send(stored.clone());
            }
            Ok(())
        });
        if let Err(error) = storing.await {
            tracing::error!(%error, "sessions were not stored");
        }
    }
}

fn label_of(session: SessionId) -> String {
    format!("{SESSION_LABEL}{session}")
}

fn live_label_of(session: SessionId) -> String {
    format!("{LIVE_LABEL}{session}")
}

/// The session whose parcel has that label, stored as it stood still or while it ran.
fn session_of(label: &str) -> Option<SessionId> {
    let id = label
        .strip_prefix(SESSION_LABEL)
        .or(label.strip_prefix(LIVE_LABEL))?;
    SessionId::parse(id).ok()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Nothing here holds an invariant that a panic elsewhere could break.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what may block for a moment on a thread of its own.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(io::Error::other(error)),
    }
}
