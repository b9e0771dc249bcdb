//! Reaching a proxy: by QUIC, and where that does not get through by TLS over TCP; chosen by trying.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iap_identity::{ProxyId, ServerIdentity, VerifiedServer};
use iap_runtime::backoff::{Backoff, jittered};
use iap_runtime::net::{self, HostPort, Route};
use iap_runtime::quic::{self, Connection, QuicError};
use iap_tunnel::{ALPN_CONTROL, ControlWay};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::connection::{ConnectionError, Connector};
use super::data::DataMemory;
use crate::config::ControlChoice;
use crate::session::Through;

/// The first time QUIC is tried again after a fallback; later ones come further apart, up to
/// `limits.quic_retry_seconds`.
const QUIC_RETRY_FIRST: Duration = Duration::from_secs(30);
/// Between attempts to connect again with a renewed certificate, while the connection made with the old one serves.
const AGAIN_RETRY_FIRST: Duration = Duration::from_secs(1);
const AGAIN_RETRY_MAX: Duration = Duration::from_secs(30);
const RETRY_JITTER_PERCENT: u32 = 20;

/// Whatever carries control messages.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A way to a proxy that has proven who it is.
pub(super) struct Line {
    pub(super) stream: Box<dyn Duplex>,
    pub(super) proxy: ProxyId,
    /// Of its certificate.
    pub(super) serial: String,
    /// To the address that answered.
    pub(super) route: Route,
    pub(super) way: ControlWay,
    /// What lies beneath, for sessions on streams of their own.
    pub(super) quic: Option<Connection>,
}

impl Line {
    /// The proxy, as the records of sessions and locks know it.
    pub(super) fn through(&self) -> Through {
        Through {
            proxy: self.proxy,
            serial: self.serial.as_str().into(),
        }
    }
}

/// What is known about one address from the attempts before.
#[derive(Debug, Default)]
pub struct Memory {
    /// TLS got through when QUIC did not: until then there is no point in trying QUIC first.
    quic_not_before: Option<Instant>,
    /// What sessions run over.
    pub(super) data: Arc<DataMemory>,
}

impl Memory {
    /// QUIC gets through.
    pub(super) fn quic_worked(&mut self) {
        self.quic_not_before = None;
    }

    fn quic_is_pointless(&self) -> bool {
        self.quic_not_before.is_some_and(|until| Instant::now() < until)
    }
}

impl Connector {
    /// Reaches the proxy at `address` by the best way that is allowed and works.
    pub(super) async fn dial(
        &self,
        address: &HostPort,
        memory: &mut Memory,
    ) -> Result<Line, ConnectionError> {
        match self.choice {
            ControlChoice::Quic => self.dial_quic(address).await,
            ControlChoice::Tls => self.dial_tls(address).await,
            ControlChoice::Auto if memory.quic_is_pointless() || goes_through_http(address) => {
                self.dial_tls(address).await
            }
            ControlChoice::Auto => match self.dial_quic(address).await {
                Ok(line) => {
                    memory.quic_worked();
                    Ok(line)
                }
                Err(error) => {
                    let line = self.dial_tls(address).await?;
                    tracing::warn!(%address, %error, "QUIC does not get through: TLS over TCP instead");
                    memory.quic_not_before = Some(Instant::now() + self.limits.now().quic_retry());
                    Ok(line)
                }
            },
        }
    }

    /// Whether a connection to `address` over `way` could be replaced by a better one.
    pub(super) fn may_improve(&self, address: &HostPort, way: ControlWay) -> bool {
        way == ControlWay::Tls && self.choice == ControlChoice::Auto && !goes_through_http(address)
    }

