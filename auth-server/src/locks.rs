//! Adding and removing locks: recorded, signed and pushed before the caller hears of it.

use std::time::Duration;

use iap_audit::{Event, EventKind, UserRecord};
use iap_identity::{Lock, LockKind};
use uuid::Uuid;

use crate::context::AppContext;
use crate::rpc::RpcError;

const TARGET_BYTES_MAX: usize = 256;
const REASON_BYTES_MAX: usize = 512;
const LOCKS_MAX: usize = 10_000;

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

/// Adds a lock in the name of `author`.
pub async fn add(context: &AppContext, author: &UserRecord, new: NewLock) -> Result<Lock, RpcError> {
    check(&new)?;
    if context.feed.published_locks().content.locks.len() >= LOCKS_MAX {
        return Err(RpcError::conflict(format!(
            "there are {LOCKS_MAX} locks already: remove some first"
        )));
    }
    let now = context.clock.now();
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
    context.store.add_lock(&lock).await?;
    context.feed.publish_locks().await?;
    list_proxies_anew(context, lock.kind).await?;
    Ok(lock)
}

/// Removes a lock in the name of `author`.
pub async fn remove(context: &AppContext, author: &UserRecord, id: Uuid) -> Result<(), RpcError> {
    let not_found = || RpcError::not_found(format!("there is no lock {id}"));
    let locks = context.store.locks(context.clock.now()).await?;
    let lock = locks.iter().find(|lock| lock.id == id).ok_or_else(not_found)?;
    let event = describe(context.audit.event(EventKind::LockRemoved)?, author, lock);
    context.audit.record(event).await?;
    context.store.remove_lock(id).await?.ok_or_else(not_found)?;
    context.feed.publish_locks().await?;
    list_proxies_anew(context, lock.kind).await
}

/// Nobody is sent to a proxy that is locked.
async fn list_proxies_anew(context: &AppContext, kind: LockKind) -> Result<(), RpcError> {
    match kind {
        LockKind::Proxy => Ok(context.feed.publish_snapshot().await?),
        LockKind::User
        | LockKind::Login
        | LockKind::Session
        | LockKind::Agent
        | LockKind::Device
        | LockKind::Serial => Ok(()),
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
