//! Connections that agents dial in advance: who may, who gets a client, and what becomes of the rest.

use std::time::Duration;

use iap_identity::ConnectionId;
use iap_proxy::metrics::Refusal;
use iap_testkit::new_uuid;
use iap_tunnel::{PoolPreface, Token};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

/// An agent that serves `db` with `count` connections in the pool, the oldest first.
async fn pooled(plane: &Plane, count: u32) -> (TestAgent, Vec<(ConnectionId, TcpStream)>) {
    let mut agent = TestAgent::serving(plane, &["db"]).await;
    let mut waiting = Vec::new();
    for preface in agent.invited(count).await {
        let before = plane.metrics.pool_idle.get();
        waiting.push((preface.id, dial(plane.address, &preface.encode()).await));
        until(|| plane.metrics.pool_idle.get() == before + 1).await;
    }
    (agent, waiting)
}

async fn client(plane: &Plane) -> (TcpStream, Vec<u8>) {
    let hello = hello(&plane.cluster, &plane.host("db"));
    (dial(plane.address, &hello).await, hello)
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    !matches!(soon(stream.read(&mut [0])).await, Ok(1..))
}

#[tokio::test]
async fn a_client_is_put_on_a_connection_dialled_in_advance() {
    let plane = Plane::start().await;
    let (mut agent, mut waiting) = pooled(&plane, 2).await;
    let (mut client, hello) = client(&plane).await;
    let opened = agent.opened().await;
    let (id, mut newest) = waiting.pop().unwrap();
    assert_eq!(opened.pooled, Some(id));
    assert_eq!(take(&mut newest, hello.len()).await, hello);
    newest.write_all(b"from the agent").await.unwrap();
    assert_eq!(take(&mut client, 14).await, b"from the agent");
    client.shutdown().await.unwrap();
    assert!(rest(&mut newest).await.is_empty());
    assert_eq!(plane.metrics.pool_outcomes(true), 1);
    assert_eq!(plane.metrics.pool_idle.get(), 1);
    // Its token is not needed any more, and good for nothing.
    assert!(rest(&mut agent.dial_back(&opened).await).await.is_empty());
    plane.refused_once(Refusal::DialBack).await;
}

#[tokio::test]
async fn an_agent_that_has_the_connection_no_more_dials_back() {
    let plane = Plane::start().await;
    let (mut agent, waiting) = pooled(&plane, 1).await;
    let (mut client, hello) = client(&plane).await;
    let opened = agent.opened().await;
    assert!(opened.pooled.is_some());
    drop(waiting);
    let mut fetched = agent.dial_back(&opened).await;
    assert_eq!(take(&mut fetched, hello.len()).await, hello);
    fetched.write_all(b"fetched").await.unwrap();
    assert_eq!(take(&mut client, 7).await, b"fetched");
    assert_eq!(plane.metrics.pool_outcomes(false), 1);
}

#[tokio::test]
async fn an_agent_that_dials_back_although_its_connection_is_there_is_heard() {
    let plane = Plane::start().await;
    let (mut agent, mut waiting) = pooled(&plane, 1).await;
    let (_client, hello) = client(&plane).await;
    let opened = agent.opened().await;
    let mut fetched = agent.dial_back(&opened).await;
    assert_eq!(take(&mut fetched, hello.len()).await, hello);
    let (_, mut unused) = waiting.remove(0);
    take(&mut unused, hello.len()).await;
    assert!(is_closed(&mut unused).await);
}

#[tokio::test]
async fn a_connection_that_was_closed_or_spoken_on_gets_no_client() {
    let plane = Plane::start().await;
    let (mut agent, mut waiting) = pooled(&plane, 2).await;
    let (_, mut speaks) = waiting.pop().unwrap();
    speaks.write_all(b"x").await.unwrap();
    drop(waiting);
    // Both have reached the proxy when what came after them on the same machine has.
    agent.settled().await;
    let (_client, _) = client(&plane).await;
    let opened = agent.opened().await;
    assert!(opened.pooled.is_none());
    assert!(is_closed(&mut speaks).await);
}

