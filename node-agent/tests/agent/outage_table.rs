//! What holds while the auth server is out of reach, row by row, with clocks that are moved instead of waited for;
//! and clocks that are wrong.

use iap_proto::{AuditMode, Strictness};
use iap_runtime::tls::AlertDescription;
use iap_testkit::{Credential, TestCluster};
use iap_tunnel::Status;
use time::{Duration, OffsetDateTime};

use crate::client::{Stream, echoes, ending, framed, host, refused};
use crate::plane::{Plane, Running};
use crate::proxy::{AuthMode, WAIT};

/// An agent that starts `after` its last sign of life, from what an earlier run left, with an auth server out of
/// reach. Its services' certificates are as new as can be, so that only what is tested here can end anything.
async fn cut_off(after: Duration, change: impl FnOnce(&mut Plane)) -> (Plane, Running) {
    let mut plane = Plane::new().await;
    change(&mut plane);
    plane.proxy.set_auth(AuthMode::Down);
    plane.write_state(OffsetDateTime::now_utc());
    plane.write_leaves_of(OffsetDateTime::now_utc() + after);
    plane.client_clock.to(after);
    plane.clock.to(after);
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    (plane, running)
}

/// Alice with a certificate of now, by the agent's clock.
fn alice(plane: &Plane) -> Credential {
    alice_at(plane, plane.clock.now())
}

/// Alice who logged in at that time.
fn alice_at(plane: &Plane, at: OffsetDateTime) -> Credential {
    let mut profile = plane
        .cluster
        .user_profile("alice@example.com", &["engineering"])
        .unwrap();
    (profile.auth_time, profile.login_deadline) = (at, at + Duration::hours(12));
    plane
        .cluster
        .issue_at(iap_identity::Profile::User(profile), at)
        .unwrap()
}

async fn granted(plane: &Plane, service: &str) -> Stream {
    let (mut stream, answer) = framed(plane, service, &alice(plane)).await;
    assert!(matches!(answer, Status::Granted { .. }), "{answer:?}");
    echoes(&mut stream, "live").await;
    stream
}

/// The reason a new session is not available, once it is not.
async fn unavailable(plane: &Plane, service: &str) -> String {
    match framed(plane, service, &alice(plane)).await.1 {
        Status::Unavailable { text, .. } => text,
        other => panic!("{other:?}"),
    }
}

async fn granted_again(plane: &Plane, service: &str) {
    iap_testkit::wait_until_async(
        async || {
            matches!(
                framed(plane, service, &alice(plane)).await.1,
                Status::Granted { .. }
            )
        },
        WAIT,
    )
    .await
    .unwrap();
}

