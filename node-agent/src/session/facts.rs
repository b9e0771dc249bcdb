//! What the records of a session say.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use iap_audit::{CloseReason, DecisionRecord, Effect, Event, EventKind, Observed};
use iap_identity::{AgentId, ConnectId, ConnectionId, LoginName, ProxyId, ServiceName, SessionId};
use iap_policy::{Grant, Protocol};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Caller, Presence};

/// The longest claim of a client that a record repeats.
const CLAIM_CHARACTERS_MAX: usize = 63;

/// The proxy that a session runs through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Through {
    /// Who it is.
    pub proxy: ProxyId,
    /// The certificate it proved that with, by serial in lower-case hex.
    pub serial: Arc<str>,
}

/// Everything about a session that is settled when it starts.
#[derive(Debug, Clone)]
pub struct SessionFacts {
    /// Its id (UUIDv7).
    pub session_id: SessionId,
    /// The connection it came on, by the id the proxy drew for it.
    pub connection_id: ConnectionId,
    /// The `connect` it belongs to, when the client named one.
    pub connect_id: Option<ConnectId>,
    /// Who.
    pub caller: Caller,
    /// To what.
    pub service: ServiceName,
    /// How that service speaks.
    pub protocol: Protocol,
    /// Through which agent.
    pub agent: AgentId,
    /// From where, by the word of the proxy.
    pub client: SocketAddr,
    /// The proxy.
    pub through: Through,
    /// How closely it is watched.
    pub observed: Observed,
    /// The login and database it is about, once they are settled; only where these can be seen.
    pub target: OnceLock<Target>,
    /// The login the client said it would use. Its word only, unless the session is watched more closely.
    pub asked_login: Option<LoginName>,
    /// The database the client said it would use; likewise.
    pub asked_database: Option<String>,
    /// When it started.
    pub started: OffsetDateTime,
    /// How often its client has come back over another connection.
    pub resumes: Resumes,
}

/// As whom, on what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The database user.
    pub login: LoginName,
    /// The database.
    pub database: String,
}

/// A count that grows while the session lives. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Resumes(Arc<AtomicU64>);

impl Resumes {
    /// Once more.
    pub(crate) fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So often already.
    pub(crate) fn starting_at(count: u64) -> Self {
        Self(Arc::new(AtomicU64::new(count)))
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The reason.
    pub reason: CloseReason,
    /// The rule, lock or error behind it.
    pub detail: Option<String>,
}

impl Ending {
    /// An ending that the reason alone explains.
    #[must_use]
    pub fn plain(reason: CloseReason) -> Self {
        Self { reason, detail: None }
    }

    /// An ending with the rule, lock or error behind it.
    pub fn because(reason: CloseReason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: Some(detail.into()),
        }
    }
}

impl SessionFacts {
    /// The record that must be durable before the backend is dialled.
    #[must_use]
    pub fn start_event(&self, grant: &Grant, id: Uuid) -> Event {
        self.event(EventKind::SessionStart, self.started, grant, id)
    }

    /// The record of a backend that could not be reached.
    #[must_use]
    pub fn connect_failed_event(&self, grant: &Grant, now: OffsetDateTime, id: Uuid, text: &str) -> Event {
        self.event(EventKind::SessionConnectFailed, now, grant, id)
            .reason(text)
    }

    /// The record of the session's end.
    #[must_use]
    pub fn end_event(
        &self,
        grant: &Grant,
        now: OffsetDateTime,
        id: Uuid,
        (inwards, outwards): (u64, u64),
        ending: &Ending,
    ) -> Event {
        let lasted = Duration::try_from(now - self.started).unwrap_or(Duration::ZERO);
        let event = self
            .event(EventKind::SessionEnd, now, grant, id)
            .bytes(inwards, outwards)
            .close(ending.reason, ending.detail.as_deref())
            .field("start", start_text(self.started))
            .field(
                "duration_ms",
                u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
            );
        match self.resumes.count() {
            0 => event,
            count => event.field("resumes", count),
        }
    }

    /// The record of a client that came back.
    #[must_use]
    pub fn resume_event(
        &self,
        grant: &Grant,
        now: OffsetDateTime,
        id: Uuid,
        back: &Presence,
        connection_id: ConnectionId,
    ) -> Event {
        let moved = Self {
            caller: back.caller.clone(),
            client: back.client,
            through: back.through.clone(),
            connection_id,
            ..self.clone()
        };
        moved.event(EventKind::SessionResume, now, grant, id)
    }

