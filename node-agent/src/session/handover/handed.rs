//! Sessions that the predecessor has left.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iap_audit::{CloseReason, Event, EventKind, Observed};
use iap_identity::{AgentId, SessionId};
use iap_runtime::handover::{Left, LiveMemory, Parcel, read_sealed};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use uuid::Uuid;

use super::keeping::{self, Lost};
use super::state::{STATE_BYTES_MAX, SessionState, StateError};
use super::{SESSIONS_LABEL, session_of};
use crate::backend::BackendStream;
use crate::session::{Ending, Presence, Resumes, SessionFacts};

/// What is in a session's parcel.
const DESCRIPTORS: usize = 2;

/// Why what was left is no session.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0} descriptors were left for it instead of {DESCRIPTORS}")]
    Descriptors(usize),
    #[error("its state cannot be read: {0}")]
    Memory(io::Error),
    #[error("its state cannot be read: {0}")]
    State(#[from] StateError),
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("its state is another session's or another agent's")]
    Other,
    #[error("its backend's connection cannot be used: {0}")]
    Backend(io::Error),
    #[error("its start record says otherwise")]
    Record,
}

/// Everything that was left, before it is known what the record says of it.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    sessions: HashMap<SessionId, HandedSession>,
    /// What was left and cannot be used.
    unusable: HashMap<SessionId, String>,
    /// Names under which nothing is left that anybody needs.
    done_with: HashSet<String>,
}

/// A session to go on with.
#[derive(Debug)]
pub(crate) struct HandedSession {
    pub(crate) bundle: Arc<Bundle>,
    /// Lies in the store until it is emptied.
    pub(crate) parcel: Parcel,
    pub(crate) state: SessionState,
    pub(crate) backend: OwnedFd,
    pub(crate) began: Presence,
    pub(crate) last: Presence,
    /// Where it was kept up to date, if its agent was killed.
    pub(crate) memory: Option<LiveMemory>,
    /// What is carried of its start record.
    pub(crate) start: Map<String, Value>,
}

/// Sessions that were stored together, under one name.
#[derive(Debug)]
pub(crate) struct Bundle {
    name: String,
    /// How many of them somebody may still need.
    needed: AtomicUsize,
}

impl Bundle {
    /// What they lie under.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// One of them is needed no longer. The name, once none is.
    pub(crate) fn less(&self) -> Option<String> {
        let was = self.needed.fetch_sub(1, Ordering::Relaxed);
        (was == 1).then(|| self.name.clone())
    }
}

impl Handed {
    /// Looks at what was left, and leaves it where it is. Blocks: up to some megabytes are read for each session.
    pub(crate) fn look(left: Vec<Left>, agent: AgentId) -> Self {
        let mut handed = Self::default();
        for Left { name, parcel } in left {
            let content = match parcel.look() {
                Ok(Some(content)) => content,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(name, %error, "something was left that is nothing of an agent's");
                    continue;
                }
            };
            let parcels = match content.label.starts_with(SESSIONS_LABEL) {
                true => content.descriptors.into_iter().map(Parcel::from).collect(),
                false => vec![parcel],
            };
            let bundle = Arc::new(Bundle {
                name,
                // This one, while it is looked at, and those that are in it.
                needed: AtomicUsize::new(1 + parcels.len()),
            });
            for parcel in parcels {
                handed.add(parcel, &bundle, agent);
            }
            handed.done_with.extend(bundle.less());
        }
        let found = |session: &SessionId| handed.sessions.contains_key(session);
        handed.unusable.retain(|session, _| !found(session));
        handed
    }

    fn add(&mut self, parcel: Parcel, bundle: &Arc<Bundle>, agent: AgentId) {
        let looked = match parcel.look() {
            // An earlier run has it.
            Ok(None) => None,
            Ok(Some(content)) => {
                let is_live = keeping::is_label(&content.label);
                Some((session_of(&content.label), is_live, content.descriptors))
            }
            Err(error) => {
                tracing::error!(%error, "a session was left that cannot be gone on with");
                None
            }
        };
        let Some((Some(session), is_live, found)) = looked else {
            return self.done_with.extend(bundle.less());
        };
        // Where one stood still and was left as it was, that is the newer.
        let stood_still = |other: &HandedSession| other.memory.is_none();
        if is_live && self.sessions.get(&session).is_some_and(stood_still) {
            return self.done_with.extend(bundle.less());
        }
        match HandedSession::of(session, is_live, found, parcel, bundle, agent) {
            Ok(found) => {
                // The same session a second time is none.
                if let Some(other) = self.sessions.insert(session, found) {
                    self.done_with.extend(other.bundle.less());
                }
            }
            Err(error) => {
                tracing::error!(%session, %error, "a session was left that cannot be gone on with");
                self.unusable.insert(session, error.to_string());
                self.done_with.extend(bundle.less());
            }
        }
    }

    /// Whether the session, whose start record says `start`, is one to go on with. If something of it was left, and not
    /// enough, why.
    pub(crate) fn claims(&mut self, start: &Map<String, Value>) -> Result<(), Option<String>> {
        let session = start.get("session_id").and_then(Value::as_str);
        let Some(session) = session.and_then(|text| SessionId::parse(text).ok()) else {
            return Err(None);
        };
        let Some(found) = self.sessions.get_mut(&session) else {
            return Err(self.unusable.remove(&session));
        };
        if !found.agrees_with(start) {
            self.let_go(&session);
            return Err(Some(Unusable::Record.to_string()));
        }
        found.start = start.clone();
        Ok(())
    }

    /// Those that the record knows as begun and not ended, and the names of what nobody needs.
    pub(crate) fn into_claimed(mut self) -> (Vec<HandedSession>, Vec<String>) {
        let unknown = self.sessions.values().filter(|found| found.start.is_empty());
        let unknown: Vec<_> = unknown.map(HandedSession::session_id).collect();
        for session in unknown {
            tracing::error!(%session, "a session was left that is not begun, or over, by the record");
            self.let_go(&session);
        }
        let sessions = self.sessions.into_values().collect();
        (sessions, self.done_with.into_iter().collect())
    }

    fn let_go(&mut self, session: &SessionId) {
        if let Some(found) = self.sessions.remove(session) {
            self.done_with.extend(found.bundle.less());
        }
    }
}

