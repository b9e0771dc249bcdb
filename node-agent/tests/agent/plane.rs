//! A plane around one agent: cluster, stand-ins, state directory, backends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use iap_agent::app::Reload;
use iap_agent::clock::TrustedClock;
use iap_agent::session::Inheritance;
use iap_agent::state::names;
use iap_agent::{App, Config};
use iap_identity::{AgentId, GroupName, Lock, LockKind, LoginName, ServiceName};
use iap_policy::{ServiceFacts, Vocabulary};
use iap_proto::{AuditMode, LockList, ServiceRecord, Snapshot, Strictness};
use iap_runtime::shutdown::Shutdown;
use iap_testkit::TestCluster;
use prost::Message as _;
use rustls_pki_types::UnixTime;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::auth::FakeAuth;
use crate::proxy::{FakeProxy, WAIT};

pub const CLUSTER: &str = "iap.example.com";

pub const POLICY: &str = r#"
[[rule]]
name = "engineers reach everything"
effect = "allow"
users = { groups = ["engineering"] }
services = { names = ["echo", "db-prod", "other"] }
"#;

pub struct Plane {
    pub cluster: Arc<TestCluster>,
    pub auth: FakeAuth,
    pub proxy: FakeProxy,
    pub agent_id: AgentId,
    pub folder: TempDir,
    pub backends: Vec<(String, String)>,
    /// Further lines of `[limits]`.
    pub limits: String,
    pub ceiling: String,
    pub start_with_snapshot: bool,
    /// A line of the file's beginning.
    pub first_line: String,
    /// The agent's clock.
    pub clock: Moved,
    /// The clients'.
    pub client_clock: Moved,
    /// The stand-in for a proxy speaks TLS over TCP alone.
    pub control: &'static str,
}

/// A clock that runs with the system's, at an offset. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Moved(Arc<AtomicI64>);

impl Moved {
    /// Sets it `offset` ahead of the system's.
    pub fn to(&self, offset: time::Duration) {
        self.0.store(offset.whole_seconds(), Ordering::SeqCst);
    }

    pub fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + time::Duration::seconds(self.0.load(Ordering::SeqCst))
    }
}

impl rustls::time_provider::TimeProvider for Moved {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now().unix_timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            seconds,
        )))
    }
}

/// A running agent, on a runtime of its own, as a process would be.
pub struct Running {
    pub shutdown: Shutdown,
    pub reload: Reload,
    runtime: Runtime,
    task: JoinHandle<Result<(), iap_agent::app::RunError>>,
}

impl Plane {
    /// A plane whose agent is granted `echo` and `db-prod`, both with an echoing backend.
    pub async fn new() -> Self {
        Self::of(TestCluster::new(CLUSTER).unwrap()).await
    }

