//! What verification yields: a peer of a known class with the facts of its certificate. These types
//! are made by [`crate::verify`] and by nobody else's check.

use time::OffsetDateTime;

use crate::class::Class;
use crate::extension::{ExtensionError, IdentityProvider};
use crate::ids::{AgentId, AuthId, LoginId, ProxyId};
use crate::names::{BotName, GroupName, UserId};
use crate::server_name::ServerName;

/// A user, as of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserPeer {
    /// The immutable id.
    pub id: UserId,
    /// The verified email, else the preferred name: for display and for policy's `names`.
    pub name: String,
    /// The login this certificate descends from.
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
    /// The enrolled device.
    pub device_id: Option<String>,
    /// Groups, as far as the policy named them.
    pub groups: Vec<GroupName>,
    /// The policy version that did the naming.
    pub groups_vocabulary: u64,
    /// When the groups were read.
    pub groups_as_of: OffsetDateTime,
    /// The certificate's serial, lower-case hex.
    pub serial: String,
    /// The certificate's start.
    pub not_before: OffsetDateTime,
    /// The certificate's end.
    pub not_after: OffsetDateTime,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub key_thumbprint: [u8; 32],
}

macro_rules! machine_peer {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            /// The certificate's serial, lower-case hex.
            pub serial: String,
            /// The certificate's start.
            pub not_before: OffsetDateTime,
            /// The certificate's end.
            pub not_after: OffsetDateTime,
            /// SHA-256 of the SubjectPublicKeyInfo.
            pub key_thumbprint: [u8; 32],
        }
    };
}

machine_peer!(
    /// A bot, as of one certificate.
    BotPeer {
        /// Its name.
        name: BotName,
        /// The join this certificate descends from.
        login_id: Option<LoginId>,
        /// Counts renewals.
        generation: u64,
    }
);
machine_peer!(
    /// An agent, as of one certificate.
    AgentPeer {
        /// Its id.
        id: AgentId,
        /// Counts renewals.
        generation: u64,
    }
);
machine_peer!(
    /// A proxy, as of one certificate.
    ProxyPeer {
        /// Its id.
        id: ProxyId,
    }
);
machine_peer!(
    /// An auth server, as of one certificate.
    AuthPeer {
        /// Its id.
        id: AuthId,
    }
);

/// A client whose certificate was verified for one of the accepted classes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one per connection, and nearly always a user"
)]
pub enum VerifiedPeer {
    /// A user.
    User(UserPeer),
    /// A bot.
    Bot(BotPeer),
    /// An agent.
    Agent(AgentPeer),
    /// A proxy.
    Proxy(ProxyPeer),
    /// An auth server.
    Auth(AuthPeer),
}

impl VerifiedPeer {
    /// The peer's class.
    pub const fn class(&self) -> Class {
        match self {
            Self::User(_) => Class::User,
            Self::Bot(_) => Class::Bot,
            Self::Agent(_) => Class::Agent,
            Self::Proxy(_) => Class::Proxy,
            Self::Auth(_) => Class::Auth,
        }
    }

    /// The certificate's serial, lower-case hex.
    pub fn serial(&self) -> &str {
        match self {
            Self::User(peer) => &peer.serial,
            Self::Bot(peer) => &peer.serial,
            Self::Agent(peer) => &peer.serial,
            Self::Proxy(peer) => &peer.serial,
            Self::Auth(peer) => &peer.serial,
        }
    }

