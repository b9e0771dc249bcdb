//! Real handshakes between our own ends, and with peers that misbehave in one way.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod clients;
mod servers;
mod streams;
mod wire;

use std::sync::Arc;
use std::time::Duration as StdDuration;

use iap_identity::{AgentId, Class, ClassSet, Profile, ServiceName};
use iap_testkit::{Credential, TestCluster};
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use uuid::Uuid;

use super::*;

const TIMEOUT: StdDuration = StdDuration::from_secs(20);
const USERS: ClassSet = ClassSet::of(&[Class::User, Class::Bot]);
const SERVICE: &str = "db.iap.example.com";

/// A cluster, and an agent of it that serves `db`.
struct World {
    cluster: TestCluster,
    agent: AgentId,
    leaf: Credential,
    material: Arc<Material>,
}

impl World {
    fn new() -> Self {
        Self::of_age(Duration::ZERO)
    }

    /// Old enough to have issued what has expired since.
    fn of_age(age: Duration) -> Self {
        let now = OffsetDateTime::now_utc();
        let cluster = TestCluster::at("iap.example.com", now - age).unwrap();
        let agent = AgentId::from_uuid(Uuid::now_v7());
        let service = ServiceName::parse("db").unwrap();
        let leaf = Profile::ServiceLeaf {
            agent,
            service,
            cluster: cluster.name.clone(),
        };
        let leaf = cluster.issue_at(leaf, now).unwrap();
        let material = Material::new(cluster.bundle().clone());
        Self {
            cluster,
            agent,
            leaf,
            material,
        }
    }

    fn verifier(&self, accepted: ClassSet, demand: Demand) -> PeerVerifier {
        PeerVerifier::new(self.material.bundle(), accepted, demand)
    }

    fn client(&self, identity: Option<&Credential>) -> Arc<ClientConfig> {
        let identity = identity.map(|credential| Arc::new(fixed(credential)) as Arc<dyn ResolvesClientCert>);
        let servers = Arc::new(ServerVerifier::new(Arc::clone(&self.material)));
        client_config(servers, identity, &[]).unwrap()
    }

    /// What the server learnt, and what the client read until the end.
    async fn meet(&self, verifier: PeerVerifier, client: Arc<ClientConfig>) -> Meeting {
        let verifier = Arc::new(verifier);
        let clients: Arc<dyn ClientCertVerifier> = Arc::clone(&verifier) as _;
        let server = server_config(Arc::new(fixed(&self.leaf)), clients, &[]).unwrap();
        let (result, heard) = converse(server, client, SERVICE).await;
        Meeting {
            verifier,
            result,
            heard,
        }
    }
}

struct Meeting {
    verifier: Arc<PeerVerifier>,
    result: Result<(), HandshakeError>,
    heard: Result<String, AlertDescription>,
}

impl Meeting {
    fn refused_with(self, alert: AlertDescription) -> Arc<PeerVerifier> {
        assert!(self.result.is_err(), "the server accepted");
        assert_eq!(self.heard, Err(alert));
        assert!(self.verifier.peer().is_none() && self.verifier.expired_agent().is_none());
        self.verifier
    }

    fn accepted(self) -> Arc<PeerVerifier> {
        self.result.unwrap();
        assert_eq!(self.heard.as_deref(), Ok("welcome"));
        self.verifier
    }
}

fn fixed(credential: &Credential) -> FixedIdentity {
    FixedIdentity(certified_key(credential.chain.clone(), credential.private_key().unwrap()).unwrap())
}

/// The server says "welcome" after its handshake. A verdict on the client's certificate reaches the client with
/// its first read.
async fn converse(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    sni: &str,
) -> (Result<(), HandshakeError>, Result<String, AlertDescription>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let serving = async {
        let mut stream = handshake(near, server, TIMEOUT).await?;
        stream.write_all(b"welcome").await?;
        stream.shutdown().await?;
        Ok(())
    };
    tokio::join!(serving, listen(far, client, sni))
}

async fn listen(far: DuplexStream, client: Arc<ClientConfig>, sni: &str) -> Result<String, AlertDescription> {
    let heard = async {
        let mut stream = connect(far, sni, client, TIMEOUT).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, HandshakeError>(text)
    };
    heard.await.map_err(|error| {
        error
            .alert_received()
            .unwrap_or_else(|| panic!("no alert: {error}"))
    })
}

/// Whether the client accepts the server, and if not, what it objects to.
async fn client_accepts(server: &Credential, client: Arc<ClientConfig>, sni: &str) -> Result<(), String> {
    let config = web_server_config(Arc::new(fixed(server)), &[]).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let connecting = connect(far, sni, client, TIMEOUT);
    let (_, connected) = tokio::join!(handshake(near, config, TIMEOUT), connecting);
    connected.map(drop).map_err(|error| error.to_string())
}
