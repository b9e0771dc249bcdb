//! A proxy that joined a cluster of its own, running inside the test.

use std::net::SocketAddr;
use std::sync::Arc;

use iap_identity::{Lock, LockKind, Locks, ProxyId, SignedKind};
use iap_proto::LockList;
use iap_proto::convert::bundle::encode_bundle;
use iap_proto::v1::Signed;
use iap_proxy::metrics::{Metrics, Refusal};
use iap_proxy::switchboard::Switchboard;
use iap_proxy::{App, Config, LimitsInForce};
use iap_runtime::files::DataDir;
use iap_runtime::shutdown::{Drained, Shutdown};
use iap_runtime::tls;
use iap_testkit::{Credential, TestCluster, new_uuid};
use prost::Message as _;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::task::JoinHandle;

use super::until;

pub const CLUSTER: &str = "iap.example.com";

pub struct Plane {
    pub cluster: Arc<TestCluster>,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub metrics: Metrics,
    pub board: Switchboard,
    pub limits: LimitsInForce,
    pub shutdown: Shutdown,
    pub state: TempDir,
    pub run: JoinHandle<Drained>,
}

/// What lies in the state directory before the proxy starts.
pub struct Prepared {
    pub cluster: Arc<TestCluster>,
    pub state: TempDir,
    pub config: Config,
}

impl Prepared {
    /// A joined proxy whose auth server cannot be reached.
    pub fn new() -> Self {
        tls::install_provider();
        let cluster = aged_cluster();
        let proxy_id = ProxyId::from_uuid(new_uuid());
        let credential = cluster.proxy(proxy_id).unwrap();
        Self::with(cluster, proxy_id, &credential)
    }

    pub fn with(cluster: TestCluster, proxy_id: ProxyId, credential: &Credential) -> Self {
        let state = iap_testkit::temp().unwrap();
        let config = config(&state);
        let directory = DataDir::open_or_create(&config.state_dir).unwrap();
        directory
            .write("proxy_id", proxy_id.to_string().as_bytes())
            .unwrap();
        directory
            .write("key.pem", credential.key_pem().as_bytes())
            .unwrap();
        directory
            .write("cert.pem", credential.chain_pem().as_bytes())
            .unwrap();
        directory
            .write("bundle.bin", &signed_bundle(&cluster).encode_to_vec())
            .unwrap();
        Self {
            cluster: Arc::new(cluster),
            state,
            config,
        }
    }

    pub fn store(&self, file: &str, signed: &Signed) {
        let directory = DataDir::open_or_create(&self.config.state_dir).unwrap();
        directory.write(file, &signed.encode_to_vec()).unwrap();
    }

    pub async fn start(self) -> Plane {
        let app = App::build(self.config.clone()).await.unwrap();
        let (metrics, board, limits) = (app.metrics(), app.switchboard(), app.limits());
        let address = app.local_addresses()[0];
        let shutdown = Shutdown::new();
        let running = app.start(shutdown.clone()).await.unwrap();
        let admin = running.admin_address();
        let run = tokio::spawn(running.stopped());
        let (cluster, state) = (self.cluster, self.state);
        Plane {
            cluster,
            address,
            admin,
            metrics,
            board,
            limits,
            shutdown,
            state,
            run,
        }
    }
}

impl Plane {
    pub async fn start() -> Self {
        Prepared::new().start().await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let mut prepared = Prepared::new();
        change(&mut prepared.config);
        prepared.start().await
    }

    pub fn host(&self, label: &str) -> String {
        format!("{label}.{CLUSTER}")
    }

    /// Waits until the refusal was counted once, and no other beside it.
    pub async fn refused_once(&self, reason: Refusal) {
        until(|| self.metrics.refusals(reason) == 1).await;
    }
}

/// Its authorities are two days old, so that certificates may be too; what it issues is of today.
pub fn aged_cluster() -> TestCluster {
    let now = OffsetDateTime::now_utc();
    let mut cluster = TestCluster::at(CLUSTER, now - time::Duration::days(2)).unwrap();
    cluster.now = now;
    cluster
}

fn config(state: &TempDir) -> Config {
    let path = state.path().join("proxy");
    let text = format!(
        "cluster = \"{CLUSTER}\"\nstate_dir = \"{}\"\nlisten = [\"127.0.0.1:0\"]\n\
         public_address = \"{CLUSTER}:443\"\nauth = \"127.0.0.1:1\"\nadmin_listen = \"127.0.0.1:0\"\n",
        path.display()
    );
    Config::parse(&text, "test").unwrap()
}

pub fn signed(cluster: &TestCluster, kind: SignedKind, payload: Vec<u8>) -> Signed {
    let (key_id, signature) = cluster.sign(kind, &payload).unwrap();
    Signed {
        key_id,
        payload,
        signature,
    }
}

pub fn signed_bundle(cluster: &TestCluster) -> Signed {
    signed(
        cluster,
        SignedKind::Bundle,
        encode_bundle(&cluster.bundle().to_raw()),
    )
}

pub fn signed_locks(cluster: &TestCluster, version: u64, locks: Vec<Lock>) -> Signed {
    let list = LockList {
        cluster: cluster.name.clone(),
        epoch: 1,
        version,
        issued: OffsetDateTime::now_utc(),
        locks: Locks::new(locks),
    };
    signed(cluster, SignedKind::Locks, list.encode())
}

pub fn lock(kind: LockKind, target: String) -> Lock {
    Lock {
        id: new_uuid(),
        kind,
        target,
        reason: "stolen".to_owned(),
        created_by: "admin@example.com".to_owned(),
        created_at: OffsetDateTime::now_utc(),
        expires_at: None,
    }
}
