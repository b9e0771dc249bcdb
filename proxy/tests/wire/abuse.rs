//! What strangers and hostile agents can hold, and for how long.

use std::time::Duration;

use iap_identity::ConnectionId;
use iap_proxy::metrics::Refusal;
use iap_runtime::net::{Cidr, HostPort};
use iap_runtime::proxy_protocol;
use iap_tunnel::ControlMessage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

async fn client(plane: &Plane, label: &str) -> TcpStream {
    dial(plane.address, &hello(&plane.cluster, &plane.host(label))).await
}

/// What the agent thinks of the client, acted upon.
async fn judge(agent: &mut TestAgent, connection_id: ConnectionId, authenticated: bool) {
    agent
        .send(ControlMessage::Verdict {
            connection_id,
            authenticated,
        })
        .await;
    agent.settled().await;
}

#[tokio::test]
async fn a_client_that_stays_when_its_agent_has_given_it_up_is_closed() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let mut stays = client(&plane, "db").await;
    let (_, fetched) = agent.fetch().await;
    until(|| plane.metrics.sessions.get() == 1).await;
    drop(fetched);
    rest(&mut stays).await;
    until(|| plane.metrics.sessions.get() == 0 && plane.board.sessions() == 0).await;
}

#[tokio::test]
async fn a_client_that_stays_when_the_auth_server_has_given_it_up_is_closed() {
    let auth = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = auth.local_addr().unwrap();
    let plane = Plane::start_with(|config| config.auth = HostPort::from(address)).await;
    let hello = hello(&plane.cluster, &plane.host("auth"));
    let mut stays = dial(plane.address, &hello).await;
    let mut expected = proxy_protocol::encode(stays.local_addr().unwrap(), address);
    expected.extend(&hello);
    loop {
        // The proxy's own attempts to follow the feed come without a header.
        let (mut stream, _) = soon(auth.accept()).await.unwrap();
        if take(&mut stream, 1).await == [0x0d] {
            take(&mut stream, expected.len() - 1).await;
            break;
        }
    }
    assert_eq!(plane.metrics.sessions.get(), 1);
    rest(&mut stays).await;
    until(|| plane.metrics.sessions.get() == 0).await;
}

#[tokio::test]
async fn a_client_that_failed_is_closed_though_its_agent_holds_on() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let mut failed = client(&plane, "db").await;
    let (opened, mut fetched) = agent.fetch().await;
    take(&mut fetched, hello(&plane.cluster, &plane.host("db")).len()).await;
    judge(&mut agent, opened.connection_id, false).await;
    // What tells the client why still reaches it.
    fetched.write_all(&DECODE_ERROR).await.unwrap();
    assert_eq!(rest(&mut failed).await, DECODE_ERROR);
    until(|| plane.board.sessions() == 0).await;
}

#[tokio::test]
async fn a_client_that_proved_itself_may_go_on_after_its_agent_has_finished() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let mut good = client(&plane, "db").await;
    let (opened, mut fetched) = agent.fetch().await;
    take(&mut fetched, hello(&plane.cluster, &plane.host("db")).len()).await;
    judge(&mut agent, opened.connection_id, true).await;
    fetched.shutdown().await.unwrap();
    assert_eq!(soon(good.read(&mut [0])).await.unwrap(), 0);
    // Longer than one that has proven nothing is waited for.
    tokio::time::sleep(Duration::from_secs(7)).await;
    good.write_all(b"upload").await.unwrap();
    assert_eq!(take(&mut fetched, 6).await, b"upload");
}

#[tokio::test]
async fn a_client_that_closes_before_its_verdict_comes_counts_all_the_same() {
    let plane = Plane::start_with(|config| config.limits.failures_per_source_per_minute_max = 1).await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let hasty = client(&plane, "db").await;
    let (opened, fetched) = agent.fetch().await;
    until(|| plane.metrics.sessions.get() == 1).await;
    drop((hasty, fetched));
    until(|| plane.board.sessions() == 0).await;
    judge(&mut agent, opened.connection_id, false).await;
    assert_eq!(rest(&mut client(&plane, "db").await).await, INTERNAL_ERROR);
    plane.refused_once(Refusal::SourceThrottled).await;
}

#[tokio::test]
async fn a_verdict_after_the_end_counts_once_and_from_the_agent_that_served_alone() {
    let plane = Plane::start_with(|config| config.limits.failures_per_source_per_minute_max = 2).await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let mut other = TestAgent::serving(&plane, &["web"]).await;
    let hasty = client(&plane, "db").await;
    let (opened, fetched) = agent.fetch().await;
    until(|| plane.metrics.sessions.get() == 1).await;
    drop((hasty, fetched));
    until(|| plane.board.sessions() == 0).await;
    judge(&mut other, opened.connection_id, false).await;
    judge(&mut agent, opened.connection_id, false).await;
    judge(&mut agent, opened.connection_id, false).await;
    let _client = client(&plane, "db").await;
    agent.opened().await;
    assert_eq!(plane.metrics.refusals(Refusal::SourceThrottled), 0);
}

#[tokio::test]
async fn a_client_is_not_blamed_for_an_agent_that_came_too_late() {
    let plane = Plane::start_with(|config| {
        config.limits.failures_per_source_per_minute_max = 1;
        config.limits.dial_back_next_milliseconds = Duration::from_millis(50);
    })
    .await;
    let mut slow = TestAgent::serving(&plane, &["db"]).await;
    let mut quick = TestAgent::serving(&plane, &["db"]).await;
    let _client = client(&plane, "db").await;
    let (overtaken, (_, _fetched)) = tokio::join!(slow.opened(), quick.fetch());
    until(|| plane.board.sessions() == 1).await;
    // It dials back, finds nobody, and takes that for a client that failed.
    assert!(rest(&mut slow.dial_back(&overtaken).await).await.is_empty());
    judge(&mut slow, overtaken.connection_id, false).await;
    let _another = client(&plane, "db").await;
    let (opened, _) = tokio::join!(slow.opened(), quick.opened());
    assert_ne!(opened.connection_id, overtaken.connection_id);
}

#[tokio::test]
async fn a_client_behind_a_balancer_gives_way_to_the_next_one_from_its_source() {
    let plane = Plane::start_with(|config| {
        config.proxy_protocol_from = vec![Cidr::parse("127.0.0.0/8").unwrap()];
        config.limits.waiting_connections_per_source_max = 1;
        config.limits.client_hello_seconds_max = PATIENCE * 10;
    })
    .await;
    let header = proxy_protocol::encode("203.0.113.9:4711".parse().unwrap(), plane.address);
    let mut silent = dial(plane.address, &header).await;
    let closed = async {
        rest(&mut silent).await;
    };
    let others_knock = async {
        loop {
            let _other = dial(plane.address, &header).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = closed => {}
        () = others_knock => {}
    }
    until(|| plane.metrics.refusals(Refusal::GaveWay) > 0).await;
}
