//! What each class's certificate holds: a table as data for issuing.

use rcgen::{ExtendedKeyUsagePurpose, SanType};
use time::{Duration, OffsetDateTime};

use crate::class::{CaClass, Class};
use crate::consistency::{auth_hosts, proxy_hosts};
use crate::extension::{IdentityExtension, IdentityProvider};
use crate::ids::{AgentId, AuthId, LoginId, ProxyId};
use crate::leaf::is_email;
use crate::names::{BotName, ClusterName, GroupName, ServiceName, UserId};
use crate::uri::{IdentityUri, Subject};

/// The usual life of a user's or bot's certificate.
pub const USER_LIFE: Duration = Duration::hours(1);
/// The longest life a user's or bot's certificate may be given.
pub const USER_LIFE_MAX: Duration = Duration::hours(12);
/// The life of an agent's, proxy's or auth server's certificate.
pub const SYSTEM_LIFE: Duration = Duration::hours(24);
/// The life of a service leaf.
pub const SERVICE_LEAF_LIFE: Duration = Duration::hours(4);

/// A user's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserProfile {
    /// The immutable id.
    pub id: UserId,
    /// The issuing cluster.
    pub cluster: ClusterName,
    /// The display name: an rfc822Name where it is an email, else in the identity extension.
    pub name: String,
    /// The login.
    pub login_id: LoginId,
    /// When the user authenticated.
    pub auth_time: OffsetDateTime,
    /// The hard end of the login.
    pub login_deadline: OffsetDateTime,
    /// Counts renewals.
    pub generation: u64,
    /// Who said who this is.
    pub idp: IdentityProvider,
    /// How the login came about.
    pub login_method: String,
    /// When a second factor was last shown.
    pub mfa_time: Option<OffsetDateTime>,
    /// Groups, as far as the policy names them.
    pub groups: Vec<GroupName>,
    /// The policy version that did the naming.
    pub groups_vocabulary: u64,
    /// When the groups were read.
    pub groups_as_of: OffsetDateTime,
    /// How long the certificate shall live, at most [`USER_LIFE_MAX`].
    pub life: Duration,
}

/// A bot's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BotProfile {
    /// Its name.
    pub name: BotName,
    /// The issuing cluster.
    pub cluster: ClusterName,
    /// The join it descends from.
    pub login_id: LoginId,
    /// Counts renewals.
    pub generation: u64,
    /// How long the certificate shall live, at most [`USER_LIFE_MAX`].
    pub life: Duration,
}

/// An agent's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentProfile {
    /// Its id.
    pub id: AgentId,
    /// The issuing cluster.
    pub cluster: ClusterName,
    /// Counts renewals.
    pub generation: u64,
}

/// A proxy's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyProfile {
    /// Its id.
    pub id: ProxyId,
    /// The issuing cluster.
    pub cluster: ClusterName,
}

/// An auth server's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthProfile {
    /// Its id.
    pub id: AuthId,
    /// The issuing cluster.
    pub cluster: ClusterName,
}

/// What a certificate is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one per issued certificate, never kept")]
pub enum Profile {
    /// A user's.
    User(UserProfile),
    /// A bot's.
    Bot(BotProfile),
    /// An agent's own.
    Agent(AgentProfile),
    /// What an agent shows to a service's clients: one per service.
    ServiceLeaf {
        /// The agent that holds it.
        agent: AgentId,
        /// The one service it is for.
        service: ServiceName,
        /// The issuing cluster.
        cluster: ClusterName,
    },
    /// A proxy's.
    Proxy(ProxyProfile),
    /// An auth server's.
    Auth(AuthProfile),
}

impl Profile {
    /// The class of the holder; a service leaf's holder is an agent.
    pub const fn class(&self) -> Class {
        match self {
            Self::User(_) => Class::User,
            Self::Bot(_) => Class::Bot,
            Self::Agent(_) | Self::ServiceLeaf { .. } => Class::Agent,
            Self::Proxy(_) => Class::Proxy,
            Self::Auth(_) => Class::Auth,
        }
    }

    /// The authority that issues it.
    pub const fn ca_class(&self) -> CaClass {
        self.class().ca_class()
    }

    /// The issuing cluster.
    pub const fn cluster(&self) -> &ClusterName {
        match self {
            Self::User(user) => &user.cluster,
            Self::Bot(bot) => &bot.cluster,
            Self::Agent(agent) => &agent.cluster,
            Self::ServiceLeaf { cluster, .. } => cluster,
            Self::Proxy(proxy) => &proxy.cluster,
            Self::Auth(auth) => &auth.cluster,
        }
    }

