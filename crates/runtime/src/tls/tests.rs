//! Real handshakes between our own ends, and with peers that misbehave in one way.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration as StdDuration;

use iap_identity::{
    AgentId, AuthId, CaClass, Class, ClassSet, PeerError, Profile, ProxyId, RawBundle, ServiceName,
    TrustBundle,
};
use iap_testkit::{Credential, TestCluster};
use rustls::client::Resumption;
use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};
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

#[tokio::test]
async fn a_user_is_known_after_the_handshake() {
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let meeting = world
        .meet(
            world.verifier(USERS, Demand::Required),
            world.client(Some(&alice)),
        )
        .await;
    let peer = meeting.accepted().peer().unwrap();
    match &*peer {
        iap_identity::VerifiedPeer::User(user) => assert_eq!(user.name, "alice@example.com"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_certificate_of_another_class_is_denied() {
    let world = World::new();
    let agent = world.cluster.agent(world.agent).unwrap();
    let meeting = world
        .meet(
            world.verifier(USERS, Demand::Required),
            world.client(Some(&agent)),
        )
        .await;
    let verifier = meeting.refused_with(AlertDescription::AccessDenied);
    assert!(matches!(
        verifier.refusal(),
        Some(PeerError::WrongClass { found: Class::Agent })
    ));
}

#[tokio::test]
async fn an_expired_certificate_is_told_so() {
    let world = World::of_age(Duration::days(60));
    let profile = Profile::User(world.cluster.user_profile("alice@example.com", &[]).unwrap());
    let expired = world.cluster.issue(profile);
    let client = world.client(Some(&expired.unwrap()));
    let meeting = world.meet(world.verifier(USERS, Demand::Required), client).await;
    meeting.refused_with(AlertDescription::CertificateExpired);
}

#[tokio::test]
async fn a_certificate_of_another_cluster_of_the_same_name_is_unknown() {
    let world = World::new();
    let impostor = TestCluster::new("iap.example.com")
        .unwrap()
        .user("alice@example.com", &[])
        .unwrap();
    let client = world.client(Some(&impostor));
    let meeting = world.meet(world.verifier(USERS, Demand::Required), client).await;
    meeting.refused_with(AlertDescription::UnknownCA);
}

#[tokio::test]
async fn a_client_without_certificate_is_refused_only_where_one_is_required() {
    let world = World::new();
    let meeting = world
        .meet(world.verifier(USERS, Demand::Required), world.client(None))
        .await;
    meeting.refused_with(AlertDescription::CertificateRequired);
    for demand in [Demand::Optional, Demand::OptionalOrExpiredAgent] {
        let verifier = world
            .meet(world.verifier(USERS, demand), world.client(None))
            .await
            .accepted();
        assert!(verifier.peer().is_none() && verifier.expired_agent().is_none());
    }
}

#[tokio::test]
async fn a_bad_certificate_is_refused_even_where_none_is_required() {
    let world = World::new();
    let impostor = TestCluster::new("iap.example.com")
        .unwrap()
        .user("alice@example.com", &[])
        .unwrap();
    let client = world.client(Some(&impostor));
    let meeting = world.meet(world.verifier(USERS, Demand::Optional), client).await;
    meeting.refused_with(AlertDescription::UnknownCA);
}

#[tokio::test]
async fn an_expired_agent_is_known_as_nothing_but_that() {
    let world = World::of_age(Duration::days(60));
    let accepted = ClassSet::of(&[Class::User, Class::Agent]);
    let agent = |age| {
        let profile = iap_identity::AgentProfile {
            id: world.agent,
            cluster: world.cluster.name.clone(),
            generation: 3,
        };
        let credential = world
            .cluster
            .issue_at(Profile::Agent(profile), OffsetDateTime::now_utc() - age);
        world.client(Some(&credential.unwrap()))
    };
    let tolerant = || world.verifier(accepted, Demand::OptionalOrExpiredAgent);

    let verifier = world.meet(tolerant(), agent(Duration::days(20))).await.accepted();
    assert_eq!(verifier.expired_agent().unwrap().id, world.agent);
    assert!(verifier.peer().is_none());

    let verifier = world.meet(tolerant(), agent(Duration::ZERO)).await.accepted();
    assert!(verifier.expired_agent().is_none() && verifier.peer().is_some());

    let too_old = world.meet(tolerant(), agent(Duration::days(40))).await;
    too_old.refused_with(AlertDescription::CertificateExpired);
    let strict = world.verifier(accepted, Demand::Optional);
    let strict = world.meet(strict, agent(Duration::days(20))).await;
    strict.refused_with(AlertDescription::CertificateExpired);
    let users_only = world.verifier(USERS, Demand::OptionalOrExpiredAgent);
    let users_only = world.meet(users_only, agent(Duration::days(20))).await;
    users_only.refused_with(AlertDescription::CertificateExpired);
}

#[tokio::test]
async fn an_expired_user_is_not_let_in_as_an_expired_agent() {
    let world = World::of_age(Duration::days(60));
    let profile = Profile::User(world.cluster.user_profile("alice@example.com", &[]).unwrap());
    let expired = world.cluster.issue(profile).unwrap();
    let accepted = ClassSet::of(&[Class::User, Class::Agent]);
    let tolerant = world.verifier(accepted, Demand::OptionalOrExpiredAgent);
    let meeting = world.meet(tolerant, world.client(Some(&expired))).await;
    meeting.refused_with(AlertDescription::CertificateExpired);
}

#[tokio::test]
async fn a_proven_client_can_be_refused_with_each_alert() {
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &[]).unwrap();
    let cases = [
        (Refusal::AccessDenied, AlertDescription::AccessDenied),
        (Refusal::CertificateExpired, AlertDescription::CertificateExpired),
        (Refusal::CertificateRevoked, AlertDescription::CertificateRevoked),
    ];
    for (refusal, alert) in cases {
        let verifier = world
            .verifier(USERS, Demand::Required)
            .with_hook(Box::new(move |_| Err(refusal)));
        world
            .meet(verifier, world.client(Some(&alice)))
            .await
            .refused_with(alert);
    }
    let verifier = world
        .verifier(USERS, Demand::Required)
        .with_hook(Box::new(|_| Ok(())));
    world.meet(verifier, world.client(Some(&alice))).await.accepted();
}

#[tokio::test]
async fn whoever_shows_a_certificate_without_its_key_is_never_asked_about() {
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &[]).unwrap();
    let mallory = world.cluster.user("mallory@example.com", &[]).unwrap();
    let key = provider()
        .key_provider
        .load_private_key(mallory.private_key().unwrap())
        .unwrap();
    let stolen = FixedIdentity(Arc::new(CertifiedKey::new(alice.chain.clone(), key)));
    let servers = Arc::new(ServerVerifier::new(Arc::clone(&world.material)));
    let client = client_config(servers, Some(Arc::new(stolen)), &[]).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let verifier = world
        .verifier(USERS, Demand::Required)
        .with_hook(Box::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }));
    world
        .meet(verifier, client)
        .await
        .refused_with(AlertDescription::DecryptError);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_alert_survives_what_the_client_sent_along_with_its_finished() {
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &[]).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let refusing = world
        .verifier(USERS, Demand::Required)
        .with_hook(Box::new(|_| Err(Refusal::AccessDenied)));
    let server = server_config(Arc::new(fixed(&world.leaf)), Arc::new(refusing), &[]).unwrap();
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        assert!(handshake(stream, server, TIMEOUT).await.is_err());
    };
    let client = world.client(Some(&alice));
    let talking = async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut stream = connect(stream, SERVICE, client, TIMEOUT).await.unwrap();
        stream.write_all(&[7; 100_000]).await.unwrap();
        stream.flush().await.unwrap();
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(
            alert_received(&error),
            Some(AlertDescription::AccessDenied),
            "{error}"
        );
    };
    tokio::join!(serving, talking);
}

