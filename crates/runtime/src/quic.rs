//! QUIC between agents and proxies, and the only module that names quinn types.
//!
//! The TLS inside is the one of [`crate::tls`]: no resumption, no 0-RTT, a verifier made anew for each
//! connection. A server answers nobody whose address is not proven (RFC 9000 §8.1.2), so that it cannot be
//! used against others and limits by source mean something.

mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::{hkdf, hmac};
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, ConnectionError, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    IdleTimeout, Incoming, Runtime as _, ServerConfig, TokioRuntime, TransportConfig, ValidationTokenConfig,
    VarInt,
};

use crate::tls::{self, CertificateDer};
use socket::{Counted, ListenerSocket};
use socket2::SockRef;

pub use quinn::{Connection, RecvStream, SendStream};

/// Both directions of one stream of a connection.
pub type Stream = tokio::io::Join<RecvStream, SendStream>;

/// Nothing was heard for this long: the peer has gone, or no way leads to it any more.
const IDLE: Duration = Duration::from_secs(15);
/// How often the client says that it is there: keeps address translators from forgetting it, and finds out
/// soon that a server has forgotten it (RFC 9000 §10.3).
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Bytes one stream may have under way.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
/// Bytes all streams of a connection may have sent and not yet acknowledged.
const SEND_WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Streams whose windows a client may fill before any of its streams is in use here: the first, and what others say
/// to begin with.
const STREAMS_AT_FIRST: u32 = 2;
/// Streams a client may open before any is in use here. Each one permitted takes memory, open or not.
const STREAMS_PERMITTED_AT_FIRST: u32 = 8;
/// The most streams there can be.
pub const STREAMS_MAX: u32 = 1024;
/// Bytes kept for one client whose handshake has not begun, and for all of them.
const INCOMING_BUFFER_BYTES: u64 = 16 * 1024;
const INCOMING_BUFFERS_BYTES: u64 = 8 * 1024 * 1024;
/// What may wait in a listener's socket until it is read, as far as the system allows (`net.core.rmem_max`): the first
/// datagrams of a few thousand clients. Those of a fleet come together, when a server is there again, and whose is lost
/// waits for a second and more before it is sent again.
const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// How long a client may take to come back and prove its address.
const RETRY_TOKEN_LIFE: Duration = Duration::from_secs(10);

/// Nothing, so that a whole fleet learns within [`KEEP_ALIVE`] that a server was started again: each one that is told
/// nothing waits for [`IDLE`]. A reset is shorter than what it answers, and costs a hash.
const BETWEEN_RESETS: Duration = Duration::ZERO;
const RESET_INFO: &[u8] = b"iap quic stateless reset";
const CONNECTION_ID_BYTES: usize = 8;
/// TLS alerts travel as these codes plus the alert (RFC 9001 §4.8).
const CRYPTO_ERRORS: u64 = 0x100;

/// Why there is no QUIC connection.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// Nobody answered, or the handshake did not end.
    #[error("no QUIC handshake within {milliseconds} ms: UDP may be blocked")]
    TimedOut {
        /// The limit.
        milliseconds: u128,
    },
    /// Refused by either side, or the connection failed.
    #[error("QUIC handshake: {0}")]
    Failed(#[from] ConnectionError),
    /// No socket, or no address.
    #[error("QUIC: {0}")]
    Io(#[from] io::Error),
    /// What was asked for cannot be done at all.
    #[error("QUIC cannot be set up: {0}")]
    Configuration(String),
}

impl QuicError {
    /// The TLS alert the other side answered with, if it did.
    pub fn alert_received(&self) -> Option<u8> {
        match self {
            Self::Failed(error) => alert_received(error),
            Self::TimedOut { .. } | Self::Io(_) | Self::Configuration(_) => None,
        }
    }
}

/// The alert behind the end of a connection: a server's verdict on a client certificate arrives after the
/// client's handshake has ended (RFC 8446 §4.4.4).
pub fn alert_received(error: &ConnectionError) -> Option<u8> {
    let ConnectionError::ConnectionClosed(close) = error else {
        return None;
    };
    let code = u64::from(close.error_code);
    code.checked_sub(CRYPTO_ERRORS)
        .and_then(|alert| u8::try_from(alert).ok())
}

/// What clients may take before they are known.
#[derive(Debug, Clone, Copy)]
pub struct ListenLimits {
    /// Clients whose handshake waits to begin.
    pub incoming_max: usize,
    /// Streams an accepted client may have open, once it uses as many; see [`Window`].
    pub streams_max: u32,
}

/// A UDP socket that accepts QUIC connections.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    transport: Arc<TransportConfig>,
}

