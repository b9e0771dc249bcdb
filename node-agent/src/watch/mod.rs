//! Watching a recorded session while it runs: `iap-watch/1`, which ends here at the agent that records it.
//!
//! A watcher gets what goes into the recording, and nothing else: first what the terminal shows now, worked out from the
//! recording so far ([`keyframe`]), then its lines as they come ([`listener`]). Whoever records never waits: a watcher who
//! does not keep up misses lines, is told how many, and begins anew with what the terminal shows then. The watcher is
//! decided on again whenever policy or locks change, as sessions are.

pub(crate) mod audience;
pub mod keyframe;
pub(crate) mod listener;
pub(crate) mod record;
mod show;

use std::sync::Arc;
use std::time::Duration;

use iap_identity::SessionId;
use iap_runtime::slots::Slots;
use iap_tunnel::watch::End;
use tokio::sync::Semaphore;

pub(crate) use audience::{Audience, Seat};
pub use keyframe::{Canvas, Keyframe};
pub(crate) use listener::{Heeded, Listener};
pub(crate) use record::{Watch, Watching};
pub(crate) use show::Showing;

use crate::decide::{Attempt, Gate, WatchRefusal};
use crate::session::{Caller, Ending, Live, Through};

/// Screens that are worked out at the same time.
const KEYFRAMES_AT_ONCE_MAX: usize = 2;
/// Watchers are decided on anew after that long, whatever has changed.
const DECIDE_EVERY: Duration = Duration::from_secs(60);

/// What all watchers of an agent share. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Watchers {
    seats: Slots,
    keyframes: Arc<Semaphore>,
}

impl Default for Watchers {
    fn default() -> Self {
        Self {
            seats: Slots::new(0),
            keyframes: Arc::new(Semaphore::new(KEYFRAMES_AT_ONCE_MAX)),
        }
    }
}

impl Watchers {
    /// The seats, of which there are `seats_max` now.
    pub(crate) fn seats(&self, seats_max: usize) -> &Slots {
        self.seats.resize(seats_max);
        &self.seats
    }
}

/// Why somebody watches no longer.
#[derive(Debug)]
pub(crate) enum Left {
    /// They have left.
    Watcher,
    /// Their connection broke.
    Lost(std::io::Error),
    /// They took nothing for too long.
    TooSlow,
    /// They said something that no watcher says.
    Spoke,
    /// The session is over.
    Session(SessionId, Option<Ending>),
    /// The recording they asked for is over, or there is none of that number.
    Recording(SessionId, u32),
    /// They may not any longer.
    Refused(WatchRefusal),
    /// The proxy between is locked.
    ProxyLocked(String),
}

impl Left {
    /// A stable word for records and programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Watcher => "watcher_left",
            Self::Lost(_) => "watcher_lost",
            Self::TooSlow => "too_slow",
            Self::Spoke => "protocol",
            Self::Session(..) => "session_over",
            Self::Recording(..) => "recording_over",
            Self::Refused(refusal) => refusal.code(),
            Self::ProxyLocked(_) => "lock",
        }
    }

    /// What the record adds.
    pub(crate) fn detail(&self) -> Option<String> {
        match self {
            Self::Watcher | Self::TooSlow | Self::Spoke | Self::Recording(..) => None,
            Self::Lost(error) => Some(error.to_string()),
            Self::Session(_, ending) => ending.as_ref().map(|ending| ending.reason.as_str().to_owned()),
            Self::Refused(refusal) => Some(refusal.detail()),
            Self::ProxyLocked(lock) => Some(lock.clone()),
        }
    }

    /// What they are told, where they can be.
    fn last_words(&self) -> Option<End> {
        let text = match self {
            Self::Watcher | Self::Lost(_) | Self::TooSlow => return None,
            Self::Spoke => "A watcher says what it has taken, and nothing else.".to_owned(),
            Self::Session(session, Some(ending)) => {
                format!("Session {session} is over: {}.", ending.reason.as_str())
            }
            Self::Session(session, None) => format!("Session {session} is over."),
            Self::Recording(session, number) => {
                format!("Recording {number} of session {session} does not run now.")
            }
            Self::Refused(refusal) => refusal.last_words()?.to_owned(),
            Self::ProxyLocked(_) => "The proxy that you came through is locked.".to_owned(),
        };
        Some(End {
            code: self.code().to_owned(),
            text,
        })
    }
}

/// A watcher as decisions see them.
#[derive(Debug, Clone)]
pub(crate) struct Onlooker {
    pub(crate) gate: Arc<Gate>,
    pub(crate) live: Arc<Live>,
    pub(crate) caller: Caller,
    pub(crate) client: std::net::SocketAddr,
    pub(crate) through: Through,
}

impl Onlooker {
    /// The question whether they may.
    pub(crate) fn attempt(&self) -> Attempt {
        Attempt {
            caller: self.caller.clone(),
            client: self.client,
            ..self.live.attempt()
        }
    }

    /// Whose session it is.
    pub(crate) fn owner(&self) -> String {
        self.live.caller().peer().principal()
    }

    /// Returns once they may not any longer.
    pub(crate) async fn stands(&self) -> Left {
        let mut views = self.gate.views();
        loop {
            views.borrow_and_update();
            if let Some(lock) = self.gate.lock_on_proxy(&self.through) {
                return Left::ProxyLocked(lock.to_string());
            }
            match self.gate.decide_on_watcher(self.attempt(), self.owner()).await {
                // The session has its own grace, and with it ends this.
                Ok(_) | Err(WatchRefusal::Outage(_)) => {}
                Err(refusal) => return Left::Refused(refusal),
            }
            let left = self.caller.peer().not_after() - self.gate.now();
            let again = Duration::try_from(left)
                .unwrap_or(Duration::ZERO)
                .min(DECIDE_EVERY);
            tokio::select! {
                Ok(()) = views.changed() => {}
                () = tokio::time::sleep(again) => {}
            }
        }
    }
}