#[tokio::test]
async fn a_session_is_never_resumed() {
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &[]).unwrap();
    let verifier = Arc::new(world.verifier(USERS, Demand::Required));
    let server = server_config(Arc::new(fixed(&world.leaf)), verifier, &[]).unwrap();
    let mut willing = ClientConfig::clone(&world.client(Some(&alice)));
    willing.resumption = Resumption::in_memory_sessions(8);
    willing.enable_early_data = true;
    let willing = Arc::new(willing);
    for _ in 0..2 {
        let (near, far) = tokio::io::duplex(1 << 16);
        let serving = async {
            let mut stream = handshake(near, Arc::clone(&server), TIMEOUT).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            stream.shutdown().await.unwrap();
            stream.get_ref().1.handshake_kind()
        };
        let talking = async {
            let mut stream = connect(far, SERVICE, Arc::clone(&willing), TIMEOUT)
                .await
                .unwrap();
            // Tickets would arrive with the first read.
            stream.read_u8().await.unwrap();
            let connection = stream.get_ref().1;
            assert_eq!(connection.tls13_tickets_received(), 0);
            connection.handshake_kind()
        };
        let (served, connected) = tokio::join!(serving, talking);
        assert_eq!(
            (served, connected),
            (Some(HandshakeKind::Full), Some(HandshakeKind::Full))
        );
    }
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum_and_the_cipher_the_cheapest() {
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &[]).unwrap();
    let verifier = Arc::new(world.verifier(USERS, Demand::Required));
    let server = server_config(Arc::new(fixed(&world.leaf)), verifier, &["iap/1"]).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let (served, _client) = tokio::join!(
        handshake(near, server, TIMEOUT),
        connect(far, SERVICE, world.client(Some(&alice)), TIMEOUT)
    );
    let served = served.unwrap();
    let connection = served.get_ref().1;
    assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let suite = connection.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
    let group = connection.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn tls_12_is_not_spoken() {
    let world = World::new();
    let servers = Arc::new(ServerVerifier::new(Arc::clone(&world.material)));
    let old = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(servers)
        .with_no_client_auth();
    let meeting = world
        .meet(world.verifier(USERS, Demand::Optional), Arc::new(old))
        .await;
    meeting.refused_with(AlertDescription::ProtocolVersion);
}

