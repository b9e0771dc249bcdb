//! From a token to an agent, and how it keeps its identity.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use iap_agent::join::{JoinError, join};
use iap_agent::state::names;
use iap_identity::JoinToken;
use iap_runtime::net::HostPort;
use iap_testkit::TestCluster;
use iap_tunnel::Status;
use time::OffsetDateTime;

use crate::client::{echoes, framed};
use crate::plane::Plane;
use crate::proxy::{AuthMode, WAIT};

fn token_file(plane: &Plane, token: &JoinToken) -> PathBuf {
    let path = plane.folder.path().join("token");
    iap_runtime::files::write_atomic(&path, token.expose().as_bytes(), 0o600).unwrap();
    path
}

fn proxy(plane: &Plane) -> HostPort {
    HostPort::from(plane.proxy.address())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_makes_a_working_agent_and_works_once() {
    let plane = Plane::new().await;
    plane.auth.invite([7; 32]);
    let file = token_file(&plane, &JoinToken::new(plane.cluster.pin(), [7; 32]));
    let joined = join(&plane.config(), &proxy(&plane), &file, false).await.unwrap();
    assert_eq!(joined.agent_id, plane.agent_id);
    assert_eq!(joined.granted, ["echo", "db-prod"]);
    for name in [
        names::KEY,
        names::CERTIFICATE,
        names::BUNDLE,
        names::SNAPSHOT,
        names::LOCKS,
        names::AGENT_ID,
    ] {
        let mode = std::fs::metadata(plane.state_dir().join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let refused = join(&plane.config(), &proxy(&plane), &file, false)
        .await
        .unwrap_err();
    assert!(matches!(refused, JoinError::AlreadyJoined { .. }), "{refused}");
    let refused = join(&plane.config(), &proxy(&plane), &file, true)
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, JoinError::Refused { message } if message.contains("used already")),
        "{refused}"
    );

    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut stream, granted) = framed(&plane, "echo", &alice).await;
    assert!(matches!(granted, Status::Granted { .. }));
    echoes(&mut stream, "joined").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_joins_anew_beside_a_running_agent() {
    let (plane, running) = Plane::started().await;
    plane.auth.invite([7; 32]);
    let file = token_file(&plane, &JoinToken::new(plane.cluster.pin(), [7; 32]));
    let refused = join(&plane.config(), &proxy(&plane), &file, true)
        .await
        .unwrap_err();
    assert!(matches!(refused, JoinError::Running { .. }), "{refused}");
    iap_testkit::wait_until(|| plane.state_dir().join(names::BEAT).exists(), WAIT).unwrap();
    running.stop().await;
    // The token is good still, and everything of the earlier agent is set aside with its records.
    let joined = join(&plane.config(), &proxy(&plane), &file, true).await.unwrap();
    let attic = plane
        .state_dir()
        .join("retired")
        .join(joined.agent_id.to_string());
    for name in [names::SPOOL, names::BEAT, names::KEY, names::AGENT_ID] {
        assert!(attic.join(name).exists(), "{name}");
    }
    assert!(!plane.state_dir().join(names::BEAT).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_another_root_gives_its_secret_to_nobody() {
    let plane = Plane::new().await;
    plane.auth.invite([7; 32]);
    let other = TestCluster::new(crate::plane::CLUSTER).unwrap();
    let file = token_file(&plane, &JoinToken::new(other.pin(), [7; 32]));
    let refused = join(&plane.config(), &proxy(&plane), &file, false)
        .await
        .unwrap_err();
    assert!(matches!(refused, JoinError::WrongPin { .. }), "{refused}");
    assert!(!plane.state_dir().join(names::AGENT_ID).exists());
    // The token was never shown to the server: it still works for those with the right pin.
    let file = token_file(&plane, &JoinToken::new(plane.cluster.pin(), [7; 32]));
    join(&plane.config(), &proxy(&plane), &file, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loose_token_file_and_an_unreachable_server_are_named() {
    let plane = Plane::new().await;
    let file = token_file(&plane, &JoinToken::new(plane.cluster.pin(), [7; 32]));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = join(&plane.config(), &proxy(&plane), &file, false)
        .await
        .unwrap_err();
    assert!(matches!(refused, JoinError::TokenFile(_)), "{refused}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let nowhere = HostPort::new("127.0.0.1", iap_testkit::free_port().unwrap()).unwrap();
    let refused = join(&plane.config(), &nowhere, &file, false).await.unwrap_err();
    assert!(matches!(refused, JoinError::Unreachable { .. }), "{refused}");
    plane.proxy.set_auth(AuthMode::Down);
    let refused = join(&plane.config(), &proxy(&plane), &file, false)
        .await
        .unwrap_err();
    assert!(matches!(refused, JoinError::Unreachable { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_off_for_weeks_renews_with_its_expired_certificate() {
    let now = OffsetDateTime::now_utc();
    let cluster = TestCluster::at(crate::plane::CLUSTER, now - time::Duration::days(60)).unwrap();
    let plane = Plane::of(cluster).await;
    plane.write_state(now - time::Duration::days(20));
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    assert_eq!(plane.auth.renewals(), 1);
    running.stop().await;
    // The new one is on disk: no need to renew again.
    let again = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    assert_eq!(plane.auth.renewals(), 1);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_past_its_half_life_is_renewed_and_the_control_connection_made_anew() {
    let now = OffsetDateTime::now_utc();
    let plane =
        Plane::of(TestCluster::at(crate::plane::CLUSTER, now - time::Duration::days(2)).unwrap()).await;
    plane.write_state(now - time::Duration::hours(20));
    let running = plane.start().await;
    iap_testkit::wait_until(
        || plane.auth.renewals() == 1 && plane.proxy.control_connections() == 2,
        WAIT,
    )
    .unwrap();
    plane.proxy.announced(&["echo", "db-prod"]).await;
    assert_eq!(
        plane.proxy.replaced_while_open(),
        1,
        "the old one serves until the new one does"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_off_for_too_long_must_join_again() {
    let now = OffsetDateTime::now_utc();
    let plane =
        Plane::of(TestCluster::at(crate::plane::CLUSTER, now - time::Duration::days(60)).unwrap()).await;
    plane.write_state(now - time::Duration::days(40));
    let refused = iap_agent::App::build(plane.config()).await.unwrap_err();
    for words in [
        "expired at",
        "iapctl tokens create agent",
        "iap-agent join",
        "--replace",
    ] {
        assert!(refused.to_string().contains(words), "{refused}");
    }
}
