//! The registry of live sessions, and the switch that cuts each of them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use iap_audit::CloseReason;
use iap_identity::SessionId;
use iap_runtime::pump::{Cancellation, IdleLimit};
use iap_runtime::slots::{Slot, Slots};
use time::OffsetDateTime;
use tokio::sync::Notify;

use super::handover::keeping::Keeping;
use super::{Caller, Ending, SessionFacts, Through};
use crate::clock::Witnessed;
use crate::decide::{Attempt, Permit};
use crate::watch::Audience;

/// How often those that keep a drain waiting are counted.
const LOOKED_AT_EVERY: Duration = Duration::from_millis(50);

/// One live session as the reviewer sees it.
#[derive(Debug)]
pub struct Live {
    /// What is settled.
    pub facts: Arc<SessionFacts>,
    presence: Mutex<Presence>,
    permit: Mutex<Permit>,
    idle: IdleLimit,
    cut: Cancellation,
    why: OnceLock<Ending>,
    outage_since: Mutex<Option<Witnessed>>,
    /// The agent's successor can go on with it.
    can_move: AtomicBool,
    /// Where it is kept for the case that this agent is killed.
    keeping: OnceLock<Arc<Keeping>>,
    /// Those who watch it, where it can be watched.
    audience: OnceLock<Arc<Audience>>,
}

/// Who is in a session, and over what: the same person all the time, with another certificate and from elsewhere once
/// they have come back.
#[derive(Debug, Clone)]
pub struct Presence {
    /// Who, by the newest certificate.
    pub caller: Caller,
    /// From where, by the word of the proxy.
    pub client: SocketAddr,
    /// Through which proxy.
    pub through: Through,
}

impl Live {
    /// A session that may go on under `permit`.
    #[must_use]
    pub fn new(facts: Arc<SessionFacts>, permit: Permit) -> Self {
        Self {
            presence: Mutex::new(Presence {
                caller: facts.caller.clone(),
                client: facts.client,
                through: facts.through.clone(),
            }),
            facts,
            idle: IdleLimit::new(permit.grant().limits().idle),
            permit: Mutex::new(permit),
            cut: Cancellation::new(),
            why: OnceLock::new(),
            outage_since: Mutex::new(None),
            can_move: AtomicBool::new(false),
            keeping: OnceLock::new(),
            audience: OnceLock::new(),
        }
    }

    /// From now on it can be watched.
    pub(crate) fn opens_to_watchers(&self) -> Arc<Audience> {
        Arc::clone(self.audience.get_or_init(Arc::default))
    }

    /// Those who watch it, if it can be watched.
    pub(crate) fn audience(&self) -> Option<&Arc<Audience>> {
        self.audience.get()
    }

    /// From now on the agent's successor can go on with it.
    pub(crate) fn may_move(&self) {
        self.can_move.store(true, Ordering::Relaxed);
    }

    pub(crate) fn can_move(&self) -> bool {
        self.can_move.load(Ordering::Relaxed)
    }

    /// From now on it is kept for the case that this agent is killed.
    pub(crate) fn is_kept_by(&self, keeping: Arc<Keeping>) {
        let _ = self.keeping.set(keeping);
    }

    pub(crate) fn keeping(&self) -> Option<Arc<Keeping>> {
        self.keeping.get().cloned()
    }

    /// Who is in it now.
    #[must_use]
    pub fn caller(&self) -> Caller {
        self.presence().caller.clone()
    }

    /// Through which proxy it runs now.
    #[must_use]
    pub fn through(&self) -> Through {
        self.presence().through.clone()
    }

    /// Its client has come back.
    pub(crate) fn move_to(&self, presence: Presence) {
        *self.presence() = presence;
    }

