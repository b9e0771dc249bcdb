//! Without the auth server, and with one that must not be believed.

use std::time::Duration;

use iap_agent::state::names;
use iap_tunnel::Status;
use time::OffsetDateTime;

use crate::client::{echoes, ending, framed};
use crate::plane::Plane;
use crate::proxy::{AuthMode, WAIT};

async fn started_without_auth(mode: AuthMode) -> (Plane, crate::plane::Running) {
    let plane = Plane::new().await;
    plane.proxy.set_auth(mode);
    plane.write_state(OffsetDateTime::now_utc());
    plane.write_leaves();
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    (plane, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_open_from_the_last_good_copy_while_the_auth_server_is_stopped_or_frozen() {
    for mode in [AuthMode::Down, AuthMode::Frozen] {
        let (plane, running) = started_without_auth(mode).await;
        let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
        let (mut stream, granted) = framed(&plane, "echo", &alice).await;
        assert!(matches!(granted, Status::Granted { .. }), "{mode:?}: {granted:?}");
        echoes(&mut stream, "without").await;
        plane.proxy.set_auth(AuthMode::Up);
        if mode == AuthMode::Down {
            plane.event("session.start").await;
        }
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_snapshot_is_dead() {
    let plane = Plane::new().await;
    plane.proxy.set_auth(AuthMode::Down);
    plane
        .auth
        .replace(|snapshot, _| snapshot.expires = OffsetDateTime::now_utc() - time::Duration::seconds(1));
    plane.write_state(OffsetDateTime::now_utc());
    plane.write_leaves();
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (_, answer) = framed(&plane, "echo", &alice).await;
    assert!(
        matches!(&answer, Status::Unavailable { text, .. } if text.contains("expired")),
        "{answer:?}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_sign_of_life_for_too_long_nothing_new_opens() {
    let plane = Plane::new().await;
    plane.proxy.set_auth(AuthMode::Down);
    let long_ago = OffsetDateTime::now_utc() - time::Duration::hours(5);
    plane.auth.replace(|snapshot, locks| {
        snapshot.issued = long_ago;
        locks.issued = long_ago;
    });
    plane.write_state(OffsetDateTime::now_utc());
    plane.write_leaves();
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (_, answer) = framed(&plane, "echo", &alice).await;
    assert!(matches!(answer, Status::Unavailable { .. }), "{answer:?}");
    plane.proxy.set_auth(AuthMode::Up);
    iap_testkit::wait_until_async(
        async || matches!(framed(&plane, "echo", &alice).await.1, Status::Granted { .. }),
        WAIT,
    )
    .await
    .unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_sessions_get_their_grace_when_the_feed_is_silent_for_too_long() {
    let mut plane = Plane::new().await;
    plane.limits = "lock_feed_seconds_max = 30\noutage_grace_seconds_max = 0".to_owned();
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    echoes(&mut stream, "live").await;
    // An expired snapshot needs no waiting; the grace is the same.
    plane
        .auth
        .publish(|snapshot| snapshot.expires = OffsetDateTime::now_utc() + time::Duration::seconds(2));
    ending(&mut stream).await;
    let end = plane.event("session.end").await;
    assert_eq!(end["close_reason"], "snapshot_too_old");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_versions_are_refused_also_after_a_restart() {
    let (plane, running) = Plane::started().await;
    plane
        .auth
        .publish(|snapshot| snapshot.policy_toml = String::new());
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    iap_testkit::wait_until_async(
        async || matches!(framed(&plane, "echo", &alice).await.1, Status::Denied { .. }),
        WAIT,
    )
    .await
    .unwrap();
    // The same server, restored from an old backup without a new epoch.
    plane.auth.replace(|snapshot, _| {
        snapshot.policy_toml = crate::plane::POLICY.to_owned();
        snapshot.version = 1;
        snapshot.issued = OffsetDateTime::now_utc() + time::Duration::seconds(1);
    });
    iap_testkit::wait_until(|| plane.state_dir().join(names::SNAPSHOT).exists(), WAIT).unwrap();
    assert!(matches!(
        framed(&plane, "echo", &alice).await.1,
        Status::Denied { .. }
    ));
    running.stop().await;
    let again = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    tokio::time::timeout(Duration::from_secs(1), std::future::pending::<()>())
        .await
        .unwrap_err();
    assert!(matches!(
        framed(&plane, "echo", &alice).await.1,
        Status::Denied { .. }
    ));
    again.stop().await;
    // A new epoch outranks.
    plane.auth.replace(|snapshot, _| {
        snapshot.epoch = 2;
    });
    let last = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    iap_testkit::wait_until_async(
        async || matches!(framed(&plane, "echo", &alice).await.1, Status::Granted { .. }),
        WAIT,
    )
    .await
    .unwrap();
    last.stop().await;
}
