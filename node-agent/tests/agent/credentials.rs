//! What the agent holds for logins to backends, and when it asks for more.

use std::net::IpAddr;

use iap_agent::credentials::ServiceCredentials;
use iap_agent::state::StateDir;
use iap_identity::{LoginName, ServiceName};
use iap_policy::Protocol;
use iap_proto::Snapshot;
use time::{Duration, OffsetDateTime};

use crate::plane::{CLUSTER, Plane};
use crate::proxy::WAIT;

const DATABASE: &str = "db-prod";

/// The policy of the plane with these logins for the database.
fn with_logins(snapshot: &mut Snapshot, logins: &str) {
    snapshot.policy_toml = format!(
        "[[rule]]\nname = \"all\"\neffect = \"allow\"\nusers = {{ names = [\"*\"] }}\n\
         services = {{ names = [\"echo\", \"db-prod\"] }}\nlogins = {logins}\n"
    );
    for service in &mut snapshot.services {
        if service.facts.name.as_str() == DATABASE {
            service.facts.inspect = true;
        }
    }
}

fn stored(plane: &Plane) -> Option<ServiceCredentials> {
    let state = StateDir::open(&plane.state_dir()).unwrap();
    let service = ServiceName::parse(DATABASE).unwrap();
    let bytes = state.read_credentials(&service).unwrap()?;
    let cluster = iap_identity::ClusterName::parse(CLUSTER).unwrap();
    Some(ServiceCredentials::from_json(&bytes, &service, &cluster, OffsetDateTime::now_utc()).unwrap())
}

fn logins(plane: &Plane) -> Vec<String> {
    let stored = stored(plane);
    let names = stored.iter().flat_map(ServiceCredentials::logins);
    names.map(ToString::to_string).collect()
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waited = iap_testkit::wait_until_async(async || condition(), WAIT).await;
    waited.unwrap_or_else(|error| panic!("{what}: {error}"));
}

async fn holds(plane: &Plane, expected: &[&str]) {
    eventually("the agent holds what it should", || logins(plane) == expected).await;
}

#[tokio::test]
async fn the_logins_a_policy_names_are_held_before_anybody_asks_and_lie_on_disk() {
    let plane = Plane::new().await;
    plane
        .auth
        .publish(|snapshot| with_logins(snapshot, r#"["readonly", "writer"]"#));
    let running = plane.start().await;
    holds(&plane, &["readonly", "writer"]).await;
    let asked = plane.auth.backend_requests();
    assert_eq!(asked.len(), 1, "one call for all of them");
    assert!(!asked[0].only && asked[0].service == DATABASE);
    running.stop().await;
    // What it holds is good without the auth server.
    plane.auth.refuse_backend_requests(true);
    let running = plane.start().await;
    plane.proxy.announced(&["echo"]).await;
    let login = LoginName::parse("writer").unwrap();
    assert!(stored(&plane).unwrap().has(&login, OffsetDateTime::now_utc()));
    assert_eq!(plane.auth.backend_requests().len(), 1, "nothing was due");
    running.stop().await;
}

#[tokio::test]
async fn a_login_that_a_new_policy_names_is_asked_for_alone() {
    let plane = Plane::new().await;
    plane
        .auth
        .publish(|snapshot| with_logins(snapshot, r#"["readonly"]"#));
    let running = plane.start().await;
    holds(&plane, &["readonly"]).await;
    plane
        .auth
        .publish(|snapshot| with_logins(snapshot, r#"["readonly", "writer"]"#));
    holds(&plane, &["readonly", "writer"]).await;
    let asked = plane.auth.backend_requests();
    assert_eq!(asked.len(), 2);
    assert!(asked[1].only && asked[1].logins == ["writer"]);
    running.stop().await;
}

#[tokio::test]
async fn at_half_life_everything_is_replaced_keys_included() {
    let plane = Plane::new().await;
    plane
        .auth
        .publish(|snapshot| with_logins(snapshot, r#"["readonly"]"#));
    let running = plane.start().await;
    holds(&plane, &["readonly"]).await;
    let before = plane.auth.backend_requests()[0].csr.clone();
    running.stop().await;
    plane.clock.to(Duration::hours(14));
    plane.auth.clock().to(Duration::hours(14));
    let running = plane.start().await;
    eventually("everything is asked for again", || {
        plane.auth.backend_requests().len() >= 2
    })
    .await;
    let asked = plane.auth.backend_requests();
    assert!(!asked[1].only && asked[1].csr != before);
    running.stop().await;
}

#[tokio::test]
async fn a_service_whose_bytes_are_passed_on_needs_no_credentials() {
    let plane = Plane::new().await;
    let running = plane.start().await;
    plane.proxy.announced(&["echo", DATABASE]).await;
    assert!(plane.auth.backend_requests().is_empty());
    running.stop().await;
}

#[tokio::test]
async fn ssh_certificates_are_bound_to_where_the_backend_sees_the_agent() {
    let mut plane = Plane::new().await;
    plane.backend(DATABASE, "127.0.0.1:22");
    plane.auth.publish(|snapshot| {
        with_logins(snapshot, r#"["deploy"]"#);
        for service in &mut snapshot.services {
            if service.facts.name.as_str() == DATABASE {
                service.facts.protocol = Protocol::Ssh;
            }
        }
    });
    let running = plane.start().await;
    holds(&plane, &["deploy"]).await;
    let asked = plane.auth.backend_requests();
    let loopback = IpAddr::from([127, 0, 0, 1]).to_string();
    assert_eq!(asked[0].source_addresses, [loopback]);
    assert!(!asked[0].host_csr.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn damaged_files_are_replaced_and_an_auth_server_that_refuses_is_asked_again() {
    let plane = Plane::new().await;
    plane
        .auth
        .publish(|snapshot| with_logins(snapshot, r#"["readonly"]"#));
    plane.auth.refuse_backend_requests(true);
    plane.write_state(OffsetDateTime::now_utc());
    let state = StateDir::open(&plane.state_dir()).unwrap();
    let service = ServiceName::parse(DATABASE).unwrap();
    state.write_credentials(&service, b"{\"protocol\":").unwrap();
    let running = plane.start().await;
    eventually("it tries again", || plane.auth.backend_requests().len() >= 2).await;
    plane.auth.refuse_backend_requests(false);
    eventually("the file is whole again", || {
        let bytes = state.read_credentials(&service).unwrap().unwrap();
        bytes.len() > 100
    })
    .await;
    assert_eq!(logins(&plane), ["readonly"]);
    running.stop().await;
}
