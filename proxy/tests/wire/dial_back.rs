//! Tokens: one agent, one connection, one use, a few seconds.

use std::time::Duration;

use iap_identity::{AgentId, ConnectionId};
use iap_proxy::metrics::Refusal;
use iap_testkit::new_uuid;
use iap_tunnel::{ControlMessage, Preface, Token};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::*;

async fn client(plane: &Plane, label: &str) -> TcpStream {
    dial(plane.address, &hello(&plane.cluster, &plane.host(label))).await
}

/// What somebody gets who brings this preface.
async fn brought(plane: &Plane, connection_id: ConnectionId, token: Token) -> Vec<u8> {
    answer(plane.address, &Preface { connection_id, token }.encode()).await
}

/// The agent's socket and the client's are one connection.
async fn assert_joined(client: &mut TcpStream, fetched: &mut TcpStream, plane: &Plane, label: &str) {
    take(fetched, hello(&plane.cluster, &plane.host(label)).len()).await;
    fetched.write_all(b"from the agent").await.unwrap();
    assert_eq!(take(client, 14).await, b"from the agent");
}

#[tokio::test]
async fn a_wrong_token_is_refused_and_the_right_one_still_works() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let mut client = client(&plane, "db").await;
    let opened = agent.opened().await;
    assert!(
        brought(&plane, opened.connection_id, Token::from_random([0; 16]))
            .await
            .is_empty()
    );
    plane.refused_once(Refusal::DialBack).await;
    let mut fetched = agent.dial_back(&opened).await;
    assert_joined(&mut client, &mut fetched, &plane, "db").await;
}

#[tokio::test]
async fn an_unknown_connection_is_refused() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let _client = client(&plane, "db").await;
    let opened = agent.opened().await;
    assert!(
        brought(&plane, ConnectionId::from_uuid(new_uuid()), opened.token)
            .await
            .is_empty()
    );
    plane.refused_once(Refusal::DialBack).await;
}

#[tokio::test]
async fn a_used_token_is_refused_and_the_session_goes_on() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let mut client = client(&plane, "db").await;
    let (opened, mut fetched) = agent.fetch().await;
    assert_joined(&mut client, &mut fetched, &plane, "db").await;
    assert!(
        brought(&plane, opened.connection_id, opened.token)
            .await
            .is_empty()
    );
    client.write_all(b"still here").await.unwrap();
    assert_eq!(take(&mut fetched, 10).await, b"still here");
    assert_eq!(plane.metrics.refusals(Refusal::DialBack), 1);
}

#[tokio::test]
async fn a_late_token_is_refused() {
    let plane =
        Plane::start_with(|config| config.limits.dial_back_seconds_max = Duration::from_millis(100)).await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let mut client = client(&plane, "db").await;
    let opened = agent.opened().await;
    assert_eq!(rest(&mut client).await, INTERNAL_ERROR);
    plane.refused_once(Refusal::NoDialBack).await;
    assert!(rest(&mut agent.dial_back(&opened).await).await.is_empty());
    plane.refused_once(Refusal::DialBack).await;
}

#[tokio::test]
async fn another_agents_token_does_not_fetch_the_connection() {
    let plane = Plane::start().await;
    let mut first = TestAgent::serving(&plane, &["db"]).await;
    let mut second = TestAgent::serving(&plane, &["web"]).await;
    let mut db = client(&plane, "db").await;
    let _web = client(&plane, "web").await;
    let (for_db, for_web) = (first.opened().await, second.opened().await);
    assert!(
        brought(&plane, for_db.connection_id, for_web.token)
            .await
            .is_empty()
    );
    plane.refused_once(Refusal::DialBack).await;
    let mut fetched = first.dial_back(&for_db).await;
    assert_joined(&mut db, &mut fetched, &plane, "db").await;
}

