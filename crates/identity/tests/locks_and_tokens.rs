//! Locks hit exactly what they name; join tokens carry pin and secret and nothing leaks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use iap_identity::{
    AgentId, Class, ClassSet, JoinToken, JoinTokenError, Lock, LockKind, Locks, Pin, SessionId, UserPeer,
    VerifiedPeer, verify_client,
};
use iap_testkit::{TestCluster, new_uuid};
use time::{Duration, OffsetDateTime};

fn lock(kind: LockKind, target: impl Into<String>, expires_at: Option<OffsetDateTime>) -> Lock {
    Lock {
        id: new_uuid(),
        kind,
        target: target.into(),
        reason: "stolen laptop".to_owned(),
        created_by: "admin@example.com".to_owned(),
        created_at: OffsetDateTime::UNIX_EPOCH,
        expires_at,
    }
}

fn user(cluster: &TestCluster) -> UserPeer {
    let credential = cluster.user("alice@example.com", &[]).unwrap();
    match verify_client(
        &credential.chain,
        ClassSet::of(&[Class::User]),
        cluster.bundle(),
        cluster.now,
    )
    .unwrap()
    {
        VerifiedPeer::User(user) => user,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_user_is_hit_by_id_name_login_and_serial() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let user = user(&cluster);
    let hit = |kind, target: String| {
        Locks::new(vec![lock(kind, target, None)])
            .matching_user(&user, cluster.now)
            .is_some()
    };
    assert!(hit(LockKind::User, user.id.to_string()));
    assert!(hit(LockKind::User, "alice@example.com".to_owned()));
    assert!(hit(LockKind::Login, user.login_id.to_string()));
    assert!(hit(LockKind::Serial, user.serial.clone()));
    assert!(!hit(LockKind::User, "bob@example.com".to_owned()));
    assert!(!hit(LockKind::Login, new_uuid().to_string()));
    assert!(
        !hit(LockKind::Device, "laptop-7".to_owned()),
        "the certificate names no device"
    );
    assert!(
        !hit(LockKind::Agent, user.id.to_string()),
        "a lock of another kind"
    );
    assert!(
        !hit(LockKind::Session, user.login_id.to_string()),
        "a lock of another kind"
    );
    let peer = VerifiedPeer::User(user.clone());
    assert!(
        Locks::new(vec![lock(LockKind::User, user.name, None)])
            .matching_peer(&peer, cluster.now)
            .is_some()
    );
}

#[test]
fn a_bot_is_hit_by_name_login_and_serial() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let credential = cluster.bot("deployer").unwrap();
    let accepted = ClassSet::of(&[Class::Bot]);
    let peer = verify_client(&credential.chain, accepted, cluster.bundle(), cluster.now).unwrap();
    let VerifiedPeer::Bot(bot) = &peer else {
        panic!("not a bot")
    };
    let hit = |kind, target: String| {
        Locks::new(vec![lock(kind, target, None)])
            .matching_peer(&peer, cluster.now)
            .is_some()
    };
    assert!(hit(LockKind::User, "deployer".to_owned()));
    assert!(hit(LockKind::Login, bot.login_id.unwrap().to_string()));
    assert!(hit(LockKind::Serial, bot.serial.clone()));
    assert!(!hit(LockKind::User, "other".to_owned()));
    assert!(
        !hit(LockKind::Agent, "deployer".to_owned()),
        "a lock of another kind"
    );
}

#[test]
fn a_lock_ends_when_it_says() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let user = user(&cluster);
    let end = cluster.now + Duration::hours(1);
    let locks = Locks::new(vec![lock(LockKind::User, "alice@example.com", Some(end))]);
    assert!(locks.matching_user(&user, end - Duration::SECOND).is_some());
    assert!(locks.matching_user(&user, end).is_none());
}

#[test]
fn an_expired_lock_does_not_hide_the_one_behind_it() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let user = user(&cluster);
    let over = lock(LockKind::User, "alice@example.com", Some(cluster.now));
    let standing = lock(LockKind::Login, user.login_id.to_string(), None);
    let locks = Locks::new(vec![over, standing.clone()]);
    assert_eq!(locks.matching_user(&user, cluster.now), Some(&standing));
}

#[test]
fn sessions_and_agents_are_hit_by_id_and_agents_by_serial() {
    let now = OffsetDateTime::UNIX_EPOCH;
    let session = SessionId::from_uuid(new_uuid());
    let agent = AgentId::from_uuid(new_uuid());
    let locks = Locks::new(vec![
        lock(LockKind::Session, session.to_string(), None),
        lock(LockKind::Agent, agent.to_string(), None),
        lock(LockKind::Serial, "4a5b", None),
    ]);
    assert!(locks.matching_session(&session, now).is_some());
    assert!(
        locks
            .matching_session(&SessionId::from_uuid(new_uuid()), now)
            .is_none()
    );
    assert_eq!(
        locks.matching_agent(&agent, "00", now).unwrap().kind,
        LockKind::Agent
    );
    let other = AgentId::from_uuid(new_uuid());
    assert_eq!(
        locks.matching_agent(&other, "4a5b", now).unwrap().kind,
        LockKind::Serial
    );
    assert!(locks.matching_agent(&other, "00", now).is_none());
}

#[test]
fn lock_kinds_have_names() {
    for kind in LockKind::ALL {
        assert_eq!(LockKind::parse(kind.as_str()), Some(kind));
    }
    assert_eq!(LockKind::parse("everything"), None);
}

#[test]
fn a_join_token_survives_printing_and_pasting() {
    let token = JoinToken::new(Pin::from_bytes([7; 32]), [9; 32]);
    let text = token.expose();
    assert!(text.starts_with(&format!("iapj1.{}.", "07".repeat(32))), "{text}");
    let read = JoinToken::parse(&format!("  {text}\n")).unwrap();
    assert_eq!(read.pin(), token.pin());
    assert_eq!(read.secret(), token.secret());
    assert_eq!(read.secret_hash(), JoinToken::hash_of(&[9; 32]));
}

#[test]
fn damaged_join_tokens_say_what_is_wrong_and_nothing_else() {
    let text = JoinToken::new(Pin::from_bytes([7; 32]), [9; 32]).expose();
    let error = |text: &str| JoinToken::parse(text).map(drop).unwrap_err();
    assert_eq!(error(""), JoinTokenError::Form);
    assert_eq!(error(&text.replace("iapj1", "iapj2")), JoinTokenError::Form);
    assert_eq!(error(&format!("{text}.x")), JoinTokenError::Form);
    assert_eq!(error(&text.replacen("07", "0g", 1)), JoinTokenError::Pin);
    assert_eq!(error(&text.replacen("07", "", 1)), JoinTokenError::Pin);
    assert_eq!(error(&text[..text.len() - 2]), JoinTokenError::Secret);
    assert_eq!(error(&format!("{text}=")), JoinTokenError::Secret);
}
