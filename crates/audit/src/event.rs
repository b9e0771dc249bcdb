//! One event, built field by field, before the chain seals it into a record.

use std::net::SocketAddr;

use iap_identity::{AgentId, ConnectId, ConnectionId, LoginId, LoginName, ServiceName, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::kind::EventKind;
use crate::payload::{PAYLOAD_HASH_FIELD, PAYLOAD_LENGTH_FIELD, Payload};
use crate::record::format_time;

/// An event under construction. Every method adds one field of the vocabulary; a field set twice keeps the
/// later value. `time` and `id` (a UUIDv7) come from the caller.
#[derive(Debug, Clone)]
pub struct Event {
    kind: EventKind,
    fields: Map<String, Value>,
    payload: Option<Payload>,
}

/// The fields of an event, ready to be sealed by a [`Chain`](crate::Chain).
#[derive(Debug, Clone, PartialEq)]
pub struct RecordBody {
    fields: Map<String, Value>,
    payload: Option<Payload>,
}

impl Event {
    /// An event of which nothing but kind, time and id is known.
    pub fn new(kind: EventKind, time: OffsetDateTime, id: Uuid) -> Self {
        let event = Self {
            kind,
            fields: Map::new(),
            payload: None,
        };
        event
            .text("event", kind.as_str())
            .text("code", kind.code())
            .at(time, id)
    }

    fn at(self, time: OffsetDateTime, id: Uuid) -> Self {
        self.text("time", &format_time(time)).text("id", &id.to_string())
    }

    /// The same once more, at another time.
    #[must_use]
    pub fn again(&self, time: OffsetDateTime, id: Uuid) -> Self {
        self.clone().at(time, id)
    }

    /// What happened.
    pub fn kind(&self) -> EventKind {
        self.kind
    }

    /// The session this belongs to.
    pub fn session(self, session: &SessionId) -> Self {
        self.text("session_id", &session.to_string())
    }

    /// The `connect` that several sessions share.
    pub fn connect(self, connect: &ConnectId) -> Self {
        self.text("connect_id", &connect.to_string())
    }

    /// The connection that the proxy asked for. Without its hyphens it is the trace's id.
    pub fn connection(self, connection: &ConnectionId) -> Self {
        self.text("connection_id", &connection.to_string())
    }

    /// Who acted.
    pub fn user(self, user: &UserRecord) -> Self {
        self.value("user", user)
    }

    /// The login behind the certificate.
    pub fn login_id(self, login: &LoginId) -> Self {
        self.text("login_id", &login.to_string())
    }

    /// Which service.
    pub fn service(self, service: &ServiceName) -> Self {
        self.text("service", service.as_str())
    }

    /// The service's protocol.
    pub fn protocol(self, protocol: &str) -> Self {
        self.text("protocol", protocol)
    }

    /// Which agent, where it is not the source of the record itself.
    pub fn agent(self, agent: &AgentId) -> Self {
        self.text("agent", &agent.to_string())
    }

    /// Where the caller's connection came from, as the proxy asserts it.
    pub fn client_address(self, address: SocketAddr) -> Self {
        let ip = address.ip().to_canonical();
        self.text("client_address", &SocketAddr::new(ip, address.port()).to_string())
            .text("client_ip", &ip.to_string())
    }

    /// The login used at the backend.
    pub fn login(self, login: Option<&LoginName>) -> Self {
        self.optional("login", login.map(LoginName::as_str))
    }

    /// The database asked for.
    pub fn database(self, database: Option<&str>) -> Self {
        self.optional("database", database)
    }

    /// Why it was allowed or refused.
    pub fn decision(self, decision: &DecisionRecord) -> Self {
        self.value("decision", decision)
    }

    /// What the session carried: client to backend, and back.
    pub fn bytes(self, inwards: u64, outwards: u64) -> Self {
        self.field("bytes_in", inwards).field("bytes_out", outwards)
    }

    /// Why the session ended, with the rule, lock or error that ended it.
    pub fn close(self, reason: CloseReason, detail: Option<&str>) -> Self {
        self.text("close_reason", reason.as_str())
            .optional("close_detail", detail)
    }

    /// How closely the session was watched; says thereby what was not seen.
    pub fn observed(self, observed: Observed) -> Self {
        self.text("observed", observed.as_str())
    }

    /// A certificate's serial number, lower-case hex.
    pub fn serial(self, serial: &str) -> Self {
        self.text("serial", serial)
    }

    /// A sentence that explains the event.
    pub fn reason(self, reason: &str) -> Self {
        self.text("reason", reason)
    }

    /// What the record is about and does not hold itself.
    #[must_use]
    pub fn payload(self, payload: Payload) -> Self {
        let mut event = self
            .text(PAYLOAD_HASH_FIELD, &payload.hash_hex())
            .field(PAYLOAD_LENGTH_FIELD, payload.bytes().len());
        event.payload = Some(payload);
        event
    }

    /// Any further field of the vocabulary.
    pub fn field(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    /// The fields, ready to be sealed.
    pub fn into_body(self) -> RecordBody {
        RecordBody {
            fields: self.fields,
            payload: self.payload,
        }
    }

    fn text(self, name: &'static str, value: &str) -> Self {
        self.field(name, value)
    }

    fn optional(self, name: &'static str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => self,
        }
    }

    fn value(self, name: &'static str, value: &impl Serialize) -> Self {
        // The types passed here are plain structs of strings and numbers, for which this cannot fail.
        self.field(name, serde_json::to_value(value).unwrap_or(Value::Null))
    }
}

impl RecordBody {
    /// The fields so far.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// What lies beside the record.
    pub fn payload(&self) -> Option<&Payload> {
        self.payload.as_ref()
    }

    pub(crate) fn into_fields(self) -> Map<String, Value> {
        self.fields
    }
}

impl From<Event> for RecordBody {
    fn from(event: Event) -> Self {
        event.into_body()
    }
}

/// Who acted, as records name them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// The stable id (`u-…`), or a bot's name.
    pub id: String,
    /// The display name.
    pub name: String,
    /// `user` or `bot`.
    pub kind: String,
}

