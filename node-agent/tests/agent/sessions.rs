//! Sessions that are allowed.

use iap_policy::Protocol;
use std::time::Duration;

use iap_tunnel::Status;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::client::{connect_as, echoes, ending, framed, hello, host, raw, status};
use crate::plane::Plane;
use crate::proxy::WAIT;

#[tokio::test(flavor = "multi_thread")]
async fn a_session_carries_bytes_and_leaves_a_start_and_an_end_record() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut stream, granted) = framed(&plane, "echo", &alice).await;
    let Status::Granted {
        session_id,
        protocol,
        login,
        ..
    } = granted
    else {
        panic!("{granted:?}")
    };
    assert_eq!((protocol.as_str(), login), ("tcp", None));
    echoes(&mut stream, "hello").await;
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(
        rest, "bye",
        "what the backend says after the client's half-close arrives"
    );

    let start = plane.event("session.start").await;
    assert_eq!(start["session_id"], session_id.to_string());
    assert_eq!(start["user"]["name"], "alice@example.com");
    assert_eq!(start["service"], "echo");
    assert_eq!(start["agent"], plane.agent_id.to_string());
    assert_eq!(start["client_address"], "203.0.113.7:4711");
    assert_eq!(start["client_asserted_by"], plane.proxy.id().to_string());
    assert_eq!(
        start["decision"],
        json!({"effect": "allow", "rule": "engineers reach everything", "policy_version": 1})
    );
    assert_eq!(start["observed"], "bytes");
    assert!(start["login_id"].is_string() && start["connect_id"].is_string() && start["serial"].is_string());
    let end = plane.event("session.end").await;
    assert_eq!(end["session_id"], session_id.to_string());
    assert_eq!(
        (end["bytes_in"].as_u64(), end["bytes_out"].as_u64()),
        (Some(5), Some(8))
    );
    assert_eq!(end["close_reason"], "client_closed");
    assert!(end["duration_ms"].is_u64());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_iap_1_gets_the_backends_bytes_alone() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (id, mut stream) = raw(&plane, "echo", &alice).await;
    echoes(&mut stream, "as they are").await;
    assert!(plane.proxy.verdict(id).await);
    stream.shutdown().await.unwrap();
    assert_eq!(ending(&mut stream).await, None);
    plane.event("session.end").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_client_is_answered_in_its_own_protocol_name() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (_, stream) = connect_as(&plane, "db-prod", &host("db-prod"), Some(&alice), &["postgresql"]).await;
    let mut stream = stream.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"postgresql"[..]));
    echoes(&mut stream, "startup").await;
    let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap();
    assert_eq!(format!("{:?}", group.name()), "X25519MLKEM768");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_ride_with_the_finished_are_not_lost() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    // The hello and the first bytes of the session in one write, before anything was read.
    let (_, stream) = connect_as(&plane, "echo", &host("echo"), Some(&alice), &["iap/1"]).await;
    let mut stream = stream.unwrap();
    let mut first = hello().encode().unwrap();
    first.extend_from_slice(b"early");
    stream.write_all(&first).await.unwrap();
    stream.flush().await.unwrap();
    assert!(matches!(
        status(&mut stream).await.unwrap(),
        Status::Granted { .. }
    ));
    let mut back = [0; 5];
    tokio::time::timeout(WAIT, stream.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&back, b"early");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_megabyte_passes_unharmed_in_both_directions() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (stream, _) = framed(&plane, "echo", &alice).await;
    let sent: Vec<u8> = (0..4 * 1024 * 1024_u32)
        .map(|index| (index % 251) as u8)
        .collect();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.flush().await.unwrap();
        writer
    });
    let mut back = vec![0; expected.len()];
    tokio::time::timeout(WAIT, reader.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert!(back == expected);
    writing.await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_closes_first_ends_the_session_in_its_name() {
    let mut plane = Plane::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    plane.backend("echo", &listener.local_addr().unwrap().to_string());
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let accepting = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"last words").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        rest
    });
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    let mut words = String::new();
    stream.read_to_string(&mut words).await.unwrap();
    assert_eq!(words, "last words");
    stream.write_all(b"still heard").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(
        accepting.await.unwrap(),
        "still heard",
        "half-close works towards the backend too"
    );
    assert_eq!(plane.event("session.end").await["close_reason"], "backend_closed");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_opens_sessions_where_a_rule_allows_bots() {
    let (plane, running) = Plane::started().await;
    let bot = plane.cluster.bot("deployer").unwrap();
    let (_, denied) = framed(&plane, "echo", &bot).await;
    assert!(matches!(denied, Status::Denied { .. }), "{denied:?}");
    plane.auth.publish(|snapshot| {
        snapshot.policy_toml =
            "[[rule]]\nname = \"bots\"\neffect = \"allow\"\nusers = { kinds = [\"bot\"] }\nservices = { names = [\"echo\"] }\n"
                .to_owned();
    });
    let mut granted = None;
    iap_testkit::wait_until_async(
        async || {
            let (stream, status) = framed(&plane, "echo", &bot).await;
            granted = matches!(status, Status::Granted { .. }).then_some(stream);
            granted.is_some()
        },
        WAIT,
    )
    .await
    .unwrap();
    echoes(&mut granted.unwrap(), "beep").await;
    let start = plane.event("session.start").await;
    assert_eq!(
        (start["user"]["kind"].as_str(), start["user"]["name"].as_str()),
        (Some("bot"), Some("deployer"))
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_service_is_announced_as_soon_as_it_is_granted() {
    let mut plane = Plane::new().await;
    plane.backend("other", &plane.backends[0].1.clone());
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let agent_id = plane.agent_id;
    plane.auth.publish(|snapshot| {
        snapshot
            .services
            .push(crate::plane::service("other", &[agent_id]))
    });
    let granted = tokio::time::timeout(
        Duration::from_secs(5),
        plane.proxy.announced(&["echo", "db-prod", "other"]),
    );
    granted.await.expect("within five seconds");
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut stream, _) = framed(&plane, "other", &alice).await;
    echoes(&mut stream, "new").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_granted_but_not_in_the_agents_file_or_asking_for_inspection_is_not_announced() {
    let (plane, running) = Plane::started().await;
    let agent_id = plane.agent_id;
    plane.auth.publish(|snapshot| {
        snapshot
            .services
            .push(crate::plane::service("unknown", &[agent_id]));
        snapshot.services[1].facts.protocol = Protocol::Http;
        snapshot.services[1].facts.inspect = true;
    });
    plane.proxy.announced(&["echo"]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_withdraws_the_services_and_ends_live_sessions_with_a_reason() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    echoes(&mut stream, "live").await;
    running.stop().await;
    assert!(
        plane.proxy.last_announcement().is_empty(),
        "it says so before it goes"
    );
    assert_eq!(plane.event("session.end").await["close_reason"], "shutdown");
    plane.event("agent.stop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_not_said_hello_when_the_agent_stops_gets_no_session() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (id, stream) = connect_as(&plane, "echo", &host("echo"), Some(&alice), &["iap/1"]).await;
    let mut stream = stream.unwrap();
    assert!(plane.proxy.verdict(id).await);
    running.shutdown.trigger("test");
    stream.write_all(&hello().encode().unwrap()).await.unwrap();
    let answer = status(&mut stream).await.unwrap();
    assert!(
        matches!(answer, Status::Unavailable { retry: true, .. }),
        "{answer:?}"
    );
    running.stop().await;
    let started = |record: &iap_audit::RecordView| record.event == "session.start";
    assert!(!plane.auth.records().iter().any(started));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_begins_while_the_agent_stops_is_cut_and_has_its_end() {
    let mut plane = Plane::new().await;
    plane
        .auth
        .replace(|snapshot, _| snapshot.services[0].audit = iap_proto::AuditMode::Remote);
    plane.limits = "remote_audit_seconds_max = 20".to_owned();
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    plane.event("agent.start").await;
    plane.auth.take_records(false);
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (_, stream) = connect_as(&plane, "echo", &host("echo"), Some(&alice), &["iap/1"]).await;
    let mut stream = stream.unwrap();
    stream.write_all(&hello().encode().unwrap()).await.unwrap();
    // Its start is on the way to the auth server when the agent is told to stop.
    iap_testkit::wait_until(|| plane.auth.refused_batches() > 0, WAIT).unwrap();
    running.shutdown.trigger("test");
    plane.auth.take_records(true);
    running.stop().await;
    let records = plane.auth.records();
    let end = records.iter().find(|record| record.event == "session.end");
    let end = end.expect("its end is recorded before the agent goes");
    assert_eq!(end.fields["close_reason"], "shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_needs_valid_rules_and_a_proxy_and_metrics_count_sessions() {
    let mut plane = Plane::new().await;
    let port = iap_testkit::free_port().unwrap();
    plane.first_line = format!("admin_listen = \"127.0.0.1:{port}\"");
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    iap_testkit::wait_until_async(
        async || get(port, "/readyz").await.starts_with("HTTP/1.1 200"),
        WAIT,
    )
    .await
    .unwrap();
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    echoes(&mut stream, "counted").await;
    let metrics = get(port, "/metrics").await;
    assert!(metrics.contains("iap_agent_sessions_live 1"), "{metrics}");
    assert!(metrics.contains("iap_agent_control_connections 1"), "{metrics}");
    plane.auth.publish(|snapshot| {
        snapshot.expires = time::OffsetDateTime::now_utc() + time::Duration::seconds(1);
    });
    iap_testkit::wait_until_async(
        async || get(port, "/readyz").await.starts_with("HTTP/1.1 503"),
        WAIT,
    )
    .await
    .unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reloaded_file_adds_and_takes_away_services_and_touches_no_other_session() {
    let (mut plane, running) = Plane::started().await;
    let agent_id = plane.agent_id;
    plane.auth.publish(|snapshot| {
        snapshot
            .services
            .push(crate::plane::service("other", &[agent_id]))
    });
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut kept, _) = framed(&plane, "echo", &alice).await;
    let (mut lost, _) = framed(&plane, "db-prod", &alice).await;
    plane.backends.retain(|(name, _)| name == "echo");
    plane.backend("other", &plane.backends[0].1.clone());
    running.reload.services(plane.config().services);
    plane.proxy.announced(&["echo", "other"]).await;
    ending(&mut lost).await;
    assert_eq!(
        plane.event("session.end").await["close_reason"],
        "service_removed"
    );
    echoes(&mut kept, "untouched").await;
    let (mut new, _) = framed(&plane, "other", &alice).await;
    echoes(&mut new, "new").await;
    running.stop().await;
}

async fn get(port: u16, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}
