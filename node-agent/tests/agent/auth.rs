//! A stand-in for the auth server: signs what tests tell it to, issues leaves, takes records.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iap_audit::RecordView;
use iap_identity::{
    AgentId, AgentProfile, CaClass, Profile, Request as CertificateRequest, ServiceName, SignedKind,
};
use iap_policy::Policy;
use iap_proto::v1::agent_server::Agent;
use iap_proto::v1::feed_event::Event;
use iap_proto::v1::join_server::Join;
use iap_proto::v1::{self, FeedEvent, Signed};
use iap_proto::{Beat, LockList, Snapshot};
use iap_runtime::big_stack;
use iap_runtime::rpc::ConnectInfo;
use iap_testkit::TestCluster;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::backend_authority::BackendAuthority;
use crate::plane::Moved;

const BEAT_EVERY: Duration = Duration::from_millis(200);

#[derive(Clone)]
pub struct FakeAuth(Arc<Inner>);

struct Inner {
    cluster: Arc<TestCluster>,
    backends: BackendAuthority,
    clock: Moved,
    changed: watch::Sender<u64>,
    state: Mutex<State>,
}

struct State {
    snapshot: Snapshot,
    locks: LockList,
    records: Vec<Vec<u8>>,
    takes_records: bool,
    refused_batches: u32,
    batch_records_max: usize,
    renewals: u32,
    withheld: u64,
    token_secret: Option<[u8; 32]>,
    joins_as: AgentId,
    backend_requests: Vec<v1::BackendCredentialsRequest>,
    refuses_backend_requests: bool,
}

impl FakeAuth {
    pub fn new(cluster: Arc<TestCluster>, snapshot: Snapshot, locks: LockList, joins_as: AgentId) -> Self {
        let state = State {
            snapshot,
            locks,
            records: Vec::new(),
            takes_records: true,
            refused_batches: 0,
            batch_records_max: usize::MAX,
            renewals: 0,
            withheld: 0,
            token_secret: None,
            joins_as,
            backend_requests: Vec::new(),
            refuses_backend_requests: false,
        };
        Self(Arc::new(Inner {
            backends: BackendAuthority::new(cluster.name.clone()),
            cluster,
            clock: Moved::default(),
            changed: watch::Sender::new(0),
            state: Mutex::new(state),
        }))
    }

    /// Every request for credentials so far.
    pub fn backend_requests(&self) -> Vec<v1::BackendCredentialsRequest> {
        self.state().backend_requests.clone()
    }

    pub fn refuse_backend_requests(&self, refuses: bool) {
        self.state().refuses_backend_requests = refuses;
    }

    pub fn signed(&self, kind: SignedKind, payload: Vec<u8>) -> Signed {
        let (key_id, signature) = self.0.cluster.sign(kind, &payload).unwrap();
        Signed {
            key_id,
            payload,
            signature,
        }
    }

    pub fn bundle(&self) -> Signed {
        let raw = self.0.cluster.bundle().to_raw();
        self.signed(
            SignedKind::Bundle,
            iap_proto::convert::bundle::encode_bundle(&raw),
        )
    }

    pub fn snapshot(&self) -> Signed {
        let payload = self.state().snapshot.encode();
        self.signed(SignedKind::Snapshot, payload)
    }

    pub fn locks(&self) -> Signed {
        let payload = self.state().locks.encode();
        self.signed(SignedKind::Locks, payload)
    }

    pub fn beat(&self) -> Signed {
        let state = self.state();
        let beat = Beat {
            cluster: self.0.cluster.name.clone(),
            epoch: state.snapshot.epoch,
            time: self.0.clock.now(),
            snapshot_version: state.snapshot.version + state.withheld,
            lock_version: state.locks.version,
        };
        drop(state);
        self.signed(SignedKind::Beat, beat.encode())
    }