    /// The record of a session that another process of this agent goes on with; `last` is who was in it, from where.
    #[must_use]
    pub(crate) fn handover_event(
        &self,
        grant: &Grant,
        now: OffsetDateTime,
        id: Uuid,
        last: &Presence,
        (inwards, outwards): (u64, u64),
        cause: &'static str,
    ) -> Event {
        let moved = Self {
            caller: last.caller.clone(),
            client: last.client,
            through: last.through.clone(),
            ..self.clone()
        };
        moved
            .event(EventKind::SessionHandover, now, grant, id)
            .bytes(inwards, outwards)
            .field("cause", cause)
    }

    /// The record of a login or database that was named after the session had begun.
    #[must_use]
    pub(crate) fn login_event(&self, grant: &Grant, now: OffsetDateTime, id: Uuid) -> Event {
        self.event(EventKind::SessionLogin, now, grant, id)
    }

    /// What the records of all its statements have in common.
    #[must_use]
    pub(crate) fn statement_event(&self, grant: &Grant) -> Event {
        let event = Event::new(EventKind::SessionStatement, self.started, Uuid::nil())
            .session(&self.session_id)
            .user(&self.caller.record())
            .service(&self.service)
            .protocol(self.protocol.as_str())
            .agent(&self.agent)
            .observed(self.observed);
        self.aimed(event, grant)
    }

    fn aimed(&self, event: Event, grant: &Grant) -> Event {
        match self.target.get() {
            Some(target) => event.login(Some(&target.login)).database(Some(&target.database)),
            None => event.login(grant.login()),
        }
    }

    /// Any other record of the session while it runs.
    pub(crate) fn event_now(&self, grant: &Grant, kind: EventKind, now: OffsetDateTime, id: Uuid) -> Event {
        self.event(kind, now, grant, id)
    }

    fn event(&self, kind: EventKind, time: OffsetDateTime, grant: &Grant, id: Uuid) -> Event {
        let decision = DecisionRecord {
            effect: Effect::Allow,
            rule: Some(grant.rule().to_owned()),
            policy_version: grant.policy_version(),
        };
        let mut event = Event::new(kind, time, id)
            .session(&self.session_id)
            .connection(&self.connection_id)
            .user(&self.caller.record())
            .serial(self.caller.peer().serial())
            .service(&self.service)
            .protocol(self.protocol.as_str())
            .agent(&self.agent)
            .client_address(self.client)
            .field("client_asserted_by", self.through.proxy.to_string())
            .decision(&decision)
            .observed(self.observed);
        event = self.aimed(event, grant);
        if let Some(login) = &self.asked_login {
            event = event.field("asked_login", login.as_str());
        }
        if let Some(database) = &self.asked_database {
            event = event.field("asked_database", shortened(database));
        }
        if let Some(connect_id) = &self.connect_id {
            event = event.connect(connect_id);
        }
        match self.caller.login_id() {
            Some(login_id) => event.login_id(&login_id),
            None => event,
        }
    }
}

/// The end record of a session that was live when its agent died; `start` is its start record or the part of it that
/// [`carried`](iap_audit::carried) keeps, and `detail` what else is known of why. How much went each way died with the agent, so nothing is said about it.
#[must_use]
pub fn lost_event(
    start: &Map<String, Value>,
    now: OffsetDateTime,
    id: Uuid,
    detail: Option<String>,
) -> Event {
    let detail = detail.as_deref();
    let usual = "the agent ended without warning while the session ran";
    Event::new(EventKind::SessionEnd, now, id)
        .close(CloseReason::AgentLost, Some(detail.unwrap_or(usual)))
        .answering(start)
}

/// What a client says about itself takes no more of a record than a name would.
fn shortened(text: &str) -> String {
    text.chars().take(CLAIM_CHARACTERS_MAX).collect()
}

/// A time the way records write it.
fn start_text(at: OffsetDateTime) -> String {
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    );
    at.to_offset(time::UtcOffset::UTC)
        .format(&format)
        .unwrap_or_default()
}
