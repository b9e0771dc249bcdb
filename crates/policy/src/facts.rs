//! What a decision is made from: the user, the service, the question, the groups' vocabulary.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use iap_identity::{Class, GroupName, LoginName, ServiceName, UserPeer};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::OffsetDateTime;

/// The protocol of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Bytes, passed on unread.
    Tcp,
    /// The PostgreSQL wire protocol.
    Postgres,
    /// SSH.
    Ssh,
    /// HTTP/1.1 and HTTP/2.
    Http,
}

/// A protocol's name that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no protocol; allowed are \"tcp\", \"postgres\", \"ssh\", \"http\"")]
pub struct ProtocolError(String);

impl Protocol {
    /// Its name in configuration, on the wire and in conditions.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Postgres => "postgres",
            Protocol::Ssh => "ssh",
            Protocol::Http => "http",
        }
    }

    /// The protocol called `name`.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`] when there is none.
    pub fn parse(name: &str) -> Result<Self, ProtocolError> {
        match name {
            "tcp" => Ok(Protocol::Tcp),
            "postgres" => Ok(Protocol::Postgres),
            "ssh" => Ok(Protocol::Ssh),
            "http" => Ok(Protocol::Http),
            _ => Err(ProtocolError(name.to_owned())),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Who asks, as far as policy looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserFacts {
    /// The principal's id (`u-...` for a user).
    pub id: String,
    /// The display name: verified email, else preferred user name; a bot's name.
    pub name: String,
    /// User, bot or workload; other classes match no rule.
    pub kind: Class,
    /// Groups, as `connector:group`.
    pub groups: Vec<GroupName>,
    /// The policy version up to which [`Self::groups`] is complete; `None` when it is complete as it is.
    pub groups_vocabulary: Option<u64>,
    /// When the user last proved who they are to the identity provider.
    pub auth_time: Option<OffsetDateTime>,
    /// When the user last proved a second factor.
    pub mfa_time: Option<OffsetDateTime>,
    /// The authentication context class the provider told, if it did.
    pub acr: Option<String>,
    /// The connector they came through.
    pub idp: String,
    /// `browser`, `no-browser`, `headless`, ...
    pub login_method: String,
}

impl UserFacts {
    /// The facts a verified user certificate states.
    #[must_use]
    pub fn from_peer(peer: &UserPeer) -> Self {
        Self {
            id: peer.id.to_string(),
            name: peer.name.clone(),
            kind: Class::User,
            groups: peer.groups.clone(),
            groups_vocabulary: Some(peer.groups_vocabulary),
            auth_time: Some(peer.auth_time),
            mfa_time: peer.mfa_time,
            acr: peer.idp.acr.clone(),
            idp: peer.idp.connector.clone(),
            login_method: peer.login_method.clone(),
        }
    }

    /// A bot's facts: it has a name and nothing else.
    #[must_use]
    pub fn bot(name: &str) -> Self {
        Self {
            id: name.to_owned(),
            name: name.to_owned(),
            kind: Class::Bot,
            groups: Vec::new(),
            groups_vocabulary: None,
            auth_time: None,
            mfa_time: None,
            acr: None,
            idp: String::new(),
            login_method: String::new(),
        }
    }

    /// `user.local`: the part of the name before the `@`.
    #[must_use]
    pub fn local(&self) -> &str {
        self.name
            .split_once('@')
            .map_or(self.name.as_str(), |(local, _)| local)
    }
}

/// What is asked for, as far as policy looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Its name.
    pub name: ServiceName,
    /// Its protocol.
    pub protocol: Protocol,
    /// Whether the agent reads the protocol (and so sees logins).
    pub inspect: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The login used when the user names none and may use this one.
    pub default_login: Option<LoginName>,
}

impl ServiceFacts {
    /// A service without labels whose bytes are passed on unread.
    #[must_use]
    pub fn tcp(name: ServiceName) -> Self {
        Self {
            name,
            protocol: Protocol::Tcp,
            inspect: false,
            labels: BTreeMap::new(),
            default_login: None,
        }
    }

    /// How far the agent sees logins of this service.
    pub(crate) fn login_sight(&self) -> Sight {
        match self.protocol {
            Protocol::Tcp => Sight::Opaque,
            Protocol::Postgres | Protocol::Ssh if self.inspect => Sight::Visible,
            Protocol::Postgres => Sight::Opaque,
            Protocol::Ssh => Sight::Certified,
            Protocol::Http => Sight::Absent,
        }
    }

    /// How far the agent sees databases of this service.
    pub(crate) fn database_sight(&self) -> Sight {
        match self.protocol {
            Protocol::Tcp => Sight::Opaque,
            Protocol::Postgres if self.inspect => Sight::Visible,
            Protocol::Postgres => Sight::Opaque,
            Protocol::Ssh | Protocol::Http => Sight::Absent,
        }
    }
}

/// Whether a protocol's logins (or databases) can be seen by the agent that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// The agent reads them.
    Visible,
    /// There may be some, but the agent does not read them.
    Opaque,
    /// The agent does not read them, but the backend is shown a certificate of the person's that names those which
    /// the policy gave when it was issued.
    Certified,
    /// The protocol has none.
    Absent,
}

