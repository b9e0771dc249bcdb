//! `proxy.<cluster>`: agents and nobody else, as long as they may.

use std::time::Duration;

use iap_identity::{AgentId, AgentProfile, LockKind, Profile, ProxyId, ServerName, ServiceName};
use iap_proto::encode_control;
use iap_proxy::metrics::Refusal;
use iap_runtime::tls::AlertDescription;
use iap_testkit::{TestCluster, new_uuid};
use iap_tunnel::{ALPN_CONTROL, ControlMessage};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::agent::{control_stream, greeting, line_refusal};
use crate::support::plane::{Prepared, lock, signed_locks};
use crate::support::*;

#[tokio::test]
async fn only_agents_have_a_line() {
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
        assert!(
            line_refusal(&plane, Some(stranger), &[ALPN_CONTROL])
                .await
                .is_some()
        );
    }
    assert!(line_refusal(&plane, None, &[ALPN_CONTROL]).await.is_some());
    until(|| plane.metrics.refusals(Refusal::Control) == 6).await;
    assert_eq!(plane.board.agents(), 0);
}

#[tokio::test]
async fn an_agent_that_does_not_speak_the_protocol_has_no_line() {
    let plane = Plane::start().await;
    let agent = plane.cluster.agent(AgentId::from_uuid(new_uuid())).unwrap();
    assert_eq!(line_refusal(&plane, Some(&agent), &[]).await, None);
    let other = line_refusal(&plane, Some(&agent), &["h2"]).await;
    assert_eq!(other, Some(AlertDescription::NoApplicationProtocol));
    until(|| plane.metrics.refusals(Refusal::Control) == 2).await;
}

/// What comes along with the hello waits for nothing that comes later.
#[tokio::test]
async fn an_agent_may_announce_in_the_breath_of_its_hello() {
    let never = Duration::from_secs(3600);
    let plane = Plane::start_with(|config| config.limits.control_ping_seconds = never).await;
    let id = AgentId::from_uuid(new_uuid());
    let credential = plane.cluster.agent(id).unwrap();
    let leaf = plane.cluster.service_leaf(id, "db").unwrap().leaf().to_vec();
    let services = vec![(ServiceName::parse("db").unwrap(), leaf)];
    let both = [greeting(None), ControlMessage::Announce { services }].map(|it| encode_control(it).unwrap());
    let mut stream = control_stream(&plane, Some(&credential), &[ALPN_CONTROL])
        .await
        .unwrap();
    stream.write_all(&both.concat()).await.unwrap();
    stream.flush().await.unwrap();
    let name = ServerName::Service(ServiceName::parse("db").unwrap());
    until(|| plane.board.candidates(&name) == [id]).await;
}

#[tokio::test]
async fn a_locked_agent_has_no_line() {
    let prepared = Prepared::new();
    let id = AgentId::from_uuid(new_uuid());
    let locks = vec![lock(LockKind::Agent, id.to_string())];
    prepared.store("locks.bin", &signed_locks(&prepared.cluster, 1, locks));
    let plane = prepared.start().await;
    let agent = plane.cluster.agent(id).unwrap();
    let refusal = line_refusal(&plane, Some(&agent), &[ALPN_CONTROL]).await;
    assert_eq!(refusal, Some(AlertDescription::CertificateRevoked));
    TestAgent::serving(&plane, &["db"]).await;
}

#[tokio::test]
async fn a_line_ends_when_its_certificate_does() {
    let plane = Plane::start().await;
    let id = AgentId::from_uuid(new_uuid());
    let profile = Profile::Agent(AgentProfile {
        id,
        cluster: plane.cluster.name.clone(),
        generation: 0,
    });
    let made = OffsetDateTime::now_utc() - time::Duration::hours(24) + time::Duration::seconds(2);
    let credential = plane.cluster.issue_at(profile, made).unwrap();
    let mut agent = TestAgent::connect_as(&plane, id, &credential).await;
    until(|| plane.board.agents() == 1).await;
    agent.closed().await;
    until(|| plane.board.agents() == 0).await;
    let expired = line_refusal(&plane, Some(&credential), &[ALPN_CONTROL]).await;
    assert_eq!(expired, Some(AlertDescription::CertificateExpired));
}

#[tokio::test]
async fn an_agent_that_falls_silent_loses_its_line() {
    let plane = Plane::start_with(|config| {
        config.limits.control_ping_seconds = Duration::from_millis(50);
        config.limits.control_silence_seconds_max = Duration::from_millis(200);
    })
    .await;
    let mut agent = TestAgent::connect(&plane).await;
    while agent.next().await.is_some() {}
    until(|| plane.board.agents() == 0).await;
}

