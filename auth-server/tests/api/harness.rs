//! A running auth server in a temporary folder, and clients of every class.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use iap_auth::app::{App, LimitsInForce};
use iap_auth::authority::UserLogin;
use iap_auth::config::Config;
use iap_auth::context::{AppContext, Clock, Random};
use iap_auth::rpc::ERROR_METADATA_KEY;
use iap_auth::store::UserRow;
use iap_identity::{
    AgentId, CertificateDer, GroupName, IdentityProvider, Issued, JoinToken, LoginId, ProxyId, Request,
    UserId, certificate_request,
};
use iap_proto::v1::{
    self, admin_client::AdminClient, agent_client::AgentClient, join_client::JoinClient,
    proxy_client::ProxyClient, user_client::UserClient,
};
use iap_runtime::keys::{self, KeyKind};
use iap_runtime::net::HostPort;
use iap_runtime::rpc;
use iap_runtime::shutdown::Shutdown;
use iap_runtime::tls::{self, FixedIdentity, Material, ServerVerifier};
use rcgen::KeyPair;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

pub(crate) const CLUSTER: &str = "iap.example.com";
pub(crate) const ADMIN: &str = "admin@example.com";

/// A clock that runs with the system's, at an offset.
#[derive(Clone, Default)]
pub(crate) struct Offset(Arc<AtomicI64>);

impl Offset {
    pub(crate) fn set(&self, offset: Duration) {
        self.0.store(offset.whole_seconds(), Ordering::SeqCst);
    }

    pub(crate) fn clock(&self) -> Clock {
        let seconds = Arc::clone(&self.0);
        Clock::from_fn(move || OffsetDateTime::now_utc() + Duration::seconds(seconds.load(Ordering::SeqCst)))
    }
}

/// A running auth server.
pub(crate) struct Plane {
    pub(crate) context: Arc<AppContext>,
    pub(crate) address: SocketAddr,
    pub(crate) limits: LimitsInForce,
    pub(crate) offset: Offset,
    shutdown: Shutdown,
    running: JoinHandle<()>,
    dir: TempDir,
}

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) key: KeyPair,
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