    /// Changes the snapshot and publishes it as the next version.
    pub fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut state = self.state();
        change(&mut state.snapshot);
        state.snapshot.version += 1;
        state.snapshot.policy_version += 1;
        state.snapshot.issued = self.0.clock.now();
        drop(state);
        self.0.changed.send_modify(|count| *count += 1);
    }

    pub fn lock(&self, lock: iap_identity::Lock) {
        let mut state = self.state();
        let mut all: Vec<_> = state.locks.locks.iter().cloned().collect();
        all.push(lock);
        state.locks.locks = iap_identity::Locks::new(all);
        state.locks.version += 1;
        state.locks.issued = OffsetDateTime::now_utc();
        drop(state);
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// Publishes objects exactly as they are, without a new version.
    pub fn replace(&self, change: impl FnOnce(&mut Snapshot, &mut LockList)) {
        let mut state = self.state();
        let state = &mut *state;
        change(&mut state.snapshot, &mut state.locks);
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// The server's clock.
    pub fn clock(&self) -> Moved {
        self.0.clock.clone()
    }

    /// From now on beats name a newer snapshot than is delivered.
    pub fn withhold(&self) {
        self.state().withheld = 1;
    }

    pub fn take_records(&self, takes: bool) {
        self.state().takes_records = takes;
    }

    /// How many batches it did not take.
    pub fn refused_batches(&self) -> u32 {
        self.state().refused_batches
    }

    /// From now on a larger batch is never answered, as on a line too slow for it.
    pub fn answer_batches_up_to(&self, records: usize) {
        self.state().batch_records_max = records;
    }

    pub fn invite(&self, secret: [u8; 32]) {
        self.state().token_secret = Some(secret);
    }

    pub fn renewals(&self) -> u32 {
        self.state().renewals
    }

    pub fn records(&self) -> Vec<RecordView> {
        self.state()
            .records
            .iter()
            .map(|bytes| RecordView::parse(bytes).unwrap())
            .collect()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn issue(&self, csr: &[u8], profile: Profile) -> Result<v1::Issued, Status> {
        let cluster = &self.0.cluster;
        let now = OffsetDateTime::now_utc();
        let request =
            CertificateRequest::parse(csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let serial = iap_testkit::certificates::random_serial().unwrap();
        let issued = request
            .approve(profile)
            .prepare(now, serial, cluster.issuer(CaClass::System))
            .unwrap()
            .sign(cluster.issuer_key(CaClass::System))
            .unwrap()
            .finish(now)
            .unwrap();
        Ok(v1::Issued {
            chain: issued.chain_der(),
            not_after_unix_ms: 0,
            serial: Vec::new(),
        })
    }

    fn agent_of<T>(request: &Request<T>) -> Result<AgentId, Status> {
        let info = request
            .extensions()
            .get::<ConnectInfo>()
            .expect("every connection says who it is");
        match info.peer.as_deref() {
            Some(iap_identity::VerifiedPeer::Agent(agent)) => Ok(agent.id),
            _ => Err(Status::unauthenticated("an agent's certificate is needed")),
        }
    }
}

#[tonic::async_trait]
impl Agent for FakeAuth {
    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::Issued>, Status> {
        let info = request.extensions().get::<ConnectInfo>().unwrap().clone();
        let id = match info.expired_agent {
            Some(agent) => agent.id,
            None => Self::agent_of(&request)?,
        };
        self.state().renewals += 1;
        let cluster = self.0.cluster.name.clone();
        let issued = self.issue(
            &request.get_ref().csr,
            Profile::Agent(AgentProfile {
                id,
                cluster,
                generation: 1,
            }),
        )?;
        Ok(Response::new(issued))
    }

    async fn service_leaf(
        &self,
        request: Request<v1::ServiceLeafRequest>,
    ) -> Result<Response<v1::Issued>, Status> {
        let agent = Self::agent_of(&request)?;
        let request = request.into_inner();
        let service = ServiceName::parse(&request.service).unwrap();
        let cluster = self.0.cluster.name.clone();
        let issued = self.issue(
            &request.csr,
            Profile::ServiceLeaf {
                agent,
                service,
                cluster,
            },
        )?;
        Ok(Response::new(issued))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<FeedEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Self::agent_of(&request)?;
        let (sender, receiver) = mpsc::channel(64);
        let auth = self.clone();
        tokio::spawn(async move {
            let mut changed = auth.0.changed.subscribe();
            let mut first = true;
            loop {
                let mut events = Vec::new();
                if first {
                    events.push(Event::Bundle(auth.bundle()));
                }
                if first || changed.has_changed().unwrap() {
                    changed.mark_unchanged();
                    events.push(Event::Snapshot(auth.snapshot()));
                    events.push(Event::Locks(auth.locks()));
                }
                events.push(Event::Beat(auth.beat()));
                first = false;
                for event in events {
                    if sender.send(Ok(FeedEvent { event: Some(event) })).await.is_err() {
                        return;
                    }
                }
                let _ = tokio::time::timeout(BEAT_EVERY, changed.changed())
                    .await
                    .map(|_| changed.mark_changed());
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn append_audit(&self, request: Request<v1::AuditBatch>) -> Result<Response<v1::AuditAck>, Status> {
        let agent = Self::agent_of(&request)?;
        let batch = request.into_inner();
        let batch_records_max = self.state().batch_records_max;
        if batch.records.len() > batch_records_max {
            return std::future::pending().await;
        }
        let mut state = self.state();
        if !state.takes_records {
            state.refused_batches += 1;
            return Err(Status::unavailable("no records now"));
        }
        for bytes in batch.records {
            let view =
                RecordView::parse(&bytes).map_err(|error| Status::invalid_argument(error.to_string()))?;
            assert_eq!(view.agent_id, agent.into());
            let held = state.records.iter().map(|held| RecordView::parse(held).unwrap());
            match held.into_iter().find(|held| held.agent_seq == view.agent_seq) {
                Some(held) => assert_eq!(held.hash_hex, view.hash_hex, "the same number with other content"),
                None => {
                    let last = state
                        .records
                        .last()
                        .map(|bytes| RecordView::parse(bytes).unwrap());
                    iap_audit::verify_link(last.as_ref(), &view).unwrap();
                    state.records.push(bytes);
                }
            }
        }
        let last = state
            .records
            .last()
            .map(|bytes| RecordView::parse(bytes).unwrap().agent_seq);
        Ok(Response::new(v1::AuditAck {
            agent_seq: last.unwrap_or(0),
        }))
    }

    async fn backend_credentials(
        &self,
        request: Request<v1::BackendCredentialsRequest>,
    ) -> Result<Response<v1::BackendCredentialsReply>, Status> {
        Self::agent_of(&request)?;
        let asked = request.into_inner();
        let (toml, services) = {
            let mut state = self.state();
            state.backend_requests.push(asked.clone());
            if state.refuses_backend_requests {
                return Err(Status::unavailable("no credentials now"));
            }
            (
                state.snapshot.policy_toml.clone(),
                state.snapshot.services.clone(),
            )
        };
        let named = services
            .iter()
            .find(|service| service.facts.name.as_str() == asked.service);
        let facts = named.expect("the service exists").facts.clone();
        let of = facts.clone();
        let told = big_stack::run_async(move || Policy::load(&toml).unwrap().accounts(&of, &[], 100)).await;
        let now = self.0.clock.now();
        Ok(Response::new(self.0.backends.answer(&asked, &facts, &told, now)))
    }

    async fn status(&self, request: Request<v1::AgentStatus>) -> Result<Response<v1::Empty>, Status> {
        Self::agent_of(&request)?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn upload_recording(
        &self,
        _: Request<Streaming<v1::RecordingPart>>,
    ) -> Result<Response<v1::RecordingHeld>, Status> {
        Err(Status::unavailable("no session here is recorded"))
    }
}

#[tonic::async_trait]
impl Join for FakeAuth {
    async fn join_agent(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinedAgent>, Status> {
        let request = request.into_inner();
        let (id, known) = {
            let mut state = self.state();
            let known = state
                .token_secret
                .take()
                .is_some_and(|secret| secret == request.secret.as_slice());
            (state.joins_as, known)
        };
        if !known {
            return Err(Status::permission_denied(
                "the token was used already or has expired",
            ));
        }
        let cluster = self.0.cluster.name.clone();
        let issued = self.issue(
            &request.csr,
            Profile::Agent(AgentProfile {
                id,
                cluster,
                generation: 0,
            }),
        )?;
        Ok(Response::new(v1::JoinedAgent {
            agent_id: id.as_bytes().to_vec(),
            issued: Some(issued),
            bundle: Some(self.bundle()),
            snapshot: Some(self.snapshot()),
            locks: Some(self.locks()),
        }))
    }

    async fn join_proxy(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinedProxy>, Status> {
        Err(Status::unimplemented("agents only"))
    }
}
