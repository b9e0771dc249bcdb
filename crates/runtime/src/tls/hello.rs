//! Reads a ClientHello without answering it: who is asked for, and what is offered.
//!
//! A post-quantum ClientHello spans TCP segments, so it is collected in a buffer, parsed by rustls and replayed
//! to whoever answers.

use std::io;
use std::time::Duration;

use rustls::server::Acceptor;
use rustls::{AlertDescription, Error};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Replay;

const FIRST_READ_BYTES: usize = 2048;

/// What a client may send and how long it may take before it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientHelloLimits {
    /// Largest ClientHello, record headers included.
    pub bytes_max: usize,
    /// Time for the whole of it.
    pub timeout: Duration,
}

impl Default for ClientHelloLimits {
    fn default() -> Self {
        Self {
            bytes_max: 16 * 1024,
            timeout: Duration::from_secs(5),
        }
    }
}

/// What the ClientHello says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHelloFacts {
    /// The server name asked for (RFC 6066 §3), as sent.
    pub sni: Option<String>,
    /// Protocols offered (RFC 7301), in the client's order.
    pub alpn: Vec<Vec<u8>>,
}

impl ClientHelloFacts {
    /// Whether `protocol` is among those offered.
    pub fn offers(&self, protocol: &str) -> bool {
        self.alpn.iter().any(|offered| offered == protocol.as_bytes())
    }
}

/// Why no ClientHello was understood. Always the client's fault, or the network's.
#[derive(Debug, thiserror::Error)]
pub enum ClientHelloError {
    /// Closed before the end of the message.
    #[error("the connection closed after {bytes} bytes of a ClientHello")]
    Closed {
        /// What had arrived.
        bytes: usize,
    },
    /// Too slow.
    #[error("no complete ClientHello within {milliseconds} ms")]
    TimedOut {
        /// The limit.
        milliseconds: u128,
    },
    /// Too long.
    #[error("the ClientHello is longer than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// Not a ClientHello.
    #[error("not a TLS ClientHello: {0}")]
    Malformed(Error),
    /// The socket failed.
    #[error("cannot read the ClientHello: {0}")]
    Io(#[from] io::Error),
}

impl ClientHelloError {
    /// The alert that answers it, where one makes sense (RFC 8446 §6.2).
    pub fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Closed { .. } | Self::Io(_) => None,
            Self::TimedOut { .. } => Some(AlertDescription::HandshakeFailure),
            Self::TooLarge { .. } | Self::Malformed(_) => Some(AlertDescription::DecodeError),
        }
    }
}

/// Reads the ClientHello from `stream` and hands it back in front of the rest.
pub async fn accept<S: AsyncRead + Unpin>(
    mut stream: S,
    limits: ClientHelloLimits,
) -> Result<(ClientHelloFacts, Replay<S>), ClientHelloError> {
    let (facts, bytes) = peek(&mut stream, Vec::new(), limits).await?;
    Ok((facts, Replay::new(bytes, stream)))
}

/// Reads the ClientHello from `stream`, of which `already` was read before. Returns all bytes read so far,
/// which must reach whoever answers.
pub async fn peek<S: AsyncRead + Unpin>(
    stream: &mut S,
    already: Vec<u8>,
    limits: ClientHelloLimits,
) -> Result<(ClientHelloFacts, Vec<u8>), ClientHelloError> {
    match tokio::time::timeout(limits.timeout, collect(stream, already, limits.bytes_max)).await {
        Ok(collected) => collected,
        Err(_) => Err(ClientHelloError::TimedOut {
            milliseconds: limits.timeout.as_millis(),
        }),
    }
}

/// Sends a fatal alert in plaintext, as one may before the handshake has keys, and ends the sending side.
pub async fn send_alert<S: AsyncWrite + Unpin>(stream: &mut S, alert: AlertDescription) -> io::Result<()> {
    stream.write_all(&alert_record(alert)).await?;
    stream.shutdown().await
}

/// A fatal alert as a plaintext record (RFC 8446 §5.1, §6).
pub fn alert_record(alert: AlertDescription) -> [u8; 7] {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    [ALERT, 3, 3, 0, 2, FATAL, u8::from(alert)]
}

async fn collect<S: AsyncRead + Unpin>(
    stream: &mut S,
    already: Vec<u8>,
    bytes_max: usize,
) -> Result<(ClientHelloFacts, Vec<u8>), ClientHelloError> {
    let mut parser = Parser {
        acceptor: Acceptor::default(),
        fed: 0,
    };
    let mut bytes = already;
    bytes.reserve(FIRST_READ_BYTES);
    loop {
        if let Some(facts) = parser.feed(&bytes)? {
            return Ok((facts, bytes));
        }
        let room = bytes_max.saturating_sub(bytes.len());
        if room == 0 {
            return Err(ClientHelloError::TooLarge { bytes_max });
        }
        let mut limited = (&mut *stream).take(room as u64);
        if limited.read_buf(&mut bytes).await? == 0 {
            return Err(ClientHelloError::Closed { bytes: bytes.len() });
        }
    }
}

struct Parser {
    acceptor: Acceptor,
    fed: usize,
}

impl Parser {
    /// `bytes` is everything read so far; only the new part is fed on.
    fn feed(&mut self, bytes: &[u8]) -> Result<Option<ClientHelloFacts>, ClientHelloError> {
        while let Some(mut fresh) = bytes.get(self.fed..).filter(|fresh| !fresh.is_empty()) {
            self.fed += self.acceptor.read_tls(&mut fresh)?;
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => return Ok(Some(facts_of(&accepted))),
                Err((error, _alert)) => return Err(ClientHelloError::Malformed(error)),
            }
        }
        Ok(None)
    }
}

