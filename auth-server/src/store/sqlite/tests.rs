//! What every engine has to keep, tried on this one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use iap_identity::{GroupName, LoginId, ProxyId, UserId};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::*;
use crate::store::{
    AnsweredRequest, Counter, GenerationRow, GrantRow, GrantStore as _, Identity, InventoryStore as _,
    LoginChange, LoginMethod, LoginRow, LoginState, LoginStore as _, ProofAsked, ProxyRow, RuleStore as _,
    TokenRefusal,
};

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

async fn store() -> (TempDir, SqliteStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("auth.db")).await.unwrap();
    (dir, store)
}

fn login() -> LoginRow {
    LoginRow {
        login_id: LoginId::from_uuid(Uuid::now_v7()),
        state: LoginState::Started,
        method: LoginMethod::Headless,
        connector: None,
        key_thumbprint: [1; 32],
        host_name: "laptop".to_owned(),
        user_name: "alice".to_owned(),
        redirect_port: 0,
        client_version: "0.1.0".to_owned(),
        client_address: "2001:db8::1".parse().unwrap(),
        words: "one two three".to_owned(),
        created_at: NOW,
        expires_at: NOW + Duration::minutes(5),
        user_code_hash: Some([2; 32]),
        poll_secret_hash: Some([3; 32]),
        state_hash: None,
        cookie_hash: None,
        code_hash: None,
        identity: None,
        denial: None,
        tries: 0,
        proof: ProofAsked {
            fresh: true,
            mfa: true,
            acr: Some("urn:example:two-factors".to_owned()),
        },
    }
}

fn sent() -> LoginChange {
    LoginChange::SentToProvider {
        connector: "okta".to_owned(),
        state_hash: [4; 32],
        cookie_hash: [5; 32],
    }
}

fn identity() -> Identity {
    Identity {
        user_id: UserId::derive("okta", "https://issuer", "alice"),
        connector: "okta".to_owned(),
        issuer: "https://issuer".to_owned(),
        subject: "alice".to_owned(),
        name: "alice@example.com".to_owned(),
        email: Some("alice@example.com".to_owned()),
        groups: vec![GroupName::new("okta", "engineering").unwrap()],
        auth_time: NOW,
        mfa_time: Some(NOW),
        acr: None,
    }
}