/// Two looks of the reviewer, at least: what it has not ended by then it leaves alone.
async fn reviewed() {
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_beat_sessions_open_for_four_hours_and_live_ones_end_ten_minutes_later() {
    let (plane, running) = cut_off(Duration::hours(2), |_| {}).await;
    let mut live = granted(&plane, "echo").await;
    let hours = Duration::hours(4);
    plane.clock.to(hours - Duration::minutes(1));
    echoes(&mut granted(&plane, "echo").await, "new").await;
    plane.clock.to(hours + Duration::minutes(1));
    let why = unavailable(&plane, "echo").await;
    assert!(why.contains("out of reach for longer"), "{why}");
    reviewed().await;
    plane.clock.to(hours + Duration::minutes(9));
    reviewed().await;
    echoes(&mut live, "in its grace").await;
    plane.clock.to(hours + Duration::minutes(12));
    ending(&mut live).await;
    // It comes back, and everything goes on; the records tell what happened meanwhile.
    plane.auth.clock().to(hours + Duration::minutes(12));
    plane.proxy.set_auth(AuthMode::Up);
    granted_again(&plane, "echo").await;
    let end = plane
        .record(|record| {
            record
                .fields
                .get("close_reason")
                .is_some_and(|why| why == "feed_too_old")
        })
        .await;
    assert!(
        end["close_detail"].as_str().unwrap().contains("out of reach"),
        "{end:?}"
    );
    let denied = plane.event("session.denied").await;
    assert_eq!(denied["denial"], "outage");
    assert!(
        denied["reason"].as_str().unwrap().contains("out of reach"),
        "{denied:?}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_can_be_stricter_than_its_agent_and_never_laxer() {
    let strict = Strictness {
        lock_feed_max_age: Some(std::time::Duration::from_secs(300)),
        snapshot_max_age: None,
        grace: Some(std::time::Duration::from_secs(30)),
    };
    let (plane, running) = cut_off(Duration::ZERO, |plane| {
        plane.limits = "lock_feed_seconds_max = 3600".to_owned();
        plane.auth.replace(|snapshot, _| {
            snapshot.services[0].strictness = strict;
            snapshot.services[1].strictness.lock_feed_max_age = Some(std::time::Duration::from_secs(86_400));
        });
    })
    .await;
    let (mut echo, mut other) = (granted(&plane, "echo").await, granted(&plane, "db-prod").await);
    plane.clock.to(Duration::minutes(4));
    granted(&plane, "echo").await;
    plane.clock.to(Duration::minutes(6));
    let why = unavailable(&plane, "echo").await;
    assert!(why.contains("out of reach"), "{why}");
    granted(&plane, "db-prod").await;
    reviewed().await;
    echoes(&mut echo, "in its grace").await;
    plane.clock.to(Duration::minutes(7));
    ending(&mut echo).await;
    echoes(&mut other, "goes on").await;
    plane.clock.to(Duration::minutes(61));
    let why = unavailable(&plane, "db-prod").await;
    assert!(
        why.contains("out of reach"),
        "a service does not widen its host's limit: {why}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_arrives_before_the_beat_that_ends_an_outage_is_held_against_live_sessions() {
    let (plane, running) = cut_off(Duration::ZERO, |plane| {
        plane.auth.replace(|snapshot, _| {
            snapshot.services[0].strictness.lock_feed_max_age = Some(std::time::Duration::from_secs(30));
        });
    })
    .await;
    let mut live = granted(&plane, "echo").await;
    plane.auth.clock().to(Duration::seconds(5));
    plane.auth.publish(|snapshot| {
        snapshot.policy_toml = crate::plane::POLICY.replace("engineering", "support");
    });
    for clock in [&plane.auth.clock(), &plane.clock] {
        clock.to(Duration::seconds(60));
    }
    // The policy is 55 s old when it comes, and so is the feed then; the beat comes behind it.
    plane.proxy.set_auth(AuthMode::Up);
    ending(&mut live).await;
    assert_eq!(plane.event("session.end").await["close_reason"], "policy");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agents_own_file_takes_away_ends_also_during_an_outage() {
    let (mut plane, running) = cut_off(Duration::ZERO, |_| {}).await;
    let mut removed = granted(&plane, "db-prod").await;
    let mut narrowed = granted(&plane, "echo").await;
    plane.clock.to(Duration::hours(4) + Duration::minutes(1));
    let why = unavailable(&plane, "echo").await;
    assert!(why.contains("out of reach"), "{why}");
    plane.backends.retain(|(name, _)| name == "echo");
    running.reload.services(plane.config().services);
    ending(&mut removed).await;
    echoes(&mut narrowed, "not yet").await;
    plane.ceiling = "ceiling = { groups = [\"support\"] }".to_owned();
    running.reload.services(plane.config().services);
    ending(&mut narrowed).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_beats_no_longer_confirm_grow_too_old_for_a_service_that_says_so() {
    let mut plane = Plane::new().await;
    plane.limits = "outage_grace_seconds_max = 0".to_owned();
    plane.auth.replace(|snapshot, _| {
        snapshot.services[0].strictness.snapshot_max_age = Some(std::time::Duration::from_secs(60));
    });
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let mut live = granted(&plane, "echo").await;
    for minutes in [2, 4] {
        plane.clock.to(Duration::minutes(minutes));
        plane.auth.clock().to(Duration::minutes(minutes));
        granted_again(&plane, "echo").await;
    }
    // Beats go on, and name rules that the agent does not get.
    plane.auth.withhold();
    plane.clock.to(Duration::minutes(6));
    plane.auth.clock().to(Duration::minutes(6));
    ending(&mut live).await;
    let why = unavailable(&plane, "echo").await;
    assert!(why.contains("not confirmed"), "{why}");
    granted(&plane, "db-prod").await;
    let end = plane
        .record(|record| {
            record
                .fields
                .get("close_reason")
                .is_some_and(|why| why == "snapshot_too_old")
        })
        .await;
    assert_eq!(end["service"], "echo");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_clock_is_ahead_says_so_and_ends_nothing_within_the_grace() {
    let (plane, running) = Plane::started().await;
    let mut live = granted(&plane, "echo").await;
    plane.clock.to(Duration::hours(5));
    iap_testkit::wait_until_async(
        async || {
            let answer = framed(&plane, "echo", &alice(&plane)).await.1;
            matches!(answer, Status::Unavailable { text, .. } if text.contains("clock is ahead"))
        },
        WAIT,
    )
    .await
    .unwrap();
    reviewed().await;
    echoes(&mut live, "somebody may still set the clock").await;
    plane.clock.to(Duration::ZERO);
    granted_again(&plane, "echo").await;
    echoes(&mut live, "and did").await;
    let denied = plane.event("session.denied").await;
    assert!(
        denied["reason"].as_str().unwrap().contains("set the clock"),
        "{denied:?}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_back_brings_no_expired_certificate_back() {
    let now = OffsetDateTime::now_utc();
    let cluster = TestCluster::at(crate::plane::CLUSTER, now - Duration::days(2)).unwrap();
    let plane = Plane::of(cluster).await;
    plane.clock.to(Duration::minutes(-90));
    // Not younger than the snapshot, which is all that such an agent knows of the time.
    plane.write_state(now);
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let fresh = alice_at(&plane, now);
    iap_testkit::wait_until_async(
        async || matches!(framed(&plane, "echo", &fresh).await.1, Status::Granted { .. }),
        WAIT,
    )
    .await
    .unwrap();
    let expired = alice_at(&plane, now - Duration::hours(2));
    let (_, alert) = refused(&plane, "echo", &host("echo"), Some(&expired), &[]).await;
    assert_eq!(alert, Some(AlertDescription::CertificateExpired));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_wants_its_records_elsewhere_first_waits_for_them_and_not_for_ever() {
    let mut plane = Plane::new().await;
    plane.limits = "remote_audit_seconds_max = 1".to_owned();
    plane
        .auth
        .replace(|snapshot, _| snapshot.services[0].audit = AuditMode::Remote);
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let (mut stream, answer) = framed(&plane, "echo", &alice(&plane)).await;
    let Status::Granted { session_id, .. } = answer else {
        panic!("{answer:?}")
    };
    let is_start = |record: &iap_audit::RecordView| {
        record.event == "session.start" && record.session_id == Some(*session_id.as_uuid())
    };
    assert!(
        plane.auth.records().iter().any(is_start),
        "before the backend is dialled"
    );
    echoes(&mut stream, "acknowledged").await;

    plane.auth.take_records(false);
    let why = unavailable(&plane, "echo").await;
    assert!(why.contains("did not confirm the session's record"), "{why}");
    echoes(&mut stream, "what lives goes on").await;
    echoes(
        &mut granted(&plane, "db-prod").await,
        "and so does what asks for less",
    )
    .await;

    plane.auth.take_records(true);
    granted_again(&plane, "echo").await;
    let end = plane
        .record(|record| {
            record
                .fields
                .get("close_reason")
                .is_some_and(|why| why == "audit_unavailable")
        })
        .await;
    assert!(
        end["close_detail"]
            .as_str()
            .unwrap()
            .contains("did not acknowledge"),
        "{end:?}"
    );
    assert_eq!(end["bytes_in"], 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_starts_without_a_clock_goes_by_the_time_it_was_told_last() {
    let (plane, running) = Plane::started().await;
    let alice = alice(&plane);
    iap_testkit::wait_until(
        || plane.state_dir().join(iap_agent::state::names::BEAT).exists(),
        WAIT,
    )
    .unwrap();
    running.stop().await;
    plane.clock.to(-Duration::days(20 * 365));
    let again = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    iap_testkit::wait_until_async(
        async || matches!(framed(&plane, "echo", &alice).await.1, Status::Granted { .. }),
        WAIT,
    )
    .await
    .unwrap();
    again.stop().await;
}
