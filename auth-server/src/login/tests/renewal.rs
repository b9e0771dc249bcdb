//! Logins that are asked about again, at a provider that rotates, withdraws, or is down.

use std::time::Duration as StdDuration;

use iap_identity::LoginId;
use serde_json::json;
use time::Duration;

use super::super::Vouching;
use super::super::recheck::Round;
use super::hostile::{Behaviour, Refreshing};
use super::plane::Plane;

fn refreshing(refreshing: Refreshing) -> Behaviour {
    Behaviour {
        refreshing,
        ..Behaviour::default()
    }
}

async fn logged_in(plane: &Plane) -> LoginId {
    let program = plane.program("browser").await;
    let code = plane.approved_code(&program).await;
    plane.finish(&program, &code).await.unwrap().login.login_id
}

/// Asks about the login, once what the last answer was good for is over.
async fn vouch(plane: &Plane, id: LoginId) -> Vouching {
    plane.pass(Duration::seconds(3));
    plane.logins.vouch_for_renewal(id).await.unwrap()
}

async fn groups(plane: &Plane, id: LoginId) -> Vec<String> {
    let store = &plane.logins.context().store;
    let login = store.login(id).await.unwrap().unwrap();
    let user = store
        .user(&login.identity.unwrap().user_id)
        .await
        .unwrap()
        .unwrap();
    user.groups.iter().map(ToString::to_string).collect()
}

fn locks(plane: &Plane) -> Vec<(String, String)> {
    let published = plane.logins.context().feed.published_locks();
    let locks = published.content.locks.iter();
    locks
        .map(|lock| (lock.target.clone(), lock.reason.clone()))
        .collect()
}

#[tokio::test]
async fn a_login_lasts_twelve_hours_with_a_refresh_token_and_four_without() {
    for (given, hours) in [(Refreshing::Rotating, 12), (Refreshing::Never, 4)] {
        let plane = Plane::with(refreshing(given), "").await;
        let program = plane.program("browser").await;
        let code = plane.approved_code(&program).await;
        let login = plane.finish(&program, &code).await.unwrap().login;
        let life = login.login_deadline - login.auth_time;
        assert!(
            (life - Duration::hours(hours)).abs() < Duration::minutes(1),
            "{life}"
        );
    }
}

