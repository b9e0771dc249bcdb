//! Who is in a session, as one agent tells the next. The certificate was verified by the first; nobody but the agent's own
//! user and whoever starts it can put anything in between (SECURITY.md).

use std::net::SocketAddr;
use std::sync::Arc;

use iap_identity::{
    BotName, BotPeer, GroupName, IdentityProvider, LoginId, ProxyId, UserId, UserPeer, VerifiedPeer,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::super::{Caller, Presence, Through};

/// Who, from where, through what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Who {
    caller: Peer,
    client: SocketAddr,
    proxy: ProxyId,
    proxy_serial: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "snake_case")]
enum Peer {
    User(Box<User>),
    Bot(Bot),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct User {
    id: UserId,
    name: String,
    login_id: LoginId,
    #[serde(with = "time::serde::rfc3339")]
    auth_time: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    login_deadline: OffsetDateTime,
    generation: u64,
    connector: String,
    issuer: String,
    subject: String,
    acr: Option<String>,
    login_method: String,
    #[serde(with = "time::serde::rfc3339::option")]
    mfa_time: Option<OffsetDateTime>,
    device_id: Option<String>,
    groups: Vec<GroupName>,
    groups_vocabulary: u64,
    #[serde(with = "time::serde::rfc3339")]
    groups_as_of: OffsetDateTime,
    certificate: Certificate,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Bot {
    name: BotName,
    login_id: Option<LoginId>,
    generation: u64,
    certificate: Certificate,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Certificate {
    serial: String,
    #[serde(with = "time::serde::rfc3339")]
    not_before: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    not_after: OffsetDateTime,
    key_thumbprint: [u8; 32],
}

impl Who {
    /// Nobody but users and bots is in a session.
    pub(super) fn of(caller: &Caller, client: SocketAddr, through: &Through) -> Option<Self> {
        let caller = match caller.peer() {
            VerifiedPeer::User(user) => Peer::User(Box::new(User::of(user))),
            VerifiedPeer::Bot(bot) => Peer::Bot(Bot::of(bot)),
            VerifiedPeer::Agent(_) | VerifiedPeer::Proxy(_) | VerifiedPeer::Auth(_) => return None,
        };
        Some(Self {
            caller,
            client,
            proxy: through.proxy,
            proxy_serial: through.serial.to_string(),
        })
    }

    /// The same as a session knows them.
    pub(super) fn presence(self) -> Option<Presence> {
        let peer = match self.caller {
            Peer::User(user) => VerifiedPeer::User((*user).peer()),
            Peer::Bot(bot) => VerifiedPeer::Bot(bot.peer()),
        };
        Some(Presence {
            caller: Caller::of(peer)?,
            client: self.client,
            through: Through {
                proxy: self.proxy,
                serial: Arc::from(self.proxy_serial),
            },
        })
    }
}

impl User {
    fn of(user: &UserPeer) -> Self {
        let user = user.clone();
        Self {
            id: user.id,
            name: user.name,
            login_id: user.login_id,
            auth_time: user.auth_time,
            login_deadline: user.login_deadline,
            generation: user.generation,
            connector: user.idp.connector,
            issuer: user.idp.issuer,
            subject: user.idp.subject,
            acr: user.idp.acr,
            login_method: user.login_method,
            mfa_time: user.mfa_time,
            device_id: user.device_id,
            groups: user.groups,
            groups_vocabulary: user.groups_vocabulary,
            groups_as_of: user.groups_as_of,
            certificate: Certificate {
                serial: user.serial,
                not_before: user.not_before,
                not_after: user.not_after,
                key_thumbprint: user.key_thumbprint,
            },
        }
    }

    fn peer(self) -> UserPeer {
        UserPeer {
            id: self.id,
            name: self.name,
            login_id: self.login_id,
            auth_time: self.auth_time,
            login_deadline: self.login_deadline,
            generation: self.generation,
            idp: IdentityProvider {
                connector: self.connector,
                issuer: self.issuer,
                subject: self.subject,
                acr: self.acr,
            },
            login_method: self.login_method,
            mfa_time: self.mfa_time,
            device_id: self.device_id,
            groups: self.groups,
            groups_vocabulary: self.groups_vocabulary,
            groups_as_of: self.groups_as_of,
            serial: self.certificate.serial,
            not_before: self.certificate.not_before,
            not_after: self.certificate.not_after,
            key_thumbprint: self.certificate.key_thumbprint,
        }
    }
}

impl Bot {
    fn of(bot: &BotPeer) -> Self {
        Self {
            name: bot.name.clone(),
            login_id: bot.login_id,
            generation: bot.generation,
            certificate: Certificate {
                serial: bot.serial.clone(),
                not_before: bot.not_before,
                not_after: bot.not_after,
                key_thumbprint: bot.key_thumbprint,
            },
        }
    }

    fn peer(self) -> BotPeer {
        BotPeer {
            name: self.name,
            login_id: self.login_id,
            generation: self.generation,
            serial: self.certificate.serial,
            not_before: self.certificate.not_before,
            not_after: self.certificate.not_after,
            key_thumbprint: self.certificate.key_thumbprint,
        }
    }
}
