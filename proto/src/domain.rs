//! What travels in signed objects, in its valid form.

use std::time::Duration;

use iap_identity::{AgentId, ClusterName, Locks, LoginName, ProxyId};
use iap_policy::{ServiceFacts, Vocabulary};
use time::OffsetDateTime;

/// A service as the centre records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRecord {
    /// What policy looks at: name, protocol, labels, default login.
    pub facts: ServiceFacts,
    /// For people; may be empty.
    pub description: String,
    /// Whom a denied user asks; may be empty.
    pub contact: String,
    /// The agents granted this service.
    pub agents: Vec<AgentId>,
    /// What a full disk does to sessions.
    pub audit: AuditMode,
    /// How much an inspected SSH session depends on its recording; `None`: it is required.
    pub recording: Option<RecordingMode>,
    /// How much less than its agents allow it goes on without the auth server.
    pub strictness: Strictness,
}

/// How long a service goes on without the auth server. It only ever narrows what an agent's own file allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strictness {
    /// Since the newest beat: beyond it no new session.
    pub lock_feed_max_age: Option<Duration>,
    /// Since the newest beat that named the rules held: beyond it no new session either.
    pub snapshot_max_age: Option<Duration>,
    /// From either of these until live sessions end.
    pub grace: Option<Duration>,
}

impl Strictness {
    /// The least that either age may be. Beats come every 10 s: less would end sessions when one is late.
    pub const AGE_SECONDS_MIN: u64 = 30;
}

/// How much a session depends on its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditMode {
    /// No durable start record, no session.
    Required,
    /// Sessions go on; gaps are themselves recorded.
    BestEffort,
    /// As `Required`, and no session before the auth server has acknowledged its start record.
    Remote,
}

impl AuditMode {
    /// Its name in service files and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::BestEffort => "best_effort",
            Self::Remote => "remote",
        }
    }

    /// The mode of this name; the empty name is the default, `required`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "" | "required" => Some(Self::Required),
            "best_effort" => Some(Self::BestEffort),
            "remote" => Some(Self::Remote),
            _ => None,
        }
    }
}

/// How much an SSH session depends on its recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecordingMode {
    /// What cannot be recorded does not happen.
    #[default]
    Required,
    /// Sessions go on; what is missing is itself recorded.
    BestEffort,
}

impl RecordingMode {
    /// Its name in service files and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::BestEffort => "best_effort",
        }
    }

    /// The mode of this name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "required" => Some(Self::Required),
            "best_effort" => Some(Self::BestEffort),
            _ => None,
        }
    }
}

/// Everything an agent needs to decide without asking.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// A restore from backup starts the next.
    pub epoch: u64,
    /// Grows by one with each change inside an epoch.
    pub version: u64,
    /// Whose.
    pub cluster: ClusterName,
    /// When it was signed.
    pub issued: OffsetDateTime,
    /// When it is dead, whatever the feed says.
    pub expires: OffsetDateTime,
    /// The version of the document below.
    pub policy_version: u64,
    /// The applied document, byte for byte.
    pub policy_toml: String,
    /// The policy version that first named each group.
    pub vocabulary: Vocabulary,
    /// Every service of the cluster.
    pub services: Vec<ServiceRecord>,
    /// Where agents and clients find the proxies.
    pub proxies: Vec<ProxyAddress>,
    /// Logins that no template may produce.
    pub reserved_logins: Vec<LoginName>,
}

impl Snapshot {
    /// Whether this may replace `other`: a later epoch, or a later version of the same one.
    pub fn is_newer_than(&self, other: &Snapshot) -> bool {
        (self.epoch, self.version) > (other.epoch, other.version)
    }
}

/// A proxy and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyAddress {
    /// Which proxy.
    pub proxy_id: ProxyId,
    /// `host:port`, as agents and clients dial it.
    pub address: String,
}

/// Proof that the feed is alive, and the newest trustworthy time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Whose.
    pub cluster: ClusterName,
    /// The epoch the versions belong to.
    pub epoch: u64,
    /// The auth server's clock.
    pub time: OffsetDateTime,
    /// The newest snapshot there is.
    pub snapshot_version: u64,
    /// The newest list of locks there is.
    pub lock_version: u64,
}

/// The complete list of locks in force.
#[derive(Debug, Clone, PartialEq)]
pub struct LockList {
    /// Whose.
    pub cluster: ClusterName,
    /// A restore from backup starts the next.
    pub epoch: u64,
    /// Grows by one with each change inside an epoch.
    pub version: u64,
    /// When it was signed.
    pub issued: OffsetDateTime,
    /// The locks.
    pub locks: Locks,
}

impl LockList {
    /// Whether this may replace `other`: a later epoch, or a later version of the same one.
    pub fn is_newer_than(&self, other: &LockList) -> bool {
        (self.epoch, self.version) > (other.epoch, other.version)
    }
}
