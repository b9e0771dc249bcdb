//! Adding and removing locks: recorded, signed and pushed before the caller hears of it.

use std::sync::Arc;
use std::time::Duration;

use iap_audit::{Event, EventKind, UserRecord};
use iap_identity::{Lock, LockKind, UserId};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::context::AppContext;
use crate::feed::Affects;
use crate::rpc::RpcError;

const TARGET_BYTES_MAX: usize = 256;
const REASON_BYTES_MAX: usize = 512;
const LOCKS_MAX: usize = 10_000;
/// Of those, how many the server may add by itself: administrators always find a place in an emergency.
const LOCKS_BY_RULE_MAX: usize = 9_000;

/// Two locks that end within this time of each other say the same.
const SAME_END: time::Duration = time::Duration::minutes(5);

/// A lock to be added.
#[derive(Clone, Debug)]
pub struct NewLock {
    /// What is locked.
    pub kind: LockKind,
    /// Which one.
    pub target: String,
    /// Why; people who are cut off read it.
    pub reason: String,
    /// For how long; none: until it is removed.
    pub life: Option<Duration>,
}

/// Adds a lock that an administrator asked for. A lock on a user's name is also put on everybody known by that name
/// now: names can change at the provider, ids cannot.
pub async fn add(context: &AppContext, author: &UserRecord, new: NewLock) -> Result<Lock, RpcError> {
    check(&new)?;
    let now = context.clock.now();
    let mut named = Vec::new();
    if new.kind == LockKind::User && UserId::parse(&new.target).is_err() {
        named = context.store.users_by_name(&new.target).await?;
    }
    for user in named {
        let of_id = NewLock {
            target: user.user_id.to_string(),
            ..new.clone()
        };
        keep(context, author, of_id, LOCKS_MAX, now).await?;
    }
    keep(context, author, new, LOCKS_MAX, now).await
}

/// Adds a lock that the server needs by itself, or that somebody has by logging out. One that says the same already
/// is not repeated.
pub async fn add_by_rule(context: &AppContext, author: &UserRecord, new: NewLock) -> Result<Lock, RpcError> {
    check(&new)?;
    let now = context.clock.now();
    let until = new.life.map(|life| now + life);
    let says_the_same = |lock: &&Lock| {
        let lasts = match (lock.expires_at, until) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(end), Some(until)) => end + SAME_END >= until,
        };
        lock.kind == new.kind && lock.target == new.target && lock.is_in_force(now) && lasts
    };
    let published = context.feed.published_locks();
    if let Some(lock) = published.content.locks.iter().find(says_the_same) {
        return Ok(lock.clone());
    }
    keep(context, author, new, LOCKS_BY_RULE_MAX, now).await
}

async fn keep(
    context: &AppContext,
    author: &UserRecord,
    new: NewLock,
    locks_max: usize,
    now: OffsetDateTime,
) -> Result<Lock, RpcError> {
    refuse_when_full(context.feed.published_locks().content.locks.len(), locks_max)?;
    let lock = Lock {
        id: context.random.uuid_v7(now)?,
        kind: new.kind,
        target: new.target,
        reason: new.reason,
        created_by: author.name.clone(),
        created_at: now,
        expires_at: new.life.map(|life| now + life),
    };
    let event = describe(context.audit.event(EventKind::LockAdded)?, author, &lock);
    context.audit.record(event).await?;
    let (store, kept) = (Arc::clone(&context.store), lock.clone());
    let adding = async move { store.add_lock(&kept).await };
    context.feed.change(affected_by(lock.kind), adding).await?;
    Ok(lock)
}

/// Removes a lock in the name of `author`; with one on a user's name, those on ids that were added with it.
pub async fn remove(context: &AppContext, author: &UserRecord, id: Uuid) -> Result<(), RpcError> {
    let not_found = || RpcError::not_found(format!("there is no lock {id}"));
    let locks = context.store.locks(context.clock.now()).await?;
    let lock = locks.iter().find(|lock| lock.id == id).ok_or_else(not_found)?;
    let is_id = |lock: &Lock| UserId::parse(&lock.target).is_ok();
    let came_with = |other: &&Lock| {
        let with = |lock: &Lock| (lock.created_at, lock.created_by.clone(), lock.reason.clone());
        other.kind == LockKind::User && is_id(other) && with(other) == with(lock)
    };
    if lock.kind == LockKind::User && !is_id(lock) {
        for other in locks.iter().filter(came_with) {
            withdraw(context, author, other).await?;
        }
    }
    match withdraw(context, author, lock).await? {
        true => Ok(()),
        false => Err(not_found()),
    }
}

async fn withdraw(context: &AppContext, author: &UserRecord, lock: &Lock) -> Result<bool, RpcError> {
    let event = describe(context.audit.event(EventKind::LockRemoved)?, author, lock);
    context.audit.record(event).await?;
    let (store, id) = (Arc::clone(&context.store), lock.id);
    let removing = async move { store.remove_lock(id).await };
    let removed = context.feed.change(affected_by(lock.kind), removing).await?;
    Ok(removed.is_some())
}

fn refuse_when_full(taken: usize, locks_max: usize) -> Result<(), RpcError> {
    match taken < locks_max {
        true => Ok(()),
        false => Err(RpcError::conflict(format!(
            "there are {locks_max} locks already: remove some first"
        ))),
    }
}

/// Nobody is sent to a proxy that is locked: the snapshot lists them.
fn affected_by(kind: LockKind) -> Affects {
    match kind {
        LockKind::Proxy => Affects::LocksAndSnapshot,
        LockKind::User
        | LockKind::Login
        | LockKind::Session
        | LockKind::Agent
        | LockKind::Device
        | LockKind::Serial => Affects::Locks,
    }
}