#[tokio::test]
async fn a_refresh_token_that_rotates_is_followed_and_never_lies_open_in_the_database() {
    let plane = Plane::with(refreshing(Refreshing::Rotating), "").await;
    let id = logged_in(&plane).await;
    let mut tokens = vec![plane.hostile.refresh_token().unwrap()];
    for _ in 0..3 {
        assert_eq!(vouch(&plane, id).await, Vouching::Vouched);
        tokens.push(plane.hostile.refresh_token().unwrap());
    }
    tokens.dedup();
    assert_eq!(tokens.len(), 4, "each use brought another token");
    for name in ["auth.db", "auth.db-wal"] {
        let bytes = std::fs::read(plane.dir.path().join("data").join(name)).unwrap();
        for token in &tokens {
            assert!(
                !bytes
                    .windows(token.len())
                    .any(|window| window == token.as_bytes()),
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn a_refresh_token_that_stays_is_used_again() {
    let plane = Plane::with(refreshing(Refreshing::Fixed), "").await;
    let id = logged_in(&plane).await;
    for _ in 0..2 {
        assert_eq!(vouch(&plane, id).await, Vouching::Vouched);
    }
    assert_eq!(plane.hostile.refreshes(), 2);
}

#[tokio::test]
async fn groups_are_read_again_and_the_record_says_which_changed() {
    let plane = Plane::with(refreshing(Refreshing::Rotating), "").await;
    let id = logged_in(&plane).await;
    assert_eq!(groups(&plane, id).await, ["hostile:engineering"]);
    plane.hostile.behave(Behaviour {
        claims: vec![("groups", json!(["support", "oncall"])), ("nonce", json!(null))],
        ..refreshing(Refreshing::Rotating)
    });
    assert_eq!(vouch(&plane, id).await, Vouching::Vouched);
    assert_eq!(groups(&plane, id).await, ["hostile:oncall", "hostile:support"]);
    let records = plane.records().await;
    let changed = records
        .iter()
        .find(|record| record["event"] == "login.regrouped")
        .unwrap();
    assert_eq!(changed["added"], json!(["hostile:oncall", "hostile:support"]));
    assert_eq!(changed["removed"], json!(["hostile:engineering"]));
}

#[tokio::test]
async fn logging_in_again_with_fewer_groups_counts_as_a_change_of_groups() {
    let plane = Plane::start().await;
    let id = logged_in(&plane).await;
    assert_eq!(groups(&plane, id).await, ["hostile:engineering"]);
    plane.hostile.behave(Behaviour {
        claims: vec![("groups", json!(["support"]))],
        ..Behaviour::default()
    });
    let again = logged_in(&plane).await;
    assert_eq!(groups(&plane, again).await, ["hostile:support"]);
    let records = plane.records().await;
    let changed = records
        .iter()
        .find(|record| record["event"] == "login.regrouped")
        .expect("a record of the change");
    assert_eq!(changed["removed"], json!(["hostile:engineering"]));
    assert_eq!(changed["login_id"], json!(again.to_string()));
}

#[tokio::test]
async fn groups_read_before_the_last_check_do_not_come_back_with_a_login_that_is_finished_after_it() {
    let plane = Plane::with(refreshing(Refreshing::Rotating), "").await;
    let checked = logged_in(&plane).await;
    let slow = plane.program("browser").await;
    let code = plane.approved_code(&slow).await;
    plane.hostile.behave(Behaviour {
        claims: vec![("groups", json!(["support"])), ("nonce", json!(null))],
        ..refreshing(Refreshing::Rotating)
    });
    assert_eq!(vouch(&plane, checked).await, Vouching::Vouched);
    let login = plane.finish(&slow, &code).await.unwrap().login;
    assert_eq!(groups(&plane, checked).await, ["hostile:support"]);
    let names: Vec<String> = login.groups.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["hostile:support"]);
}

#[tokio::test]
async fn a_withdrawn_grant_locks_the_login_and_is_on_record() {
    let plane = Plane::with(refreshing(Refreshing::Rotating), "").await;
    let id = logged_in(&plane).await;
    plane
        .hostile
        .behave(refreshing(Refreshing::With("invalid_grant")));
    let Vouching::Locked(reason) = vouch(&plane, id).await else {
        panic!("it was not locked");
    };
    assert!(
        reason.contains("`hostile`") && reason.contains("invalid_grant"),
        "{reason}"
    );
    assert_eq!(locks(&plane), [(id.to_string(), reason)]);
    let events = plane.events().await;
    let withdrawn = events
        .iter()
        .filter(|(event, _)| event == "login.withdrawn")
        .count();
    assert_eq!(withdrawn, 1, "{events:?}");
    assert!(plane.logins.context().store.grant(id).await.unwrap().is_none());
}

#[tokio::test]
async fn a_provider_that_cannot_be_asked_takes_nothing_away() {
    let plane = Plane::with(refreshing(Refreshing::Rotating), "").await;
    let id = logged_in(&plane).await;
    let store = &plane.logins.context().store;
    let mut pauses = Vec::new();
    for down in [
        Refreshing::OutOfOrder,
        Refreshing::With("temporarily_unavailable"),
        Refreshing::With("invalid_client"),
    ] {
        plane.hostile.behave(refreshing(down));
        assert_eq!(vouch(&plane, id).await, Vouching::Kept);
        let row = store.grant(id).await.unwrap().unwrap();
        let pause = row.next_check - plane.logins.context().clock.now();
        pauses.push(pause.whole_seconds());
        let asked = plane.hostile.refreshes();
        assert_eq!(vouch(&plane, id).await, Vouching::Kept);
        assert_eq!(plane.hostile.refreshes(), asked, "it is asked when that is due");
        plane.pass(pause);
    }
    assert!(
        pauses.is_sorted() && pauses[0] > 20 && pauses[2] > 80,
        "{pauses:?}"
    );
    assert!(locks(&plane).is_empty());
    plane.hostile.behave(refreshing(Refreshing::Rotating));
    assert_eq!(vouch(&plane, id).await, Vouching::Vouched);
    assert_eq!(store.grant(id).await.unwrap().unwrap().failures, 0);
}

#[tokio::test]
async fn an_answer_that_would_let_nobody_log_in_refuses_the_renewal_without_a_lock() {
    let plane = Plane::with(refreshing(Refreshing::Rotating), "").await;
    let id = logged_in(&plane).await;
    for (claim, value) in [
        ("groups", json!(null)),
        ("sub", json!("somebody else")),
        ("nonce", json!("of another login")),
        ("aud", json!("another client")),
    ] {
        plane.hostile.behave(Behaviour {
            claims: vec![(claim, value)],
            user_info: Some(json!({"sub": "s1"})),
            ..refreshing(Refreshing::Rotating)
        });
        let vouching = vouch(&plane, id).await;
        assert!(matches!(vouching, Vouching::Refused(_)), "{claim}: {vouching:?}");
    }
    assert!(locks(&plane).is_empty());
    assert_eq!(groups(&plane, id).await, ["hostile:engineering"]);
    plane.hostile.behave(refreshing(Refreshing::Rotating));
    assert_eq!(
        vouch(&plane, id).await,
        Vouching::Vouched,
        "the tokens of bad answers were kept"
    );
}

#[tokio::test]
async fn renewals_of_one_login_at_once_use_a_refresh_token_once() {
    let plane = Plane::with(refreshing(Refreshing::Rotating), "").await;
    let id = logged_in(&plane).await;
    let asking = (0..8).map(|_| plane.logins.vouch_for_renewal(id));
    for vouching in futures_util::future::join_all(asking).await {
        assert_eq!(vouching.unwrap(), Vouching::Vouched);
    }
    assert_eq!(plane.hostile.refreshes(), 1);
}

#[tokio::test]
async fn a_new_refresh_token_is_kept_although_nobody_waits_for_the_renewal_any_more() {
    let slow = Refreshing::Slowly(StdDuration::from_millis(300));
    let plane = Plane::with(refreshing(slow), "").await;
    let id = logged_in(&plane).await;
    let given_up = plane.logins.vouch_for_renewal(id);
    assert!(
        tokio::time::timeout(StdDuration::from_millis(100), given_up)
            .await
            .is_err()
    );
    assert_eq!(plane.hostile.refreshes(), 1, "it was under way");
    plane.hostile.behave(refreshing(Refreshing::Rotating));
    for asked in [1, 2] {
        assert_eq!(vouch(&plane, id).await, Vouching::Vouched);
        assert_eq!(
            plane.hostile.refreshes(),
            asked,
            "the first waits for the answer under way"
        );
    }
}

#[tokio::test]
async fn logins_are_checked_when_they_are_due_and_a_provider_that_is_down_is_left_alone() {
    let plane = Plane::with(refreshing(Refreshing::Fixed), "").await;
    for _ in 0..6 {
        logged_in(&plane).await;
    }
    assert_eq!(plane.logins.check_due("hostile").await, Round::default());
    plane.pass(Duration::minutes(17));
    let round = plane.logins.check_due("hostile").await;
    assert_eq!(
        round,
        Round {
            asked: 6,
            unanswered: 0
        }
    );
    assert_eq!(plane.logins.check_due("hostile").await, Round::default());

    plane.hostile.behave(refreshing(Refreshing::OutOfOrder));
    plane.pass(Duration::minutes(17));
    let round = plane.logins.check_due("hostile").await;
    assert_eq!(
        round,
        Round {
            asked: 4,
            unanswered: 4
        }
    );
    assert!(locks(&plane).is_empty());

    plane
        .hostile
        .behave(refreshing(Refreshing::With("invalid_grant")));
    plane.pass(Duration::minutes(17));
    let round = plane.logins.check_due("hostile").await;
    assert_eq!(
        round,
        Round {
            asked: 6,
            unanswered: 0
        }
    );
    assert_eq!(locks(&plane).len(), 6);
}

#[tokio::test]
async fn what_no_longer_opens_ends_renewals_and_is_forgotten() {
    let plane = Plane::with(refreshing(Refreshing::Rotating), "").await;
    let id = logged_in(&plane).await;
    let store = &plane.logins.context().store;
    assert!(store.reseal_grant(id, b"of another key file").await.unwrap());
    assert!(matches!(vouch(&plane, id).await, Vouching::Refused(_)));
    assert!(store.generations(id).await.unwrap().unwrap().ended_at.is_some());
    assert!(store.grant(id).await.unwrap().is_none());
    assert_eq!(plane.hostile.refreshes(), 0);
}

#[tokio::test]
async fn a_login_that_is_over_is_forgotten_and_its_token_revoked() {
    let plane = Plane::with(refreshing(Refreshing::Rotating), "").await;
    let unfinished = plane.program("browser").await;
    plane.approved_code(&unfinished).await;
    let store = &plane.logins.context().store;
    let id = unfinished.started.login_id;
    assert!(store.grant(id).await.unwrap().is_some());
    plane.logins.forget_ended().await;
    assert!(store.grant(id).await.unwrap().is_some());
    plane.pass(Duration::minutes(11));
    plane.logins.forget_ended().await;
    assert!(store.grant(id).await.unwrap().is_none());
    while plane.hostile.revocations() == 0 {
        tokio::time::sleep(StdDuration::from_millis(5)).await;
    }
    assert_eq!(plane.hostile.refresh_token(), None);
}