impl HandedSession {
    fn of(
        session: SessionId,
        is_live: bool,
        found: Vec<OwnedFd>,
        parcel: Parcel,
        bundle: &Arc<Bundle>,
        agent: AgentId,
    ) -> Result<Self, Unusable> {
        let found: [OwnedFd; DESCRIPTORS] = found
            .try_into()
            .map_err(|found: Vec<OwnedFd>| Unusable::Descriptors(found.len()))?;
        let [backend, state] = found;
        let (state, memory) = match is_live {
            true => {
                let memory = keeping::open(state).map_err(Unusable::Memory)?;
                (keeping::recover(&memory, &backend)?, Some(memory))
            }
            false => {
                let state = read_sealed(state, STATE_BYTES_MAX).map_err(Unusable::Memory)?;
                (SessionState::decode(&state)?, None)
            }
        };
        if state.facts.session_id != session || state.facts.agent != agent {
            return Err(Unusable::Other);
        }
        BackendStream::check(&backend).map_err(Unusable::Backend)?;
        let nobody = || StateError::Contradiction("nobody is in it");
        let began = state.facts.began.clone().presence().ok_or_else(nobody)?;
        let last = state.facts.last.clone().presence().ok_or_else(nobody)?;
        if began.caller.peer().principal() != last.caller.peer().principal() {
            return Err(StateError::Contradiction("two people are in it").into());
        }
        Ok(Self {
            bundle: Arc::clone(bundle),
            parcel,
            state,
            backend,
            began,
            last,
            memory,
            start: Map::new(),
        })
    }

    pub(crate) fn session_id(&self) -> SessionId {
        self.state.facts.session_id
    }

    /// Why another process goes on with it, for the record.
    pub(crate) fn cause(&self) -> &'static str {
        match self.memory {
            Some(_) => "killed",
            None => "stopped",
        }
    }

    /// What an end record repeats of the start is what this agent believes to go on with.
    fn agrees_with(&self, start: &Map<String, Value>) -> bool {
        let says = |pointer: &[&str], expected: &str| {
            let (first, rest) = pointer.split_first()?;
            let value = rest
                .iter()
                .try_fold(start.get(*first)?, |value, name| value.get(name));
            (value?.as_str()? == expected).then_some(())
        };
        let facts = &self.state.facts;
        let principal = self.began.caller.peer().principal();
        says(&["user", "id"], &principal).is_some()
            && says(&["service"], facts.service.as_str()).is_some()
            && says(&["connection_id"], &facts.connection_id.to_string()).is_some()
    }

    /// What the records of the session say.
    pub(crate) fn facts(&self) -> SessionFacts {
        let facts = &self.state.facts;
        SessionFacts {
            session_id: facts.session_id,
            connection_id: facts.connection_id,
            connect_id: facts.connect_id,
            caller: self.began.caller.clone(),
            service: facts.service.clone(),
            protocol: facts.protocol,
            agent: facts.agent,
            client: self.began.client,
            through: self.began.through.clone(),
            asked_login: facts.asked_login.clone(),
            asked_database: facts.asked_database.clone(),
            started: facts.started,
            resumes: Resumes::starting_at(facts.resumes),
            // No other kind of session is handed over.
            observed: Observed::Bytes,
        }
    }

    /// The rule that its start names.
    pub(crate) fn rule(&self) -> &str {
        let decision = self.start.get("decision");
        let rule = decision.and_then(|decision| decision.get("rule"));
        rule.and_then(Value::as_str).unwrap_or_default()
    }

    /// The end record of a session that does not go on: nobody has decided for it, so that it repeats its start.
    pub(crate) fn end_event(&self, now: OffsetDateTime, id: Uuid, ending: &Ending) -> Event {
        let facts = &self.state.facts;
        let lasted = u64::try_from((now - facts.started).whole_milliseconds()).unwrap_or(0);
        let event = Event::new(EventKind::SessionEnd, now, id)
            .answering(&self.start)
            .bytes(facts.bytes_in, facts.bytes_out)
            .close(ending.reason, ending.detail.as_deref())
            .field("duration_ms", lasted);
        match facts.resumes {
            0 => event,
            count => event.field("resumes", count),
        }
    }
}

/// Why a session that was left, and cannot be gone on with, has ended.
pub(crate) fn unusable(why: &str) -> Ending {
    Ending::because(
        CloseReason::AgentLost,
        format!("the agent was replaced, and the session could not be handed over: {why}"),
    )
}