#[tokio::test]
async fn a_clock_set_back_does_not_revive_a_certificate() {
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &[]).unwrap();
    let later = OffsetDateTime::now_utc() + Duration::hours(2);
    let verifier = world.verifier(USERS, Demand::Required).not_before(later);
    let meeting = world.meet(verifier, world.client(Some(&alice))).await;
    meeting.refused_with(AlertDescription::CertificateExpired);
}

#[test]
fn clients_are_told_which_authorities_count() {
    let world = World::new();
    let hints = |classes: &[Class]| {
        let verifier = world.verifier(ClassSet::of(classes), Demand::Required);
        let names = verifier.root_hint_subjects().iter();
        names.map(|name| name.as_ref().to_vec()).collect::<Vec<_>>()
    };
    let subject = |class| {
        let mut store = rustls::RootCertStore::empty();
        store.add(world.cluster.issuer(class).der().clone()).unwrap();
        store.subjects()[0].as_ref().to_vec()
    };
    assert_eq!(hints(&[Class::User, Class::Bot]), [subject(CaClass::User)]);
    assert_eq!(hints(&[Class::Agent]), [subject(CaClass::System)]);
    assert_eq!(
        hints(&[Class::User, Class::Agent]),
        [subject(CaClass::System), subject(CaClass::User)]
    );
}