/// Why something was allowed or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// Allowed or refused.
    pub effect: Effect,
    /// The rule that decided, when one did.
    pub rule: Option<String>,
    /// The policy it stood in.
    pub policy_version: u64,
}

/// The outcome of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The session was allowed.
    Allow,
    /// The session was refused.
    Deny,
}

/// How closely a session was watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observed {
    /// Only how much went each way.
    Bytes,
    /// Each statement.
    Statements,
    /// Everything on the terminal.
    Terminal,
}

impl Observed {
    /// The `observed` field.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Statements => "statements",
            Self::Terminal => "terminal",
        }
    }
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// The client ended it.
    ClientClosed,
    /// The backend ended it.
    BackendClosed,
    /// The client's connection broke.
    ClientLost,
    /// The backend's connection broke.
    BackendLost,
    /// The backend would not accept the connection.
    BackendRefused,
    /// The backend did not answer in time.
    BackendTimeout,
    /// The backend's address could not be reached or resolved.
    BackendUnreachable,
    /// A lock cut it; the detail names the lock.
    Lock,
    /// Policy changed or a condition no longer holds; the detail names the rule.
    Policy,
    /// The rule's limit on a session's length.
    SessionLimit,
    /// The rule's limit on silence.
    IdleLimit,
    /// The login's deadline.
    LoginDeadline,
    /// No sign of life from the auth server beyond what is allowed.
    FeedTooOld,
    /// The rules expired, or were not confirmed for longer than is allowed.
    SnapshotTooOld,
    /// The agent could no longer write records.
    AuditUnavailable,
    /// What was sent cannot be followed, in a service whose statements are recorded.
    Protocol,
    /// The service is no longer granted to the agent, or was removed.
    ServiceRemoved,
    /// The agent was told to stop.
    Shutdown,
    /// The agent died while the session ran.
    AgentLost,
    /// Somebody ended it through the administration.
    Killed,
    /// A failure inside the agent.
    InternalError,
}

impl CloseReason {
    /// The `close_reason` field.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::BackendClosed => "backend_closed",
            Self::ClientLost => "client_lost",
            Self::BackendLost => "backend_lost",
            Self::BackendRefused => "backend_refused",
            Self::BackendTimeout => "backend_timeout",
            Self::BackendUnreachable => "backend_unreachable",
            Self::Lock => "lock",
            Self::Policy => "policy",
            Self::SessionLimit => "session_limit",
            Self::IdleLimit => "idle_limit",
            Self::LoginDeadline => "login_deadline",
            Self::FeedTooOld => "feed_too_old",
            Self::SnapshotTooOld => "snapshot_too_old",
            Self::AuditUnavailable => "audit_unavailable",
            Self::Protocol => "protocol",
            Self::ServiceRemoved => "service_removed",
            Self::Shutdown => "shutdown",
            Self::AgentLost => "agent_lost",
            Self::Killed => "killed",
            Self::InternalError => "internal_error",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use serde_json::json;

    const ID: Uuid = Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001);

    #[test]
    fn a_start_record_carries_the_documented_fields() {
        let alice = UserRecord {
            id: "u-abc".into(),
            name: "alice@example.com".into(),
            kind: "user".into(),
        };
        let decision = DecisionRecord {
            effect: Effect::Allow,
            rule: Some("engineers".into()),
            policy_version: 7,
        };
        let time = OffsetDateTime::UNIX_EPOCH + time::Duration::milliseconds(1_500);
        let body = Event::new(EventKind::SessionStart, time, ID)
            .session(&SessionId::from_uuid(ID))
            .user(&alice)
            .service(&ServiceName::parse("db-prod").unwrap())
            .client_address("[::ffff:203.0.113.7]:4711".parse().unwrap())
            .decision(&decision)
            .observed(Observed::Bytes)
            .into_body();
        let expected = json!({
            "event": "session.start", "code": "S1000I", "time": "1970-01-01T00:00:01.500Z", "id": ID.to_string(),
            "session_id": ID.to_string(), "service": "db-prod", "observed": "bytes",
            "user": {"id": "u-abc", "name": "alice@example.com", "kind": "user"},
            "client_address": "203.0.113.7:4711", "client_ip": "203.0.113.7",
            "decision": {"effect": "allow", "rule": "engineers", "policy_version": 7},
        });
        assert_eq!(Value::Object(body.into_fields()), expected);
    }

    #[test]
    fn an_end_record_says_how_much_and_why() {
        let body = Event::new(EventKind::SessionEnd, OffsetDateTime::UNIX_EPOCH, ID)
            .bytes(10, 20)
            .close(CloseReason::Lock, Some("stolen laptop"))
            .into_body();
        assert_eq!(body.fields()["bytes_in"], 10);
        assert_eq!(body.fields()["bytes_out"], 20);
        assert_eq!(body.fields()["close_reason"], "lock");
        assert_eq!(body.fields()["close_detail"], "stolen laptop");
    }

    #[test]
    fn close_reasons_serialise_as_they_are_written() {
        for reason in [
            CloseReason::AgentLost,
            CloseReason::BackendRefused,
            CloseReason::IdleLimit,
        ] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }
}