fn facts_of(accepted: &rustls::server::Accepted) -> ClientHelloFacts {
    let hello = accepted.client_hello();
    ClientHelloFacts {
        sni: hello.server_name().map(str::to_owned),
        alpn: hello
            .alpn()
            .map(|offered| offered.map(<[u8]>::to_vec).collect())
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::client::Resumption;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;
    use crate::tls::provider;

    fn client_hello(sni: &str, alpn: &[&str]) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let mut connection =
            ClientConnection::new(Arc::new(config), sni.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    async fn accept_bytes(
        bytes: &[u8],
        limits: ClientHelloLimits,
    ) -> Result<(ClientHelloFacts, Vec<u8>), ClientHelloError> {
        peek(&mut &*bytes, Vec::new(), limits).await
    }

    #[tokio::test]
    async fn a_hello_in_single_bytes_is_understood_and_replayed_whole() {
        let hello = client_hello("db.iap.example.com", &["iap/1", "h2"]);
        assert!(hello.len() > 1400, "with a post-quantum key share");
        let (mut far, near) = tokio::io::duplex(1);
        let sent = hello.clone();
        let writer = tokio::spawn(async move {
            far.write_all(&sent).await.unwrap();
            far.write_all(b"tail").await.unwrap();
        });
        let (facts, mut replay) = accept(near, ClientHelloLimits::default()).await.unwrap();
        assert_eq!(facts.sni.as_deref(), Some("db.iap.example.com"));
        assert!(facts.offers("iap/1") && facts.offers("h2") && !facts.offers("h"));
        let mut all = Vec::new();
        replay.read_to_end(&mut all).await.unwrap();
        writer.await.unwrap();
        assert_eq!(all, [hello.as_slice(), b"tail"].concat());
    }

    #[tokio::test]
    async fn bytes_read_before_count() {
        let hello = client_hello("db.iap.example.com", &[]);
        let (first, rest) = hello.split_at(1);
        let (facts, all) = peek(&mut &*rest, first.to_vec(), ClientHelloLimits::default())
            .await
            .unwrap();
        assert_eq!((facts.alpn.len(), all), (0, hello.clone()));
    }

    #[tokio::test]
    async fn an_address_in_place_of_a_name_is_no_name() {
        let (facts, _) = accept_bytes(&client_hello("127.0.0.1", &[]), ClientHelloLimits::default())
            .await
            .unwrap();
        assert_eq!(facts.sni, None);
    }

    #[tokio::test]
    async fn a_hello_beyond_the_limit_is_refused() {
        let hello = client_hello("db.iap.example.com", &[]);
        let limits = ClientHelloLimits {
            bytes_max: hello.len() - 1,
            ..Default::default()
        };
        assert!(matches!(
            accept_bytes(&hello, limits).await,
            Err(ClientHelloError::TooLarge { .. })
        ));
        let limits = ClientHelloLimits {
            bytes_max: hello.len(),
            ..Default::default()
        };
        accept_bytes(&hello, limits).await.unwrap();
    }

    #[tokio::test]
    async fn a_truncated_hello_is_not_understood() {
        let hello = client_hello("db.iap.example.com", &[]);
        let result = accept_bytes(&hello[..hello.len() - 1], ClientHelloLimits::default()).await;
        assert!(matches!(result, Err(ClientHelloError::Closed { .. })));
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_given_up() {
        let (_far, near) = tokio::io::duplex(1);
        let limits = ClientHelloLimits {
            timeout: Duration::from_millis(1),
            ..Default::default()
        };
        assert!(matches!(
            accept(near, limits).await,
            Err(ClientHelloError::TimedOut { .. })
        ));
    }

    #[tokio::test]
    async fn what_is_not_tls_is_refused_with_an_alert() {
        let error = accept_bytes(b"GET / HTTP/1.1\r\n\r\n", ClientHelloLimits::default())
            .await
            .unwrap_err();
        assert_eq!(error.alert(), Some(AlertDescription::DecodeError));
    }

    #[tokio::test]
    async fn an_alert_is_understood_by_a_client() {
        let mut connection = ClientConnection::new(
            Arc::new(
                ClientConfig::builder_with_provider(provider())
                    .with_protocol_versions(&[&rustls::version::TLS13])
                    .unwrap()
                    .with_root_certificates(RootCertStore::empty())
                    .with_no_client_auth(),
            ),
            "a.example".try_into().unwrap(),
        )
        .unwrap();
        let (mut far, mut near) = tokio::io::duplex(64);
        send_alert(&mut near, AlertDescription::UnrecognisedName)
            .await
            .unwrap();
        let mut bytes = Vec::new();
        far.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, [21, 3, 3, 0, 2, 2, 112]);
        connection.read_tls(&mut bytes.as_slice()).unwrap();
        let error = connection.process_new_packets().unwrap_err();
        assert_eq!(error, Error::AlertReceived(AlertDescription::UnrecognisedName));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..4)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let mut hello = client_hello("db.iap.example.com", &["iap/1"]);
            for (place, value) in flips {
                let place = usize::from(place) % hello.len();
                hello[place] ^= value;
            }
            runtime.block_on(async {
                let _ = accept_bytes(&bytes, ClientHelloLimits::default()).await;
                let _ = accept_bytes(&hello, ClientHelloLimits::default()).await;
            });
        }
    }
}
