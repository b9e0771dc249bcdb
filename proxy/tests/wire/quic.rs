//! The control channel over QUIC: the same rules as over TCP, and what only QUIC can do.

use std::time::Duration;

use iap_identity::{AgentId, AgentProfile, LockKind, Profile, ProxyId};
use iap_proto::v1::feed_event::Event;
use iap_proxy::metrics::Refusal;
use iap_runtime::quic::QuicError;
use iap_testkit::{Credential, Relay, TestCluster, new_uuid};
use iap_tunnel::{ALPN_CONTROL, ControlMessage, ControlWay};
use rustls::AlertDescription;
use time::OffsetDateTime;
use tokio::net::UdpSocket;

use crate::support::agent::quic;
use crate::support::plane::{Prepared, lock, signed_locks};
use crate::support::*;

/// The alert that ends the connection, during the handshake or after the client's part of it.
async fn refusal(plane: &Plane, credential: Option<&Credential>, host: &str, alpn: &[&str]) -> Option<u8> {
    match quic(plane, plane.address, credential, host, alpn).await {
        Ok(connection) => iap_runtime::quic::alert_received(&soon(connection.closed()).await),
        Err(error) => error.alert_received(),
    }
}

async fn control_refusal(plane: &Plane, credential: Option<&Credential>) -> Option<u8> {
    let host = plane.cluster.name.proxy_host();
    refusal(plane, credential, &host, &[ALPN_CONTROL]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_serves_over_quic() {
    let plane = Plane::start().await;
    let (mut agent, _connection) = TestAgent::by_quic(&plane).await;
    let db = agent.offer(&plane, "db");
    assert_eq!(agent.announce(vec![db]).await.0.len(), 1);
    let hello = hello(&plane.cluster, &plane.host("db"));
    let mut client = dial(plane.address, &hello).await;
    let (_, mut fetched) = agent.fetch().await;
    assert_eq!(take(&mut fetched, hello.len()).await, hello);
    tokio::io::AsyncWriteExt::write_all(&mut fetched, b"served")
        .await
        .unwrap();
    assert_eq!(take(&mut client, 6).await, b"served");
    assert_eq!(plane.metrics.control_connections(ControlWay::Quic).get(), 1);
    assert_eq!(plane.metrics.control_connections(ControlWay::Tls).get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_agents_have_a_line_over_quic() {
    let plane = Plane::start().await;
    let cluster = &plane.cluster;
    let elsewhere = TestCluster::new("iap.example.com").unwrap();
    let strangers = [
        cluster.user("alice@example.com", &[]).unwrap(),
        cluster.bot("ci").unwrap(),
        cluster.proxy(ProxyId::from_uuid(new_uuid())).unwrap(),
        cluster
            .service_leaf(AgentId::from_uuid(new_uuid()), "db")
            .unwrap(),
        elsewhere.agent(AgentId::from_uuid(new_uuid())).unwrap(),
    ];
    for stranger in &strangers {
        assert!(control_refusal(&plane, Some(stranger)).await.is_some());
    }
    let nameless = control_refusal(&plane, None).await;
    assert_eq!(nameless, Some(u8::from(AlertDescription::CertificateRequired)));
    until(|| plane.metrics.refusals(Refusal::Control) == 6).await;
    assert_eq!(plane.board.agents(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_name_and_no_other_protocol_is_answered_over_quic() {
    let plane = Plane::start().await;
    let agent = plane.cluster.agent(AgentId::from_uuid(new_uuid())).unwrap();
    let host = plane.cluster.name.proxy_host();
    for name in [plane.host("db"), plane.cluster.name.auth_host()] {
        assert!(
            refusal(&plane, Some(&agent), &name, &[ALPN_CONTROL])
                .await
                .is_some()
        );
    }
    let other = refusal(&plane, Some(&agent), &host, &["h3"]).await;
    assert_eq!(other, Some(u8::from(AlertDescription::NoApplicationProtocol)));
    until(|| plane.metrics.refusals(Refusal::Control) == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_agent_has_no_line_over_quic_and_a_lock_cuts_the_one_it_has() {
    let mut prepared = Prepared::new();
    let auth = FakeAuth::start(&prepared.cluster).await;
    prepared.config.auth = auth.address.clone();
    let plane = prepared.start().await;
    let id = AgentId::from_uuid(new_uuid());
    let credential = plane.cluster.agent(id).unwrap();
    let (mut agent, _connection) = TestAgent::by_quic_as(&plane, plane.address, id, &credential).await;
    let (_other, _its_connection) = TestAgent::by_quic(&plane).await;
    until(|| !auth.watchers().is_empty() && plane.board.agents() == 2).await;
    let locks = vec![lock(LockKind::Agent, id.to_string())];
    auth.publish(Event::Locks(signed_locks(&plane.cluster, 1, locks)));
    agent.closed().await;
    until(|| plane.board.agents() == 1).await;
    let refused = control_refusal(&plane, Some(&credential)).await;
    assert_eq!(refused, Some(u8::from(AlertDescription::CertificateRevoked)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_over_quic_ends_when_its_certificate_does() {
    let plane = Plane::start().await;
    let id = AgentId::from_uuid(new_uuid());
    let profile = Profile::Agent(AgentProfile {
        id,
        cluster: plane.cluster.name.clone(),
        generation: 0,
    });
    let made = OffsetDateTime::now_utc() - time::Duration::hours(24) + time::Duration::seconds(3);
    let credential = plane.cluster.issue_at(profile, made).unwrap();
    let (mut agent, _connection) = TestAgent::by_quic_as(&plane, plane.address, id, &credential).await;
    agent.closed().await;
    until(|| plane.board.agents() == 0).await;
    let expired = control_refusal(&plane, Some(&credential)).await;
    assert_eq!(expired, Some(u8::from(AlertDescription::CertificateExpired)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_over_quic_survives_a_change_of_the_agents_address() {
    let plane = Plane::start().await;
    let relay = Relay::start(plane.address).unwrap();
    let id = AgentId::from_uuid(new_uuid());
    let credential = plane.cluster.agent(id).unwrap();
    let (mut agent, connection) = TestAgent::by_quic_as(&plane, relay.address(), id, &credential).await;
    agent.settled().await;
    for address in ["127.0.0.2", "127.0.0.3"] {
        relay.move_to(address.parse().unwrap()).unwrap();
        let before = relay.datagrams_back();
        agent.settled().await;
        assert!(
            relay.datagrams_back() > before,
            "the proxy answers the new address"
        );
    }
    assert!(connection.close_reason().is_none());
    assert_eq!(plane.board.agents(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_moves_to_quic_keeps_its_routes_and_what_it_was_asked_for() {
    let plane = Plane::start().await;
    let id = AgentId::from_uuid(new_uuid());
    let credential = plane.cluster.agent(id).unwrap();
    let mut old = TestAgent::connect_as(&plane, id, &credential).await;
    let db = old.offer(&plane, "db");
    old.announce(vec![db.clone()]).await;
    let hello = hello(&plane.cluster, &plane.host("db"));
    let _first = dial(plane.address, &hello).await;
    until(|| plane.board.sessions() == 1).await;
    let (mut new, _connection) = TestAgent::by_quic_as(&plane, plane.address, id, &credential).await;
    // Asked for before the move, fetched after it.
    let (_, mut fetched) = old.fetch().await;
    assert_eq!(take(&mut fetched, hello.len()).await, hello);
    old.closed().await;
    // Asked for before the new line has announced anything.
    let _second = dial(plane.address, &hello).await;
    let (_, mut fetched) = new.fetch().await;
    assert_eq!(take(&mut fetched, hello.len()).await, hello);
    new.announce(Vec::new()).await;
    assert_eq!(answer(plane.address, &hello).await, INTERNAL_ERROR);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_never_announces_loses_the_routes_it_took_over() {
    let plane = Plane::start_with(|config| {
        config.limits.control_handshake_seconds_max = Duration::from_millis(500);
        config.limits.control_ping_seconds = Duration::from_millis(50);
    })
    .await;
    let id = AgentId::from_uuid(new_uuid());
    let credential = plane.cluster.agent(id).unwrap();
    let mut old = TestAgent::connect_as(&plane, id, &credential).await;
    let db = old.offer(&plane, "db");
    old.announce(vec![db]).await;
    let (mut new, _connection) = TestAgent::by_quic_as(&plane, plane.address, id, &credential).await;
    let name = iap_identity::ServerName::parse(&plane.host("db"), &plane.cluster.name).unwrap();
    while !plane.board.candidates(&name).is_empty() {
        let Some(ControlMessage::Ping(nonce)) = new.next().await else {
            panic!("the line ends or says something else");
        };
        new.send(ControlMessage::Pong(nonce)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_over_quic_count_among_those_who_wait() {
    let plane = Plane::start_with(|config| config.limits.waiting_connections_per_source_max = 1).await;
    // Says nothing, and holds the one place of this source.
    let silent = tokio::net::TcpStream::connect(plane.address).await.unwrap();
    until(|| plane.metrics.waiting.get() == 1).await;
    let agent = plane.cluster.agent(AgentId::from_uuid(new_uuid())).unwrap();
    let host = plane.cluster.name.proxy_host();
    let refused = quic(&plane, plane.address, Some(&agent), &host, &[ALPN_CONTROL]).await;
    assert!(matches!(refused, Err(QuicError::Failed(_))), "{refused:?}");
    plane.refused_once(Refusal::TooManyWaiting).await;
    drop(silent);
    until(|| plane.metrics.waiting.get() == 0).await;
    TestAgent::by_quic(&plane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_opens_no_stream_has_no_line() {
    let plane = Plane::start_with(|config| {
        config.limits.control_handshake_seconds_max = Duration::from_millis(500);
    })
    .await;
    let agent = plane.cluster.agent(AgentId::from_uuid(new_uuid())).unwrap();
    let host = plane.cluster.name.proxy_host();
    let connection = quic(&plane, plane.address, Some(&agent), &host, &[ALPN_CONTROL])
        .await
        .unwrap();
    soon(connection.closed()).await;
    plane.refused_once(Refusal::Control).await;
    assert_eq!(plane.board.agents(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_open_no_stream_in_one_direction() {
    let plane = Plane::start().await;
    let (mut agent, connection) = TestAgent::by_quic(&plane).await;
    let one_way = tokio::time::timeout(Duration::from_millis(300), connection.open_uni()).await;
    assert!(one_way.is_err(), "a stream in one direction is open");
    agent.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_quic_nobody_answers_on_udp() {
    let plane = Plane::start_with(|config| config.quic.enabled = false).await;
    // The port is free for others.
    std::net::UdpSocket::bind(plane.address).unwrap();
    TestAgent::connect(&plane).await;
}

/// The first thing an honest client sends.
async fn first_datagram(plane: &Plane) -> Vec<u8> {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let agent = plane.cluster.agent(AgentId::from_uuid(new_uuid())).unwrap();
    let host = plane.cluster.name.proxy_host();
    let mut datagram = vec![0; 2048];
    tokio::select! {
        connected = quic(plane, address, Some(&agent), &host, &[ALPN_CONTROL]) => panic!("{connected:?}"),
        received = silent.recv(&mut datagram) => datagram.truncate(received.unwrap()),
    }
    datagram
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_not_proven_gets_a_retry_and_nothing_else() {
    let plane = Plane::start().await;
    let first = first_datagram(&plane).await;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut answer = [0; 2048];
    for _ in 0..3 {
        stranger.send_to(&first, plane.address).await.unwrap();
        let bytes = soon(stranger.recv(&mut answer)).await.unwrap();
        // A long header of the type Retry (RFC 9000 §17.2.5), far smaller than what it answers.
        assert_eq!(answer[0] & 0xf0, 0xf0);
        assert!(bytes * 4 < first.len(), "{bytes} for {}", first.len());
        let more = tokio::time::timeout(Duration::from_millis(300), stranger.recv(&mut answer)).await;
        assert!(more.is_err(), "{more:?}");
    }
    assert_eq!(plane.metrics.waiting.get(), 0);
}
