//! A stand-in for a proxy: one port for control, dial-backs and the way to the auth server.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iap_identity::{
    AuthProfile, Class, ClassSet, ConnectionId, Profile, ProxyId, ProxyProfile, ServerName, ServiceName,
};
use iap_proto::v1::agent_server::AgentServer;
use iap_proto::v1::join_server::JoinServer;
use iap_proto::{decode_control, encode_control};
use iap_runtime::keys;
use iap_runtime::rpc::{self, AcceptedTls, ConnectInfo, IncomingSender};
use iap_runtime::tls::{self, ClientHelloLimits, Demand, FixedIdentity, PeerVerifier, Replay, ServerStream};
use iap_testkit::{Credential, TestCluster};
use iap_tunnel::{CONTROL_FRAME_BYTES_MAX, ControlMessage, LengthPrefixed, PREFACE_BYTES, Preface, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::auth::FakeAuth;

pub const WAIT: Duration = Duration::from_secs(20);

/// What happens to connections for the auth server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    Up,
    /// Connections are closed.
    Down,
    /// Connections are accepted and nothing is ever answered.
    Frozen,
}

#[derive(Clone)]
pub struct FakeProxy(Arc<Inner>);

struct Inner {
    id: ProxyId,
    cluster: Arc<TestCluster>,
    address: SocketAddr,
    proxy_credential: Credential,
    auth_credential: Credential,
    auth_mode: Mutex<AuthMode>,
    auth_connections: IncomingSender,
    frozen: Mutex<Vec<Replay<TcpStream>>>,
    pending: Mutex<HashMap<ConnectionId, (Token, oneshot::Sender<TcpStream>)>>,
    control: watch::Sender<Option<mpsc::UnboundedSender<ControlMessage>>>,
    control_connections: watch::Sender<u32>,
    /// The newest control connection that has said hello, by its number, and how many of them there are now.
    newest: watch::Sender<u32>,
    established: watch::Sender<u32>,
    replaced_while_open: watch::Sender<u32>,
    announced: watch::Sender<BTreeSet<String>>,
    last_announcement: Mutex<Vec<String>>,
    verdicts: watch::Sender<Vec<(ConnectionId, bool)>>,
    refusals: watch::Sender<Vec<(ConnectionId, String)>>,
}

