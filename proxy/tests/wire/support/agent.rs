//! An agent reduced to its control connection and its dial-backs. It does what a test tells it, so it can
//! misbehave in any way.

use std::net::SocketAddr;
use std::sync::Arc;

use iap_identity::{AgentId, ConnectionId, ServiceName};
use iap_proto::{decode_control, encode_control};
use iap_runtime::quic::{Connection, QuicError};
use iap_runtime::tls::{
    self, ClientStream, FixedIdentity, HandshakeError, Material, ServerVerifier, certified_key,
};
use iap_testkit::{Credential, new_uuid};
use iap_tunnel::{
    ALPN_CONTROL, CONTROL_FRAME_BYTES_MAX, CONTROL_VERSION, ControlMessage, DataOffer, LengthPrefixed,
    PoolPreface, Preface, RefusedService, RunId, Token,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{PATIENCE, Plane, dial};

pub struct TestAgent {
    pub id: AgentId,
    proxy: SocketAddr,
    stream: Box<dyn Duplex>,
    decoder: LengthPrefixed,
}

/// Whatever carries control messages.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A request to dial back.
#[derive(Clone)]
pub struct Opened {
    pub connection_id: ConnectionId,
    pub token: Token,
    pub service: Option<ServiceName>,
    pub client_address: SocketAddr,
    pub pooled: Option<ConnectionId>,
}

impl TestAgent {
    /// On the line, its services accepted.
    pub async fn serving(plane: &Plane, services: &[&str]) -> Self {
        let mut agent = Self::connect(plane).await;
        let offers = services.iter().map(|name| agent.offer(plane, name)).collect();
        let (accepted, refused) = agent.announce(offers).await;
        assert_eq!(
            (accepted.len(), refused.len()),
            (services.len(), 0),
            "{refused:?}"
        );
        agent
    }

    pub async fn connect(plane: &Plane) -> Self {
        let id = AgentId::from_uuid(new_uuid());
        let credential = plane.cluster.agent(id).unwrap();
        Self::connect_as(plane, id, &credential).await
    }

    pub async fn connect_as(plane: &Plane, id: AgentId, credential: &Credential) -> Self {
        let stream = control_stream(plane, Some(credential), &[ALPN_CONTROL])
            .await
            .unwrap();
        Self::on(plane, id, None, Box::new(stream)).await
    }

    /// The same in a run of its program that it names.
    pub async fn connect_in_run(plane: &Plane, id: AgentId, credential: &Credential, run: u8) -> Self {
        let stream = control_stream(plane, Some(credential), &[ALPN_CONTROL])
            .await
            .unwrap();
        let run = RunId::from_bytes([run; RunId::BYTES]);
        Self::on(plane, id, Some(run), Box::new(stream)).await
    }

    /// The same over QUIC, and the connection beneath.
    pub async fn by_quic(plane: &Plane) -> (Self, Connection) {
        let id = AgentId::from_uuid(new_uuid());
        let credential = plane.cluster.agent(id).unwrap();
        Self::by_quic_as(plane, plane.address, id, &credential).await
    }

    pub async fn by_quic_as(
        plane: &Plane,
        address: SocketAddr,
        id: AgentId,
        credential: &Credential,
    ) -> (Self, Connection) {
        let host = plane.cluster.name.proxy_host();
        let connection = quic(plane, address, Some(credential), &host, &[ALPN_CONTROL])
            .await
            .unwrap();
        let (send, recv) = connection.open_bi().await.unwrap();
        let stream = Box::new(tokio::io::join(recv, send));
        (Self::on(plane, id, None, stream).await, connection)
    }

    async fn on(plane: &Plane, id: AgentId, run: Option<RunId>, stream: Box<dyn Duplex>) -> Self {
        let mut agent = Self {
            id,
            proxy: plane.address,
            stream,
            decoder: LengthPrefixed::new(CONTROL_FRAME_BYTES_MAX),
        };
        agent.send(greeting(run)).await;
        let hello = agent.next().await.expect("the proxy closed the line");
        assert_eq!(hello.name(), "hello");
        agent
    }

    /// A name with a fresh leaf for it.
    pub fn offer(&self, plane: &Plane, name: &str) -> (ServiceName, Vec<u8>) {
        let leaf = plane.cluster.service_leaf(self.id, name).unwrap();
        (ServiceName::parse(name).unwrap(), leaf.leaf().to_vec())
    }

    pub async fn announce(
        &mut self,
        services: Vec<(ServiceName, Vec<u8>)>,
    ) -> (Vec<ServiceName>, Vec<RefusedService>) {
        self.send(ControlMessage::Announce { services }).await;
        self.announced().await
    }

    pub async fn announced(&mut self) -> (Vec<ServiceName>, Vec<RefusedService>) {
        loop {
            match self.next().await.expect("the proxy closed the line") {
                ControlMessage::Announced { accepted, refused } => return (accepted, refused),
                ControlMessage::Ping(nonce) => self.send(ControlMessage::Pong(nonce)).await,
                other => panic!("{} instead of announced", other.name()),
            }
        }
    }

    /// The next request to dial back.
    pub async fn opened(&mut self) -> Opened {
        loop {
            match self.next().await.expect("the proxy closed the line") {
                ControlMessage::Open {
                    connection_id,
                    token,
                    service,
                    client_address,
                    pooled,
                } => {
                    return Opened {
                        connection_id,
                        token,
                        service,
                        client_address,
                        pooled,
                    };
                }
                ControlMessage::Ping(nonce) => self.send(ControlMessage::Pong(nonce)).await,
                other => panic!("{} instead of open", other.name()),
            }
        }
    }

    /// Fetches the connection.
    pub async fn dial_back(&self, opened: &Opened) -> TcpStream {
        let preface = Preface {
            connection_id: opened.connection_id,
            token: opened.token.clone(),
        };
        dial(self.proxy, &preface.encode()).await
    }

    /// What the proxy lets it dial in advance.
    pub async fn invited(&mut self, connections: u32) -> Vec<PoolPreface> {
        self.send(ControlMessage::PoolAsk { connections }).await;
        loop {
            match self.next().await.expect("the proxy closed the line") {
                ControlMessage::PoolTokens { tokens, .. } => {
                    let preface = |(id, token)| PoolPreface { id, token };
                    return tokens.into_iter().map(preface).collect();
                }
                ControlMessage::Ping(nonce) => self.send(ControlMessage::Pong(nonce)).await,
                other => panic!("{} instead of tokens", other.name()),
            }
        }
    }

    /// Waits for a request and fetches its connection.
    pub async fn fetch(&mut self) -> (Opened, TcpStream) {
        let opened = self.opened().await;
        let stream = self.dial_back(&opened).await;
        (opened, stream)
    }

    pub async fn send(&mut self, message: ControlMessage) {
        let frame = encode_control(message).unwrap();
        self.stream.write_all(&frame).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Returns once the proxy has acted on everything sent before.
    pub async fn settled(&mut self) {
        self.send(ControlMessage::Ping(99)).await;
        while !matches!(self.next().await, Some(ControlMessage::Pong(99))) {}
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next message; nothing once the proxy has closed the line.
    pub async fn next(&mut self) -> Option<ControlMessage> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(decode_control(&frame).unwrap().unwrap());
            }
            let mut bytes = vec![0; 4096];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut bytes)).await;
            match read.expect("the proxy says nothing") {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&bytes[..count]),
            }
        }
    }

    /// Answers pings until the proxy closes the line.
    pub async fn closed(&mut self) {
        while let Some(message) = self.next().await {
            if let ControlMessage::Ping(nonce) = message {
                let frame = encode_control(ControlMessage::Pong(nonce)).unwrap();
                // The proxy may be closing at this very moment.
                let _ = self.stream.write_all(&frame).await;
            }
        }
    }
}

