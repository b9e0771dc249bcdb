//! Who is calling: what the connection proved, and what the gate made of it.

use std::net::SocketAddr;
use std::sync::Arc;

use iap_audit::UserRecord;
use iap_identity::{AgentPeer, CertificateDer, ProxyPeer, UserPeer, VerifiedPeer};
use iap_policy::{UserFacts, Verb};
use std::collections::BTreeSet;

use super::error::RpcError;

/// What the TLS handshake proved; one for the life of a connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The client, as the PROXY header says where one is allowed.
    pub address: SocketAddr,
    /// What it presented.
    pub certificate: Presented,
}

/// The certificate a client presented and proved to hold.
#[derive(Clone, Debug)]
pub enum Presented {
    /// None.
    NoCertificate,
    /// A valid one.
    Valid {
        /// Whose.
        peer: Arc<VerifiedPeer>,
        /// The leaf, for checking what else its key signed.
        leaf: CertificateDer<'static>,
    },
    /// An agent's that expired at most 30 days ago: good for its renewal only.
    ExpiredAgent(Arc<AgentPeer>),
    /// A user's that expired at most 12 hours ago, of a login that goes on: likewise.
    ExpiredUser(Arc<UserPeer>),
}

/// A caller that the gate let through; in the extensions of every request that reaches a handler.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What the connection proved.
    pub connection: Connection,
    /// Who it is to the policy; users only.
    pub user: Option<Arc<UserCaller>>,
}

/// A user as the policy sees them now.
#[derive(Clone, Debug)]
pub struct UserCaller {
    /// The certificate's facts.
    pub peer: UserPeer,
    /// The same for policy, with the groups as they were last read.
    pub facts: UserFacts,
    /// The admin verbs they hold.
    pub verbs: BTreeSet<Verb>,
    /// Whether they are an admin whatever the policy says: by the configuration, or with a break-glass certificate.
    pub is_bootstrap_admin: bool,
}

impl UserCaller {
    /// Whether they hold the verb.
    pub fn may(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }

    /// How records name them.
    pub fn record(&self) -> UserRecord {
        UserRecord {
            id: self.facts.id.clone(),
            name: self.facts.name.clone(),
            kind: "user".to_owned(),
        }
    }
}

impl Caller {
    /// The caller of a request that came through the gate.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Caller, RpcError> {
        let caller = request.extensions().get::<Caller>().cloned();
        caller.ok_or_else(|| RpcError::internal("a request reached a handler without passing the gate"))
    }

    /// The user; the table lets nobody else reach handlers that ask.
    pub fn user(&self) -> Result<&UserCaller, RpcError> {
        self.user
            .as_deref()
            .ok_or_else(|| RpcError::denied("only users may do this"))
    }

    /// The agent, and its certificate where that is still valid.
    pub fn agent(&self) -> Result<(&AgentPeer, Option<&CertificateDer<'static>>), RpcError> {
        match &self.connection.certificate {
            Presented::Valid { peer, leaf } => match &**peer {
                VerifiedPeer::Agent(agent) => Ok((agent, Some(leaf))),
                VerifiedPeer::User(_)
                | VerifiedPeer::Bot(_)
                | VerifiedPeer::Proxy(_)
                | VerifiedPeer::Auth(_) => Err(RpcError::denied("only agents may do this")),
            },
            Presented::ExpiredAgent(agent) => Ok((agent, None)),
            Presented::NoCertificate | Presented::ExpiredUser(_) => {
                Err(RpcError::denied("only agents may do this"))
            }
        }
    }

    /// The proxy.
    pub fn proxy(&self) -> Result<&ProxyPeer, RpcError> {
        match &self.connection.certificate {
            Presented::Valid { peer, .. } => match &**peer {
                VerifiedPeer::Proxy(proxy) => Ok(proxy),
                VerifiedPeer::User(_)
                | VerifiedPeer::Bot(_)
                | VerifiedPeer::Agent(_)
                | VerifiedPeer::Auth(_) => Err(RpcError::denied("only proxies may do this")),
            },
            Presented::ExpiredAgent(_) | Presented::ExpiredUser(_) | Presented::NoCertificate => {
                Err(RpcError::denied("only proxies may do this"))
            }
        }
    }
}