    /// The same in a cluster made at another time.
    pub async fn of(cluster: TestCluster) -> Self {
        let _ = iap_runtime::telemetry::init(
            iap_runtime::telemetry::LogFormat::Text,
            &std::env::var("IAP_TEST_LOG").unwrap_or_else(|_| "off".to_owned()),
        );
        let cluster = Arc::new(cluster);
        let agent_id = AgentId::from_uuid(Uuid::now_v7());
        let auth = FakeAuth::new(Arc::clone(&cluster), snapshot(agent_id), no_locks(), agent_id);
        let proxy = FakeProxy::start(Arc::clone(&cluster), auth.clone()).await;
        let echo = echo_backend().await.to_string();
        let backends = vec![("echo".to_owned(), echo.clone()), ("db-prod".to_owned(), echo)];
        let folder = iap_testkit::temp().unwrap();
        let (limits, ceiling) = (String::new(), String::new());
        Self {
            cluster,
            auth,
            proxy,
            agent_id,
            folder,
            backends,
            limits,
            ceiling,
            start_with_snapshot: true,
            first_line: String::new(),
            clock: Moved::default(),
            client_clock: Moved::default(),
            control: "tls",
        }
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Points a service at another backend.
    pub fn backend(&mut self, service: &str, address: &str) {
        self.backends.retain(|(name, _)| name != service);
        self.backends.push((service.to_owned(), address.to_owned()));
    }

    pub fn config(&self) -> Config {
        let mut text = format!(
            "{}\ncontrol = {:?}\ncluster = {CLUSTER:?}\nstate_dir = {:?}\nproxies = [\"{}\"]\n[limits]\ndrain_seconds_max = 0\n{}\n",
            self.first_line,
            self.control,
            self.state_dir(),
            self.proxy.address(),
            self.limits
        );
        for (name, backend) in &self.backends {
            text.push_str(&format!(
                "[[service]]\nname = {name:?}\nbackend = {backend:?}\n{}\n",
                self.ceiling
            ));
        }
        Config::parse(&text, "agent.toml").unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// Writes what `join` would have left.
    pub fn write_state(&self, certificate_made: OffsetDateTime) {
        let profile = iap_identity::Profile::Agent(iap_identity::AgentProfile {
            id: self.agent_id,
            cluster: self.cluster.name.clone(),
            generation: 0,
        });
        let credential = self.cluster.issue_at(profile, certificate_made).unwrap();
        let state = iap_agent::state::StateDir::open(&self.state_dir()).unwrap();
        state.write(names::KEY, credential.key_pem().as_bytes()).unwrap();
        state
            .write(names::CERTIFICATE, credential.chain_pem().as_bytes())
            .unwrap();
        state
            .write(names::PIN, self.cluster.pin().to_string().as_bytes())
            .unwrap();
        state
            .write(names::BUNDLE, &self.auth.bundle().encode_to_vec())
            .unwrap();
        if self.start_with_snapshot {
            state
                .write(names::SNAPSHOT, &self.auth.snapshot().encode_to_vec())
                .unwrap();
            state
                .write(names::LOCKS, &self.auth.locks().encode_to_vec())
                .unwrap();
        }
        state
            .write(names::AGENT_ID, self.agent_id.to_string().as_bytes())
            .unwrap();
    }

    /// Gives the agent its leaves, as an earlier run would have left them.
    pub fn write_leaves(&self) {
        self.write_leaves_of(OffsetDateTime::now_utc());
    }

    /// The same, issued at that time.
    pub fn write_leaves_of(&self, made: OffsetDateTime) {
        let state = iap_agent::state::StateDir::open(&self.state_dir()).unwrap();
        for (name, _) in &self.backends {
            let service = ServiceName::parse(name).unwrap();
            let profile = iap_identity::Profile::ServiceLeaf {
                agent: self.agent_id,
                service: service.clone(),
                cluster: self.cluster.name.clone(),
            };
            let credential = self.cluster.issue_at(profile, made).unwrap();
            iap_runtime::keys::store(&state.leaf_key(&service).unwrap(), &credential.key).unwrap();
            state
                .write_leaf_certificate(&service, credential.chain_pem().as_bytes())
                .unwrap();
        }
    }

    /// Starts the agent from its state directory, which is written first if there is none.
    pub async fn start(&self) -> Running {
        self.start_with(self.config()).await
    }

    /// The same with this configuration.
    pub async fn start_with(&self, config: Config) -> Running {
        self.start_after(config, Inheritance::default()).await
    }

    /// The same after a predecessor.
    pub async fn start_after(&self, config: Config, inheritance: Inheritance) -> Running {
        if !self.state_dir().join(names::AGENT_ID).exists() {
            self.write_state(OffsetDateTime::now_utc());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let moved = self.clock.clone();
        let clock = TrustedClock::new(move || moved.now());
        let building = runtime.spawn(async { App::build_with(config, clock, inheritance).await });
        let app = building.await.unwrap();
        let app = app.unwrap_or_else(|error| panic!("{error}"));
        let (shutdown, reload) = (Shutdown::new(), app.reload());
        let task = runtime.spawn(app.run(shutdown.clone(), || ()));
        Running {
            shutdown,
            reload,
            runtime,
            task,
        }
    }

    /// A running agent that has announced everything it should.
    pub async fn started() -> (Self, Running) {
        let plane = Self::new().await;
        let running = plane.start().await;
        plane.proxy.announced(&["echo", "db-prod"]).await;
        (plane, running)
    }

    /// Waits until the auth server holds a record that satisfies `wanted`.
    pub async fn record(
        &self,
        wanted: impl Fn(&iap_audit::RecordView) -> bool,
    ) -> serde_json::Map<String, serde_json::Value> {
        let mut found = None;
        let looking = iap_testkit::wait_until_async(
            async || {
                found = self.auth.records().into_iter().find(|record| wanted(record));
                found.is_some()
            },
            WAIT,
        );
        if looking.await.is_err() {
            let all: Vec<_> = self
                .auth
                .records()
                .into_iter()
                .map(|record| record.fields)
                .collect();
            panic!("no such record among {all:#?}");
        }
        found.unwrap().fields
    }

    /// Waits for the first record of an event.
    pub async fn event(&self, event: &str) -> serde_json::Map<String, serde_json::Value> {
        self.record(|record| record.event == event).await
    }

    pub fn lock(&self, kind: LockKind, target: &str, reason: &str) {
        self.auth.lock(Lock {
            id: Uuid::now_v7(),
            kind,
            target: target.to_owned(),
            reason: reason.to_owned(),
            created_by: "admin@example.com".to_owned(),
            created_at: OffsetDateTime::now_utc(),
            expires_at: None,
        });
    }
}

impl Running {
    /// Stops in order.
    pub async fn stop(self) {
        self.shutdown.trigger("test");
        self.ended().await;
    }

    /// Waits until it has stopped in order, whoever told it to.
    pub async fn ended(mut self) {
        tokio::time::timeout(WAIT, &mut self.task)
            .await
            .expect("the agent stops")
            .unwrap()
            .unwrap();
        self.kill().await;
    }

    /// Dies at once: every task is dropped where it stands.
    pub async fn kill(self) {
        let runtime = self.runtime;
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(WAIT))
            .await
            .unwrap();
    }
}

pub fn snapshot(agent_id: AgentId) -> Snapshot {
    let now = OffsetDateTime::now_utc();
    Snapshot {
        epoch: 1,
        version: 1,
        cluster: iap_identity::ClusterName::parse(CLUSTER).unwrap(),
        issued: now,
        expires: now + time::Duration::hours(24),
        policy_version: 1,
        policy_toml: POLICY.to_owned(),
        vocabulary: Vocabulary::new([(GroupName::parse("dev:engineering").unwrap(), 1)].into()),
        services: vec![service("echo", &[agent_id]), service("db-prod", &[agent_id])],
        proxies: Vec::new(),
        reserved_logins: vec![LoginName::parse("root").unwrap()],
    }
}

pub fn service(name: &str, agents: &[AgentId]) -> ServiceRecord {
    let mut facts = ServiceFacts::tcp(ServiceName::parse(name).unwrap());
    if name.starts_with("db") {
        facts.protocol = iap_policy::Protocol::Postgres;
    }
    ServiceRecord {
        facts,
        description: String::new(),
        contact: "#platform".to_owned(),
        agents: agents.to_vec(),
        audit: AuditMode::Required,
        recording: None,
        strictness: Strictness::default(),
    }
}

pub fn no_locks() -> LockList {
    LockList {
        cluster: iap_identity::ClusterName::parse(CLUSTER).unwrap(),
        epoch: 1,
        version: 1,
        issued: OffsetDateTime::now_utc(),
        locks: iap_identity::Locks::default(),
    }
}

/// Sends back every byte; on end of input, says "bye" and closes.
pub async fn echo_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 * 1024];
                loop {
                    match stream.read(&mut buffer).await {
                        Ok(0) => {
                            let _ = stream.write_all(b"bye").await;
                            return;
                        }
                        Ok(count) => {
                            if stream.write_all(&buffer[..count]).await.is_err() {
                                return;
                            }
                        }
                        Err(_) => return,
                    }
                }
            });
        }
    });
    address
}
