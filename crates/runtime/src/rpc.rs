//! gRPC over our own TLS: channels that dial with live material, and connections that carry who the client is.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use http::Uri;
use hyper_util::rt::TokioIo;
use iap_identity::{AgentPeer, VerifiedPeer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

use crate::net::{self, HostPort};
use crate::tls::{self, ClientConfig, PeerVerifier};

/// The protocol gRPC speaks (RFC 9113); both ends' TLS configurations must offer it.
pub const ALPN_H2: &str = "h2";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one address may hang before the next is tried beside it.
const NEXT_ADDRESS_DELAY: Duration = Duration::from_secs(2);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A channel to `address` that asks for `sni`. It connects at first use and again whenever the connection is
/// lost, each time with the material current in `config`.
pub fn channel(
    address: HostPort,
    sni: &str,
    config: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let dial = move || {
        let address = address.clone();
        async move { net::connect(&address, CONNECT_TIMEOUT).await }
    };
    channel_over(dial, sni, config)
}

/// A channel to the first of `addresses` that leads to a server which proves to be `sni`, through an HTTP proxy
/// where the environment says so ([`net::reach`]). The next address is tried instead of one that fails, and beside
/// one that hangs.
pub fn channel_outwards(
    addresses: Vec<HostPort>,
    sni: &str,
    config: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let sni: Arc<str> = Arc::from(sni);
    let dial = {
        let sni = Arc::clone(&sni);
        move || {
            let (addresses, sni, config) = (addresses.clone(), Arc::clone(&sni), Arc::clone(&config));
            async move {
                let attempt = |address: HostPort| {
                    let (sni, config) = (Arc::clone(&sni), Arc::clone(&config));
                    async move {
                        let (stream, _route) = net::reach(&address, CONNECT_TIMEOUT).await?;
                        secured(stream, &sni, config).await
                    }
                };
                let raced = net::race(addresses.into(), attempt, NEXT_ADDRESS_DELAY).await;
                raced.map_err(|failures| telling(failures.into_iter().map(|(_, error)| error)))
            }
        }
    };
    channel_with(dial, &sni)
}

/// A channel over connections that `dial` makes, for those who have several addresses to try.
pub fn channel_over<D, F, S>(
    dial: D,
    sni: &str,
    config: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error>
where
    D: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let name: Arc<str> = Arc::from(sni);
    let secure = move || {
        let (dialling, name, config) = (dial(), Arc::clone(&name), Arc::clone(&config));
        async move { secured(dialling.await?, &name, config).await }
    };
    channel_with(secure, sni)
}

async fn secured<S>(stream: S, sni: &str, config: Arc<ClientConfig>) -> io::Result<tls::ClientStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connected = tls::connect(stream, sni, config, CONNECT_TIMEOUT).await;
    connected.map_err(io::Error::other)
}

/// Somebody who answered and proved nothing says more than somebody who did not answer.
fn telling(failures: impl Iterator<Item = io::Error>) -> io::Error {
    let none = io::Error::new(io::ErrorKind::NotFound, "no address is known");
    failures.fold(none, |told, next| match told.kind() {
        io::ErrorKind::Other => told,
        _ => next,
    })
}

