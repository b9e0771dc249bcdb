//! The first bytes of a connection: an optional PROXY header from listed peers, then the ClientHello.

use std::net::SocketAddr;
use std::time::Duration;

use iap_identity::ServerName;
use iap_runtime::proxy_protocol::{self, ProxyHeaderError};
use iap_runtime::tls::{self, AlertDescription, ClientHelloError, ClientHelloLimits, HandshakeError, Replay};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::config::Config;

/// The first byte of a PROXY v2 header; TLS begins with 0x16.
const PROXY_HEADER_FIRST_BYTE: u8 = 0x0d;

/// A connection that asked for one of our names; every byte of its ClientHello is still to be read.
pub(super) struct Arrival {
    pub(super) stream: Replay<TcpStream>,
    /// The client: the socket's peer, or whom a listed peer forwards.
    pub(super) client: SocketAddr,
    pub(super) destination: Destination,
}

/// Which of our names was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// `<cluster>`
    Pages,
    /// `auth.<cluster>`
    Api,
}

/// Why a connection was not served. Always the client's doing, unless we are shutting down.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArrivalError {
    /// Too slow.
    #[error("no connection within {milliseconds} ms")]
    TimedOut {
        /// The limit.
        milliseconds: u128,
    },
    /// A PROXY header that cannot be believed.
    #[error(transparent)]
    ProxyHeader(#[from] ProxyHeaderError),
    /// No ClientHello.
    #[error(transparent)]
    ClientHello(#[from] ClientHelloError),
    /// A name we do not have, or none.
    #[error("no such server name: {0:?}")]
    UnknownName(Option<String>),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// TLS could not be set up.
    #[error("TLS could not be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It had proven nothing for the longest time when another needed its place, or too many came from its source.
    #[error("gave way to others that have proven nothing yet either")]
    GaveWay,
    /// A principal with as many connections as one may have.
    #[error("{0} has too many connections open")]
    TooManyOfOne(String),
    /// Nobody serves any more.
    #[error("shutting down")]
    ShuttingDown,
}

impl ArrivalError {
    /// For the metrics.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            ArrivalError::TimedOut { .. } => "timed_out",
            ArrivalError::ProxyHeader(_) => "bad_proxy_header",
            ArrivalError::ClientHello(_) => "no_client_hello",
            ArrivalError::UnknownName(_) => "unknown_name",
            ArrivalError::TooManyOfOne(_) => "over_limit",
            ArrivalError::Handshake(_) => "handshake_failed",
            ArrivalError::Tls(_) | ArrivalError::Io(_) => "failed",
            ArrivalError::GaveWay => "gave_way",
            ArrivalError::ShuttingDown => "shutting_down",
        }
    }
}

/// Reads until it is clear who calls and for whom. Sends the alert where there is something to refuse.
pub(super) async fn receive(
    config: &Config,
    timeout: Duration,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> Result<Arrival, ArrivalError> {
    let (client, read) = match read_proxy_header(config, timeout, &mut stream, peer).await {
        Ok(read) => read,
        Err(error) => {
            let _ = tls::send_alert(&mut stream, AlertDescription::DecodeError).await;
            return Err(error);
        }
    };
    let limits = ClientHelloLimits {
        timeout,
        ..Default::default()
    };
    let (facts, read) = match tls::peek(&mut stream, read, limits).await {
        Ok(hello) => hello,
        Err(error) => {
            if let Some(alert) = error.alert() {
                let _ = tls::send_alert(&mut stream, alert).await;
            }
            return Err(error.into());
        }
    };
    let name = facts
        .sni
        .as_deref()
        .and_then(|sni| ServerName::parse(sni, &config.cluster).ok());
    let destination = match name {
        Some(ServerName::Cluster) => Destination::Pages,
        Some(ServerName::Auth) => Destination::Api,
        Some(ServerName::Proxy | ServerName::Service(_) | ServerName::Agent(_)) | None => {
            let _ = tls::send_alert(&mut stream, AlertDescription::UnrecognisedName).await;
            return Err(ArrivalError::UnknownName(facts.sni));
        }
    };
    Ok(Arrival {
        stream: Replay::new(read, stream),
        client,
        destination,
    })
}

/// A listed peer may forward (with a header) or speak for itself (without one). A header from any other peer is
/// an error that names it: most likely a proxy whose address is missing in the configuration.
async fn read_proxy_header(
    config: &Config,
    timeout: Duration,
    stream: &mut TcpStream,
    peer: SocketAddr,
) -> Result<(SocketAddr, Vec<u8>), ArrivalError> {
    let first = stream.read_u8().await?;
    if first != PROXY_HEADER_FIRST_BYTE {
        return Ok((peer, vec![first]));
    }
    let mut replay = Replay::new(vec![first], stream);
    let client = proxy_protocol::read(&mut replay, peer, &config.proxy_protocol_from, timeout).await?;
    Ok((client, Vec::new()))
}