#[tokio::test]
async fn another_agents_connections_are_not_used() {
    let plane = Plane::start().await;
    let (_other, mut waiting) = pooled(&plane, 1).await;
    let mut agent = TestAgent::serving(&plane, &["web"]).await;
    let _client = dial(plane.address, &hello(&plane.cluster, &plane.host("web"))).await;
    assert!(agent.opened().await.pooled.is_none());
    assert_eq!(plane.metrics.pool_idle.get(), 1);
    let (_, waiting) = &mut waiting[0];
    let nothing = tokio::time::timeout(Duration::from_millis(200), waiting.read(&mut [0])).await;
    assert!(nothing.is_err(), "something is sent to a connection that waits");
}

#[tokio::test]
async fn a_strangers_token_a_used_one_and_another_invitations_are_refused() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let prefaces = agent.invited(2).await;
    let stranger = PoolPreface {
        id: ConnectionId::from_uuid(new_uuid()),
        token: Token::from_random([7; 16]),
    };
    let crossed = PoolPreface {
        id: prefaces[0].id,
        token: prefaces[1].token.clone(),
    };
    for (refusals, preface) in [(1, stranger), (2, crossed)] {
        assert!(answer(plane.address, &preface.encode()).await.is_empty());
        until(|| plane.metrics.refusals(Refusal::Pool) == refusals).await;
    }
    let _waiting = dial(plane.address, &prefaces[0].encode()).await;
    until(|| plane.metrics.pool_idle.get() == 1).await;
    assert!(answer(plane.address, &prefaces[0].encode()).await.is_empty());
    until(|| plane.metrics.refusals(Refusal::Pool) == 3).await;
    assert_eq!(plane.metrics.pool_idle.get(), 1);
    // An invitation to wait does not fetch anybody's client, nor the other way round.
    let mut fetching = prefaces[1].encode();
    fetching[4] = 1;
    assert!(answer(plane.address, &fetching).await.is_empty());
    plane.refused_once(Refusal::DialBack).await;
}

#[tokio::test]
async fn a_late_invitation_is_refused() {
    let plane =
        Plane::start_with(|config| config.limits.dial_back_seconds_max = Duration::from_millis(100)).await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let preface = agent.invited(1).await.remove(0);
    let late = OffsetDateTime::now_utc() + Duration::from_millis(100);
    until(|| OffsetDateTime::now_utc() > late).await;
    assert!(answer(plane.address, &preface.encode()).await.is_empty());
    plane.refused_once(Refusal::Pool).await;
}

#[tokio::test]
async fn no_more_are_invited_than_there_is_room_for() {
    let plane = Plane::start_with(|config| {
        config.limits.pool_connections_per_agent_max = 3;
        config.limits.pool_connections_max = 4;
    })
    .await;
    let (mut first, _waiting) = pooled(&plane, u32::MAX).await;
    assert_eq!(plane.metrics.pool_idle.get(), 3);
    assert!(first.invited(1).await.is_empty());
    let mut second = TestAgent::serving(&plane, &["web"]).await;
    assert_eq!(second.invited(2).await.len(), 1);
    drop(first);
    until(|| plane.metrics.pool_idle.get() == 0).await;
    assert_eq!(second.invited(2).await.len(), 2);
}

#[tokio::test]
async fn what_waits_ends_with_its_line_and_with_its_time() {
    let plane = Plane::start_with(|config| {
        config.limits.pool_idle_seconds_max = Duration::from_secs(2);
        config.limits.control_ping_seconds = Duration::from_millis(50);
    })
    .await;
    let (agent, mut waiting) = pooled(&plane, 1).await;
    drop(agent);
    assert!(is_closed(&mut waiting[0].1).await);
    let (mut agent, mut waiting) = pooled(&plane, 1).await;
    let answering = async {
        loop {
            agent.settled().await;
        }
    };
    tokio::select! {
        closed = is_closed(&mut waiting[0].1) => assert!(closed),
        () = answering => {}
    }
    assert_eq!(plane.metrics.pool_idle.get(), 0);
}