    /// How long it lives, before the authority's end and the login deadline cut it short.
    pub fn life(&self) -> Duration {
        match self {
            Self::User(user) => user.life.min(USER_LIFE_MAX),
            Self::Bot(bot) => bot.life.min(USER_LIFE_MAX),
            Self::ServiceLeaf { .. } => SERVICE_LEAF_LIFE,
            Self::Agent(_) | Self::Proxy(_) | Self::Auth(_) => SYSTEM_LIFE,
        }
    }

    /// The hard end of the login, for users.
    pub const fn login_deadline(&self) -> Option<OffsetDateTime> {
        match self {
            Self::User(user) => Some(user.login_deadline),
            Self::Bot(_) | Self::Agent(_) | Self::ServiceLeaf { .. } | Self::Proxy(_) | Self::Auth(_) => None,
        }
    }

    pub(crate) fn uri(&self) -> IdentityUri {
        let subject = match self {
            Self::User(user) => Subject::User(user.id.clone()),
            Self::Bot(bot) => Subject::Bot(bot.name.clone()),
            Self::Agent(agent) => Subject::Agent(agent.id),
            Self::ServiceLeaf { agent, .. } => Subject::Agent(*agent),
            Self::Proxy(proxy) => Subject::Proxy(proxy.id),
            Self::Auth(auth) => Subject::Auth(auth.id),
        };
        IdentityUri {
            cluster: self.cluster().clone(),
            subject,
        }
    }

    pub(crate) fn email(&self) -> Option<&str> {
        match self {
            Self::User(user) if is_email(&user.name) => Some(&user.name),
            Self::User(_)
            | Self::Bot(_)
            | Self::Agent(_)
            | Self::ServiceLeaf { .. }
            | Self::Proxy(_)
            | Self::Auth(_) => None,
        }
    }

    pub(crate) fn dns(&self) -> Vec<String> {
        match self {
            Self::User(_) | Self::Bot(_) => Vec::new(),
            Self::Agent(agent) => vec![agent.cluster.agent_host(&agent.id)],
            Self::ServiceLeaf { service, cluster, .. } => vec![cluster.service_host(service)],
            Self::Proxy(proxy) => proxy_hosts(&proxy.cluster).to_vec(),
            Self::Auth(auth) => auth_hosts(&auth.cluster).to_vec(),
        }
    }

    /// (clientAuth, serverAuth)
    pub(crate) const fn usages(&self) -> (bool, bool) {
        match self {
            Self::User(_) | Self::Bot(_) => (true, false),
            Self::ServiceLeaf { .. } => (false, true),
            Self::Agent(_) | Self::Proxy(_) | Self::Auth(_) => (true, true),
        }
    }

    /// The identity extension; a service leaf has none.
    pub(crate) fn extension(&self) -> Option<IdentityExtension> {
        let uri = self.uri();
        let mut extension =
            IdentityExtension::new(self.class(), uri.cluster.clone(), uri.subject.principal());
        match self {
            Self::User(user) => user.write_login(&mut extension),
            Self::Bot(bot) => {
                extension.login_id = Some(bot.login_id);
                extension.generation = Some(bot.generation);
            }
            Self::Agent(agent) => extension.generation = Some(agent.generation),
            Self::ServiceLeaf { .. } => return None,
            Self::Proxy(_) | Self::Auth(_) => {}
        }
        Some(extension)
    }

    /// The subject alternative names; `None` where one cannot be an IA5String.
    pub(crate) fn alternative_names(&self) -> Option<Vec<SanType>> {
        let mut names = vec![SanType::URI(self.uri().to_string().try_into().ok()?)];
        if let Some(email) = self.email() {
            names.push(SanType::Rfc822Name(email.try_into().ok()?));
        }
        for host in self.dns() {
            names.push(SanType::DnsName(host.try_into().ok()?));
        }
        Some(names)
    }

    pub(crate) fn extended_key_usages(&self) -> Vec<ExtendedKeyUsagePurpose> {
        let (client, server) = self.usages();
        let mut purposes = Vec::new();
        if server {
            purposes.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if client {
            purposes.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        purposes
    }
}

impl UserProfile {
    fn write_login(&self, extension: &mut IdentityExtension) {
        extension.login_id = Some(self.login_id);
        extension.auth_time = Some(whole_seconds(self.auth_time));
        extension.login_deadline = Some(whole_seconds(self.login_deadline));
        extension.generation = Some(self.generation);
        extension.idp = Some(self.idp.clone());
        extension.login_method = Some(self.login_method.clone());
        extension.mfa_time = self.mfa_time.map(whole_seconds);
        extension.groups.clone_from(&self.groups);
        extension.groups_vocabulary = Some(self.groups_vocabulary);
        extension.groups_as_of = Some(whole_seconds(self.groups_as_of));
        extension.name = (!is_email(&self.name)).then(|| self.name.clone());
    }
}

/// Certificates carry whole seconds in UTC; fractions are dropped.
pub(crate) fn whole_seconds(time: OffsetDateTime) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(time.unix_timestamp()).unwrap_or(time)
}