/// The way back after an upgrade is the backup, not the older program: `docs/operate.md`.
#[tokio::test]
async fn a_database_that_a_newer_program_has_changed_is_refused() {
    let (dir, store) = store().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'of a newer program', TRUE, x'00', 0)",
    )
    .execute(&store.writer)
    .await
    .unwrap();
    store.close().await;
    let refused = SqliteStore::open(&dir.path().join("auth.db")).await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("was previously applied but is missing"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_login_goes_through_its_states_and_forgets_each_secret_after_use() {
    let (_dir, store) = store().await;
    let (row, id) = (login(), login().login_id);
    let row = LoginRow { login_id: id, ..row };
    store.create_login(&row).await.unwrap();
    assert!(store.login_by_user_code(&[2; 32], NOW).await.unwrap().is_some());

    let at_provider = store
        .advance_login(id, LoginState::Started, NOW, sent())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(at_provider.state, LoginState::AtProvider);
    assert!(store.login_by_state(&[4; 32]).await.unwrap().is_some());

    let answered = |state, cookie| LoginChange::Answered {
        state_hash: [state; 32],
        cookie_hash: [cookie; 32],
    };
    for (state, cookie) in [(4, 9), (9, 5)] {
        let claimed = store.advance_login(id, LoginState::AtProvider, NOW, answered(state, cookie));
        assert!(claimed.await.unwrap().is_none(), "{state} {cookie}");
    }
    let claimed = store.advance_login(id, LoginState::AtProvider, NOW, answered(4, 5));
    assert_eq!(claimed.await.unwrap().unwrap().state, LoginState::Exchanging);
    let again = store.advance_login(id, LoginState::AtProvider, NOW, answered(4, 5));
    assert!(again.await.unwrap().is_none(), "an answer is exchanged once");
    let reopened = store.advance_login(id, LoginState::AtProvider, NOW, sent());
    assert!(reopened.await.unwrap().is_none());

    let change = LoginChange::Identified(Box::new(identity()));
    let identified = store
        .advance_login(id, LoginState::Exchanging, NOW, change)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(identified.identity, Some(identity()));
    assert!(
        store.login_by_state(&[4; 32]).await.unwrap().is_none(),
        "a callback works once"
    );

    let change = LoginChange::Approved { code_hash: [6; 32] };
    let approved = store
        .advance_login(id, LoginState::Identified, NOW, change)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(approved.code_hash, Some([6; 32]));

    let finished = store
        .advance_login(id, LoginState::Approved, NOW, LoginChange::Finished)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(finished.code_hash, None);
    assert!(
        store
            .advance_login(id, LoginState::Approved, NOW, LoginChange::Finished)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn of_many_who_advance_a_login_at_once_one_does() {
    let (_dir, store) = store().await;
    let row = LoginRow {
        state: LoginState::Approved,
        ..login()
    };
    store.create_login(&row).await.unwrap();
    let racing = (0..8).map(|_| {
        let store = store.clone();
        let id = row.login_id;
        tokio::spawn(async move {
            store
                .advance_login(id, LoginState::Approved, NOW, LoginChange::Finished)
                .await
                .unwrap()
                .is_some()
        })
    });
    let mut winners = 0;
    for racer in racing.collect::<Vec<_>>() {
        winners += usize::from(racer.await.unwrap());
    }
    assert_eq!(winners, 1);
}

#[tokio::test]
async fn an_expired_login_moves_no_more_and_is_forgotten() {
    let (_dir, store) = store().await;
    let row = login();
    store.create_login(&row).await.unwrap();
    let late = NOW + Duration::minutes(5);
    assert!(
        store
            .advance_login(row.login_id, LoginState::Started, late, sent())
            .await
            .unwrap()
            .is_none()
    );
    assert!(store.login_by_user_code(&[2; 32], late).await.unwrap().is_none());
    assert_eq!(store.forget_logins(late).await.unwrap(), 0);
    assert_eq!(store.forget_logins(late + Duration::seconds(1)).await.unwrap(), 1);
    assert!(store.login(row.login_id).await.unwrap().is_none());
}

#[tokio::test]
async fn wrong_codes_are_counted_and_unknown_logins_have_none_left() {
    let (_dir, store) = store().await;
    let row = login();
    store.create_login(&row).await.unwrap();
    assert_eq!(store.count_login_try(row.login_id).await.unwrap(), 1);
    assert_eq!(store.count_login_try(row.login_id).await.unwrap(), 2);
    let unknown = LoginId::from_uuid(Uuid::now_v7());
    assert_eq!(store.count_login_try(unknown).await.unwrap(), u32::MAX);
}

#[tokio::test]
async fn counters_only_grow_and_survive_a_restart() {
    let (dir, store) = store().await;
    assert_eq!(store.next(Counter::SnapshotVersion).await.unwrap(), 1);
    assert_eq!(store.next(Counter::SnapshotVersion).await.unwrap(), 2);
    store.close().await;
    let store = SqliteStore::open(&dir.path().join("auth.db")).await.unwrap();
    assert_eq!(store.counter(Counter::SnapshotVersion).await.unwrap(), 2);
    assert_eq!(store.counter(Counter::Epoch).await.unwrap(), 1);
}

#[tokio::test]
async fn what_is_committed_is_on_the_disk_and_readers_cannot_write() {
    let (_dir, store) = store().await;
    let full: i64 = sqlx::query_scalar("PRAGMA synchronous")
        .fetch_one(&store.writer)
        .await
        .unwrap();
    assert_eq!(full, 2, "FULL");
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&store.writer)
        .await
        .unwrap();
    assert_eq!(mode, "wal");
    let keys: i64 = sqlx::query_scalar("PRAGMA foreign_keys")
        .fetch_one(&store.writer)
        .await
        .unwrap();
    assert_eq!(keys, 1);
    assert!(
        sqlx::query("DELETE FROM counters")
            .execute(&store.readers)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn every_table_says_what_a_restore_does_with_it() {
    let (_dir, store) = store().await;
    let mut tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT IN ('_sqlx_migrations', 'sqlite_sequence')",
    )
    .fetch_all(&store.readers)
    .await
    .unwrap();
    tables.sort();
    let mut known: Vec<&str> = restoring::KEPT_TABLES.to_vec();
    known.extend(restoring::CLEARED_TABLES.iter().map(|(name, _)| *name));
    known.sort_unstable();
    assert_eq!(
        tables, known,
        "a new table goes into KEPT_TABLES or CLEARED_TABLES"
    );
}

fn grant(id: LoginId, due_after: Duration) -> GrantRow {
    GrantRow {
        login_id: id,
        user_id: identity().user_id,
        connector: "okta".to_owned(),
        sealed: vec![1, 2, 3],
        deadline: NOW + Duration::hours(12),
        refreshed_at: None,
        next_check: NOW + due_after,
        failures: 0,
    }
}

#[tokio::test]
async fn grants_are_due_in_order_until_their_logins_are_over() {
    let (_dir, store) = store().await;
    let ids = [1, 2, 3].map(|number| LoginId::from_uuid(Uuid::from_u128(number)));
    for (id, minutes) in ids.into_iter().zip([30, 10, 20]) {
        store
            .keep_grant(&grant(id, Duration::minutes(minutes)))
            .await
            .unwrap();
    }
    let due = async |connector: &str, minutes: i64, limit: u32| {
        let now = NOW + Duration::minutes(minutes);
        let rows = store.due_grants(connector, now, limit).await.unwrap();
        rows.into_iter().map(|row| row.login_id).collect::<Vec<_>>()
    };
    assert_eq!(due("okta", 9, 8).await, []);
    assert_eq!(due("okta", 30, 8).await, [ids[1], ids[2], ids[0]]);
    assert_eq!(due("okta", 30, 2).await, [ids[1], ids[2]]);
    assert_eq!(due("entra", 30, 8).await, []);
    assert_eq!(due("okta", 12 * 60, 8).await, []);

    let later = NOW + Duration::hours(1);
    store.grant_checked(ids[1], Some(NOW), later, 2).await.unwrap();
    assert!(store.reseal_grant(ids[1], &[9]).await.unwrap());
    let row = store.grant(ids[1]).await.unwrap().unwrap();
    assert_eq!(
        (row.refreshed_at, row.next_check, row.failures),
        (Some(NOW), later, 2)
    );
    assert_eq!(row.sealed, [9]);
    assert!(store.extend_grant(ids[1], later, later).await.unwrap());
    let expired = store.expired_grants(later, 8).await.unwrap();
    assert_eq!(expired.len(), 1);
    assert!(store.drop_grant(ids[1]).await.unwrap());
    assert!(!store.drop_grant(ids[1]).await.unwrap());
    assert!(!store.reseal_grant(ids[1], &[9]).await.unwrap());
    assert!(!store.extend_grant(ids[1], later, later).await.unwrap());
}

#[tokio::test]
async fn generations_are_replaced_by_compare_and_set_with_the_request_that_led_to_them() {
    let (_dir, store) = store().await;
    let first = GenerationRow {
        login_id: LoginId::from_uuid(Uuid::nil()),
        user_id: identity().user_id,
        generation: 1,
        previous_until: None,
        ended_at: None,
        answered: None,
    };
    let answered = |request: u8| GenerationRow {
        generation: 2,
        answered: Some(AnsweredRequest {
            request: [request; 32],
            from: 1,
            until: NOW + Duration::minutes(10),
        }),
        ..first.clone()
    };
    store.start_generations(&first).await.unwrap();
    assert!(store.replace_generations(&first, &answered(7)).await.unwrap());
    assert!(!store.replace_generations(&first, &answered(8)).await.unwrap());
    assert!(!store.replace_generations(&answered(8), &first).await.unwrap());
    assert_eq!(
        store.generations(first.login_id).await.unwrap(),
        Some(answered(7))
    );
    assert!(store.replace_generations(&answered(7), &first).await.unwrap());
    assert_eq!(store.generations(first.login_id).await.unwrap(), Some(first));
}

#[tokio::test]
async fn a_guessed_join_token_is_refused_without_the_writer() {
    let (_dir, store) = store().await;
    let proxy = ProxyRow {
        proxy_id: ProxyId::from_uuid(Uuid::now_v7()),
        host_name: "edge".to_owned(),
        version: "0.1.0".to_owned(),
        joined_at: NOW,
        last_seen: None,
        public_address: None,
    };
    let _writing = store.begin().await.unwrap();
    let joining = store.join_proxy(&[7; 32], &proxy);
    let refused = tokio::time::timeout(PATIENCE, joining).await;
    assert_eq!(
        refused.expect("it waits for the writer").unwrap().err(),
        Some(TokenRefusal::Unknown)
    );
}