    /// Returns once QUIC gets through to the proxy that is connected over TCP.
    pub(super) async fn better(&self, address: &HostPort, proxy: ProxyId) -> Line {
        let retry_max = self.limits.now().quic_retry();
        let mut backoff = Backoff::new(QUIC_RETRY_FIRST.min(retry_max), retry_max);
        loop {
            tokio::time::sleep(jittered(backoff.next_delay(), RETRY_JITTER_PERCENT)).await;
            match self.dial_quic(address).await {
                Ok(line) if line.proxy == proxy => {
                    tracing::info!(%address, %proxy, "QUIC gets through now: moving over");
                    return line;
                }
                Ok(line) => {
                    tracing::debug!(%address, other = %line.proxy, "another proxy answers by QUIC");
                }
                Err(error) => tracing::debug!(%address, %error, "QUIC still does not get through"),
            }
        }
    }

    /// Returns once the same proxy is reached anew, with the certificate that the agent has now.
    pub(super) async fn again(&self, address: &HostPort, proxy: ProxyId, memory: &mut Memory) -> Line {
        let mut backoff = Backoff::new(AGAIN_RETRY_FIRST, AGAIN_RETRY_MAX);
        loop {
            match self.dial(address, memory).await {
                Ok(line) if line.proxy == proxy => {
                    tracing::info!(%address, %proxy, "connected again with the renewed certificate");
                    return line;
                }
                Ok(line) => tracing::debug!(%address, other = %line.proxy, "another proxy answers"),
                Err(error) => {
                    tracing::warn!(%address, %error, "not connected with the renewed certificate yet");
                }
            }
            backoff.wait().await;
        }
    }

    async fn dial_tls(&self, address: &HostPort) -> Result<Line, ConnectionError> {
        let timeout = self.limits.now().dial();
        let (stream, route) = net::reach(address, timeout)
            .await
            .map_err(ConnectionError::Dial)?;
        let connecting = self.identity.connect_to_proxy(stream, ALPN_CONTROL, timeout);
        let (stream, server) = connecting.await.map_err(ConnectionError::Tls)?;
        Ok(Line {
            stream: Box::new(stream),
            proxy: proxy_of(&server).map_err(ConnectionError::Tls)?,
            serial: server.serial,
            route,
            way: ControlWay::Tls,
            quic: None,
        })
    }

    /// Each address of the name gets its share of the time: a network may drop what one of them sends.
    async fn dial_quic(&self, address: &HostPort) -> Result<Line, ConnectionError> {
        let candidates = address.resolve().await.map_err(ConnectionError::Dial)?;
        let count = u32::try_from(candidates.len()).unwrap_or(u32::MAX).max(1);
        let share = self.limits.now().quic_handshake() / count;
        let nobody = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
        let mut last = QuicError::Io(nobody);
        for candidate in candidates {
            match self.dial_quic_at(address, candidate, share).await {
                Ok(line) => return Ok(line),
                Err(error) => last = error,
            }
        }
        Err(last.into())
    }

    async fn dial_quic_at(
        &self,
        target: &HostPort,
        address: SocketAddr,
        timeout: Duration,
    ) -> Result<Line, QuicError> {
        let connecting = self.identity.connect_to_proxy_by_quic(address, timeout);
        let (connection, server) = connecting.await?;
        let proxy = proxy_of(&server)?;
        let (send, recv) = connection.open_bi().await?;
        Ok(Line {
            stream: Box::new(quic::urgent(send, recv)) as Box<dyn Duplex>,
            proxy,
            serial: server.serial,
            route: tcp_route(target, connection.remote_address()),
            way: ControlWay::Quic,
            quic: Some(connection),
        })
    }
}

/// Where an HTTP proxy is the way out, UDP is none. A variable that says nothing usable is left to the dialling.
fn goes_through_http(address: &HostPort) -> bool {
    !matches!(net::proxied(address), Ok(None))
}

/// How the machine that answered by QUIC is reached over TCP.
fn tcp_route(target: &HostPort, answered: SocketAddr) -> Route {
    match net::proxied(target) {
        Ok(Some(proxy)) => Route::Through {
            proxy,
            target: target.clone(),
        },
        Ok(None) | Err(_) => Route::Direct(answered),
    }
}

fn proxy_of(server: &VerifiedServer) -> io::Result<ProxyId> {
    match server.identity {
        ServerIdentity::Proxy(proxy) => Ok(proxy),
        _ => Err(io::Error::other("the server is no proxy")),
    }
}
