//! Everybody who does not get in, and how they are told.

use std::time::Duration;

use iap_identity::{AgentId, AgentProfile, CaClass, LockKind, Profile, UserProfile};
use iap_runtime::tls::AlertDescription;
use iap_testkit::{Forgery, TestCluster};
use iap_tunnel::Status;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use crate::client::{connect_as, echoes, ending, framed, hello, host, raw, refused, status};
use crate::plane::{CLUSTER, Plane};
use crate::proxy::WAIT;

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_caller_is_told_in_a_frame_and_recorded() {
    let (plane, running) = Plane::started().await;
    let bob = plane.cluster.user("bob@example.com", &["support"]).unwrap();
    let (mut stream, answer) = framed(&plane, "echo", &bob).await;
    let Status::Denied {
        code,
        text,
        contact,
        session_id: _,
        step_up: _,
        trace_id: _,
    } = answer
    else {
        panic!("{answer:?}")
    };
    assert_eq!((code.as_str(), contact.as_deref()), ("denied", Some("#platform")));
    assert!(!text.is_empty());
    assert_eq!(ending(&mut stream).await, None);
    let denied = plane.event("session.denied").await;
    assert_eq!(denied["user"]["name"], "bob@example.com");
    assert_eq!(
        denied["denial"], "no_rule_matches",
        "the record knows more than the caller"
    );
    assert_eq!(
        (denied["service"].as_str(), denied["decision"]["effect"].as_str()),
        (Some("echo"), Some("deny"))
    );
    running.stop().await;
    assert!(
        !plane
            .auth
            .records()
            .iter()
            .any(|record| record.event == "session.start")
    );
}

/// A client need not wait for the answer; a refusal reaches it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_denied_caller_who_went_on_talking_is_told() {
    let (plane, running) = Plane::started().await;
    let bob = plane.cluster.user("bob@example.com", &["support"]).unwrap();
    let (_, stream) = connect_as(&plane, "echo", &host("echo"), Some(&bob), &["iap/1"]).await;
    let mut stream = stream.unwrap();
    stream.write_all(&hello().encode().unwrap()).await.unwrap();
    for _ in 0..16 {
        stream.write_all(&[7; 1024]).await.unwrap();
    }
    let answer = status(&mut stream).await.unwrap();
    assert!(matches!(answer, Status::Denied { .. }), "{answer:?}");
    assert_eq!(ending(&mut stream).await, None);
    running.stop().await;
}