fn channel_with<D, F, S>(dial: D, sni: &str) -> Result<Channel, tonic::transport::Error>
where
    D: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // The scheme is http because TLS is the connector's affair, not tonic's.
    let endpoint = Endpoint::from_shared(format!("http://{sni}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let connector = tower::service_fn(move |_: Uri| {
        let dialling = dial();
        async move { dialling.await.map(TokioIo::new) }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// Who is at the other end of a connection; in every request's extensions.
#[derive(Debug, Clone)]
pub struct ConnectInfo {
    /// The client, if it showed a valid certificate.
    pub peer: Option<Arc<VerifiedPeer>>,
    /// The agent, if the client showed an agent's certificate that expired up to 30 days ago. Good for renewing
    /// that certificate and nothing else.
    pub expired_agent: Option<Arc<AgentPeer>>,
    /// The client's address, as the last trusted hop gave it.
    pub remote_addr: SocketAddr,
}

impl ConnectInfo {
    /// What `verifier` learnt in its handshake.
    pub fn of(verifier: &PeerVerifier, remote_addr: SocketAddr) -> Self {
        Self {
            peer: verifier.peer(),
            expired_agent: verifier.expired_agent(),
            remote_addr,
        }
    }
}

/// An accepted TLS connection on its way to the gRPC server.
pub struct AcceptedTls {
    stream: Box<dyn Duplex>,
    info: ConnectInfo,
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

impl AcceptedTls {
    /// `stream` is past its handshake, which yielded `info`.
    pub fn new<S>(stream: S, info: ConnectInfo) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self {
            stream: Box::new(stream),
            info,
        }
    }
}

impl std::fmt::Debug for AcceptedTls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("AcceptedTls")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Connected for AcceptedTls {
    type ConnectInfo = ConnectInfo;

    fn connect_info(&self) -> ConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for AcceptedTls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for AcceptedTls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Hands accepted connections to a gRPC server.
#[derive(Debug, Clone)]
pub struct IncomingSender(mpsc::Sender<AcceptedTls>);

/// The gRPC server's end: give it to `serve_with_incoming_shutdown`. It ends when every sender is gone.
#[derive(Debug)]
pub struct Incoming(mpsc::Receiver<AcceptedTls>);

/// The server has stopped taking connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the gRPC server no longer takes connections")]
pub struct ServerGone;

/// A queue of `connections_max` accepted connections between a listener and a gRPC server.
pub fn incoming(connections_max: usize) -> (IncomingSender, Incoming) {
    let (sender, receiver) = mpsc::channel(connections_max.max(1));
    (IncomingSender(sender), Incoming(receiver))
}

impl IncomingSender {
    /// Waits for room in the queue.
    pub async fn send(&self, connection: AcceptedTls) -> Result<(), ServerGone> {
        self.0.send(connection).await.map_err(|_| ServerGone)
    }
}

impl Stream for Incoming {
    type Item = io::Result<AcceptedTls>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|next| next.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;

    use http::{Request, Response};
    use iap_identity::{AgentId, AuthId, Class, ClassSet};
    use iap_testkit::{Credential, TestCluster};
    use tokio::net::TcpListener;
    use tonic::body::Body;
    use tower::{Service, ServiceExt};
    use uuid::Uuid;

    use super::*;
    use crate::tls::{Demand, FixedIdentity, Material, ServerVerifier, certified_key};

    /// Answers every request with the caller's principal.
    #[derive(Clone)]
    struct WhoAmI;

    impl tonic::server::NamedService for WhoAmI {
        const NAME: &'static str = "test.WhoAmI";
    }

    impl Service<Request<Body>> for WhoAmI {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let info = request.extensions().get::<ConnectInfo>().unwrap();
            let name = info
                .peer
                .as_ref()
                .map_or("nobody".to_owned(), |peer| peer.principal());
            let response = Response::builder().header("principal", name).body(Body::empty());
            std::future::ready(Ok(response.unwrap()))
        }
    }

    fn fixed(credential: &Credential) -> Arc<FixedIdentity> {
        let key = certified_key(credential.chain.clone(), credential.private_key().unwrap()).unwrap();
        Arc::new(FixedIdentity(key))
    }

    /// A server that accepts connections until its listener's task is dropped.
    async fn serve(cluster: &TestCluster) -> SocketAddr {
        let auth = fixed(&cluster.auth(AuthId::from_uuid(Uuid::now_v7())).unwrap());
        let bundle = Arc::new(cluster.bundle().clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, connections) = incoming(4);
        tokio::spawn(async move {
            while let Ok((stream, remote)) = listener.accept().await {
                let accepted = ClassSet::of(&[Class::Agent]);
                let verifier = Arc::new(PeerVerifier::new(Arc::clone(&bundle), accepted, Demand::Optional));
                let config = tls::server_config(auth.clone(), verifier.clone(), &[ALPN_H2]).unwrap();
                let stream = tls::handshake(stream, config, CONNECT_TIMEOUT).await.unwrap();
                let info = ConnectInfo::of(&verifier, remote);
                sender.send(AcceptedTls::new(stream, info)).await.unwrap();
            }
        });
        let server = tonic::transport::Server::builder().add_service(WhoAmI);
        tokio::spawn(server.serve_with_incoming(connections));
        address
    }

    async fn ask(cluster: &TestCluster, server: SocketAddr, identity: Option<&Credential>) -> String {
        let material = Material::new(cluster.bundle().clone());
        let verifier = Arc::new(ServerVerifier::new(material));
        let identity = identity.map(|credential| fixed(credential) as Arc<dyn tls::ResolvesClientCert>);
        let config = tls::client_config(verifier, identity, &[ALPN_H2]).unwrap();
        let channel = channel(server.into(), "auth.iap.example.com", config).unwrap();
        let request = Request::builder()
            .method("POST")
            .uri("/test.WhoAmI/Ask")
            .body(Body::empty())
            .unwrap();
        let response = channel.oneshot(request).await.unwrap();
        response.headers()["principal"].to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_request_carries_who_is_at_the_other_end_of_its_connection() {
        let cluster = TestCluster::new("iap.example.com").unwrap();
        let server = serve(&cluster).await;
        let id = AgentId::from_uuid(Uuid::now_v7());
        let agent = cluster.agent(id).unwrap();
        assert_eq!(ask(&cluster, server, Some(&agent)).await, id.to_string());
        assert_eq!(ask(&cluster, server, None).await, "nobody");
    }
}
