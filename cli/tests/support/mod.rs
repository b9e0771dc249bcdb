//! A home with a login, and an agent of the tests' own that answers as it is told.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iap_identity::{AgentId, Class, ClassSet, Profile, SessionId, SignedKind};
use iap_proto::v1;
use iap_runtime::tls::{self, Demand, FixedIdentity, PeerVerifier};
use iap_testkit::{Credential, TestCluster};
use iap_tunnel::{FRAME_BYTES_MAX, Hello, LengthPrefixed, Status};
use iapctl::home::{ClusterRecord, Credentials, Home};
use iapctl::services::KnownService;
use prost::Message as _;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;
use zeroize::Zeroizing;

pub(crate) const CLUSTER: &str = "iap.localhost";

/// What the agent answers to its n-th connection.
pub(crate) type Script = Arc<dyn Fn(usize, &Hello) -> Status + Send + Sync>;

/// An agent on loopback, and a home that is logged in to its cluster.
pub(crate) struct Plane {
    pub(crate) home: TempDir,
    pub(crate) cluster: TestCluster,
    pub(crate) hellos: Arc<Mutex<Vec<Hello>>>,
    /// What came right behind each hello, before it was answered.
    pub(crate) early: Arc<Mutex<Vec<Vec<u8>>>>,
    pub(crate) address: SocketAddr,
}

pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Plane {
    /// Alice is logged in; `echo` answers by the script and then sends back what it gets.
    pub(crate) async fn start(script: Script) -> Self {
        Self::start_for("echo", script).await
    }

    /// The agent holds a leaf for `leaf` alone.
    pub(crate) async fn start_for(leaf: &str, script: Script) -> Self {
        // Old enough for certificates that have expired since.
        let cluster = TestCluster::at(CLUSTER, OffsetDateTime::now_utc() - time::Duration::hours(3)).unwrap();
        let leaf = cluster
            .service_leaf(AgentId::from_uuid(Uuid::now_v7()), leaf)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hellos = Arc::new(Mutex::new(Vec::new()));
        let early = Arc::new(Mutex::new(Vec::new()));
        let agent = Agent {
            bundle: Arc::new(cluster.bundle().clone()),
            identity: Arc::new(FixedIdentity(
                tls::certified_key(leaf.chain.clone(), leaf.private_key().unwrap()).unwrap(),
            )),
            script,
            hellos: Arc::clone(&hellos),
            early: Arc::clone(&early),
        };
        tokio::spawn(agent.serve(listener));
        let plane = Self {
            home: tempfile::tempdir().unwrap(),
            cluster,
            hellos,
            early,
            address,
        };
        plane.log_in_since(time::Duration::ZERO);
        plane
    }

    /// Alice logged in so long ago.
    pub(crate) fn log_in_since(&self, ago: time::Duration) {
        let profile = self
            .cluster
            .user_profile("alice@example.com", &["engineering"])
            .unwrap();
        let issued = self
            .cluster
            .issue_at(Profile::User(profile), OffsetDateTime::now_utc() - ago);
        self.log_in(&issued.unwrap());
    }

    /// Stores a login as `iapctl login` would.
    pub(crate) fn log_in(&self, user: &Credential) {
        let home = Home::new(self.home.path());
        let name = &self.cluster.name;
        let cluster = home.cluster(name);
        cluster
            .remember(&ClusterRecord {
                cluster: name.clone(),
                addresses: vec![format!("{CLUSTER}:{}", self.address.port())],
                pin: self.cluster.pin().to_string(),
                ports: Default::default(),
                no_renew: false,
            })
            .unwrap();
        let payload = v1::Bundle::from(&self.cluster.bundle().to_raw()).encode_to_vec();
        let (key_id, signature) = self.cluster.sign(SignedKind::Bundle, &payload).unwrap();
        let signed = v1::Signed {
            key_id,
            payload,
            signature,
        };
        cluster
            .write_trust(
                &iap_testkit::certificates::pem(self.cluster.bundle().root_der()),
                &signed.encode_to_vec(),
            )
            .unwrap();
        let key_der = Zeroizing::new(user.key.serialize_der());
        let key_pem = Zeroizing::new(user.key_pem());
        cluster
            .write_generation(&Credentials {
                pkcs12: Zeroizing::new(Vec::new()),
                certificates_pem: user.chain_pem(),
                key_pem,
                key_der,
                ssh: Vec::new(),
            })
            .unwrap();
        let services = ["echo", "db-prod"].map(|service| KnownService {
            name: service.to_owned(),
            protocol: if service == "echo" { "tcp" } else { "postgres" }.to_owned(),
            login: (service == "db-prod").then(|| "app".to_owned()),
            ..KnownService::default()
        });
        cluster.write_services(&services).unwrap();
        home.make_current(name).unwrap();
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Run {
        run(self.home.path(), arguments, &[], b"").await
    }

    pub(crate) async fn run_with(
        &self,
        arguments: &[&str],
        environment: &[(&str, &str)],
        input: &[u8],
    ) -> Run {
        run(self.home.path(), arguments, environment, input).await
    }

    pub(crate) fn hello_count(&self) -> usize {
        self.hellos.lock().unwrap().len()
    }
}

/// Runs the built program.
pub(crate) async fn run(home: &Path, arguments: &[&str], environment: &[(&str, &str)], input: &[u8]) -> Run {
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_iapctl"))
        .args(arguments)
        .env("IAPCTL_HOME", home)
        .env("IAPCTL_NONINTERACTIVE", "1")
        .envs(environment.iter().copied())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that refuses does not read its input.
    let _ = stdin.write_all(input).await;
    drop(stdin);
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    Run {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Every connection is granted.
pub(crate) fn granting(protocol: &'static str) -> Script {
    Arc::new(move |_, _| granted(protocol))
}

pub(crate) fn granted(protocol: &str) -> Status {
    Status::Granted {
        session_id: SessionId::from_uuid(Uuid::now_v7()),
        login: None,
        protocol: protocol.to_owned(),
        resume_name: None,
        resume: None,
        trace_id: None,
    }
}

#[derive(Clone)]
struct Agent {
    bundle: Arc<iap_identity::TrustBundle>,
    identity: Arc<FixedIdentity>,
    script: Script,
    hellos: Arc<Mutex<Vec<Hello>>>,
    early: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Agent {
    async fn serve(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let agent = self.clone();
            tokio::spawn(async move {
                // Clients of these tests go away at will.
                let _ = agent.answer(stream).await;
            });
        }
    }

    async fn answer(self, stream: TcpStream) -> anyhow::Result<()> {
        let verifier = PeerVerifier::new(self.bundle, ClassSet::of(&[Class::User]), Demand::Required);
        let config = tls::server_config(self.identity, Arc::new(verifier), &["iap/1"])?;
        let mut stream = tls::handshake(stream, config, Duration::from_secs(5)).await?;
        let mut frames = LengthPrefixed::new(FRAME_BYTES_MAX);
        let hello = loop {
            let mut buffer = [0; 1024];
            let count = stream.read(&mut buffer).await?;
            anyhow::ensure!(count > 0, "no hello");
            frames.push(&buffer[..count]);
            if let Some(frame) = frames.next_frame()? {
                break Hello::decode(&frame)?;
            }
        };
        let early = frames.into_rest();
        self.early.lock().unwrap().push(early.clone());
        let number = {
            let mut hellos = self.hellos.lock().unwrap();
            hellos.push(hello.clone());
            hellos.len()
        };
        let status = (self.script)(number, &hello);
        // The backend's first bytes ride in the packet of the status.
        let mut answer = status.encode()?;
        if matches!(status, Status::Granted { .. }) {
            answer.extend_from_slice(b"welcome\n");
            answer.extend_from_slice(&early);
        }
        stream.write_all(&answer).await?;
        if matches!(status, Status::Granted { .. }) {
            let (mut reader, mut writer) = tokio::io::split(stream);
            tokio::io::copy(&mut reader, &mut writer).await?;
            writer.shutdown().await?;
        } else {
            stream.shutdown().await?;
        }
        Ok(())
    }
}