pub fn greeting(run: Option<RunId>) -> ControlMessage {
    ControlMessage::Hello {
        version: CONTROL_VERSION,
        software: "test".into(),
        data: DataOffer::OWN.to_string(),
        run,
    }
}

/// TLS to `proxy.<cluster>`, with whatever certificate and protocols.
pub async fn control_stream(
    plane: &Plane,
    credential: Option<&Credential>,
    alpn: &[&str],
) -> Result<ClientStream<TcpStream>, HandshakeError> {
    let config = client_config(plane, credential, alpn);
    let stream = TcpStream::connect(plane.address).await.unwrap();
    tls::connect(stream, &plane.cluster.name.proxy_host(), config, PATIENCE).await
}

/// QUIC to whatever name, with whatever certificate and protocols.
pub async fn quic(
    plane: &Plane,
    address: SocketAddr,
    credential: Option<&Credential>,
    host: &str,
    alpn: &[&str],
) -> Result<Connection, QuicError> {
    let config = client_config(plane, credential, alpn);
    iap_runtime::quic::connect(address, host, config, PATIENCE).await
}

fn client_config(plane: &Plane, credential: Option<&Credential>, alpn: &[&str]) -> Arc<tls::ClientConfig> {
    let material = Material::new(plane.cluster.bundle().clone());
    let identity = credential.map(|credential| {
        let key = certified_key(credential.chain.clone(), credential.private_key().unwrap()).unwrap();
        Arc::new(FixedIdentity(key)) as Arc<dyn tls::ResolvesClientCert>
    });
    tls::client_config(Arc::new(ServerVerifier::new(material)), identity, alpn).unwrap()
}

/// Whether the proxy ends this line before it says hello; the alert, where one came.
pub async fn line_refusal(
    plane: &Plane,
    credential: Option<&Credential>,
    alpn: &[&str],
) -> Option<rustls::AlertDescription> {
    let mut stream = match control_stream(plane, credential, alpn).await {
        Ok(stream) => stream,
        Err(error) => return error.alert_received(),
    };
    // The verdict on a client certificate arrives with the first read (RFC 8446 §4.4.4).
    let mut byte = [0];
    match tokio::time::timeout(PATIENCE, stream.read(&mut byte))
        .await
        .expect("the line stays open")
    {
        Ok(0) => None,
        Ok(_) => panic!("the proxy talks to somebody it should refuse"),
        Err(error) => tls::alert_received(&error),
    }
}