#[tokio::test]
async fn an_agent_cannot_refuse_or_judge_another_agents_connection() {
    let plane = Plane::start_with(|config| config.limits.failures_per_source_per_minute_max = 1).await;
    let mut first = TestAgent::serving(&plane, &["db"]).await;
    let mut second = TestAgent::serving(&plane, &["web"]).await;
    let mut db = client(&plane, "db").await;
    let opened = first.opened().await;
    let connection_id = opened.connection_id;
    second
        .send(ControlMessage::OpenRefused {
            connection_id,
            reason: "mine now".into(),
        })
        .await;
    second
        .send(ControlMessage::Verdict {
            connection_id,
            authenticated: false,
        })
        .await;
    second.settled().await;
    let mut fetched = first.dial_back(&opened).await;
    assert_joined(&mut db, &mut fetched, &plane, "db").await;
}

#[tokio::test]
async fn bytes_behind_the_preface_are_refused() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let _client = client(&plane, "db").await;
    let opened = agent.opened().await;
    let preface = Preface {
        connection_id: opened.connection_id,
        token: opened.token,
    };
    assert!(
        answer(plane.address, &[&preface.encode()[..], b"x"].concat())
            .await
            .is_empty()
    );
    plane.refused_once(Refusal::DialBack).await;
}

#[tokio::test]
async fn a_preface_of_another_version_is_refused() {
    let plane = Plane::start().await;
    let mut preface = Preface {
        connection_id: ConnectionId::from_uuid(new_uuid()),
        token: Token::from_random([1; 16]),
    }
    .encode();
    preface[4] = 3;
    assert!(answer(plane.address, &preface).await.is_empty());
    plane.refused_once(Refusal::DialBack).await;
}

#[tokio::test]
async fn the_next_agent_is_asked_when_the_first_does_not_come() {
    let plane =
        Plane::start_with(|config| config.limits.dial_back_seconds_max = Duration::from_millis(300)).await;
    let mut first = TestAgent::serving(&plane, &["db"]).await;
    let mut second = TestAgent::serving(&plane, &["db"]).await;
    let mut client = client(&plane, "db").await;
    let (silent, mut coming) = tokio::join!(first.opened(), second.fetch());
    assert_joined(&mut client, &mut coming.1, &plane, "db").await;
    assert!(rest(&mut first.dial_back(&silent).await).await.is_empty());
}

#[tokio::test]
async fn the_next_agent_is_asked_as_well_when_the_first_takes_its_time() {
    let plane = Plane::start_with(|config| {
        config.limits.dial_back_seconds_max = PATIENCE * 10;
        config.limits.dial_back_next_milliseconds = Duration::from_millis(50);
    })
    .await;
    let mut first = TestAgent::serving(&plane, &["db"]).await;
    let mut second = TestAgent::serving(&plane, &["db"]).await;
    let mut one = client(&plane, "db").await;
    let (overtaken, mut coming) = tokio::join!(first.opened(), second.fetch());
    assert_joined(&mut one, &mut coming.1, &plane, "db").await;
    assert!(rest(&mut first.dial_back(&overtaken).await).await.is_empty());
    // One that comes late is as good, where it is the first to come.
    let mut two = client(&plane, "db").await;
    let (late, _) = tokio::join!(first.opened(), second.opened());
    let mut fetched = first.dial_back(&late).await;
    assert_joined(&mut two, &mut fetched, &plane, "db").await;
}

#[tokio::test]
async fn an_agent_that_was_started_again_is_asked_again_at_once() {
    let plane = Plane::start_with(|config| config.limits.dial_back_seconds_max = PATIENCE * 10).await;
    let id = AgentId::from_uuid(new_uuid());
    let credential = plane.cluster.agent(id).unwrap();
    let mut killed = TestAgent::connect_in_run(&plane, id, &credential, 1).await;
    let db = killed.offer(&plane, "db");
    killed.announce(vec![db.clone()]).await;
    let mut client = client(&plane, "db").await;
    let lost = killed.opened().await;
    // Its connection lies still, as one over UDP does whose other end was killed.
    let mut again = TestAgent::connect_in_run(&plane, id, &credential, 2).await;
    let (_, mut fetched) = again.fetch().await;
    assert_joined(&mut client, &mut fetched, &plane, "db").await;
    assert!(brought(&plane, lost.connection_id, lost.token).await.is_empty());
}