fn describe(event: Event, author: &UserRecord, lock: &Lock) -> Event {
    event
        .user(author)
        .field("lock_id", lock.id.to_string())
        .field("lock_kind", lock.kind.as_str())
        .field("lock_target", lock.target.clone())
        .field("expires", lock.expires_at.map(crate::authority::format_time))
        .reason(&lock.reason)
}

fn check(new: &NewLock) -> Result<(), RpcError> {
    if new.reason.trim().is_empty() || new.reason.len() > REASON_BYTES_MAX {
        return Err(RpcError::invalid(format!(
            "a lock needs a reason of at most {REASON_BYTES_MAX} bytes"
        )));
    }
    if new.target.is_empty() || new.target.len() > TARGET_BYTES_MAX {
        return Err(RpcError::invalid(format!(
            "a lock's target has 1 to {TARGET_BYTES_MAX} bytes"
        )));
    }
    let is_uuid = || Uuid::try_parse(&new.target).is_ok_and(|id| id.hyphenated().to_string() == new.target);
    let is_hex = || {
        new.target
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
    };
    match new.kind {
        LockKind::User | LockKind::Device => Ok(()),
        LockKind::Login | LockKind::Session | LockKind::Agent | LockKind::Proxy if is_uuid() => Ok(()),
        LockKind::Serial if is_hex() => Ok(()),
        LockKind::Login | LockKind::Session | LockKind::Agent | LockKind::Proxy => Err(RpcError::invalid(
            format!("{:?} is no id: a lower-case UUID is needed", new.target),
        )),
        LockKind::Serial => Err(RpcError::invalid(format!(
            "{:?} is no serial: lower-case hex is needed",
            new.target
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use crate::config::Config;
    use crate::context::{Clock, Random};
    use crate::store::UserRow;

    async fn context(dir: &tempfile::TempDir) -> AppContext {
        let text = format!(
            "cluster = \"iap.example.com\"\ndata_dir = \"{}\"\nlisten = \"127.0.0.1:0\"",
            dir.path().join("data").display()
        );
        let config = Config::parse(&text, "test").unwrap();
        let opened = AppContext::open(config, Clock::system(), Random::system()).await;
        opened.unwrap().context
    }

    fn author() -> UserRecord {
        UserRecord {
            id: "u-alice".to_owned(),
            name: "alice@example.com".to_owned(),
            kind: "user".to_owned(),
        }
    }

    fn of_user(target: &str) -> NewLock {
        NewLock {
            kind: LockKind::User,
            target: target.to_owned(),
            reason: "a laptop was stolen".to_owned(),
            life: None,
        }
    }

    fn of_login(number: u128) -> NewLock {
        NewLock {
            kind: LockKind::Login,
            target: Uuid::from_u128(number).to_string(),
            reason: "this login was ended".to_owned(),
            life: Some(Duration::from_secs(3600)),
        }
    }

    fn published(context: &AppContext) -> Vec<String> {
        let published = context.feed.published_locks();
        let locks = published.content.locks.iter();
        locks.map(|lock| lock.target.clone()).collect()
    }

    #[tokio::test]
    async fn what_the_server_locks_by_itself_leaves_places_to_administrators_and_is_not_repeated() {
        let dir = iap_testkit::temp().unwrap();
        let context = context(&dir).await;
        let first = add_by_rule(&context, &author(), of_login(1)).await.unwrap();
        let again = add_by_rule(&context, &author(), of_login(1)).await.unwrap();
        assert_eq!(first.id, again.id);
        assert_eq!(published(&context).len(), 1);
        refuse_when_full(LOCKS_BY_RULE_MAX - 1, LOCKS_BY_RULE_MAX).unwrap();
        assert!(refuse_when_full(LOCKS_BY_RULE_MAX, LOCKS_BY_RULE_MAX).is_err());
        refuse_when_full(LOCKS_BY_RULE_MAX, LOCKS_MAX).unwrap();
    }

    #[tokio::test]
    async fn a_lock_on_a_name_stays_on_the_person_when_the_name_changes_and_goes_as_a_whole() {
        let dir = iap_testkit::temp().unwrap();
        let context = context(&dir).await;
        let now = context.clock.now();
        let person = UserRow {
            user_id: UserId::derive("okta", "https://issuer", "s1"),
            connector: "okta".to_owned(),
            issuer: "https://issuer".to_owned(),
            subject: "s1".to_owned(),
            name: "mallory".to_owned(),
            email: None,
            groups: Vec::new(),
            groups_as_of: now,
            last_login: now,
        };
        context.store.upsert_user(&person).await.unwrap();
        let id = person.user_id.to_string();
        let lock = add(&context, &author(), of_user("mallory")).await.unwrap();
        assert_eq!(lock.target, "mallory");
        assert_eq!(published(&context).len(), 2);
        assert!(published(&context).contains(&id));
        let other = add(&context, &author(), of_user(&id)).await.unwrap();
        remove(&context, &author(), lock.id).await.unwrap();
        assert_eq!(
            published(&context),
            std::slice::from_ref(&id),
            "the one added by itself"
        );
        remove(&context, &author(), other.id).await.unwrap();
    }

    #[tokio::test]
    async fn a_lock_that_was_stored_is_published_although_whoever_asked_for_it_went_away() {
        let dir = iap_testkit::temp().unwrap();
        let context = context(&dir).await;
        let stored = async {
            while context.store.locks(context.clock.now()).await.unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        let author = author();
        tokio::select! {
            biased;
            () = stored => {}
            _ = add(&context, &author, of_user("mallory")) => {}
        }
        let mut locks = context.feed.published_locks();
        for _ in 0..1_000 {
            if !locks.content.locks.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            locks = context.feed.published_locks();
        }
        assert_eq!(published(&context), ["mallory"]);
    }
}
