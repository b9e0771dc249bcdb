//! The registry of live sessions, and the switch that cuts each of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use iap_identity::SessionId;
use iap_runtime::pump::Cancellation;
use iap_runtime::slots::{Slot, Slots};
use time::OffsetDateTime;
use tokio::sync::Notify;

use super::{Ending, SessionFacts};
use crate::clock::Witnessed;
use crate::decide::Permit;

/// One live session as the reviewer sees it.
#[derive(Debug)]
pub struct Live {
    /// What is settled.
    pub facts: Arc<SessionFacts>,
    permit: Mutex<Permit>,
    cut: Cancellation,
    why: OnceLock<Ending>,
    outage_since: Mutex<Option<Witnessed>>,
}

impl Live {
    /// A session that may go on under `permit`.
    #[must_use]
    pub fn new(facts: Arc<SessionFacts>, permit: Permit) -> Self {
        Self {
            facts,
            permit: Mutex::new(permit),
            cut: Cancellation::new(),
            why: OnceLock::new(),
            outage_since: Mutex::new(None),
        }
    }

    /// Takes note of whether there is an outage at `now`; returns how long it has lasted for this session.
    pub fn outage_lasted(&self, is_outage: bool, now: OffsetDateTime) -> Option<Duration> {
        let mut since = self.outage_since.lock().unwrap_or_else(PoisonError::into_inner);
        match is_outage {
            true => Some(since.get_or_insert_with(|| Witnessed::now(now)).age(now)),
            false => {
                *since = None;
                None
            }
        }
    }

    /// The newest permit it goes on under.
    #[must_use]
    pub fn permit(&self) -> Permit {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the permit by one from a newer decision.
    pub fn renew(&self, permit: Permit) {
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = permit;
    }

    /// Ends the session. The first reason is kept.
    pub fn cut(&self, ending: Ending) {
        let reason = ending.reason.as_str();
        if self.why.set(ending).is_ok() {
            self.cut.cancel(reason);
        }
    }

    /// The switch, for the pump.
    #[must_use]
    pub fn switch(&self) -> &Cancellation {
        &self.cut
    }

    /// Why it was cut, once it was.
    #[must_use]
    pub fn cut_because(&self) -> Option<&Ending> {
        self.why.get()
    }
}

/// All live sessions of this agent; at most `sessions_max`.
#[derive(Debug)]
pub struct Registry {
    live: Mutex<HashMap<SessionId, Arc<Live>>>,
    slots: Slots,
    left: Notify,
}

/// A session's place in the registry; dropping it takes the session out.
#[derive(Debug)]
pub struct Entered {
    registry: Arc<Registry>,
    live: Arc<Live>,
    _slot: Slot,
}

impl Registry {
    /// A registry with room for `sessions_max`.
    #[must_use]
    pub fn new(sessions_max: usize) -> Self {
        Self {
            live: Mutex::new(HashMap::new()),
            slots: Slots::new(sessions_max),
            left: Notify::new(),
        }
    }

    /// Room for one more session, if there is.
    #[must_use]
    pub fn reserve(&self) -> Option<Slot> {
        self.slots.take()
    }

    /// From now on there is room for `sessions_max`. Those that live go on.
    pub fn resize(&self, sessions_max: usize) {
        self.slots.resize(sessions_max);
    }

    /// Whether another session would find room now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.slots.has_room()
    }

    /// Puts a session in.
    #[must_use]
    pub fn enter(self: &Arc<Self>, slot: Slot, live: Arc<Live>) -> Entered {
        self.map().insert(live.facts.session_id, Arc::clone(&live));
        Entered {
            registry: Arc::clone(self),
            live,
            _slot: slot,
        }
    }

    /// All of them, as of now.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Live>> {
        self.map().values().cloned().collect()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map().is_empty()
    }

    /// Cuts every session.
    pub fn cut_all(&self, ending: &Ending) {
        for live in self.all() {
            live.cut(ending.clone());
        }
    }

    /// Returns as soon as there are none.
    pub async fn empty(&self) {
        loop {
            let left = self.left.notified();
            if self.is_empty() {
                return;
            }
            left.await;
        }
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<SessionId, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entered {
    /// The session.
    #[must_use]
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.registry.map().remove(&self.live.facts.session_id);
        self.registry.left.notify_waiters();
    }
}