impl Listener {
    /// Listens at `address`. A client that a server of the same `secret` once served learns at its next
    /// packet that this one knows nothing of it, instead of waiting for an answer until it gives up: the
    /// tokens of stateless resets are derived from `secret`. `template` is never negotiated with.
    ///
    /// # Errors
    /// When the address cannot be bound or TLS does not fit QUIC.
    pub fn bind(
        address: SocketAddr,
        secret: &[u8],
        template: Arc<tls::ServerConfig>,
        limits: ListenLimits,
    ) -> Result<Self, QuicError> {
        Self::on(std::net::UdpSocket::bind(address)?, secret, template, limits)
    }

    /// The same on a socket that is bound already.
    ///
    /// # Errors
    /// When TLS does not fit QUIC, or the socket cannot be used.
    pub fn on(
        socket: std::net::UdpSocket,
        secret: &[u8],
        template: Arc<tls::ServerConfig>,
        limits: ListenLimits,
    ) -> Result<Self, QuicError> {
        let transport = Arc::new(server_transport(limits.streams_max));
        let mut config = server_config(template, &transport)?;
        config
            .max_incoming(limits.incoming_max)
            .incoming_buffer_size(INCOMING_BUFFER_BYTES)
            .incoming_buffer_size_total(INCOMING_BUFFERS_BYTES)
            .retry_token_lifetime(RETRY_TOKEN_LIFE)
            .validation_token_config(no_later_tokens());
        widen(&socket);
        let socket = ListenerSocket(TokioRuntime.wrap_udp_socket(socket)?);
        let endpoint = Endpoint::new_with_abstract_socket(
            endpoint_config(secret)?,
            Some(config),
            Arc::new(socket),
            Arc::new(TokioRuntime),
        )?;
        Ok(Self { endpoint, transport })
    }

    /// The address actually bound.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The next client that proved its address; none once the socket is gone. Others are asked to, at no
    /// cost in memory.
    pub async fn accept(&self) -> Option<Attempt> {
        loop {
            let incoming = self.endpoint.accept().await?;
            if incoming.remote_address_validated() {
                return Some(Attempt {
                    incoming,
                    transport: Arc::clone(&self.transport),
                });
            }
            // An error means that it came with a token already, and is validated.
            let _ = incoming.retry();
        }
    }

    /// Turns away whoever comes from now on; connections that are there go on.
    pub fn stop_accepting(&self) {
        self.endpoint.set_server_config(None);
    }
}

/// A client at the beginning of its handshake. Dropping it refuses it.
#[derive(Debug)]
pub struct Attempt {
    incoming: Incoming,
    transport: Arc<TransportConfig>,
}

impl Attempt {
    /// Where the client is.
    pub fn address(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Tells the client that it is not served.
    pub fn refuse(self) {
        self.incoming.refuse();
    }

    /// Shakes hands. With a verifier that demands it, the client's certificate is verified when this returns.
    ///
    /// # Errors
    /// When the client is refused, refuses, or is too slow.
    pub async fn accept(
        self,
        config: Arc<tls::ServerConfig>,
        timeout: Duration,
    ) -> Result<Connection, QuicError> {
        let config = server_config(config, &self.transport)?;
        let connecting = self.incoming.accept_with(Arc::new(config))?;
        in_time(timeout, connecting).await
    }
}

/// Connects to `address` as a client, asking for `sni`, from a socket of its own.
///
/// # Errors
/// When there is no connection within `timeout`.
pub async fn connect(
    address: SocketAddr,
    sni: &str,
    config: Arc<tls::ClientConfig>,
    timeout: Duration,
) -> Result<Connection, QuicError> {
    let crypto =
        QuicClientConfig::try_from(config).map_err(|error| QuicError::Configuration(error.to_string()))?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(client_transport()));
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let endpoint = Endpoint::client(any)?;
    let connecting = endpoint
        .connect_with(client, address, sni)
        .map_err(|error| QuicError::Configuration(error.to_string()))?;
    in_time(timeout, connecting).await
}

/// What a connection that a [`Listener`] accepted may send: its receive window, and how many streams it may open. Both
/// begin small and grow with the streams in use: a client takes memory as it does work. Clones share it.
#[derive(Debug, Clone)]
pub struct Window {
    connection: Connection,
    streams_max: u32,
    used: Arc<Mutex<Used>>,
}

/// Streams of one connection.
#[derive(Debug, Default)]
struct Used {
    now: u32,
    most: u32,
    permitted: u32,
}

/// A stream in use. Dropping it makes its part free for another.
#[derive(Debug)]
pub struct InUse {
    window: Window,
    _counted: Counted,
}

impl Window {
    /// Of this connection, which has no other; `streams_max` as its [`Listener`] has it.
    pub fn of(connection: &Connection, streams_max: u32) -> Self {
        Self {
            connection: connection.clone(),
            streams_max,
            used: Arc::default(),
        }
    }

