//! Who the agent is on the wire: its key, its certificate, and the trust bundle, each replaced while it runs.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use iap_identity::{
    AgentId, CertificateDer, ClassSet, PeerError, Signer, TrustBundle, VerifiedServer, certificate_request,
    verify_client, verify_expired_agent, verify_server,
};
use iap_identity::{Class, ServerName, SignedKind, signed_message};
use iap_runtime::keys::{self, KeyError, KeyKind};
use iap_runtime::quic::{self, QuicError};
use iap_runtime::tls::{self, CertifiedKey, ClientStream, Material, MaterialError, ServerVerifier};
use iap_tunnel::ALPN_CONTROL;
use rcgen::KeyPair;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::clock::TrustedClock;
use crate::state::{StateDir, StateError, names};

/// Why the agent cannot say who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate file.
    #[error("{file}: {problem}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The certificate is not this agent's, or not of this cluster.
    #[error("the agent's certificate: {0}")]
    Certificate(#[from] PeerError),
    /// The agent was off for too long.
    #[error(
        "the agent's certificate expired at {not_after}, more than 30 days ago (this host's clock says {now}): make a token with \
         `iapctl tokens create agent --service NAME`, then run \
         `iap-agent join --config FILE --proxy HOST:PORT --token-file FILE --replace`"
    )]
    TooLongOff {
        /// Its end.
        not_after: OffsetDateTime,
        /// The host's time, which may be what is wrong.
        now: OffsetDateTime,
    },
    /// The certificate names another agent.
    #[error("the certificate belongs to agent {found}, this is {expected}")]
    OtherAgent {
        /// In the certificate.
        found: AgentId,
        /// In the state directory.
        expected: AgentId,
    },
    /// Key and certificate do not belong together, or TLS refuses them.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The request for a certificate could not be made.
    #[error("a certificate request could not be made: {0}")]
    Request(rcgen::Error),
    /// TLS refuses the configuration.
    #[error("TLS refuses the configuration: {0}")]
    Configuration(String),
}

/// The agent's certificate, checked.
#[derive(Debug)]
pub struct OwnCertificate {
    /// Leaf, then CA, with the key.
    pub certified: Arc<CertifiedKey>,
    /// Its serial.
    pub serial: String,
    /// Its start.
    pub not_before: OffsetDateTime,
    /// Its end; may lie in the past after a long time off.
    pub not_after: OffsetDateTime,
}

/// The agent's identity.
#[derive(Debug)]
pub struct OwnIdentity {
    agent_id: AgentId,
    state: StateDir,
    key: KeyPair,
    current: Arc<Current>,
    serial: watch::Sender<String>,
    material: Arc<Material>,
    clock: Arc<TrustedClock>,
}

/// Shows whatever certificate is current when a connection begins, even an expired one: the auth server
/// takes that for its renewal.
#[derive(Debug)]
struct Current(ArcSwap<OwnCertificate>);

impl tls::ResolvesClientCert for Current {
    fn resolve(
        &self,
        _authorities: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl OwnIdentity {
    /// Loads key and certificate as `join` or the last renewal left them. A certificate that expired within
    /// the grace is accepted: it is good for its own renewal.
    ///
    /// # Errors
    /// When they are missing, damaged or not this agent's.
    pub fn load(
        agent_id: AgentId,
        state: StateDir,
        bundle: &TrustBundle,
        clock: Arc<TrustedClock>,
    ) -> Result<Self, IdentityError> {
        let key = keys::load(&state.path(names::KEY), KeyKind::P256)?;
        let file = || state.path(names::CERTIFICATE).display().to_string();
        let missing = || IdentityError::File {
            file: file(),
            problem: "missing".to_owned(),
        };
        let pem = state.read(names::CERTIFICATE)?.ok_or_else(missing)?;
        let chain = tls::certificates_from_pem(&pem).map_err(|error| IdentityError::File {
            file: file(),
            problem: error.to_string(),
        })?;
        let current = check(chain, &key, agent_id, bundle, clock.now())?;
        let serial = watch::Sender::new(current.serial.clone());
        let material = Material::new(bundle.clone());
        let current = Arc::new(Current(ArcSwap::from_pointee(current)));
        Ok(Self {
            agent_id,
            state,
            key,
            current,
            serial,
            material,
            clock,
        })
    }

    /// The certificate now in use.
    #[must_use]
    pub fn current(&self) -> Arc<OwnCertificate> {
        self.current.0.load_full()
    }

    /// The serial now in use, as it changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<String> {
        self.serial.subscribe()
    }

    /// A request for a new certificate for the same key.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        certificate_request(&self.key).map_err(IdentityError::Request)
    }

