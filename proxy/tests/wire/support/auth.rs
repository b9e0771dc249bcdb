//! An auth server reduced to what a proxy asks of it.

use std::sync::{Arc, Mutex};

use iap_identity::{AuthId, CertificateDer, Class, ClassSet, Profile, ProxyId, ProxyProfile, Request as Csr};
use iap_proto::convert::time_to_wire;
use iap_proto::v1::feed_event::Event;
use iap_proto::v1::join_server::{Join, JoinServer};
use iap_proto::v1::proxy_server::{Proxy, ProxyServer};
use iap_proto::v1::{
    FeedEvent, Issued, JoinRequest, JoinedAgent, JoinedProxy, ProxyWatchRequest, RenewRequest,
};
use iap_runtime::net::HostPort;
use iap_runtime::rpc::{self, ALPN_H2, AcceptedTls, ConnectInfo, IncomingSender};
use iap_runtime::tls::{self, Demand, FixedIdentity, PeerVerifier, certified_key};
use iap_testkit::certificates::random_serial;
use iap_testkit::{TestCluster, new_uuid};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::PATIENCE;
use super::plane::{signed_bundle, signed_locks};

/// Runs until it is dropped with the test's runtime.
pub struct FakeAuth {
    pub address: HostPort,
    feed: broadcast::Sender<Event>,
    state: Arc<State>,
}

struct State {
    cluster: Arc<TestCluster>,
    secret: [u8; 32],
    feed: broadcast::Sender<Event>,
    watchers: Mutex<Vec<ProxyWatchRequest>>,
    renewals: Mutex<usize>,
}

#[derive(Clone)]
struct Api(Arc<State>);

impl FakeAuth {
    pub async fn start(cluster: &Arc<TestCluster>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = HostPort::from(listener.local_addr().unwrap());
        let feed = broadcast::Sender::new(16);
        let state = Arc::new(State {
            cluster: Arc::clone(cluster),
            secret: [7; 32],
            feed: feed.clone(),
            watchers: Mutex::default(),
            renewals: Mutex::default(),
        });
        let (sender, incoming) = rpc::incoming(8);
        tokio::spawn(accept(listener, Arc::clone(cluster), sender));
        let api = Api(Arc::clone(&state));
        let server = tonic::transport::Server::builder()
            .add_service(ProxyServer::new(api.clone()))
            .add_service(JoinServer::new(api));
        tokio::spawn(server.serve_with_incoming(incoming));
        Self { address, feed, state }
    }

    pub fn publish(&self, event: Event) {
        self.feed.send(event).expect("no proxy watches");
    }

    pub fn watchers(&self) -> Vec<ProxyWatchRequest> {
        self.state.watchers.lock().unwrap().clone()
    }

    pub fn renewals(&self) -> usize {
        *self.state.renewals.lock().unwrap()
    }

    pub fn secret(&self) -> [u8; 32] {
        self.state.secret
    }
}

/// Sends the root along, as the auth server alone does.
async fn accept(listener: TcpListener, cluster: Arc<TestCluster>, sender: IncomingSender) {
    let credential = cluster.auth(AuthId::from_uuid(new_uuid())).unwrap();
    let mut chain = credential.chain.clone();
    chain.push(CertificateDer::from(cluster.root().der().to_vec()));
    let identity = FixedIdentity(certified_key(chain, credential.private_key().unwrap()).unwrap());
    loop {
        let (stream, peer) = listener.accept().await.unwrap();
        let accepted = ClassSet::of(&[Class::Proxy]);
        let bundle = Arc::new(cluster.bundle().clone());
        let verifier = Arc::new(PeerVerifier::new(bundle, accepted, Demand::Optional));
        let config =
            tls::server_config(Arc::new(identity.clone()), Arc::clone(&verifier) as _, &[ALPN_H2]).unwrap();
        let sender = sender.clone();
        tokio::spawn(async move {
            if let Ok(stream) = tls::handshake(stream, config, PATIENCE).await {
                let info = ConnectInfo::of(&verifier, peer);
                let _ = sender.send(AcceptedTls::new(stream, info)).await;
            }
        });
    }
}

impl State {
    fn issue(&self, csr: &[u8], id: ProxyId) -> Issued {
        let now = OffsetDateTime::now_utc();
        let authority = iap_identity::CaClass::System;
        let profile = Profile::Proxy(ProxyProfile {
            id,
            cluster: self.cluster.name.clone(),
        });
        let issued = Csr::parse(csr).unwrap().approve(profile);
        let issued = issued
            .prepare(now, random_serial().unwrap(), self.cluster.issuer(authority))
            .unwrap();
        let issued = issued
            .sign(self.cluster.issuer_key(authority))
            .unwrap()
            .finish(now)
            .unwrap();
        let not_after_unix_ms = time_to_wire(now + time::Duration::hours(24));
        Issued {
            chain: issued.chain_der(),
            not_after_unix_ms,
            serial: Vec::new(),
        }
    }
}

#[tonic::async_trait]
impl Proxy for Api {
    type WatchStream = ReceiverStream<Result<FeedEvent, Status>>;

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Issued>, Status> {
        let info = request.extensions().get::<ConnectInfo>().unwrap();
        let peer = info.peer.as_ref().expect("a renewal shows the old certificate");
        let id = ProxyId::parse(&peer.principal()).unwrap();
        *self.0.renewals.lock().unwrap() += 1;
        Ok(Response::new(self.0.issue(&request.get_ref().csr, id)))
    }

    async fn watch(
        &self,
        request: Request<ProxyWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(16);
        let mut feed = self.0.feed.subscribe();
        self.0.watchers.lock().unwrap().push(request.into_inner());
        tokio::spawn(async move {
            while let Ok(event) = feed.recv().await {
                if sender.send(Ok(FeedEvent { event: Some(event) })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl Join for Api {
    async fn join_agent(&self, _: Request<JoinRequest>) -> Result<Response<JoinedAgent>, Status> {
        Err(Status::unimplemented("no agents here"))
    }

    async fn join_proxy(&self, request: Request<JoinRequest>) -> Result<Response<JoinedProxy>, Status> {
        let request = request.into_inner();
        if request.secret != self.0.secret {
            return Err(Status::permission_denied("the token is unknown, used or expired"));
        }
        let proxy_id = ProxyId::from_uuid(new_uuid());
        Ok(Response::new(JoinedProxy {
            proxy_id: proxy_id.as_bytes().to_vec(),
            issued: Some(self.0.issue(&request.csr, proxy_id)),
            bundle: Some(signed_bundle(&self.0.cluster)),
            locks: Some(signed_locks(&self.0.cluster, 1, Vec::new())),
        }))
    }
}
