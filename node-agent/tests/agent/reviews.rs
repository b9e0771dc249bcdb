//! Live sessions that are decided again.

use std::time::{Duration, Instant};

use iap_identity::{LockKind, Profile};
use iap_tunnel::Status;

use crate::client::{echoes, ending, framed, raw};
use crate::plane::{POLICY, Plane};

/// "Within one second", with room for a busy test machine.
const PROMPT: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_cuts_a_live_session_and_the_record_names_it() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let carol = plane.cluster.user("carol@example.com", &["engineering"]).unwrap();
    let (mut cut, _) = framed(&plane, "echo", &alice).await;
    let (mut kept, _) = framed(&plane, "echo", &carol).await;
    echoes(&mut cut, "live").await;
    let locked = Instant::now();
    plane.lock(LockKind::User, "alice@example.com", "stolen laptop");
    ending(&mut cut).await;
    assert!(locked.elapsed() < PROMPT, "{:?}", locked.elapsed());
    let end = plane.event("session.end").await;
    assert_eq!(
        (end["close_reason"].as_str(), end["user"]["name"].as_str()),
        (Some("lock"), Some("alice@example.com"))
    );
    assert!(end["close_detail"].as_str().unwrap().contains("stolen laptop"));
    echoes(&mut kept, "untouched").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_session_ends_alone_and_says_so() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut killed, Status::Granted { session_id, .. }) = framed(&plane, "echo", &alice).await else {
        panic!()
    };
    let (_, mut kept) = raw(&plane, "echo", &alice).await;
    echoes(&mut kept, "live").await;
    plane.lock(LockKind::Session, &session_id.to_string(), "enough");
    ending(&mut killed).await;
    let end = plane.event("session.end").await;
    assert_eq!(
        (end["close_reason"].as_str(), end["session_id"].as_str()),
        (Some("killed"), Some(session_id.to_string().as_str()))
    );
    echoes(&mut kept, "still").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_rule_cuts_what_it_allowed_and_is_named() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    echoes(&mut stream, "live").await;
    let changed = Instant::now();
    plane
        .auth
        .publish(|snapshot| snapshot.policy_toml = String::new());
    ending(&mut stream).await;
    assert!(changed.elapsed() < PROMPT, "{:?}", changed.elapsed());
    let end = plane.event("session.end").await;
    assert_eq!(end["close_reason"], "policy");
    assert!(
        end["close_detail"]
            .as_str()
            .unwrap()
            .contains("engineers reach everything"),
        "{end:?}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_deny_rule_cuts_in_its_own_name_and_an_unrelated_change_cuts_nothing() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    plane
        .auth
        .publish(|snapshot| snapshot.policy_toml = POLICY.replace(", \"other\"", ""));
    plane.auth.publish(|snapshot| {
        snapshot.policy_toml = format!(
            "{POLICY}\n[[rule]]\nname = \"db is closed\"\neffect = \"deny\"\nusers = {{ kinds = [\"user\"] }}\nservices = {{ names = [\"db-prod\"] }}\n"
        );
    });
    let (mut other, _) = framed(&plane, "echo", &alice).await;
    echoes(&mut other, "live").await;
    echoes(&mut stream, "live").await;
    plane.auth.publish(|snapshot| {
        snapshot.policy_toml = format!(
            "{POLICY}\n[[rule]]\nname = \"closed for today\"\neffect = \"deny\"\nusers = {{ kinds = [\"user\"] }}\nservices = {{ names = [\"echo\"] }}\n"
        );
    });
    ending(&mut stream).await;
    ending(&mut other).await;
    let end = plane.event("session.end").await;
    assert!(
        end["close_detail"].as_str().unwrap().contains("closed for today"),
        "{end:?}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_taken_from_the_agent_ends_its_sessions() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    plane.auth.publish(|snapshot| snapshot.services[0].agents.clear());
    ending(&mut stream).await;
    assert_eq!(
        plane.event("session.end").await["close_reason"],
        "service_removed"
    );
    plane.proxy.announced(&["db-prod"]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_limits_and_the_login_deadline_end_sessions() {
    let (plane, running) = Plane::started().await;
    plane.auth.publish(|snapshot| {
        snapshot.policy_toml = POLICY.replace("effect", "limits = { session = \"2s\" }\neffect");
    });
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    plane.proxy.announced(&["echo", "db-prod"]).await;
    // Under the old policy or the new one: a session that is live when the limit comes is held to it too.
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    ending(&mut stream).await;
    let end = plane.event("session.end").await;
    assert_eq!(end["close_reason"], "session_limit");
    plane
        .auth
        .publish(|snapshot| snapshot.policy_toml = POLICY.to_owned());
    let mut profile = plane
        .cluster
        .user_profile("dora@example.com", &["engineering"])
        .unwrap();
    profile.login_deadline = time::OffsetDateTime::now_utc() + time::Duration::seconds(4);
    let dora = plane.cluster.issue(Profile::User(profile)).unwrap();
    let (mut stream, _) = framed(&plane, "echo", &dora).await;
    ending(&mut stream).await;
    plane
        .record(|record| {
            record
                .fields
                .get("close_reason")
                .is_some_and(|why| why == "login_deadline")
        })
        .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_beyond_the_rules_idle_limit_ends_a_session() {
    let mut plane = Plane::new().await;
    plane.limits = String::new();
    plane.auth.replace(|snapshot, _| {
        snapshot.policy_toml = POLICY.replace("effect", "limits = { idle = \"1s\" }\neffect");
    });
    let running = plane.start().await;
    plane.proxy.announced(&["echo", "db-prod"]).await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    echoes(&mut stream, "once").await;
    ending(&mut stream).await;
    assert_eq!(plane.event("session.end").await["close_reason"], "idle_limit");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_limit_that_policy_sets_or_lifts_reaches_live_sessions() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    echoes(&mut stream, "without a limit").await;
    plane.auth.publish(|snapshot| {
        snapshot.policy_toml = POLICY.replace("effect", "limits = { idle = \"2s\" }\neffect");
    });
    ending(&mut stream).await;
    assert_eq!(plane.event("session.end").await["close_reason"], "idle_limit");
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    echoes(&mut stream, "with one").await;
    plane
        .auth
        .publish(|snapshot| snapshot.policy_toml = POLICY.to_owned());
    tokio::time::sleep(Duration::from_secs(3)).await;
    echoes(&mut stream, "and without again").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_cuts_even_where_the_rules_have_expired() {
    let (plane, running) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let (mut stream, _) = framed(&plane, "echo", &alice).await;
    plane
        .auth
        .publish(|snapshot| snapshot.expires = time::OffsetDateTime::now_utc() + time::Duration::seconds(2));
    iap_testkit::wait_until_async(
        async || matches!(framed(&plane, "echo", &alice).await.1, Status::Unavailable { .. }),
        crate::proxy::WAIT,
    )
    .await
    .unwrap();
    echoes(&mut stream, "in its grace").await;
    plane.lock(LockKind::User, "alice@example.com", "stolen laptop");
    ending(&mut stream).await;
    plane
        .record(|record| record.fields.get("close_reason").is_some_and(|why| why == "lock"))
        .await;
    running.stop().await;
}