    /// The certificate's end.
    pub const fn not_after(&self) -> OffsetDateTime {
        match self {
            Self::User(peer) => peer.not_after,
            Self::Bot(peer) => peer.not_after,
            Self::Agent(peer) => peer.not_after,
            Self::Proxy(peer) => peer.not_after,
            Self::Auth(peer) => peer.not_after,
        }
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub const fn key_thumbprint(&self) -> &[u8; 32] {
        match self {
            Self::User(peer) => &peer.key_thumbprint,
            Self::Bot(peer) => &peer.key_thumbprint,
            Self::Agent(peer) => &peer.key_thumbprint,
            Self::Proxy(peer) => &peer.key_thumbprint,
            Self::Auth(peer) => &peer.key_thumbprint,
        }
    }

    /// The immutable id.
    pub fn principal(&self) -> String {
        match self {
            Self::User(peer) => peer.id.to_string(),
            Self::Bot(peer) => peer.name.to_string(),
            Self::Agent(peer) => peer.id.to_string(),
            Self::Proxy(peer) => peer.id.to_string(),
            Self::Auth(peer) => peer.id.to_string(),
        }
    }
}

/// The party behind a server's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerIdentity {
    /// An auth server.
    Auth(AuthId),
    /// A proxy.
    Proxy(ProxyId),
    /// An agent, with its own certificate or one of its service leaves.
    Agent(AgentId),
}

/// A server whose certificate was verified for the expected name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedServer {
    /// The name it was verified for.
    pub name: ServerName,
    /// Who it is.
    pub identity: ServerIdentity,
    /// The certificate's serial, lower-case hex.
    pub serial: String,
    /// The certificate's end.
    pub not_after: OffsetDateTime,
}

impl VerifiedServer {
    /// The agent behind the name, if it is one.
    pub const fn agent(&self) -> Option<AgentId> {
        match self.identity {
            ServerIdentity::Agent(id) => Some(id),
            ServerIdentity::Auth(_) | ServerIdentity::Proxy(_) => None,
        }
    }
}

/// Why a peer's certificate was refused. The text is for the log; the peer sees [`PeerError::alert`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The validity period is over.
    #[error("the certificate expired at {not_after}")]
    Expired {
        /// The certificate's end.
        not_after: OffsetDateTime,
    },
    /// The validity period has not begun.
    #[error("the certificate is not valid before {not_before}")]
    NotYetValid {
        /// The certificate's start.
        not_before: OffsetDateTime,
    },
    /// The certificate names another cluster.
    #[error("the certificate belongs to the cluster {found}")]
    WrongCluster {
        /// The cluster it names.
        found: String,
    },
    /// A good certificate of a class that has no business here.
    #[error("a certificate of class {found} is not accepted here")]
    WrongClass {
        /// The certificate's class.
        found: Class,
    },
    /// A good certificate of another server.
    #[error("the certificate is not for {expected}")]
    WrongName {
        /// The name the caller wanted.
        expected: String,
    },
    /// The extended key usage does not allow this side of a connection.
    #[error("the certificate is not meant for this use")]
    WrongUsage,
    /// No authority of the certificate's class has signed it.
    #[error("the certificate was not issued by this cluster's authority for its class")]
    UnknownIssuer,
    /// The identity extension is missing, repeated, misplaced or malformed.
    #[error(transparent)]
    Extension(#[from] ExtensionError),
    /// No certificate, or one that cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// Parts of the certificate contradict each other or its class.
    #[error("the certificate contradicts itself: {0}")]
    Inconsistent(&'static str),
}

/// The TLS alert that answers a refused certificate (RFC 8446 §6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAlert {
    /// `certificate_expired(45)`
    CertificateExpired,
    /// `unknown_ca(48)`
    UnknownCa,
    /// `bad_certificate(42)`
    BadCertificate,
    /// `access_denied(49)`
    AccessDenied,
}

impl PeerError {
    /// What the peer may learn.
    pub const fn alert(&self) -> PeerAlert {
        match self {
            Self::Expired { .. } => PeerAlert::CertificateExpired,
            Self::UnknownIssuer | Self::WrongCluster { .. } => PeerAlert::UnknownCa,
            Self::WrongClass { .. } => PeerAlert::AccessDenied,
            Self::NotYetValid { .. }
            | Self::WrongName { .. }
            | Self::WrongUsage
            | Self::Extension(_)
            | Self::Malformed(_)
            | Self::Inconsistent(_) => PeerAlert::BadCertificate,
        }
    }
}
