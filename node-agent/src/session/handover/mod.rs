//! A session goes on when its agent is replaced: the backend's socket and everything that is to be known of the session go
//! through the service manager's descriptor store to whatever agent is started next (docs/operate.md), or straight to one
//! that is started beside it.
//!
//! Reading order: [`state`] (what is to be known), [`leaving`] (how the old agent leaves it), [`handed`] (how the new one
//! finds it), [`succession`] (where there is no store: a new agent asks the old one).

pub(crate) mod handed;
pub(crate) mod leaving;
mod peer;
pub(crate) mod state;
pub(crate) mod succession;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use iap_identity::SessionId;
use iap_runtime::handover::{DescriptorStore, Left, Parcel, Successor};
use tokio_util::sync::CancellationToken;

/// How long the service manager may take to note what it was given.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a session's parcel is called, before its id.
const NAME_PREFIX: &str = "session-";

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
        Self {
            left: Left::from_environment(),
            store: DescriptorStore::from_environment(),
        }
    }
}

/// The way to this agent's successor. Clones share it.
#[derive(Debug, Clone)]
pub struct Handover {
    way: Way,
    asked: CancellationToken,
}

/// How what is left gets there.
#[derive(Debug, Clone)]
enum Way {
    /// It lies there until a successor is started.
    Store(DescriptorStore),
    /// The successor is there already, if there is one.
    Direct(Successor),
}

impl Handover {
    /// Through that store.
    #[must_use]
    pub fn through(store: DescriptorStore) -> Self {
        Self {
            way: Way::Store(store),
            asked: CancellationToken::new(),
        }
    }

    /// To a successor that asks for it.
    pub(crate) fn direct(successor: Successor) -> Self {
        Self {
            way: Way::Direct(successor),
            asked: CancellationToken::new(),
        }
    }

    /// Whether what is left will be found.
    pub(crate) fn has_successor(&self) -> bool {
        match &self.way {
            Way::Store(_) => true,
            Way::Direct(successor) => successor.is_here(),
        }
    }

    /// From now on sessions that can be are left to the successor.
    pub(crate) fn ask(&self) {
        self.asked.cancel();
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
            Way::Store(store) => store.settled(SETTLE_TIMEOUT).map(|()| None),
            Way::Direct(successor) if successor.is_here() => successor.done().map(Some),
            Way::Direct(_) => Ok(None),
        });
        settled
            .await
            .inspect_err(|error| tracing::error!(%error, "nobody says that the sessions are safe"))
            .ok()?
    }

    async fn leave(&self, session: SessionId, parcel: Parcel) -> io::Result<()> {
        let way = self.way.clone();
        aside(move || match way {
            Way::Store(store) => store.keep(&name_of(session), parcel.as_fd()),
            Way::Direct(successor) => successor.give(&name_of(session), parcel.as_fd()),
        })
        .await
    }

    /// Nobody is to find the session any more.
    pub(crate) async fn forget(&self, name: String) {
        let Way::Store(store) = self.way.clone() else {
            return;
        };
        if let Err(error) = aside(move || store.forget(&name)).await {
            tracing::warn!(%error, "the service manager keeps what it need not");
        }
    }
}

fn name_of(session: SessionId) -> String {
    format!("{NAME_PREFIX}{session}")
}

fn session_of(name: &str) -> Option<SessionId> {
    SessionId::parse(name.strip_prefix(NAME_PREFIX)?).ok()
}

/// Runs what may block for a moment on a thread of its own.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(io::Error::other(error)),
    }
}