impl Plane {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), Offset::default()).await
    }

    /// With another configuration than the tests' own.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir);
        change(&mut config);
        Self::start_as(config, dir, Offset::default()).await
    }

    /// A cluster whose authorities are two months old, so that certificates can have expired.
    pub(crate) async fn start_aged() -> Self {
        let (dir, offset) = (tempfile::tempdir().unwrap(), Offset::default());
        offset.set(Duration::days(-60));
        drop(
            AppContext::open(config(&dir), offset.clock(), Random::system())
                .await
                .unwrap(),
        );
        offset.set(Duration::ZERO);
        Self::start_in(dir, offset).await
    }

    async fn start_in(dir: TempDir, offset: Offset) -> Self {
        Self::start_as(config(&dir), dir, offset).await
    }

    async fn start_as(config: Config, dir: TempDir, offset: Offset) -> Self {
        tls::install_provider();
        let app = App::build(config, offset.clock(), Random::system())
            .await
            .unwrap();
        let (context, address) = (Arc::clone(app.context()), app.local_address().unwrap());
        let limits = app.limits();
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let running = tokio::spawn(async move { app.run(stop, || ()).await.unwrap() });
        Self {
            context,
            address,
            limits,
            offset,
            shutdown,
            running,
            dir,
        }
    }

    /// The configuration it runs with.
    pub(crate) fn config(&self) -> Config {
        config(&self.dir)
    }

    /// A place beside `data_dir`, gone with the plane.
    pub(crate) fn beside(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Stops the server, loses its `data_dir`, restores the backup there and starts it again.
    pub(crate) async fn restore(self, backup: &std::path::Path) -> Self {
        let (dir, offset) = self.stop().await;
        let config = config(&dir);
        std::fs::remove_dir_all(&config.data_dir).unwrap();
        iap_auth::backup::restore(&config, backup, &offset.clock(), &Random::system())
            .await
            .unwrap();
        Self::start_in(dir, offset).await
    }

    /// Stops the server as SIGTERM does and starts it again in the same folder.
    pub(crate) async fn restart(self) -> Self {
        let (dir, offset) = self.stop().await;
        Self::start_in(dir, offset).await
    }

    async fn stop(self) -> (TempDir, Offset) {
        let Self {
            context,
            offset,
            shutdown,
            running,
            dir,
            ..
        } = self;
        shutdown.trigger("restart");
        running.await.unwrap();
        while Arc::strong_count(&context) > 1 {
            tokio::task::yield_now().await;
        }
        (dir, offset)
    }

    /// Runs a statement on the server's database, beside the server.
    pub(crate) async fn sql(&self, statement: &'static str) {
        use sqlx::ConnectOptions as _;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(
            self.context
                .config
                .data_dir
                .join(iap_auth::authority::DATABASE_FILE),
        );
        let mut connection = options.connect().await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    }

    /// A channel without a certificate.
    pub(crate) fn nobody(&self) -> Channel {
        self.channel(None)
    }

    /// A channel with a certificate.
    pub(crate) fn with(&self, identity: &Identity) -> Channel {
        self.channel(Some(identity))
    }

    pub(crate) fn user(&self, identity: &Identity) -> UserClient<Channel> {
        UserClient::new(self.with(identity))
    }

    pub(crate) fn admin(&self, identity: &Identity) -> AdminClient<Channel> {
        AdminClient::new(self.with(identity))
    }

    pub(crate) fn agent(&self, identity: &Identity) -> AgentClient<Channel> {
        AgentClient::new(self.with(identity))
    }

    pub(crate) fn proxy(&self, identity: &Identity) -> ProxyClient<Channel> {
        ProxyClient::new(self.with(identity))
    }

    pub(crate) fn join(&self) -> JoinClient<Channel> {
        JoinClient::new(self.nobody())
    }

    fn channel(&self, identity: Option<&Identity>) -> Channel {
        let material = Material::new(self.context.authority.bundle.as_ref().clone());
        let shown = identity.map(|identity| {
            let key = keys::private_key_der(&identity.key);
            let certified = tls::certified_key(identity.chain.clone(), key).unwrap();
            Arc::new(FixedIdentity(certified)) as Arc<dyn tls::ResolvesClientCert>
        });
        let verifier = Arc::new(ServerVerifier::new(material));
        let config = tls::client_config(verifier, shown, &[rpc::ALPN_H2]).unwrap();
        rpc::channel(HostPort::from(self.address), &format!("auth.{CLUSTER}"), config).unwrap()
    }

    /// A user who logs in now, without groups.
    pub(crate) async fn log_in(&self, name: &str) -> Identity {
        self.log_in_with(name, &[], Duration::ZERO, Duration::hours(12))
            .await
    }

    /// A user with groups who authenticated `age` ago, for at most `left`.
    pub(crate) async fn log_in_with(
        &self,
        name: &str,
        groups: &[&str],
        age: Duration,
        left: Duration,
    ) -> Identity {
        let login = self.login(name, groups, age, left).await;
        let (key, request) = key_and_request();
        let issued = self.context.authority.issue_user(&login, request).await.unwrap();
        Identity::new(key, &issued)
    }

    async fn login(&self, name: &str, groups: &[&str], age: Duration, left: Duration) -> UserLogin {
        let now = self.context.clock.now();
        let (connector, issuer) = ("okta".to_owned(), "https://okta.example.com".to_owned());
        let user_id = UserId::derive(&connector, &issuer, name);
        let groups: Vec<GroupName> = groups
            .iter()
            .map(|group| GroupName::new("okta", group).unwrap())
            .collect();
        let user = UserRow {
            user_id: user_id.clone(),
            connector: connector.clone(),
            issuer: issuer.clone(),
            subject: name.to_owned(),
            name: name.to_owned(),
            email: Some(name.to_owned()),
            groups: groups.clone(),
            groups_as_of: now,
            last_login: now,
        };
        self.context.store.upsert_user(&user).await.unwrap();
        UserLogin {
            user_id,
            name: name.to_owned(),
            login_id: LoginId::from_uuid(self.context.random.uuid_v7(now).unwrap()),
            auth_time: now - age,
            login_deadline: now + left,
            idp: IdentityProvider {
                connector,
                issuer,
                subject: name.to_owned(),
                acr: None,
            },
            login_method: "browser".to_owned(),
            mfa_time: None,
            groups,
            groups_as_of: now,
        }
    }

    /// Creates tcp services.
    pub(crate) async fn create_services(&self, admin: &Identity, names: &[&str]) {
        let services_toml: String = names
            .iter()
            .map(|name| format!("[[service]]\nname = \"{name}\"\n"))
            .collect();
        self.admin(admin)
            .services_apply(v1::ServicesApplyRequest { services_toml })
            .await
            .unwrap();
    }

    /// A token for an agent; returns its secret part.
    pub(crate) async fn agent_token(&self, admin: &Identity, services: &[&str], uses: u32) -> Vec<u8> {
        self.token(admin, "agent", services, uses).await
    }

    pub(crate) async fn token(&self, admin: &Identity, kind: &str, services: &[&str], uses: u32) -> Vec<u8> {
        let request = v1::TokenCreateRequest {
            kind: kind.to_owned(),
            services: services.iter().map(ToString::to_string).collect(),
            uses,
            ttl_seconds: 0,
        };
        let reply = self
            .admin(admin)
            .token_create(request)
            .await
            .unwrap()
            .into_inner();
        let token = JoinToken::parse(&reply.token).unwrap();
        assert_eq!(*token.pin(), self.context.authority.pin());
        token.secret().to_vec()
    }

    /// An agent that joins with a token for those services.
    pub(crate) async fn join_agent(&self, admin: &Identity, services: &[&str]) -> (AgentId, Identity) {
        let secret = self.agent_token(admin, services, 1).await;
        let (key, request) = join_request(secret);
        let joined = self.join().join_agent(request).await.unwrap().into_inner();
        let identity = Identity::from_wire(key, &joined.issued.unwrap());
        (AgentId::from_bytes(&joined.agent_id).unwrap(), identity)
    }

    pub(crate) async fn join_proxy(&self, admin: &Identity) -> (ProxyId, Identity) {
        let secret = self.token(admin, "proxy", &[], 1).await;
        let (key, request) = join_request(secret);
        let joined = self.join().join_proxy(request).await.unwrap().into_inner();
        let identity = Identity::from_wire(key, &joined.issued.unwrap());
        (ProxyId::from_bytes(&joined.proxy_id).unwrap(), identity)
    }

    /// Every stored record whose `event` is that, the oldest first.
    pub(crate) async fn records(&self, admin: &Identity, event: &str) -> Vec<serde_json::Value> {
        self.search(admin, &format!("event == \"{event}\""), 0).await
    }

    pub(crate) async fn search(
        &self,
        admin: &Identity,
        expression: &str,
        limit: u32,
    ) -> Vec<serde_json::Value> {
        let request = v1::AuditSearchRequest {
            expression: expression.to_owned(),
            limit,
            since_unix_ms: 0,
            until_unix_ms: 0,
        };
        let mut found = self
            .admin(admin)
            .audit_search(request)
            .await
            .unwrap()
            .into_inner();
        let mut records = Vec::new();
        while let Some(reply) = found.message().await.unwrap() {
            records.push(serde_json::from_str(&reply.json).unwrap());
        }
        records
    }
}