    /// One more stream is in use.
    pub fn grow(&self) -> InUse {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.now += 1;
        // It never shrinks: what the client may send cannot be taken back.
        if used.now > used.most {
            used.most = used.now;
            self.connection
                .set_receive_window(window_of(STREAMS_AT_FIRST + used.most));
            let permitted = permitted_streams(used.most, self.streams_max);
            if permitted > used.permitted {
                used.permitted = permitted;
                self.connection
                    .set_max_concurrent_bi_streams(VarInt::from_u32(permitted));
            }
        }
        InUse {
            window: self.clone(),
            _counted: Counted::one(),
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut used = self.window.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.now = used.now.saturating_sub(1);
    }
}

/// The protocol agreed on.
pub fn protocol(connection: &Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    data.protocol
}

/// The chain the peer showed.
pub fn peer_certificates(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let identity = connection.peer_identity();
    let chain = identity.and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.map(|chain| *chain).unwrap_or_default()
}

/// Ends a connection with a word for the peer's log.
pub fn close(connection: &Connection, reason: &str) {
    connection.close(VarInt::from_u32(0), reason.as_bytes());
}

/// Joins both directions of a stream whose bytes go before those of all others.
pub fn urgent(send: SendStream, recv: RecvStream) -> Stream {
    // The stream was opened just now; if it is gone again, its first use says so.
    let _ = send.set_priority(1);
    tokio::io::join(recv, send)
}

/// Leaves a socket alone that has room enough. The system gives what it allows.
fn widen(socket: &std::net::UdpSocket) {
    let socket = SockRef::from(socket);
    let has = socket.recv_buffer_size().unwrap_or_default();
    if has < RECEIVE_BUFFER_BYTES
        && let Err(error) = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)
    {
        tracing::debug!(%error, has, "the socket's receive buffer stays as it is");
    }
}

async fn in_time(timeout: Duration, connecting: quinn::Connecting) -> Result<Connection, QuicError> {
    match tokio::time::timeout(timeout, connecting).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(QuicError::TimedOut {
            milliseconds: timeout.as_millis(),
        }),
    }
}

fn server_config(
    config: Arc<tls::ServerConfig>,
    transport: &Arc<TransportConfig>,
) -> Result<ServerConfig, QuicError> {
    let crypto =
        QuicServerConfig::try_from(config).map_err(|error| QuicError::Configuration(error.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::clone(transport)).migration(true);
    Ok(config)
}

/// Agents come back rarely: one more round trip is cheaper than remembering which tokens were used.
fn no_later_tokens() -> ValidationTokenConfig {
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    tokens
}

fn endpoint_config(secret: &[u8]) -> Result<EndpointConfig, QuicError> {
    let failed = |_| QuicError::Configuration("no key could be derived".to_owned());
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(secret);
    let expanded = key.expand(&[RESET_INFO], hkdf::HKDF_SHA256).map_err(failed)?;
    let mut reset = [0; 32];
    expanded.fill(&mut reset).map_err(failed)?;
    let reset = hmac::Key::new(hmac::HMAC_SHA256, &reset);
    let mut config = EndpointConfig::new(Arc::new(reset));
    config
        .cid_generator(|| Box::new(AnyConnectionId))
        .min_reset_interval(BETWEEN_RESETS);
    Ok(config)
}

/// Random ids, each taken for possible: one that an earlier process gave out deserves its stateless reset.
#[derive(Debug)]
struct AnyConnectionId;

impl ConnectionIdGenerator for AnyConnectionId {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; CONNECTION_ID_BYTES];
        if aws_lc_rs::rand::fill(&mut bytes).is_err() {
            tracing::error!("no randomness for a QUIC connection id");
        }
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn server_transport(streams_max: u32) -> TransportConfig {
    let mut transport = transport(streams_max);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(permitted_streams(0, streams_max)))
        .receive_window(window_of(STREAMS_AT_FIRST));
    transport
}

/// Streams a client with this many in use may have open. There is always room for as many again, so that a client whose
/// sessions come in a burst waits a few round trips at most; and it grows by doubling, so that it is seldom said.
fn permitted_streams(used: u32, streams_max: u32) -> u32 {
    let wanted = (2 * (used + 1)).next_power_of_two();
    wanted.max(STREAMS_PERMITTED_AT_FIRST).min(streams_max)
}

fn window_of(streams: u32) -> VarInt {
    VarInt::from_u32(streams.min(STREAMS_MAX) * STREAM_WINDOW_BYTES)
}

fn client_transport() -> TransportConfig {
    let mut transport = transport(STREAMS_MAX);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .keep_alive_interval(Some(KEEP_ALIVE));
    transport
}

/// Every window is finite, nothing but bidirectional streams is spoken. The connection's window holds that of
/// every stream in use, so that one whose reader stands still holds up no other.
fn transport(streams_max: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(IdleTimeout::try_from(IDLE).ok())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(window_of(streams_max))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None);
    transport
}