#[tokio::test]
async fn an_agent_that_breaks_the_rules_loses_its_line() {
    let plane = Plane::start().await;
    let second_hello = encode_control(greeting(None)).unwrap();
    let proxys_words = encode_control(ControlMessage::Drain { deadline_seconds: 1 }).unwrap();
    let endless = u32::MAX.to_be_bytes().to_vec();
    let garbage = [&4u32.to_be_bytes()[..], &[0xff; 4]].concat();
    for bytes in [second_hello, proxys_words, endless, garbage] {
        let mut agent = TestAgent::serving(&plane, &["db"]).await;
        agent.send_raw(&bytes).await;
        agent.closed().await;
        until(|| plane.board.agents() == 0).await;
    }
}

#[tokio::test]
async fn an_agent_that_says_no_hello_has_no_line() {
    let plane = Plane::start_with(|config| {
        config.limits.control_handshake_seconds_max = Duration::from_millis(500);
    })
    .await;
    let credential = plane.cluster.agent(AgentId::from_uuid(new_uuid())).unwrap();
    let mut stream = control_stream(&plane, Some(&credential), &[ALPN_CONTROL])
        .await
        .unwrap();
    let mut bytes = Vec::new();
    let read = AsyncReadExt::read_to_end(&mut stream, &mut bytes);
    let _ = soon(read).await;
    assert_eq!(plane.board.agents(), 0);
}

#[tokio::test]
async fn an_agent_that_comes_back_replaces_its_old_line() {
    let plane = Plane::start().await;
    let id = AgentId::from_uuid(new_uuid());
    let credential = plane.cluster.agent(id).unwrap();
    let mut old = TestAgent::connect_as(&plane, id, &credential).await;
    let db = old.offer(&plane, "db");
    old.announce(vec![db.clone()]).await;
    let mut new = TestAgent::connect_as(&plane, id, &credential).await;
    old.closed().await;
    new.announce(vec![db]).await;
    let _client = dial(plane.address, &hello(&plane.cluster, &plane.host("db"))).await;
    new.opened().await;
    assert_eq!(plane.board.agents(), 1);
}

#[tokio::test]
async fn no_more_agents_than_the_limit_have_a_line() {
    let plane = Plane::start_with(|config| config.limits.agents_max = 1).await;
    let _first = TestAgent::serving(&plane, &["db"]).await;
    let mut second = TestAgent::connect(&plane).await;
    second.closed().await;
    assert_eq!(plane.board.agents(), 1);
}

#[tokio::test]
async fn a_line_keeps_its_waiting_place_until_its_hello() {
    let plane = Plane::start_with(|config| {
        config.limits.waiting_connections_per_source_max = 1;
        config.limits.control_handshake_seconds_max = PATIENCE * 10;
    })
    .await;
    let agent = plane.cluster.agent(AgentId::from_uuid(new_uuid())).unwrap();
    let mut silent = control_stream(&plane, Some(&agent), &[ALPN_CONTROL])
        .await
        .unwrap();
    // Its handshake is over: the proxy has said hello.
    take(&mut silent, 4).await;
    let closed = async {
        let _ = silent.read_to_end(&mut Vec::new()).await;
    };
    let others_knock = async {
        loop {
            let _other = TcpStream::connect(plane.address).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(async {
        tokio::select! {
            () = closed => {}
            () = others_knock => {}
        }
    })
    .await;
}

#[tokio::test]
async fn one_agent_has_a_few_lines_at_most_whether_they_have_begun_or_not() {
    let plane = Plane::start_with(|config| config.limits.control_handshake_seconds_max = PATIENCE * 10).await;
    let agent = plane.cluster.agent(AgentId::from_uuid(new_uuid())).unwrap();
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut line = control_stream(&plane, Some(&agent), &[ALPN_CONTROL])
            .await
            .unwrap();
        take(&mut line, 4).await;
        held.push(line);
    }
    let mut more = control_stream(&plane, Some(&agent), &[ALPN_CONTROL])
        .await
        .unwrap();
    assert!(!matches!(soon(more.read(&mut [0])).await, Ok(1..)));
    plane.refused_once(Refusal::Control).await;
    // Others are not held up, nor is this one when it has fewer.
    TestAgent::connect(&plane).await;
    drop(held.pop());
    let begins = async || {
        let line = control_stream(&plane, Some(&agent), &[ALPN_CONTROL]).await;
        matches!(line.unwrap().read(&mut [0]).await, Ok(1))
    };
    iap_testkit::wait_until_async(begins, PATIENCE).await.unwrap();
}