impl FakeProxy {
    pub async fn start(cluster: Arc<TestCluster>, auth: FakeAuth) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, incoming) = rpc::incoming(16);
        let id = ProxyId::from_uuid(Uuid::now_v7());
        let auth_id = iap_identity::AuthId::from_uuid(Uuid::now_v7());
        let (now, name) = (time::OffsetDateTime::now_utc(), cluster.name.clone());
        let proxy_profile = Profile::Proxy(ProxyProfile {
            id,
            cluster: name.clone(),
        });
        let auth_profile = Profile::Auth(AuthProfile {
            id: auth_id,
            cluster: name,
        });
        let proxy = Self(Arc::new(Inner {
            id,
            address: listener.local_addr().unwrap(),
            proxy_credential: cluster.issue_at(proxy_profile, now).unwrap(),
            auth_credential: cluster.issue_at(auth_profile, now).unwrap(),
            cluster,
            auth_mode: Mutex::new(AuthMode::Up),
            auth_connections: sender,
            frozen: Mutex::default(),
            pending: Mutex::default(),
            control: watch::Sender::new(None),
            control_connections: watch::Sender::new(0),
            newest: watch::Sender::new(0),
            established: watch::Sender::new(0),
            replaced_while_open: watch::Sender::new(0),
            announced: watch::Sender::default(),
            last_announcement: Mutex::default(),
            verdicts: watch::Sender::default(),
            refusals: watch::Sender::default(),
        }));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(AgentServer::new(auth.clone()))
                .add_service(JoinServer::new(auth))
                .serve_with_incoming(incoming),
        );
        let accepting = proxy.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let proxy = accepting.clone();
                tokio::spawn(async move { proxy.serve(stream).await });
            }
        });
        proxy
    }

    pub fn id(&self) -> ProxyId {
        self.0.id
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    pub fn set_auth(&self, mode: AuthMode) {
        *self.0.auth_mode.lock().unwrap() = mode;
    }

    /// Waits until the agent has announced exactly these services.
    pub async fn announced(&self, services: &[&str]) {
        let wanted: BTreeSet<String> = services.iter().map(|name| (*name).to_owned()).collect();
        let mut announced = self.0.announced.subscribe();
        let waiting = announced.wait_for(|names| *names == wanted);
        if tokio::time::timeout(WAIT, waiting).await.is_err() {
            panic!("announced {:?}, not {wanted:?}", self.0.announced.borrow());
        }
    }

    /// What the agent said last, whether or not it is still connected.
    pub fn last_announcement(&self) -> Vec<String> {
        self.0.last_announcement.lock().unwrap().clone()
    }

    /// How often an agent has opened a control connection.
    pub fn control_connections(&self) -> u32 {
        *self.0.control_connections.borrow()
    }

    /// How often one was replaced by a next one before it ended.
    pub fn replaced_while_open(&self) -> u32 {
        *self.0.replaced_while_open.borrow()
    }

    /// Opens a connection as a client would, and returns the client's end: the agent is the TLS server on it.
    pub async fn open(&self, service: &str) -> (ConnectionId, TcpStream) {
        self.come(self.request(service)).await
    }

    /// The same for the agent itself.
    pub async fn open_agent(&self) -> (ConnectionId, TcpStream) {
        self.come(self.ask(None)).await
    }

    async fn come(
        &self,
        (id, arrives): (ConnectionId, oneshot::Receiver<TcpStream>),
    ) -> (ConnectionId, TcpStream) {
        (
            id,
            tokio::time::timeout(WAIT, arrives)
                .await
                .expect("the agent dials back")
                .unwrap(),
        )
    }

    /// Sends an `Open` and returns at once.
    pub fn request(&self, service: &str) -> (ConnectionId, oneshot::Receiver<TcpStream>) {
        self.ask(Some(ServiceName::parse(service).unwrap()))
    }

    fn ask(&self, service: Option<ServiceName>) -> (ConnectionId, oneshot::Receiver<TcpStream>) {
        let connection_id = ConnectionId::from_uuid(Uuid::now_v7());
        let token = Token::from_random(*Uuid::now_v7().as_bytes());
        let (sender, arrives) = oneshot::channel();
        self.0
            .pending
            .lock()
            .unwrap()
            .insert(connection_id, (token.clone(), sender));
        let message = ControlMessage::Open {
            connection_id,
            token,
            service,
            client_address: "203.0.113.7:4711".parse().unwrap(),
            pooled: None,
        };
        self.0
            .control
            .borrow()
            .as_ref()
            .expect("an agent is connected")
            .send(message)
            .unwrap();
        (connection_id, arrives)
    }

    pub async fn verdict(&self, id: ConnectionId) -> bool {
        let mut verdicts = self.0.verdicts.subscribe();
        let find =
            |all: &Vec<(ConnectionId, bool)>| all.iter().find(|(of, _)| *of == id).map(|(_, good)| *good);
        let waiting = verdicts.wait_for(|all| find(all).is_some());
        let all = tokio::time::timeout(WAIT, waiting)
            .await
            .expect("a verdict comes")
            .unwrap();
        find(&all).unwrap()
    }

    pub async fn refusal(&self, id: ConnectionId) -> String {
        let mut refusals = self.0.refusals.subscribe();
        let find = |all: &Vec<(ConnectionId, String)>| all.iter().find(|(of, _)| *of == id).cloned();
        let waiting = refusals.wait_for(|all| find(all).is_some());
        let all = tokio::time::timeout(WAIT, waiting)
            .await
            .expect("a refusal comes")
            .unwrap();
        find(&all).unwrap().1
    }

    async fn serve(&self, mut stream: TcpStream) {
        let mut first = [0];
        if stream.read_exact(&mut first).await.is_err() {
            return;
        }
        if first == *b"I" {
            return self.dialled_back(stream).await;
        }
        let Ok((facts, bytes)) = tls::peek(&mut stream, first.to_vec(), ClientHelloLimits::default()).await
        else {
            return;
        };
        let stream = Replay::new(bytes, stream);
        match ServerName::parse(&facts.sni.unwrap_or_default(), &self.0.cluster.name) {
            Ok(ServerName::Proxy) => self.control(stream).await,
            Ok(ServerName::Auth) => self.auth(stream).await,
            _ => {}
        }
    }

    async fn dialled_back(&self, mut stream: TcpStream) {
        let mut preface = [b'I'; PREFACE_BYTES];
        stream.read_exact(&mut preface[1..]).await.unwrap();
        let preface = Preface::parse(&preface).unwrap();
        let (token, sender) = self
            .0
            .pending
            .lock()
            .unwrap()
            .remove(&preface.connection_id)
            .expect("asked for");
        assert!(token.matches(&preface.token));
        let _ = sender.send(stream);
    }

    async fn auth(&self, stream: Replay<TcpStream>) {
        let mode = *self.0.auth_mode.lock().unwrap();
        match mode {
            AuthMode::Down => {}
            AuthMode::Frozen => self.0.frozen.lock().unwrap().push(stream),
            AuthMode::Up => {
                let accepted = ClassSet::of(&[Class::Agent]);
                let demand = Demand::OptionalOrExpired;
                let verifier = Arc::new(PeerVerifier::new(self.bundle(), accepted, demand));
                let mut identity = identity(&self.0.auth_credential);
                // The auth server alone appends the root.
                let mut chain = self.0.auth_credential.chain.clone();
                chain.push(self.0.cluster.root().der().clone());
                identity.0 =
                    tls::certified_key(chain, keys::private_key_der(&self.0.auth_credential.key)).unwrap();
                let config =
                    tls::server_config(Arc::new(identity), Arc::clone(&verifier) as _, &[rpc::ALPN_H2])
                        .unwrap();
                if let Ok(stream) = tls::handshake(stream, config, WAIT).await {
                    let info = ConnectInfo::of(&verifier, self.0.address);
                    let _ = self.0.auth_connections.send(AcceptedTls::new(stream, info)).await;
                }
            }
        }
    }

    async fn control(&self, stream: Replay<TcpStream>) {
        let accepted = ClassSet::of(&[Class::Agent]);
        let verifier = Arc::new(PeerVerifier::new(self.bundle(), accepted, Demand::Required));
        let identity = identity(&self.0.proxy_credential);
        let config = tls::server_config(Arc::new(identity), verifier, &[iap_tunnel::ALPN_CONTROL]).unwrap();
        if let Ok(stream) = tls::handshake(stream, config, WAIT).await {
            self.converse(stream).await;
        }
    }

    async fn converse(&self, mut stream: ServerStream<Replay<TcpStream>>) {
        let (sender, mut outbox) = mpsc::unbounded_channel();
        sender
            .send(ControlMessage::Hello {
                version: 1,
                software: "fake".to_owned(),
                data: "tcp".to_owned(),
                run: None,
            })
            .unwrap();
        self.0.control_connections.send_modify(|count| *count += 1);
        let mut frames = LengthPrefixed::new(CONTROL_FRAME_BYTES_MAX);
        let mut buffer = vec![0; 16 * 1024];
        let (mut established, mut number) = (false, 0);
        let mut newest = self.0.newest.subscribe();
        loop {
            tokio::select! {
                // As a proxy does once the next one has announced.
                () = overtaken(&mut newest, number), if number > 0 => break,
                read = stream.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(count) => frames.push(&buffer[..count]),
                },
                Some(message) = outbox.recv() => {
                    let frame = encode_control(message).unwrap();
                    stream.write_all(&frame).await.unwrap();
                    stream.flush().await.unwrap();
                }
            }
            while let Some(frame) = frames.next_frame().unwrap() {
                let message = decode_control(&frame).unwrap().unwrap();
                if !established {
                    assert_eq!(message.name(), "hello");
                    established = true;
                    if *self.0.established.borrow() > 0 {
                        self.0.replaced_while_open.send_modify(|count| *count += 1);
                    }
                    self.0.established.send_modify(|count| *count += 1);
                    self.0.control.send_replace(Some(sender.clone()));
                }
                if number == 0 && message.name() == "announce" {
                    self.0.newest.send_modify(|newest| *newest += 1);
                    number = *self.0.newest.borrow();
                }
                self.hear(message, &sender);
            }
        }
        if established {
            self.0.established.send_modify(|count| *count -= 1);
        }
        if *self.0.newest.borrow() == number {
            self.0.announced.send_replace(BTreeSet::new());
        }
    }

    fn hear(&self, message: ControlMessage, sender: &mpsc::UnboundedSender<ControlMessage>) {
        match message {
            ControlMessage::Announce { services } => {
                *self.0.last_announcement.lock().unwrap() =
                    services.iter().map(|(name, _)| name.to_string()).collect();
                let names = services.iter().map(|(name, _)| name.clone()).collect();
                let _ = sender.send(ControlMessage::Announced {
                    accepted: names,
                    refused: Vec::new(),
                });
                self.0
                    .announced
                    .send_replace(services.iter().map(|(name, _)| name.to_string()).collect());
            }
            ControlMessage::Verdict {
                connection_id,
                authenticated,
            } => {
                self.0
                    .verdicts
                    .send_modify(|all| all.push((connection_id, authenticated)));
            }
            ControlMessage::OpenRefused {
                connection_id,
                reason,
            } => {
                self.0
                    .refusals
                    .send_modify(|all| all.push((connection_id, reason)));
            }
            ControlMessage::Ping(nonce) => {
                let _ = sender.send(ControlMessage::Pong(nonce));
            }
            _ => {}
        }
    }

    fn bundle(&self) -> Arc<iap_identity::TrustBundle> {
        Arc::new(self.0.cluster.bundle().clone())
    }
}

/// Waits for a newer control connection than this one.
async fn overtaken(newest: &mut watch::Receiver<u32>, number: u32) {
    let _ = newest.wait_for(|newest| *newest > number).await;
}

fn identity(credential: &Credential) -> FixedIdentity {
    let key = keys::private_key_der(&credential.key);
    FixedIdentity(tls::certified_key(credential.chain.clone(), key).unwrap())
}
