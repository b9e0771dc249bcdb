//! How clients are verified, refused and remembered.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use iap_identity::{CaClass, PeerError};
use rustls::client::Resumption;
use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};
use rustls_pki_types::CertificateDer;

use tokio_rustls::TlsConnector;

use super::*;

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
async fn a_certificate_known_from_the_last_connection_is_refused_as_soon_as_it_would_be_otherwise() {
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &[]).unwrap();
    let known = Arc::new(KnownClients::default());
    let verifier = |bundle, accepted| known.verifier(bundle, accepted, Demand::Required);
    let bundle = world.material.bundle();
    let client = world.client(Some(&alice));
    let first = world
        .meet(verifier(Arc::clone(&bundle), USERS), Arc::clone(&client))
        .await;
    let first = first.accepted().peer().unwrap();
    let again = world
        .meet(verifier(Arc::clone(&bundle), USERS), Arc::clone(&client))
        .await;
    let again = again.accepted().peer().unwrap();
    assert!(Arc::ptr_eq(&first, &again), "it was verified anew");

    let late = verifier(Arc::clone(&bundle), USERS).not_before(first.not_after() + Duration::SECOND);
    let late = world.meet(late, Arc::clone(&client)).await;
    late.refused_with(AlertDescription::CertificateExpired);
    let agents = ClassSet::of(&[Class::Agent]);
    let among_agents = world.meet(verifier(bundle, agents), Arc::clone(&client)).await;
    among_agents.refused_with(AlertDescription::AccessDenied);
    let other = TestCluster::at("iap.example.com", OffsetDateTime::now_utc()).unwrap();
    let stranger = verifier(Arc::new(other.bundle().clone()), USERS);
    world
        .meet(stranger, client)
        .await
        .refused_with(AlertDescription::UnknownCA);
}

#[tokio::test]
async fn who_answers_learns_of_a_refusal_before_the_client_has_read_it() {
    let world = World::of_age(Duration::days(60));
    let profile = Profile::User(world.cluster.user_profile("alice@example.com", &[]).unwrap());
    let client = world.client(Some(&world.cluster.issue(profile).unwrap()));
    let clients = Arc::new(world.verifier(USERS, Demand::Required));
    let server = server_config(Arc::new(fixed(&world.leaf)), clients, &[]).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let (answered, connected) = tokio::join!(
        answer(near, server, TIMEOUT),
        connect(far, SERVICE, client, TIMEOUT)
    );
    // The client's own handshake is over, and it has neither read nor closed.
    let (mut client, (error, stream)) = (connected.unwrap(), answered.err().unwrap().into_parts());
    assert!(matches!(error, HandshakeError::Failed(_)), "{error}");
    farewell(stream.unwrap()).await;
    let verdict = client.read_u8().await.unwrap_err();
    assert_eq!(
        alert_received(&verdict),
        Some(AlertDescription::CertificateExpired)
    );
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
    for demand in [Demand::Optional, Demand::OptionalOrExpired] {
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
    let tolerant = || world.verifier(accepted, Demand::OptionalOrExpired);

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
    let users_only = world.verifier(USERS, Demand::OptionalOrExpired);
    let users_only = world.meet(users_only, agent(Duration::days(20))).await;
    users_only.refused_with(AlertDescription::CertificateExpired);
}

#[tokio::test]
async fn a_user_whose_login_is_over_is_not_let_in_with_an_expired_certificate() {
    let world = World::of_age(Duration::days(60));
    let profile = Profile::User(world.cluster.user_profile("alice@example.com", &[]).unwrap());
    let expired = world.cluster.issue(profile).unwrap();
    let accepted = ClassSet::of(&[Class::User, Class::Agent]);
    let tolerant = world.verifier(accepted, Demand::OptionalOrExpired);
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
        // Its records are sent all at once, by hand.
        let connecting = TlsConnector::from(client).connect(SERVICE.try_into().unwrap(), stream);
        let (mut socket, mut connection) = connecting.await.unwrap().into_inner();
        let mut records = Vec::new();
        connection.writer().write_all(&[7; 50_000]).unwrap();
        while connection.wants_write() {
            connection.write_tls(&mut records).unwrap();
        }
        socket.write_all(&records).await.unwrap();
        // An orderly end: after a reset some systems throw away what they had received.
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        connection.read_tls(&mut answer.as_slice()).unwrap();
        let refused = connection.process_new_packets().unwrap_err();
        assert_eq!(
            refused,
            rustls::Error::AlertReceived(AlertDescription::AccessDenied)
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
            let name = SERVICE.try_into().unwrap();
            let connecting = TlsConnector::from(Arc::clone(&willing)).connect(name, far);
            let mut stream = connecting.await.unwrap();
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
    let subject_of = |certificate: &CertificateDer<'static>| {
        let mut store = rustls::RootCertStore::empty();
        store.add(certificate.clone()).unwrap();
        store.subjects()[0].as_ref().to_vec()
    };
    let subject = |class| subject_of(world.cluster.issuer(class).der());
    let root = subject_of(world.cluster.bundle().root_der());
    assert_eq!(
        hints(&[Class::User, Class::Bot]),
        [subject(CaClass::User), root.clone()]
    );
    assert_eq!(hints(&[Class::Agent]), [subject(CaClass::System), root.clone()]);
    assert_eq!(
        hints(&[Class::User, Class::Agent]),
        [subject(CaClass::System), subject(CaClass::User), root]
    );
}
