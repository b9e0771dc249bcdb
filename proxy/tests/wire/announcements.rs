//! An agent serves what it can prove, as long as it can prove it.

use std::time::Duration;

use iap_identity::{AgentId, Profile, ServiceName};
use iap_proxy::metrics::Refusal;
use iap_testkit::{TestCluster, new_uuid};
use time::OffsetDateTime;

use crate::support::*;

fn name(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

/// Announces `db` with this leaf and says what the proxy answered.
async fn refusal(plane: &Plane, agent: &mut TestAgent, leaf: Vec<u8>) -> String {
    let (accepted, refused) = agent.announce(vec![(name("db"), leaf)]).await;
    assert!(accepted.is_empty());
    let client = answer(plane.address, &hello(&plane.cluster, &plane.host("db"))).await;
    assert_eq!(client, INTERNAL_ERROR);
    refused.into_iter().next().unwrap().reason
}

#[tokio::test]
async fn another_agents_leaf_does_not_count() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::connect(&plane).await;
    let stolen = plane
        .cluster
        .service_leaf(AgentId::from_uuid(new_uuid()), "db")
        .unwrap();
    let reason = refusal(&plane, &mut agent, stolen.leaf().to_vec()).await;
    assert!(reason.contains("another agent"), "{reason}");
}

#[tokio::test]
async fn a_leaf_for_another_service_does_not_count() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::connect(&plane).await;
    let (_, leaf) = agent.offer(&plane, "web");
    let reason = refusal(&plane, &mut agent, leaf).await;
    assert!(reason.contains("for web"), "{reason}");
}

#[tokio::test]
async fn a_leaf_of_another_cluster_an_agents_own_certificate_and_garbage_do_not_count() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::connect(&plane).await;
    let elsewhere = TestCluster::new("iap.example.com").unwrap();
    let foreign = elsewhere.service_leaf(agent.id, "db").unwrap();
    let own = plane.cluster.agent(agent.id).unwrap();
    for leaf in [
        foreign.leaf().to_vec(),
        own.leaf().to_vec(),
        b"garbage".to_vec(),
        Vec::new(),
    ] {
        refusal(&plane, &mut agent, leaf).await;
    }
    assert_eq!(plane.metrics.refusals(Refusal::NoAgent), 4);
}

#[tokio::test]
async fn an_expired_leaf_does_not_count() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::connect(&plane).await;
    let leaf = leaf_made(&plane, &agent, time::Duration::hours(5));
    let reason = refusal(&plane, &mut agent, leaf).await;
    assert!(reason.contains("refused"), "{reason}");
}

#[tokio::test]
async fn a_service_is_no_longer_routed_once_its_leaf_expires() {
    let plane =
        Plane::start_with(|config| config.limits.control_ping_seconds = Duration::from_millis(100)).await;
    let mut agent = TestAgent::connect(&plane).await;
    let short = leaf_made(
        &plane,
        &agent,
        time::Duration::hours(4) - time::Duration::seconds(2),
    );
    let (accepted, refused) = agent
        .announce(vec![agent.offer(&plane, "web"), (name("db"), short)])
        .await;
    assert_eq!((accepted.len(), refused.len()), (2, 0));
    let (accepted, refused) = agent.announced().await;
    assert_eq!(accepted, [name("web")]);
    assert_eq!(refused[0].name, name("db"));
    let client = answer(plane.address, &hello(&plane.cluster, &plane.host("db"))).await;
    assert_eq!(client, INTERNAL_ERROR);
}

#[tokio::test]
async fn what_is_left_out_of_a_new_announcement_is_no_longer_routed() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db", "web"]).await;
    let web = agent.offer(&plane, "web");
    agent.announce(vec![web]).await;
    let client = answer(plane.address, &hello(&plane.cluster, &plane.host("db"))).await;
    assert_eq!(client, INTERNAL_ERROR);
    let _client = dial(plane.address, &hello(&plane.cluster, &plane.host("web"))).await;
    assert_eq!(agent.opened().await.service, Some(name("web")));
}

#[tokio::test]
async fn an_agent_serves_no_more_names_than_its_share() {
    let plane = Plane::start_with(|config| config.limits.services_per_agent_max = 1).await;
    let mut agent = TestAgent::connect(&plane).await;
    let offers = vec![agent.offer(&plane, "db"), agent.offer(&plane, "web")];
    let (accepted, refused) = agent.announce(offers).await;
    assert_eq!(accepted, [name("db")]);
    assert!(
        refused[0].reason.contains("services_per_agent_max"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_name_announced_twice_counts_once() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::connect(&plane).await;
    let offer = agent.offer(&plane, "db");
    let (accepted, refused) = agent.announce(vec![offer.clone(), offer]).await;
    assert_eq!((accepted.len(), refused.len()), (1, 1));
}

#[tokio::test]
async fn an_agent_is_reached_by_its_own_name_without_any_announcement() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::connect(&plane).await;
    // The agent is on the switchboard once its hello was answered by a ping.
    until(|| plane.board.agents() == 1).await;
    let host = plane.cluster.name.agent_host(&agent.id);
    let _client = dial(plane.address, &hello(&plane.cluster, &host)).await;
    assert_eq!(agent.opened().await.service, None);
    let stranger = plane.cluster.name.agent_host(&AgentId::from_uuid(new_uuid()));
    assert_eq!(
        answer(plane.address, &hello(&plane.cluster, &stranger)).await,
        INTERNAL_ERROR
    );
}

/// A leaf for `db` that was issued this long ago; leaves live four hours.
fn leaf_made(plane: &Plane, agent: &TestAgent, ago: time::Duration) -> Vec<u8> {
    let profile = Profile::ServiceLeaf {
        agent: agent.id,
        service: name("db"),
        cluster: plane.cluster.name.clone(),
    };
    let made = OffsetDateTime::now_utc() - ago;
    plane.cluster.issue_at(profile, made).unwrap().leaf().to_vec()
}
