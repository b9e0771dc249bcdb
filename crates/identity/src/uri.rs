//! The one URI in every leaf. Users and bots live under `iap://`, which no SPIFFE verifier accepts;
//! the plane's own parts and workloads are SPIFFE ids.

use std::fmt;

use crate::class::Class;
use crate::ids::{AgentId, AuthId, ProxyId};
use crate::names::{BotName, ClusterName, UserId};

/// SPIFFE-ID §2.3.
pub const URI_BYTES_MAX: usize = 2048;

/// Whom a leaf speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// `iap://<cluster>/user/<id>`
    User(UserId),
    /// `iap://<cluster>/bot/<name>`
    Bot(BotName),
    /// `spiffe://<cluster>/agent/<id>`
    Agent(AgentId),
    /// `spiffe://<cluster>/proxy/<id>`
    Proxy(ProxyId),
    /// `spiffe://<cluster>/auth/<id>`
    Auth(AuthId),
    /// `spiffe://<cluster>/<path>`, any other path.
    Workload(String),
}

impl Subject {
    /// The class the URI claims.
    pub const fn class(&self) -> Class {
        match self {
            Self::User(_) => Class::User,
            Self::Bot(_) => Class::Bot,
            Self::Agent(_) => Class::Agent,
            Self::Proxy(_) => Class::Proxy,
            Self::Auth(_) => Class::Auth,
            Self::Workload(_) => Class::Workload,
        }
    }

    /// The immutable id: the last part of the URI, and the principal of the identity extension.
    pub fn principal(&self) -> String {
        match self {
            Self::User(id) => id.to_string(),
            Self::Bot(name) => name.to_string(),
            Self::Agent(id) => id.to_string(),
            Self::Proxy(id) => id.to_string(),
            Self::Auth(id) => id.to_string(),
            Self::Workload(path) => path.clone(),
        }
    }
}

/// A subject within its cluster: what the URI says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityUri {
    /// The authority part.
    pub cluster: ClusterName,
    /// The path.
    pub subject: Subject,
}

impl IdentityUri {
    /// Reads exactly the spelling that [`fmt::Display`] writes; anything else is `None`.
    pub fn parse(uri: &str) -> Option<Self> {
        if uri.len() > URI_BYTES_MAX {
            return None;
        }
        let (scheme, rest) = uri.split_once("://")?;
        let (authority, path) = rest.split_once('/')?;
        let cluster = ClusterName::parse(authority).ok()?;
        let subject = match scheme {
            "iap" => parse_iap_path(path)?,
            "spiffe" => parse_spiffe_path(path)?,
            _ => return None,
        };
        Some(Self { cluster, subject })
    }
}

impl fmt::Display for IdentityUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = &self.cluster;
        match &self.subject {
            Subject::User(id) => write!(f, "iap://{cluster}/user/{id}"),
            Subject::Bot(name) => write!(f, "iap://{cluster}/bot/{name}"),
            Subject::Agent(id) => write!(f, "spiffe://{cluster}/agent/{id}"),
            Subject::Proxy(id) => write!(f, "spiffe://{cluster}/proxy/{id}"),
            Subject::Auth(id) => write!(f, "spiffe://{cluster}/auth/{id}"),
            Subject::Workload(path) => write!(f, "spiffe://{cluster}/{path}"),
        }
    }
}

/// `iap://<cluster>/key/<key_id>`: the name of a signing key certified by the root.
pub(crate) fn signing_key_uri(cluster: &ClusterName, key_id: &str) -> String {
    format!("iap://{cluster}/key/{key_id}")
}

fn parse_iap_path(path: &str) -> Option<Subject> {
    match path.split_once('/')? {
        ("user", id) => UserId::parse(id).ok().map(Subject::User),
        ("bot", name) => BotName::parse(name).ok().map(Subject::Bot),
        _ => None,
    }
}

/// `agent`, `proxy` and `auth` are never workloads, whatever follows them.
fn parse_spiffe_path(path: &str) -> Option<Subject> {
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    match first {
        "agent" => AgentId::parse(rest).ok().map(Subject::Agent),
        "proxy" => ProxyId::parse(rest).ok().map(Subject::Proxy),
        "auth" => AuthId::parse(rest).ok().map(Subject::Auth),
        _ => is_spiffe_path(path).then(|| Subject::Workload(path.to_owned())),
    }
}

/// SPIFFE-ID §2.2: segments of letters, digits, dots, hyphens and underscores, none empty, none of dots only.
fn is_spiffe_path(path: &str) -> bool {
    path.split('/').all(|segment| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(allowed)
    })
}