#[tokio::test]
async fn a_server_is_accepted_for_its_own_name_only() {
    let world = World::new();
    let proxy = world.cluster.proxy(ProxyId::from_uuid(Uuid::now_v7())).unwrap();
    let auth = world.cluster.auth(AuthId::from_uuid(Uuid::now_v7())).unwrap();
    let user = world.cluster.user("db@example.com", &[]).unwrap();
    let names = [
        (&world.leaf, SERVICE),
        (&proxy, "proxy.iap.example.com"),
        (&auth, "auth.iap.example.com"),
    ];
    for (holder, own) in names {
        for (_, name) in names {
            let result = client_accepts(holder, world.client(None), name).await;
            assert_eq!(result.is_ok(), own == name, "{own} asked for {name}: {result:?}");
        }
        assert!(
            client_accepts(holder, world.client(None), "web.iap.example.com")
                .await
                .is_err()
        );
        assert!(
            client_accepts(holder, world.client(None), "db.example.com")
                .await
                .is_err()
        );
    }
    assert!(client_accepts(&user, world.client(None), SERVICE).await.is_err());
    let impostor = TestCluster::new("iap.example.com")
        .unwrap()
        .service_leaf(world.agent, "db")
        .unwrap();
    assert!(
        client_accepts(&impostor, world.client(None), SERVICE)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn at_first_contact_the_pin_decides() {
    let world = World::new();
    let other = TestCluster::new("iap.example.com").unwrap();
    let auth = |cluster: &TestCluster, with_root: bool| {
        let mut credential = cluster.auth(AuthId::from_uuid(Uuid::now_v7())).unwrap();
        credential
            .chain
            .extend(with_root.then(|| cluster.root().der().clone()));
        credential
    };
    let client = |pin| {
        let verifier = PinVerifier::new(pin, world.cluster.name.clone());
        client_config(Arc::new(verifier), None, &[]).unwrap()
    };
    let pinned = || client(world.cluster.pin());
    let accepts = async |server: &Credential, client, sni| client_accepts(server, client, sni).await.is_ok();
    let name = "auth.iap.example.com";
    assert!(accepts(&auth(&world.cluster, true), pinned(), name).await);
    assert!(
        !accepts(&auth(&world.cluster, false), pinned(), name).await,
        "without the root"
    );
    assert!(
        !accepts(&auth(&other, true), pinned(), name).await,
        "another root"
    );
    assert!(
        !accepts(&auth(&world.cluster, true), client(other.pin()), name).await,
        "another pin"
    );
    assert!(
        !accepts(&auth(&world.cluster, true), pinned(), SERVICE).await,
        "another name"
    );
    let mut forged = auth(&other, false);
    forged.chain.push(world.cluster.root().der().clone());
    assert!(
        !accepts(&forged, pinned(), name).await,
        "our root behind another authority"
    );
    let mut leaf = world.cluster.service_leaf(world.agent, "db").unwrap();
    leaf.chain.push(world.cluster.root().der().clone());
    assert!(
        !accepts(&leaf, pinned(), name).await,
        "an agent in place of the auth server"
    );
}

#[tokio::test]
async fn new_material_is_used_by_the_next_handshake_and_bad_material_by_none() {
    let world = World::new();
    let now = OffsetDateTime::now_utc();
    let [first, second] = [1, 2].map(|_| world.cluster.agent(world.agent).unwrap());
    let material = &world.material;
    let mut changes = material.changes();
    let publish = |chain: &Credential, key: &Credential| {
        material.publish_identity(chain.chain.clone(), key.private_key().unwrap(), now)
    };
    publish(&first, &first).unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert!(matches!(publish(&second, &first), Err(MaterialError::Key(_))));
    let impostor = TestCluster::new("iap.example.com")
        .unwrap()
        .agent(world.agent)
        .unwrap();
    assert!(matches!(
        publish(&impostor, &impostor),
        Err(MaterialError::Certificate(_))
    ));
    assert!(!changes.has_changed().unwrap());

    let server = web_server_config(Arc::clone(material) as _, &[]).unwrap();
    let shown = async || {
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = format!("{}.agent.iap.example.com", world.agent);
        let connecting = connect(far, &name, world.client(None), TIMEOUT);
        let (_server, client) = tokio::join!(handshake(near, Arc::clone(&server), TIMEOUT), connecting);
        let client = client.unwrap();
        client.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    assert_eq!(shown().await, *first.leaf());
    publish(&second, &second).unwrap();
    assert_eq!(shown().await, *second.leaf());
}

#[test]
fn a_bundle_is_replaced_by_a_newer_one_of_the_same_root_only() {
    let world = World::new();
    let now = world.cluster.now;
    let with_version = |cluster: &TestCluster, epoch, version| {
        let raw = RawBundle {
            epoch,
            version,
            ..cluster.bundle().to_raw()
        };
        TrustBundle::verify(raw, &cluster.pin(), &cluster.name, now).unwrap()
    };
    let publish = |epoch, version| {
        world
            .material
            .publish_bundle(with_version(&world.cluster, epoch, version))
    };
    publish(1, 5).unwrap();
    publish(1, 5).unwrap();
    assert!(matches!(publish(1, 4), Err(MaterialError::Rollback { .. })));
    publish(2, 1).unwrap();
    assert!(matches!(publish(1, 9), Err(MaterialError::Rollback { .. })));
    let other = TestCluster::new("iap.example.com").unwrap();
    let foreign = world.material.publish_bundle(with_version(&other, 9, 9));
    assert!(matches!(foreign, Err(MaterialError::OtherRoot)));
    assert_eq!(
        (world.material.bundle().epoch(), world.material.bundle().version()),
        (2, 1)
    );
}

#[test]
fn pem_text_is_read_back_as_written() {
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &[]).unwrap();
    let text = certificates_to_pem(alice.chain.iter().map(|der| der.as_ref()));
    assert_eq!(certificates_from_pem(text.as_bytes()).unwrap(), alice.chain);
    assert_eq!(text, alice.chain_pem());
    let key = private_key_from_pem(alice.key_pem().as_bytes()).unwrap();
    certified_key(alice.chain.clone(), key).unwrap();
    assert!(matches!(
        certificates_from_pem(b"nothing here"),
        Err(PemError::Missing(_))
    ));
    assert!(matches!(
        private_key_from_pem(text.as_bytes()),
        Err(PemError::Missing(_))
    ));
}