/// A login or a database, as asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked<'a, T: ?Sized = LoginName> {
    /// The agent sees it; `None`: the user named none.
    Visible(Option<&'a T>),
    /// The agent cannot see it (`tcp`, or `inspect = false`).
    Opaque,
}

impl<T: ?Sized> Clone for Asked<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Asked<'_, T> {}

/// May this user reach this service, as this login, on this database, from here, now?
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who.
    pub user: &'a UserFacts,
    /// What.
    pub service: &'a ServiceFacts,
    /// As which login. What a `tcp` or uninspected service is asked for is opaque whatever is said here; an
    /// uninspected `ssh` service may be reached opaquely if any login could be used there.
    pub login: Asked<'a>,
    /// On which database; the same holds.
    pub database: Asked<'a, str>,
    /// From where: the proxy's word.
    pub client_ip: IpAddr,
    /// When.
    pub now: OffsetDateTime,
}

/// For each group the policy names, the policy version that first named it.
///
/// A certificate carries groups only as far as the policy named them when it was issued; this tells
/// which groups it could not have carried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vocabulary {
    versions: BTreeMap<GroupName, u64>,
    newest: u64,
}

impl Vocabulary {
    /// The vocabulary with these first versions.
    #[must_use]
    pub fn new(versions: BTreeMap<GroupName, u64>) -> Self {
        let newest = versions.values().copied().max().unwrap_or(0);
        Self { versions, newest }
    }

    /// The version that first named `group`.
    #[must_use]
    pub fn first_version(&self, group: &GroupName) -> Option<u64> {
        self.versions.get(group).copied()
    }

    /// Groups and the versions that first named them, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&GroupName, u64)> {
        self.versions.iter().map(|(group, version)| (group, *version))
    }

    /// The connector that all groups come from, when it is one. An agent derives from this whether
    /// the policy's groups may lack the `connector:` prefix.
    #[must_use]
    pub fn single_connector(&self) -> Option<&str> {
        let mut connectors = self.versions.keys().map(|group| split_group(group.as_str()).0);
        let first = connectors.next()?;
        connectors.all(|other| other == first).then_some(first)
    }

    /// The vocabulary after a policy that names `groups` becomes version `version`: known groups keep
    /// their version, new ones get this one, those no longer named are dropped.
    #[must_use]
    pub fn advance(&self, groups: impl IntoIterator<Item = GroupName>, version: u64) -> Self {
        let first = |group: GroupName| {
            let first = self.first_version(&group).unwrap_or(version);
            (group, first)
        };
        Self::new(groups.into_iter().map(first).collect())
    }

    /// Whether some group is newer than a certificate with vocabulary `known`.
    pub(crate) fn outruns(&self, known: Option<u64>) -> bool {
        known.is_some_and(|known| self.newest > known)
    }
}

impl From<BTreeMap<GroupName, u64>> for Vocabulary {
    fn from(versions: BTreeMap<GroupName, u64>) -> Self {
        Self::new(versions)
    }
}

impl FromIterator<(GroupName, u64)> for Vocabulary {
    fn from_iter<I: IntoIterator<Item = (GroupName, u64)>>(versions: I) -> Self {
        Self::new(versions.into_iter().collect())
    }
}

/// The connector and the group of `connector:group`.
pub(crate) fn split_group(name: &str) -> (&str, &str) {
    name.split_once(':').unwrap_or(("", name))
}
