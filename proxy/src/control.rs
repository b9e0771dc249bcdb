//! `proxy.<cluster>`: where agents hold their control connections. The one place at which the proxy ends TLS
//! itself, with its own certificate; it accepts agents and nobody else.

mod announce;
mod data;
mod line;
mod quic;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use iap_identity::{AgentPeer, Class, ClassSet, VerifiedPeer};
use iap_runtime::config::InForce;
use iap_runtime::pump::Cancellation;
use iap_runtime::quic::QuicError;
use iap_runtime::shutdown::Shutdown;
use iap_runtime::tls::{
    self, CertificateDer, Demand, HandshakeError, Material, PeerVerifier, Refusal as TlsRefusal, Replay,
    ServerStream,
};
use iap_tunnel::{ALPN_CONTROL, ALPN_DATA, ControlWay};
use thiserror::Error;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::admission::{Admission, WaitingPlace};
use crate::config::Limits;
use crate::front::data::DataStream;
use crate::front::greet::Client;
use crate::metrics::{Counted, Destination, Metrics, Refusal};
use crate::switchboard::{LINES_PER_AGENT_MAX, Switchboard};
use crate::trust::Trust;
use line::{Line, LineEnd};

/// Takes agents' control connections.
#[derive(Clone)]
pub(crate) struct ControlDoor {
    pub(crate) material: Arc<Material>,
    pub(crate) board: Switchboard,
    pub(crate) admission: Admission,
    pub(crate) trust: watch::Receiver<Arc<Trust>>,
    pub(crate) limits: InForce<Limits>,
    pub(crate) metrics: Metrics,
    pub(crate) end: Cancellation,
}

/// The way to an agent over TCP.
type TlsStream = ServerStream<Replay<TcpStream>>;

/// An agent whose certificate was verified.
pub(crate) struct Agent {
    pub(crate) peer: AgentPeer,
    /// Verified again whenever the trust changes; what came with it counts for nothing.
    pub(crate) leaf: CertificateDer<'static>,
}

/// Why somebody at `proxy.<cluster>` is no agent of ours.
#[derive(Debug, Error)]
pub(crate) enum EstablishError {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Quic(#[from] QuicError),
    #[error("TLS cannot be set up: {0}")]
    Config(String),
    #[error("the client does not speak {ALPN_CONTROL}")]
    Protocol,
    #[error("the client showed no agent's certificate")]
    NotAnAgent,
    #[error("the client opened no stream")]
    NoStream,
}

impl ControlDoor {
    /// Serves one connection until it ends. `place` is given back once an agent has said hello.
    pub(crate) async fn serve(&self, client: Client, place: WaitingPlace, shutdown: Shutdown) {
        let address = client.address;
        let (agent, stream) = match self.establish(client).await {
            Ok(established) => established,
            Err(error) => {
                tracing::debug!(%address, %error, "no control connection");
                self.metrics.refused(Refusal::Control);
                return;
            }
        };
        if stream.get_ref().1.alpn_protocol() == Some(ALPN_DATA.as_bytes()) {
            let stream = DataStream::Tls(Box::new(stream));
            return self.dialled_back(&agent.peer.id, address, stream).await;
        }
        self.line(agent, stream, ControlWay::Tls, address, place, shutdown)
            .await;
    }

    async fn line<S: AsyncRead + AsyncWrite>(
        &self,
        agent: Agent,
        stream: S,
        way: ControlWay,
        address: SocketAddr,
        place: WaitingPlace,
        shutdown: Shutdown,
    ) -> LineEnd {
        let id = agent.peer.id;
        let Some(_one) = self.board.approach(id) else {
            tracing::info!(agent = %id, %address, "the agent has too many control connections");
            self.metrics.refused(Refusal::Control);
            return LineEnd::TooManyLines;
        };
        self.metrics.routed(Destination::Control);
        let _counted = Counted::on(&self.metrics.agents);
        let _by_way = Counted::on(&self.metrics.control_connections(way));
        tracing::info!(agent = %id, %address, %way, "an agent is on the line");
        // Boxed: a line lives for hours, and its state need not weigh on every connection's task.
        let end = Box::pin(Line::new(agent, stream, place, self).run(shutdown)).await;
        tracing::info!(agent = %id, %address, %way, reason = %end, "the agent's line ended");
        end
    }

    /// What a drain announces.
    fn drain_seconds(&self) -> u32 {
        u32::try_from(self.limits.now().drain_seconds_max.as_secs()).unwrap_or(u32::MAX)
    }

    async fn establish(&self, client: Client) -> Result<(Agent, TlsStream), EstablishError> {
        let verifier = Arc::new(self.verifier());
        let config = tls::server_config(
            Arc::clone(&self.material) as _,
            Arc::clone(&verifier) as _,
            &[ALPN_CONTROL, ALPN_DATA],
        )
        .map_err(|error| EstablishError::Config(error.to_string()))?;
        let stream = Replay::new(client.hello, client.stream);
        let patience = self.limits.now().control_handshake_seconds_max;
        let stream = tls::handshake(stream, config, patience).await?;
        let connection = stream.get_ref().1;
        // A client that offers no protocol at all gets this far.
        if connection.alpn_protocol().is_none() {
            return Err(EstablishError::Protocol);
        }
        let leaf = connection
            .peer_certificates()
            .unwrap_or_default()
            .first()
            .cloned();
        let peer = proven_agent(&verifier)?;
        let leaf = leaf.ok_or(EstablishError::NotAnAgent)?;
        Ok((Agent { peer, leaf }, stream))
    }

    /// Locked agents learn it from the alert.
    fn verifier(&self) -> PeerVerifier {
        let trust = self.trust.clone();
        let hook = move |peer: &VerifiedPeer| {
            let trust = Arc::clone(&trust.borrow());
            let locks = trust.locks();
            match locks.and_then(|locks| locks.matching_peer(peer, OffsetDateTime::now_utc())) {
                Some(_) => Err(TlsRefusal::CertificateRevoked),
                None => Ok(()),
            }
        };
        PeerVerifier::new(
            self.material.bundle(),
            ClassSet::of(&[Class::Agent]),
            Demand::Required,
        )
        .with_hook(Box::new(hook))
    }
}

/// The agent behind a finished handshake.
fn proven_agent(verifier: &PeerVerifier) -> Result<AgentPeer, EstablishError> {
    match verifier.peer().as_deref() {
        Some(VerifiedPeer::Agent(agent)) => Ok(agent.clone()),
        Some(
            VerifiedPeer::User(_) | VerifiedPeer::Bot(_) | VerifiedPeer::Proxy(_) | VerifiedPeer::Auth(_),
        )
        | None => Err(EstablishError::NotAnAgent),
    }
}

impl std::fmt::Display for LineEnd {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => formatter.write_str("the agent closed it"),
            Self::Silent => formatter.write_str("the agent fell silent"),
            Self::Cut(reason) => formatter.write_str(reason),
            Self::Untrusted(error) => write!(formatter, "its certificate no longer counts: {error}"),
            Self::Locked(reason) => write!(formatter, "the agent is locked: {reason}"),
            Self::Violation(error) => error.fmt(formatter),
            Self::Malformed(error) => formatter.write_str(error),
            Self::TooManyLines => write!(
                formatter,
                "the agent has {LINES_PER_AGENT_MAX} control connections already"
            ),
            Self::NotConnected(error) => error.fmt(formatter),
            Self::Io(error) => error.fmt(formatter),
        }
    }
}

impl From<io::Error> for LineEnd {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