/// What comes behind the hello waits for the grant, and is the backend's then.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_right_behind_the_hello_reach_the_backend() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (_, stream) = connect_as(&plane, "echo", &host("echo"), Some(&alice), &["iap/1"]).await;
    let mut stream = stream.unwrap();
    let mut first = hello().encode().unwrap();
    first.extend_from_slice(b"early");
    stream.write_all(&first).await.unwrap();
    let answer = status(&mut stream).await.unwrap();
    assert!(matches!(answer, Status::Granted { .. }), "{answer:?}");
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"early");
    echoes(&mut stream, "later").await;
    drop(stream);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_raw_client_gets_the_alert_access_denied() {
    let (plane, running) = Plane::started().await;
    let bob = plane.cluster.user("bob@example.com", &["support"]).unwrap();
    let (id, alert) = refused(&plane, "echo", &host("echo"), Some(&bob), &[]).await;
    assert_eq!(alert, Some(AlertDescription::AccessDenied));
    assert!(plane.proxy.verdict(id).await, "who he is was proven");
    plane.event("session.denied").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_raw_client_gets_the_alert_certificate_revoked() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    plane.lock(LockKind::User, "alice@example.com", "stolen laptop");
    let mut alert = None;
    iap_testkit::wait_until_async(
        async || {
            alert = refused(&plane, "echo", &host("echo"), Some(&alice), &[]).await.1;
            alert.is_some()
        },
        WAIT,
    )
    .await
    .unwrap();
    assert_eq!(alert, Some(AlertDescription::CertificateRevoked));
    let (_, answer) = framed(&plane, "echo", &alice).await;
    let Status::Denied { code, text, .. } = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(code, "locked");
    assert!(text.contains("stolen laptop"), "{text}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_do_not_belong_here_are_refused_before_anything_is_decided() {
    let now = OffsetDateTime::now_utc();
    let plane = Plane::of(TestCluster::at(CLUSTER, now - time::Duration::days(1)).unwrap()).await;
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let cluster = &plane.cluster;
    let user = || {
        let profile = cluster.user_profile("alice@example.com", &["engineering"]);
        let login_deadline = now + time::Duration::hours(12);
        Profile::User(UserProfile {
            login_deadline,
            ..profile.unwrap()
        })
    };
    let expired = cluster.issue_at(user(), now - time::Duration::hours(3)).unwrap();
    let future = cluster.issue_at(user(), now + time::Duration::hours(2)).unwrap();
    let (id, name) = (AgentId::from_uuid(Uuid::now_v7()), cluster.name.clone());
    let agent = Profile::Agent(AgentProfile {
        id,
        cluster: name,
        generation: 0,
    });
    let agent = cluster.issue_at(agent, now).unwrap();
    let elsewhere = TestCluster::new("other.example.com").unwrap();
    let stranger = elsewhere.user("alice@example.com", &["engineering"]).unwrap();
    let namesake = TestCluster::new(CLUSTER)
        .unwrap()
        .user("alice@example.com", &["engineering"])
        .unwrap();
    for (credential, expected) in [
        (Some(&expired), AlertDescription::CertificateExpired),
        (Some(&future), AlertDescription::BadCertificate),
        (Some(&agent), AlertDescription::AccessDenied),
        (Some(&stranger), AlertDescription::UnknownCA),
        (Some(&namesake), AlertDescription::UnknownCA),
        (None, AlertDescription::CertificateRequired),
    ] {
        for alpn in [&["iap/1"][..], &[]] {
            let (id, alert) = refused(&plane, "echo", &host("echo"), credential, alpn).await;
            assert_eq!(alert, Some(expected), "{alpn:?}");
            assert!(!plane.proxy.verdict(id).await);
        }
    }
    running.stop().await;
    let events: Vec<_> = plane
        .auth
        .records()
        .into_iter()
        .map(|record| record.event)
        .collect();
    assert_eq!(
        events,
        ["agent.start", "agent.stop"],
        "failures before authentication are counted, not recorded"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_whose_extension_was_tampered_with_is_refused() {
    let (plane, running) = Plane::started().await;
    let mut forgery = Forgery::user(&plane.cluster).unwrap();
    forgery.extensions.clear();
    let bare = forgery.signed_by(&plane.cluster, CaClass::User).unwrap();
    let key = iap_runtime::keys::generate(iap_runtime::keys::KeyKind::P256).unwrap();
    // The forgery's key is not ours to use, so its certificate is shown with another: the certificate itself
    // is what is refused, before the signature is looked at.
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let chain = vec![bare];
    let signer =
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&iap_runtime::keys::private_key_der(&key)).unwrap();
    let shown = std::sync::Arc::new(rustls::sign::CertifiedKey::new(chain, signer));
    let (id, stream) = plane.proxy.open("echo").await;
    let material = iap_runtime::tls::Material::new(plane.cluster.bundle().clone());
    let servers = std::sync::Arc::new(iap_runtime::tls::ServerVerifier::new(material));
    let identity = std::sync::Arc::new(iap_runtime::tls::FixedIdentity(shown));
    let config = iap_runtime::tls::client_config(servers, Some(identity), &[]).unwrap();
    let mut stream = iap_runtime::tls::connect(stream, &host("echo"), config, WAIT)
        .await
        .unwrap();
    assert_eq!(ending(&mut stream).await, Some(AlertDescription::BadCertificate));
    assert!(!plane.proxy.verdict(id).await);
    drop(alice);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_name_other_than_the_proxys_word_is_refused_and_recorded() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (id, alert) = refused(&plane, "echo", &host("db-prod"), Some(&alice), &["iap/1"]).await;
    assert_eq!(alert, Some(AlertDescription::UnrecognisedName));
    assert!(!plane.proxy.verdict(id).await);
    let record = plane.event("session.name_mismatch").await;
    assert_eq!(record["service"], "db-prod");
    assert_eq!(record["client_asserted_by"], plane.proxy.id().to_string());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_names_other_services_again_and_again_gets_one_record_and_a_count() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    for _ in 0..20 {
        let (_, connected) = connect_as(&plane, "echo", &host("db-prod"), Some(&alice), &[]).await;
        assert!(connected.is_err());
    }
    running.stop().await;
    let records = plane.auth.records();
    let mismatches: Vec<_> = records
        .iter()
        .filter(|record| record.event == "session.name_mismatch")
        .collect();
    assert_eq!(mismatches.len(), 2, "{mismatches:?}");
    assert_eq!(mismatches[1].fields["count"], 19);
    assert_eq!(mismatches[1].fields["coalesced"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hello_that_is_none_or_never_comes_is_given_up() {
    let mut plane = Plane::new().await;
    plane.limits = "handshake_seconds_max = 1".to_owned();
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[22, 3, 1], &[0; 64]] {
        let (id, mut stream) = plane.proxy.open("echo").await;
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(WAIT, stream.read_to_end(&mut rest))
            .await
            .expect("it is given up");
        assert!(!plane.proxy.verdict(id).await);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_frame_that_is_too_long_or_no_json_ends_the_connection() {
    let mut plane = Plane::new().await;
    plane.limits = "hello_frame_bytes_max = 256".to_owned();
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    // A good hello but for its length: unknown keys are ignored, so only the limit refuses it.
    let mut padded = serde_json::to_value(hello()).unwrap();
    padded["padding"] = "x".repeat(1024).into();
    let other_version = serde_json::json!({"version": 9, "connect_id": hello().connect_id});
    for text in [padded.to_string(), "{x".to_owned(), other_version.to_string()] {
        let (_, stream) = connect_as(&plane, "echo", &host("echo"), Some(&alice), &["iap/1"]).await;
        let mut stream = stream.unwrap();
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        stream
            .write_all(&[&length[..], text.as_bytes()].concat())
            .await
            .unwrap();
        stream.flush().await.unwrap();
        assert!(status(&mut stream).await.is_err());
    }
    running.stop().await;
    assert!(
        !plane
            .auth
            .records()
            .iter()
            .any(|record| record.event == "session.start")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_session_can_be_resumed() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let key = iap_runtime::keys::private_key_der(&alice.key);
    let roots = {
        let mut roots = rustls::RootCertStore::empty();
        for der in plane.cluster.bundle().authorities(CaClass::System) {
            roots.add(der.clone()).unwrap();
        }
        roots
    };
    // A client that would resume if it were given a ticket.
    let mut config = rustls::ClientConfig::builder_with_provider(iap_runtime::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(alice.chain.clone(), key)
        .unwrap();
    let tickets = std::sync::Arc::new(Tickets::default());
    config.resumption = rustls::client::Resumption::store(std::sync::Arc::clone(&tickets) as _);
    config.enable_secret_extraction = true;
    let config = std::sync::Arc::new(config);
    for _ in 0..3 {
        let (_, stream) = plane.proxy.open("echo").await;
        let mut stream =
            iap_runtime::tls::connect(stream, &host("echo"), std::sync::Arc::clone(&config), WAIT)
                .await
                .unwrap();
        echoes(&mut stream, "round trip").await;
        let connection = stream.get_ref().1;
        assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(tickets.0.load(std::sync::atomic::Ordering::SeqCst), 0);
    }
    running.stop().await;
}

/// Counts the tickets that a client is given.
#[derive(Debug, Default)]
struct Tickets(std::sync::atomic::AtomicUsize);

impl rustls::client::ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _server: rustls_pki_types::ServerName<'static>, _group: rustls::NamedGroup) {}

    fn kx_hint(&self, _server: &rustls_pki_types::ServerName<'_>) -> Option<rustls::NamedGroup> {
        None
    }

    fn set_tls12_session(
        &self,
        _server: rustls_pki_types::ServerName<'static>,
        _session: rustls::client::Tls12ClientSessionValue,
    ) {
    }

    fn tls12_session(
        &self,
        _server: &rustls_pki_types::ServerName<'_>,
    ) -> Option<rustls::client::Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _server: &rustls_pki_types::ServerName<'static>) {}

    fn insert_tls13_ticket(
        &self,
        _server: rustls_pki_types::ServerName<'static>,
        _ticket: rustls::client::Tls13ClientSessionValue,
    ) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }

    fn take_tls13_ticket(
        &self,
        _server: &rustls_pki_types::ServerName<'static>,
    ) -> Option<rustls::client::Tls13ClientSessionValue> {
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_only_speaks_an_unknown_iap_protocol_is_refused() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (_, alert) = refused(&plane, "echo", &host("echo"), Some(&alice), &["iap-resume/9"]).await;
    assert_eq!(alert, Some(AlertDescription::NoApplicationProtocol));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_older_than_the_group_a_rule_names_is_asked_to_renew() {
    let (plane, running) = Plane::started().await;
    plane.auth.publish(|snapshot| {
        snapshot.policy_toml = crate::plane::POLICY.replace("engineering", "dev:platform");
        let groups = [(iap_identity::GroupName::parse("dev:platform").unwrap(), 2)];
        snapshot.vocabulary = iap_policy::Vocabulary::new(groups.into());
    });
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    iap_testkit::wait_until_async(
        async || framed(&plane, "echo", &alice).await.1 == Status::Renew,
        WAIT,
    )
    .await
    .unwrap();
    running.stop().await;
    let denials = plane
        .auth
        .records()
        .iter()
        .filter(|record| record.event == "session.denied")
        .count();
    assert_eq!(denials, 0, "to be asked to renew is not to be denied");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_own_ceiling_narrows_what_the_policy_allows() {
    let mut plane = Plane::new().await;
    plane.ceiling = "ceiling = { groups = [\"oncall\"] }".to_owned();
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (_, answer) = framed(&plane, "echo", &alice).await;
    assert!(
        matches!(&answer, Status::Denied { code, .. } if code == "denied"),
        "{answer:?}"
    );
    let carol = plane
        .cluster
        .user("carol@example.com", &["engineering", "oncall"])
        .unwrap();
    let (_, answer) = framed(&plane, "echo", &carol).await;
    assert!(matches!(answer, Status::Granted { .. }), "{answer:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_turn_away_with_a_word_to_the_proxy() {
    let mut plane = Plane::new().await;
    plane.limits = "handshakes_max = 1\nsessions_max = 1".to_owned();
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let (_, waiting) = plane.proxy.open("echo").await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    // Refused for the first moments; then the one that waited longest without a word gives way.
    let mut live = None;
    iap_testkit::wait_until_async(
        async || {
            let (id, arrives) = plane.proxy.request("echo");
            live = tokio::select! {
                stream = arrives => stream.ok(),
                refusal = plane.proxy.refusal(id) => {
                    assert!(refusal.contains("limits.handshakes_max"), "{refusal}");
                    None
                }
            };
            live.is_some()
        },
        WAIT,
    )
    .await
    .unwrap();
    let mut waiting = waiting;
    assert!(
        matches!(waiting.read(&mut [0; 64]).await, Ok(0) | Err(_)),
        "it is closed"
    );
    drop(live);
    let (_, stream) = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let (id, arrives) = plane.proxy.request("echo");
            tokio::select! {
                stream = arrives => if let Ok(stream) = stream { return (id, stream) },
                _ = plane.proxy.refusal(id) => {}
            }
        }
    })
    .await
    .unwrap();
    let material = iap_runtime::tls::Material::new(plane.cluster.bundle().clone());
    let servers = std::sync::Arc::new(iap_runtime::tls::ServerVerifier::new(material));
    let key = iap_runtime::keys::private_key_der(&alice.key);
    let identity = iap_runtime::tls::certified_key(alice.chain.clone(), key).unwrap();
    let identity = std::sync::Arc::new(iap_runtime::tls::FixedIdentity(identity));
    let config = iap_runtime::tls::client_config(servers, Some(identity), &["iap/1"]).unwrap();
    let mut stream = iap_runtime::tls::connect(stream, &host("echo"), config, WAIT)
        .await
        .unwrap();
    stream.write_all(&hello().encode().unwrap()).await.unwrap();
    assert!(matches!(
        status(&mut stream).await.unwrap(),
        Status::Granted { .. }
    ));
    let (third, _) = plane.proxy.request("echo");
    assert!(plane.proxy.refusal(third).await.contains("limits.sessions_max"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_change_while_the_agent_runs_count_for_who_comes_next_and_end_no_session() {
    let (mut plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut first, answer) = framed(&plane, "echo", &alice).await;
    assert!(matches!(answer, Status::Granted { .. }), "{answer:?}");
    let (mut second, _) = framed(&plane, "echo", &alice).await;

    plane.limits = "sessions_max = 1".to_owned();
    running.reload.limits(plane.config().limits);
    let (third, _) = plane.proxy.request("echo");
    assert!(plane.proxy.refusal(third).await.contains("limits.sessions_max"));
    echoes(&mut first, "goes on").await;
    echoes(&mut second, "likewise").await;

    plane.limits = String::new();
    running.reload.limits(plane.config().limits);
    let (_, answer) = framed(&plane, "echo", &alice).await;
    assert!(matches!(answer, Status::Granted { .. }), "{answer:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_refuses_or_hangs_is_unavailable_and_recorded_as_such() {
    let mut plane = Plane::new().await;
    let refusing = format!("127.0.0.1:{}", iap_testkit::free_port().unwrap());
    plane.backend("echo", &refusing);
    plane.backend("db-prod", "unix:/nonexistent/socket");
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    for service in ["echo", "db-prod"] {
        let (_, answer) = framed(&plane, service, &alice).await;
        assert!(
            matches!(answer, Status::Unavailable { retry: true, .. }),
            "{answer:?}"
        );
        plane
            .record(|record| record.event == "session.start" && record.fields["service"] == service)
            .await;
        let end = plane
            .record(|record| record.event == "session.end" && record.fields["service"] == service)
            .await;
        assert_eq!(end["close_reason"], "backend_refused");
    }
    let (_, mut stream) = raw(&plane, "echo", &alice).await;
    assert_eq!(ending(&mut stream).await, None);
    plane.event("session.connect_failed").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_does_not_answer_is_given_up_in_time() {
    let mut plane = Plane::new().await;
    // A listener whose queue is full accepts nobody: connection attempts hang.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into())
        .unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut fillers = Vec::new();
    for _ in 0..4 {
        let filler = tokio::net::TcpStream::connect(address);
        fillers.push(tokio::time::timeout(Duration::from_millis(200), filler).await);
    }
    plane.backend("echo", &address.to_string());
    plane.limits = "backend_dial_seconds_max = 1".to_owned();
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (_, answer) = framed(&plane, "echo", &alice).await;
    assert!(matches!(answer, Status::Unavailable { .. }), "{answer:?}");
    assert_eq!(
        plane.event("session.end").await["close_reason"],
        "backend_timeout"
    );
    running.stop().await;
}