impl Identity {
    pub(crate) fn new(key: KeyPair, issued: &Issued) -> Self {
        let chain = issued.chain_der().into_iter().map(CertificateDer::from).collect();
        Self { key, chain }
    }

    pub(crate) fn from_wire(key: KeyPair, issued: &v1::Issued) -> Self {
        Self {
            key,
            chain: issued.chain.iter().cloned().map(CertificateDer::from).collect(),
        }
    }
}

pub(crate) fn config_text(dir: &std::path::Path) -> String {
    format!(
        r#"
        cluster = "{CLUSTER}"
        data_dir = "{}"
        listen = "127.0.0.1:0"
        admin_listen = "127.0.0.1:0"
        proxy_protocol_from = ["127.0.0.1/32"]
        [bootstrap]
        admins = ["{ADMIN}"]
        [[connector]]
        name = "okta"
        issuer = "https://okta.example.com"
        client_id = "iap"
        domains = ["example.com"]
        [snapshot]
        beat = "200ms"
        [limits]
        handshake_timeout = "2s"
        unauthenticated_timeout = "3s"
        "#,
        dir.join("data").display()
    )
}

pub(crate) fn config(dir: &TempDir) -> Config {
    Config::parse(&config_text(dir.path()), "test").unwrap()
}

/// A new key and the parsed request for it.
pub(crate) fn key_and_request() -> (KeyPair, Request) {
    let (key, csr) = key_and_csr();
    (key, Request::parse(&csr).unwrap())
}

/// A new key and the request for it.
pub(crate) fn key_and_csr() -> (KeyPair, Vec<u8>) {
    let key = keys::generate(KeyKind::P256).unwrap();
    let csr = certificate_request(&key).unwrap();
    (key, csr)
}

pub(crate) fn join_request(secret: Vec<u8>) -> (KeyPair, v1::JoinRequest) {
    let (key, csr) = key_and_csr();
    let request = v1::JoinRequest {
        secret,
        csr,
        host_name: "host-1".to_owned(),
        version: "0.1.0".to_owned(),
    };
    (key, request)
}

/// The stable code of a refusal.
pub(crate) fn code(status: &Status) -> &str {
    status
        .metadata()
        .get(ERROR_METADATA_KEY)
        .map_or("none", |code| code.to_str().unwrap())
}

/// The code of the refusal that must have come.
pub(crate) fn refused<T>(result: Result<T, Status>) -> String {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(status) => code(&status).to_owned(),
    }
}