#[tokio::test]
async fn what_an_agent_was_asked_for_before_it_moved_can_still_be_fetched() {
    let plane = Plane::start_with(|config| config.limits.dial_back_seconds_max = PATIENCE * 10).await;
    let id = AgentId::from_uuid(new_uuid());
    let credential = plane.cluster.agent(id).unwrap();
    let mut before = TestAgent::connect_in_run(&plane, id, &credential, 1).await;
    let db = before.offer(&plane, "db");
    before.announce(vec![db.clone()]).await;
    let mut client = client(&plane, "db").await;
    let asked = before.opened().await;
    let mut moved = TestAgent::connect_in_run(&plane, id, &credential, 1).await;
    moved.announce(vec![db]).await;
    let mut fetched = moved.dial_back(&asked).await;
    assert_joined(&mut client, &mut fetched, &plane, "db").await;
}

#[tokio::test]
async fn the_next_agent_is_asked_at_once_when_the_first_refuses() {
    let plane = Plane::start_with(|config| config.limits.dial_back_seconds_max = PATIENCE * 10).await;
    let mut first = TestAgent::serving(&plane, &["db"]).await;
    let mut second = TestAgent::serving(&plane, &["db"]).await;
    let mut client = client(&plane, "db").await;
    let connection_id = first.opened().await.connection_id;
    first
        .send(ControlMessage::OpenRefused {
            connection_id,
            reason: "full".into(),
        })
        .await;
    let (_, mut fetched) = second.fetch().await;
    assert_joined(&mut client, &mut fetched, &plane, "db").await;
}

#[tokio::test]
async fn the_next_agent_is_asked_at_once_when_the_first_is_lost() {
    let plane = Plane::start_with(|config| config.limits.dial_back_seconds_max = PATIENCE * 10).await;
    let mut first = TestAgent::serving(&plane, &["db"]).await;
    let mut second = TestAgent::serving(&plane, &["db"]).await;
    let mut client = client(&plane, "db").await;
    first.opened().await;
    drop(first);
    let (_, mut fetched) = second.fetch().await;
    assert_joined(&mut client, &mut fetched, &plane, "db").await;
}

#[tokio::test]
async fn sessions_go_to_the_least_loaded_agent() {
    let plane = Plane::start().await;
    let mut first = TestAgent::serving(&plane, &["db"]).await;
    let mut second = TestAgent::serving(&plane, &["db"]).await;
    let _one = client(&plane, "db").await;
    let _fetched = first.fetch().await;
    let _two = client(&plane, "db").await;
    let _fetched = second.fetch().await;
}

#[tokio::test]
async fn a_client_for_whom_nobody_comes_is_told_so() {
    let plane = Plane::start_with(|config| config.limits.pending_opens_max = 1).await;
    assert_eq!(rest(&mut client(&plane, "db").await).await, INTERNAL_ERROR);
    plane.refused_once(Refusal::NoAgent).await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let _waiting = client(&plane, "db").await;
    agent.opened().await;
    assert_eq!(rest(&mut client(&plane, "db").await).await, INTERNAL_ERROR);
    plane.refused_once(Refusal::TooManyPending).await;
}

#[tokio::test]
async fn a_source_whose_clients_keep_failing_is_turned_away() {
    let plane = Plane::start_with(|config| config.limits.failures_per_source_per_minute_max = 1).await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let _client = client(&plane, "db").await;
    let (opened, _fetched) = agent.fetch().await;
    agent
        .send(ControlMessage::Verdict {
            connection_id: opened.connection_id,
            authenticated: false,
        })
        .await;
    agent.settled().await;
    assert_eq!(rest(&mut client(&plane, "db").await).await, INTERNAL_ERROR);
    plane.refused_once(Refusal::SourceThrottled).await;
}

#[tokio::test]
async fn a_source_with_a_good_client_is_not_held_up_by_bad_ones() {
    let plane = Plane::start_with(|config| config.limits.failures_per_source_per_minute_max = 1).await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let mut held = Vec::new();
    for authenticated in [true, false] {
        held.push(client(&plane, "db").await);
        let (opened, fetched) = agent.fetch().await;
        held.push(fetched);
        agent
            .send(ControlMessage::Verdict {
                connection_id: opened.connection_id,
                authenticated,
            })
            .await;
        agent.settled().await;
    }
    let _client = client(&plane, "db").await;
    agent.opened().await;
    assert_eq!(plane.metrics.refusals(Refusal::SourceThrottled), 0);
}
