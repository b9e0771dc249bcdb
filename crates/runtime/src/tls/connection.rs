//! TLS configurations and handshakes: TLS 1.3 alone, no resumption, no early data.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage, ResolvesServerCert};
use rustls::{ClientConfig, Error, ServerConfig, version};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::provider;
use super::stream::TlsStream;

/// The server's end of an established connection.
pub type ServerStream<S> = TlsStream<S>;
/// The client's end of an established connection.
pub type ClientStream<S> = TlsStream<S>;

const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);
const FAREWELL_BYTES_MAX: u64 = 256 * 1024;

/// Why a handshake did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Too slow.
    #[error("no TLS handshake within {milliseconds} ms")]
    TimedOut {
        /// The limit.
        milliseconds: u128,
    },
    /// Refused by either side, or the connection failed.
    #[error("TLS handshake: {0}")]
    Failed(#[from] io::Error),
    /// The name to be sent is no DNS name.
    #[error("{name:?} cannot be sent as a server name")]
    Name {
        /// The name.
        name: String,
    },
}

impl HandshakeError {
    /// The alert the other side answered with, if it did.
    pub fn alert_received(&self) -> Option<rustls::AlertDescription> {
        match self {
            Self::Failed(error) => alert_received(error),
            Self::TimedOut { .. } | Self::Name { .. } => None,
        }
    }
}

/// The alert behind an error of a TLS stream: a server's verdict on a client certificate arrives with the first
/// read, after the client's handshake has ended (RFC 8446 §4.4.4).
pub fn alert_received(error: &io::Error) -> Option<rustls::AlertDescription> {
    let inner = error.get_ref()?.downcast_ref::<Error>()?;
    if let Error::AlertReceived(alert) = inner {
        Some(*alert)
    } else {
        None
    }
}

/// The alert at the root of any error, such as the status of a call whose connection was refused.
pub fn alert_behind(error: &(dyn std::error::Error + 'static)) -> Option<rustls::AlertDescription> {
    let mut next = Some(error);
    while let Some(cause) = next {
        let io = cause.downcast_ref::<io::Error>();
        if let Some(alert) = io.and_then(alert_received) {
            return Some(alert);
        }
        // An I/O error may hold the next cause where `source` passes it by.
        let held = io.and_then(io::Error::get_ref);
        next = held
            .map(|held| held as &(dyn std::error::Error + 'static))
            .or_else(|| cause.source());
    }
    None
}

/// A server that asks for client certificates. `clients` is made anew for each connection, and so is this.
pub fn server_config(
    identity: Arc<dyn ResolvesServerCert>,
    clients: Arc<dyn ClientCertVerifier>,
    alpn: &[&str],
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(identity);
    // rustls does not call the client verifier when a session is resumed: a lock would not be seen.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    // The keys of the record layer, for that of `TlsStream`.
    config.enable_secret_extraction = true;
    config.alpn_protocols = protocols(alpn);
    Ok(Arc::new(config))
}

/// A server that asks for no client certificate: the web pages at `<cluster>`.
pub fn web_server_config(
    identity: Arc<dyn ResolvesServerCert>,
    alpn: &[&str],
) -> Result<Arc<ServerConfig>, Error> {
    server_config(identity, Arc::new(NoClientAuth), alpn)
}

/// A client. Without `identity` it shows no certificate.
pub fn client_config(
    servers: Arc<dyn rustls::client::danger::ServerCertVerifier>,
    identity: Option<Arc<dyn ResolvesClientCert>>,
    alpn: &[&str],
) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(servers);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_secret_extraction = true;
    config.alpn_protocols = protocols(alpn);
    Ok(Arc::new(config))
}

/// Answers a client. After a refusal the alert is given time to be read.
pub async fn handshake<S>(
    stream: S,
    config: Arc<ServerConfig>,
    timeout: Duration,
) -> Result<ServerStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match answer(stream, config, timeout).await {
        Ok(stream) => Ok(stream),
        Err(unanswered) => Err(unanswered.farewell().await),
    }
}

/// The same, for those who have something to do before the alert is given time to be read:
/// [`Unanswered::farewell`] does that.
pub async fn answer<S>(
    stream: S,
    config: Arc<ServerConfig>,
    timeout: Duration,
) -> Result<ServerStream<S>, Unanswered<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (error, stream) = match tokio::time::timeout(timeout, TlsStream::accept(stream, config)).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err((error, stream))) => (HandshakeError::Failed(error), Some(stream)),
        Err(_) => {
            let milliseconds = timeout.as_millis();
            (HandshakeError::TimedOut { milliseconds }, None)
        }
    };
    Err(Unanswered { error, stream })
}

/// A client that was not let in.
#[derive(Debug)]
pub struct Unanswered<S> {
    error: HandshakeError,
    /// Its connection, where there is an alert to be read.
    stream: Option<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Unanswered<S> {
    /// Gives a refusal's alert time to be read, and closes.
    pub async fn farewell(self) -> HandshakeError {
        if let Some(stream) = self.stream {
            farewell(stream).await;
        }
        self.error
    }

    /// Why, and what is left of the connection.
    pub fn into_parts(self) -> (HandshakeError, Option<S>) {
        (self.error, self.stream)
    }
}

/// Connects as a client over `stream`, asking for `sni`. A configuration that is not of [`client_config`] must have
/// `enable_secret_extraction`.
pub async fn connect<S>(
    stream: S,
    sni: &str,
    config: Arc<ClientConfig>,
    timeout: Duration,
) -> Result<ClientStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name =
        ServerName::try_from(sni.to_owned()).map_err(|_| HandshakeError::Name { name: sni.to_owned() })?;
    match tokio::time::timeout(timeout, TlsStream::connect(stream, config, name)).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err((error, _))) => Err(error.into()),
        Err(_) => Err(HandshakeError::TimedOut {
            milliseconds: timeout.as_millis(),
        }),
    }
}

/// Closes the connection of a client that was answered with an alert. Closing a socket with unread bytes resets the
/// connection, and the client would lose the alert: reads what it sent along with its Finished first.
pub async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let last_words = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(FAREWELL_BYTES_MAX), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(FAREWELL_TIMEOUT, last_words).await;
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect()
}