    /// Checks a renewed certificate, stores it, and uses it from now on. Those who follow
    /// [`changes`](Self::changes) hear of it by [`announce`](Self::announce).
    ///
    /// # Errors
    /// When it is not a certificate for this agent and key.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        now: OffsetDateTime,
    ) -> Result<(), IdentityError> {
        let pem = tls::certificates_to_pem(chain.iter().map(AsRef::as_ref));
        let next = check(chain, &self.key, self.agent_id, &self.material.bundle(), now)?;
        self.state.write(names::CERTIFICATE, pem.as_bytes())?;
        self.current.0.store(Arc::new(next));
        Ok(())
    }

    /// Tells of the certificate now in use.
    pub fn announce(&self) {
        self.serial.send_replace(self.current().serial.clone());
    }

    /// Trusts a newer bundle from now on.
    ///
    /// # Errors
    /// When it is of another root, or older.
    pub fn trust(&self, bundle: TrustBundle) -> Result<(), IdentityError> {
        Ok(self.material.publish_bundle(bundle)?)
    }

    /// Signs the head of the record chain.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn sign_head(&self, head: &[u8]) -> Result<Vec<u8>, IdentityError> {
        self.key
            .sign(&signed_message(SignedKind::AuditHead, head))
            .map_err(IdentityError::Request)
    }

    /// TLS towards servers of the cluster, with the certificate that is current at each connection.
    ///
    /// # Errors
    /// When TLS refuses the configuration.
    pub fn client_config(&self, alpn: &[&str]) -> Result<Arc<tls::ClientConfig>, IdentityError> {
        let servers = Arc::new(ServerVerifier::new(Arc::clone(&self.material)));
        let identity = Arc::clone(&self.current);
        let config = tls::client_config(servers, Some(identity), alpn)
            .map_err(|error| IdentityError::Configuration(error.to_string()))?;
        let mut config = Arc::unwrap_or_clone(config);
        config.time_provider = Arc::clone(&self.clock) as _;
        Ok(Arc::new(config))
    }

    /// The host name of the auth server.
    #[must_use]
    pub fn auth_host(&self) -> String {
        self.material.bundle().cluster().auth_host()
    }

    /// TLS to `proxy.<cluster>` on an open connection, and who answered.
    ///
    /// # Errors
    /// When the server is no proxy of this cluster, or refuses this agent.
    pub async fn connect_to_proxy(
        &self,
        stream: TcpStream,
        alpn: &str,
        timeout: Duration,
    ) -> io::Result<(ClientStream<TcpStream>, VerifiedServer)> {
        let config = self.client_config(&[alpn]).map_err(io::Error::other)?;
        let bundle = self.material.bundle();
        let host = bundle.cluster().proxy_host();
        let stream = tls::connect(stream, &host, config, timeout)
            .await
            .map_err(io::Error::other)?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let server =
            verify_server(chain, &ServerName::Proxy, &bundle, self.clock.now()).map_err(io::Error::other)?;
        Ok((stream, server))
    }

    /// QUIC to `proxy.<cluster>` at `address`, and who answered.
    ///
    /// # Errors
    /// When nobody answers, or the server is no proxy of this cluster.
    pub async fn connect_to_proxy_by_quic(
        &self,
        address: SocketAddr,
        timeout: Duration,
    ) -> Result<(quic::Connection, VerifiedServer), QuicError> {
        let config = self.client_config(&[ALPN_CONTROL]);
        let config = config.map_err(|error| QuicError::Configuration(error.to_string()))?;
        let bundle = self.material.bundle();
        let host = bundle.cluster().proxy_host();
        let connection = quic::connect(address, &host, config, timeout).await?;
        let chain = quic::peer_certificates(&connection);
        let now = self.clock.now();
        let server = verify_server(&chain, &ServerName::Proxy, &bundle, now)
            .map_err(|error| QuicError::Io(io::Error::other(error)))?;
        Ok((connection, server))
    }
}

/// A chain that belongs to this key and this agent.
pub(crate) fn check(
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
    agent_id: AgentId,
    bundle: &TrustBundle,
    now: OffsetDateTime,
) -> Result<OwnCertificate, IdentityError> {
    const AGENT: ClassSet = ClassSet::of(&[Class::Agent]);
    let peer = match verify_client(&chain, AGENT, bundle, now) {
        Ok(iap_identity::VerifiedPeer::Agent(peer)) => peer,
        Ok(other) => return Err(PeerError::WrongClass { found: other.class() }.into()),
        Err(PeerError::Expired { not_after }) => {
            match verify_expired_agent(&chain, bundle, now, iap_identity::verify::EXPIRED_AGENT_GRACE) {
                Err(PeerError::Expired { .. }) => return Err(IdentityError::TooLongOff { not_after, now }),
                other => other?,
            }
        }
        Err(error) => return Err(error.into()),
    };
    if peer.id != agent_id {
        return Err(IdentityError::OtherAgent {
            found: peer.id,
            expected: agent_id,
        });
    }
    let certified = tls::certified_key(chain, keys::private_key_der(key))?;
    Ok(OwnCertificate {
        certified,
        serial: peer.serial,
        not_before: peer.not_before,
        not_after: peer.not_after,
    })
}
