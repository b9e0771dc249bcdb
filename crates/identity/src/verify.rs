//! Who is at the other end: chain verification by class, then the certificate's own consistency.
//!
//! The class a leaf claims (by its URI) chooses the authority that must have signed it; neither the
//! root nor a pooled store anchors anything. Certificates a peer sends besides its leaf are ignored.

use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use crate::bundle::{BundleError, TrustBundle};
use crate::class::{CaClass, Class, ClassSet};
use crate::ids::AgentId;
use crate::leaf::Leaf;
use crate::names::{ClusterName, ServiceName};
use crate::path::{self, Usage};
use crate::peer::{AgentPeer, PeerError, ServerIdentity, UserPeer, VerifiedPeer, VerifiedServer};
use crate::pin::Pin;
use crate::server_name::ServerName;
use crate::signed::{SignedKind, signed_message};

/// How long after its end an agent's certificate may still be used to renew it.
pub const EXPIRED_AGENT_GRACE: Duration = Duration::days(30);

/// How long after its end a user's certificate may still be used to renew it, while the login goes on: a night.
pub const EXPIRED_USER_GRACE: Duration = Duration::hours(12);

/// Verifies a client's certificate for one of the accepted classes.
pub fn verify_client(
    chain: &[CertificateDer<'_>],
    accepted: ClassSet,
    bundle: &TrustBundle,
    now: OffsetDateTime,
) -> Result<VerifiedPeer, PeerError> {
    verify_client_at(chain, accepted, bundle, now, now)
}

/// Verifies a server's certificate for the name the caller dialled.
pub fn verify_server(
    chain: &[CertificateDer<'_>],
    expected: &ServerName,
    bundle: &TrustBundle,
    now: OffsetDateTime,
) -> Result<VerifiedServer, PeerError> {
    let (der, leaf) = read_leaf(chain, bundle)?;
    path::verify(der, &bundle.anchors(CaClass::System, now), Usage::Server, now)?;
    let (serial, not_after) = (leaf.serial.clone(), leaf.not_after);
    let wrong_name = || PeerError::WrongName {
        expected: expected.host(bundle.cluster()),
    };
    let identity = match expected {
        ServerName::Service(service) => match leaf.service_leaf()? {
            (agent, found) if found == *service => ServerIdentity::Agent(agent),
            (_, _) => return Err(wrong_name()),
        },
        ServerName::Auth | ServerName::Cluster => match leaf.into_peer()? {
            VerifiedPeer::Auth(auth) => ServerIdentity::Auth(auth.id),
            other => return Err(PeerError::WrongClass { found: other.class() }),
        },
        ServerName::Proxy => match leaf.into_peer()? {
            VerifiedPeer::Proxy(proxy) => ServerIdentity::Proxy(proxy.id),
            other => return Err(PeerError::WrongClass { found: other.class() }),
        },
        ServerName::Agent(id) => match leaf.into_peer()? {
            VerifiedPeer::Agent(agent) if agent.id == *id => ServerIdentity::Agent(agent.id),
            VerifiedPeer::Agent(_) => return Err(wrong_name()),
            other => return Err(PeerError::WrongClass { found: other.class() }),
        },
    };
    Ok(VerifiedServer {
        name: expected.clone(),
        identity,
        serial,
        not_after,
    })
}

/// Why a first contact failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirstContactError {
    /// The chain does not end in the pinned root, or the root did not certify its authority.
    #[error(transparent)]
    Trust(#[from] BundleError),
    /// The leaf is not the expected server's.
    #[error(transparent)]
    Peer(#[from] PeerError),
}

/// Verifies a server by the pin alone: the chain is leaf, system authority, root.
pub fn verify_first_contact(
    chain: &[CertificateDer<'_>],
    expected: &ServerName,
    pin: &Pin,
    cluster: &ClusterName,
    now: OffsetDateTime,
) -> Result<VerifiedServer, FirstContactError> {
    let bundle = TrustBundle::of_first_contact(chain, pin, cluster, now)?;
    Ok(verify_server(chain, expected, &bundle, now)?)
}

/// Verifies an agent whose certificate may have expired up to `grace` ago ([`EXPIRED_AGENT_GRACE`]).
/// For the one RPC that renews it; the caller checks locks.
pub fn verify_expired_agent(
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: OffsetDateTime,
    grace: Duration,
) -> Result<AgentPeer, PeerError> {
    match verify_expired(chain, ClassSet::of(&[Class::Agent]), bundle, now, grace)? {
        VerifiedPeer::Agent(agent) => Ok(agent),
        other => Err(PeerError::WrongClass { found: other.class() }),
    }
}

/// Verifies a user whose certificate may have expired up to `grace` ago ([`EXPIRED_USER_GRACE`]), and whose login has
/// not reached its deadline. For the one RPC that renews it; the caller checks locks.
pub fn verify_expired_user(
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: OffsetDateTime,
    grace: Duration,
) -> Result<UserPeer, PeerError> {
    match verify_expired(chain, ClassSet::of(&[Class::User]), bundle, now, grace)? {
        VerifiedPeer::User(user) if user.login_deadline <= now => Err(PeerError::Expired {
            not_after: user.not_after,
        }),
        VerifiedPeer::User(user) => Ok(user),
        other => Err(PeerError::WrongClass { found: other.class() }),
    }
}

fn verify_expired(
    chain: &[CertificateDer<'_>],
    accepted: ClassSet,
    bundle: &TrustBundle,
    now: OffsetDateTime,
    grace: Duration,
) -> Result<VerifiedPeer, PeerError> {
    match verify_client_at(chain, accepted, bundle, now, now) {
        Err(PeerError::Expired { not_after }) if now - not_after <= grace => {
            verify_client_at(chain, accepted, bundle, now, not_after)
        }
        other => other,
    }
}

/// A service leaf that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceLeaf {
    /// What it is for.
    pub service: ServiceName,
    /// The last moment at which it counts.
    pub not_after: OffsetDateTime,
}

/// Verifies a service leaf that an agent announces: its own, valid, and for which service.
pub fn verify_service_leaf(
    leaf_der: &[u8],
    agent: &AgentId,
    bundle: &TrustBundle,
    now: OffsetDateTime,
) -> Result<ServiceLeaf, PeerError> {
    let chain = [CertificateDer::from(leaf_der)];
    let (der, leaf) = read_leaf(&chain, bundle)?;
    path::verify(der, &bundle.anchors(CaClass::System, now), Usage::Server, now)?;
    let not_after = leaf.not_after;
    let (holder, service) = leaf.service_leaf()?;
    if holder != *agent {
        return Err(PeerError::Inconsistent("it belongs to another agent"));
    }
    Ok(ServiceLeaf { service, not_after })
}

/// Verifies a signature made with the key of a certificate that was verified before: the head of an
/// agent's record chain.
pub fn verify_signed_by_peer(
    leaf: &CertificateDer<'_>,
    kind: SignedKind,
    payload: &[u8],
    signature: &[u8],
) -> Result<(), PeerError> {
    path::verify_signature(leaf, &signed_message(kind, payload), signature)
}

/// The authority must be valid now; the leaf must be valid at `leaf_time`.
fn verify_client_at(
    chain: &[CertificateDer<'_>],
    accepted: ClassSet,
    bundle: &TrustBundle,
    now: OffsetDateTime,
    leaf_time: OffsetDateTime,
) -> Result<VerifiedPeer, PeerError> {
    let (der, leaf) = read_leaf(chain, bundle)?;
    let class = leaf.class();
    path::verify(
        der,
        &bundle.anchors(class.ca_class(), now),
        Usage::Client,
        leaf_time,
    )?;
    if !accepted.contains(class) {
        return Err(PeerError::WrongClass { found: class });
    }
    leaf.into_peer()
}

fn read_leaf<'a, 'c>(
    chain: &'a [CertificateDer<'c>],
    bundle: &TrustBundle,
) -> Result<(&'a CertificateDer<'c>, Leaf), PeerError> {
    let der = chain
        .first()
        .ok_or_else(|| PeerError::Malformed("there is none".to_owned()))?;
    let leaf = Leaf::read(der)?;
    if leaf.uri.cluster != *bundle.cluster() {
        return Err(PeerError::WrongCluster {
            found: leaf.uri.cluster.to_string(),
        });
    }
    Ok((der, leaf))
}
