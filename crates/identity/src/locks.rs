//! Locks: what revocation is here. A lock names a user, login, session, agent, proxy, device or serial, and
//! cuts whatever matches it for as long as it is in force.

use std::fmt;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::ids::{AgentId, ProxyId, SessionId};
use crate::peer::{BotPeer, UserPeer, VerifiedPeer};

/// What a lock aims at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockKind {
    /// A user or bot: id or name.
    User,
    /// One login and everything renewed from it.
    Login,
    /// One session.
    Session,
    /// One agent.
    Agent,
    /// One proxy.
    Proxy,
    /// One enrolled device.
    Device,
    /// One certificate, by serial in lower-case hex.
    Serial,
}

impl LockKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::User,
        Self::Login,
        Self::Session,
        Self::Agent,
        Self::Proxy,
        Self::Device,
        Self::Serial,
    ];

    /// The name used in messages and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Login => "login",
            Self::Session => "session",
            Self::Agent => "agent",
            Self::Proxy => "proxy",
            Self::Device => "device",
            Self::Serial => "serial",
        }
    }

    /// Reads the name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for LockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// Its own id.
    pub id: Uuid,
    /// What it aims at.
    pub kind: LockKind,
    /// Whom it hits: an id, a name or a serial, by kind.
    pub target: String,
    /// Why, for the person who is cut off and for the record.
    pub reason: String,
    /// Who set it.
    pub created_by: String,
    /// When.
    pub created_at: OffsetDateTime,
    /// Until when; `None`: until it is removed.
    pub expires_at: Option<OffsetDateTime>,
}

impl Lock {
    /// Whether the lock is in force. One that expires at `now` no longer is.
    pub fn is_in_force(&self, now: OffsetDateTime) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }

    fn hits(&self, kind: LockKind, target: &str) -> bool {
        self.kind == kind && self.target == target
    }
}

/// The complete list of locks, as of one version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locks(Vec<Lock>);

impl Locks {
    /// The list.
    pub const fn new(locks: Vec<Lock>) -> Self {
        Self(locks)
    }

    /// All of them, expired ones included.
    pub fn iter(&self) -> std::slice::Iter<'_, Lock> {
        self.0.iter()
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A lock on the user (id or name), the login, the device or the certificate.
    pub fn matching_user(&self, user: &UserPeer, now: OffsetDateTime) -> Option<&Lock> {
        let login_id = user.login_id.to_string();
        self.first(now, |lock| match lock.kind {
            LockKind::User => lock.target == user.id.as_str() || lock.target == user.name,
            LockKind::Login => lock.target == login_id,
            LockKind::Serial => lock.target == user.serial,
            LockKind::Device => user.device_id.as_deref() == Some(lock.target.as_str()),
            LockKind::Session | LockKind::Agent | LockKind::Proxy => false,
        })
    }

    /// A lock on the session.
    pub fn matching_session(&self, session: &SessionId, now: OffsetDateTime) -> Option<&Lock> {
        let session = session.to_string();
        self.first(now, |lock| lock.hits(LockKind::Session, &session))
    }

    /// A lock on the agent or its certificate.
    pub fn matching_agent(&self, agent: &AgentId, serial: &str, now: OffsetDateTime) -> Option<&Lock> {
        let agent = agent.to_string();
        self.first(now, |lock| {
            lock.hits(LockKind::Agent, &agent) || lock.hits(LockKind::Serial, serial)
        })
    }

    /// A lock on the proxy or its certificate.
    pub fn matching_proxy(&self, proxy: &ProxyId, serial: &str, now: OffsetDateTime) -> Option<&Lock> {
        let proxy = proxy.to_string();
        self.first(now, |lock| {
            lock.hits(LockKind::Proxy, &proxy) || lock.hits(LockKind::Serial, serial)
        })
    }

    /// A lock on the certificate.
    pub fn matching_serial(&self, serial: &str, now: OffsetDateTime) -> Option<&Lock> {
        self.first(now, |lock| lock.hits(LockKind::Serial, serial))
    }

    /// A lock on the peer, whatever its class.
    pub fn matching_peer(&self, peer: &VerifiedPeer, now: OffsetDateTime) -> Option<&Lock> {
        match peer {
            VerifiedPeer::User(user) => self.matching_user(user, now),
            VerifiedPeer::Agent(agent) => self.matching_agent(&agent.id, &agent.serial, now),
            VerifiedPeer::Bot(bot) => self.matching_bot(bot, now),
            VerifiedPeer::Proxy(proxy) => self.matching_proxy(&proxy.id, &proxy.serial, now),
            VerifiedPeer::Auth(auth) => self.matching_serial(&auth.serial, now),
        }
    }

    fn matching_bot(&self, bot: &BotPeer, now: OffsetDateTime) -> Option<&Lock> {
        let login_id = bot.login_id.map(|id| id.to_string());
        self.first(now, |lock| match lock.kind {
            LockKind::User => lock.target == bot.name.as_str(),
            LockKind::Login => login_id.as_ref() == Some(&lock.target),
            LockKind::Serial => lock.target == bot.serial,
            LockKind::Session | LockKind::Agent | LockKind::Proxy | LockKind::Device => false,
        })
    }

    fn first(&self, now: OffsetDateTime, hits: impl Fn(&Lock) -> bool) -> Option<&Lock> {
        self.0.iter().find(|lock| lock.is_in_force(now) && hits(lock))
    }
}