    /// The question whether it may go on.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        let target = self.facts.target.get();
        let presence = self.presence();
        Attempt {
            session_id: self.facts.session_id,
            caller: presence.caller.clone(),
            service: self.facts.service.clone(),
            client: presence.client,
            login: target
                .map(|target| target.login.clone())
                .or_else(|| self.permit().grant().login().cloned()),
            database: target
                .map(|target| target.database.clone())
                .or_else(|| self.facts.asked_database.clone()),
        }
    }

    pub(crate) fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Replaces the permit by one from a newer decision, whose limits hold from now on.
    pub fn renew(&self, permit: Permit) {
        self.idle.set(permit.grant().limits().idle);
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = permit;
    }

    /// How long it may rest by the newest permit, for the pump.
    #[must_use]
    pub fn idle_limit(&self) -> &IdleLimit {
        &self.idle
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

    /// How a session ends whose switch was thrown.
    #[must_use]
    pub(crate) fn cut_ending(&self) -> Ending {
        let because = self.cut_because().cloned();
        because.unwrap_or_else(|| Ending::plain(CloseReason::InternalError))
    }
}

/// All live sessions of this agent; at most `sessions_max`.
#[derive(Debug)]
pub struct Registry {
    sessions: Mutex<Sessions>,
    slots: Slots,
    left: Notify,
}

#[derive(Debug, Default)]
struct Sessions {
    live: HashMap<SessionId, Arc<Live>>,
    /// Why no session may live any more, once none may.
    closed: Option<Ending>,
}

/// Room for one more session. Dropping it gives the room back.
#[derive(Debug)]
pub struct Reserved {
    registry: Arc<Registry>,
    slot: Option<Slot>,
}

/// A session's place in the registry; dropping it takes the session out.
#[derive(Debug)]
pub struct Entered {
    live: Arc<Live>,
    slot: Reserved,
}

impl Registry {
    /// A registry with room for `sessions_max`.
    #[must_use]
    pub fn new(sessions_max: usize) -> Self {
        Self {
            sessions: Mutex::default(),
            slots: Slots::new(sessions_max),
            left: Notify::new(),
        }
    }

    /// Room for one more session, if there is.
    #[must_use]
    pub fn reserve(self: &Arc<Self>) -> Option<Reserved> {
        Some(Reserved {
            slot: Some(self.slots.take()?),
            registry: Arc::clone(self),
        })
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

    /// Puts a session in. After [`cut_all`](Self::cut_all) it is cut at once.
    #[must_use]
    pub fn enter(&self, slot: Reserved, live: Arc<Live>) -> Entered {
        let mut sessions = self.sessions();
        sessions.live.insert(live.facts.session_id, Arc::clone(&live));
        let closed = sessions.closed.clone();
        drop(sessions);
        if let Some(ending) = closed {
            live.cut(ending);
        }
        Entered { live, slot }
    }

    /// All of them, as of now.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Live>> {
        self.sessions().live.values().cloned().collect()
    }

    /// The one with that id.
    #[must_use]
    pub fn find(&self, session: &SessionId) -> Option<Arc<Live>> {
        self.sessions().live.get(session).cloned()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions().live.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions().live.is_empty()
    }

    /// Cuts every session, also those that are yet to enter.
    pub fn cut_all(&self, ending: &Ending) {
        self.sessions().closed = Some(ending.clone());
        for live in self.all() {
            live.cut(ending.clone());
        }
    }

    /// Returns as soon as there are none, and none that has room already and is about to enter.
    pub async fn empty(&self) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if self.slots.are_all_free() {
                return;
            }
            left.await;
        }
    }

    /// Returns as soon as there are none but those that a successor can go on with.
    pub(crate) async fn settled(&self) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            let can_move = self.all().iter().filter(|live| live.can_move()).count();
            if self.slots.taken() <= can_move {
                return;
            }
            // Nobody says so when one turns into one of those.
            let _ = tokio::time::timeout(LOOKED_AT_EVERY, left).await;
        }
    }

    /// Returns as soon as there is none that a successor could go on with.
    pub(crate) async fn none_can_move(&self) {
        while self.all().iter().any(|live| live.can_move()) {
            let _ = tokio::time::timeout(LOOKED_AT_EVERY, self.left.notified()).await;
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        drop(self.slot.take());
        self.registry.left.notify_waiters();
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
        let registry = &self.slot.registry;
        registry.sessions().live.remove(&self.live.facts.session_id);
        if let Some(audience) = self.live.audience() {
            audience.closes(None);
        }
    }
}
