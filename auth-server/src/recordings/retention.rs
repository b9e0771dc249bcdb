//! How long recordings are kept: by age and by their total, the oldest first, each on record before it is erased.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use iap_audit::EventKind;
use iap_identity::SessionId;
use iap_runtime::shutdown::Shutdown;
use time::OffsetDateTime;

use super::store::Held;
use crate::config::WhenFull;
use crate::context::AppContext;
use crate::login::ourselves;
use crate::rpc::RpcError;
use crate::store::{Erasing, Erasure};

/// Between two looks at how old recordings are.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(3600);
const LOOK_EVERY_MIN: Duration = Duration::from_secs(1);
/// Recordings of one session that one act erases: their numbers stand in its record.
pub const RECORDINGS_MAX: usize = 1024;

/// Keeps to the configuration until shutdown.
pub async fn run(context: Arc<AppContext>, shutdown: Shutdown) {
    let keep = context.config.recordings.keep;
    let every = keep.map_or(LOOK_EVERY_MAX, |keep| {
        (keep / 10).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX)
    });
    let mut ticks = tokio::time::interval(every);
    loop {
        let is_tick = tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => true,
            () = context.recordings.grown() => false,
        };
        let work = async {
            if is_tick {
                finish(&context).await?;
            }
            keep_to_limits(&context).await
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            kept = work => if let Err(error) = kept {
                tracing::error!(%error, "old recordings could not be erased");
            }
        }
    }
}

/// Removes what is left of recordings that were erased: of a server that was killed before it had, or a file that could not
/// be removed.
///
/// # Errors
/// When a file cannot be removed; the next look goes on.
pub async fn finish(context: &AppContext) -> Result<(), RpcError> {
    for held in sessions(context).await? {
        let erased = context.store.erased_recordings(held.session).await?;
        let is_here = |number: &u32| held.recordings.iter().any(|(held, _)| held == number);
        let left: BTreeSet<u32> = erased.iter().map(|(number, _)| *number).filter(is_here).collect();
        if !left.is_empty() {
            remove(context, held.session, left).await?;
        }
    }
    Ok(())
}

async fn sessions(context: &AppContext) -> Result<Vec<Held>, RpcError> {
    let library = Arc::clone(&context.recordings);
    let sessions = tokio::task::spawn_blocking(move || library.sessions()).await;
    sessions.map_err(RpcError::internal)?.map_err(RpcError::internal)
}

/// Erases what is too old, and then the oldest while there is too much; returns of how many sessions. Sessions that go on
/// keep theirs.
///
/// # Errors
/// When a record cannot be written, or a file not be removed; the next look goes on.
pub async fn keep_to_limits(context: &AppContext) -> Result<usize, RpcError> {
    let limits = &context.config.recordings;
    let bytes_max = limits
        .bytes_max
        .filter(|_| limits.when_full == WhenFull::EraseOldest);
    let now = context.clock.now();
    let mut erased = 0;
    for held in sessions(context).await? {
        let is_too_much = bytes_max.is_some_and(|bytes_max| context.recordings.bytes() > bytes_max);
        let may_be_old = limits.keep.is_some_and(|keep| began(held.session) + keep <= now);
        if !is_too_much && !may_be_old {
            // The others are younger.
            break;
        }
        let Some(session) = context.store.session(held.session).await? else {
            continue;
        };
        let Some(end) = session.end else { continue };
        let why = match limits.keep {
            Some(keep) if end + keep <= now => format!("older than recordings.keep, {} s", keep.as_secs()),
            Some(_) | None if is_too_much => "more than recordings.bytes_max in all".to_owned(),
            Some(_) | None => continue,
        };
        for recordings in held.recordings.chunks(RECORDINGS_MAX) {
            expire(context, held.session, recordings, &why).await?;
        }
        erased += 1;
    }
    Ok(erased)
}

/// A session's id says when it began; one that does not began at once.
fn began(session: SessionId) -> OffsetDateTime {
    let time = session.as_uuid().get_timestamp().map(|time| time.to_unix().0);
    let seconds = time.and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

async fn expire(
    context: &AppContext,
    session: SessionId,
    recordings: &[(u32, u64)],
    why: &str,
) -> Result<(), RpcError> {
    let author = ourselves(context);
    let now = context.clock.now();
    let erasure = Erasure {
        id: context.random.uuid_v7(now)?,
        at: now,
        by: author.name.clone(),
        reason: why.to_owned(),
    };
    let numbers: Vec<u32> = recordings.iter().map(|(number, _)| *number).collect();
    let bytes: u64 = recordings.iter().map(|(_, bytes)| bytes).sum();
    let event = context.audit.event(EventKind::RecordingExpired)?;
    let event = event
        .user(&author)
        .session(&session)
        .field("erasure_id", erasure.id.to_string())
        .field("recordings", numbers.clone())
        .field("recording_bytes", bytes)
        .reason(why);
    let erasing = Erasing {
        erasure,
        payloads: Vec::new(),
        recordings: Some((session, numbers.clone())),
    };
    context.audit.record_erasing(event, erasing).await?;
    remove(context, session, numbers).await
}

/// Removes the files of recordings that are marked as erased.
///
/// # Errors
/// When a file cannot be removed.
pub async fn remove(
    context: &AppContext,
    session: SessionId,
    numbers: impl IntoIterator<Item = u32>,
) -> Result<(), RpcError> {
    let library = Arc::clone(&context.recordings);
    let numbers: Vec<u32> = numbers.into_iter().collect();
    let recordings = numbers.len();
    let removing = tokio::task::spawn_blocking(move || library.erase(session, &numbers));
    removing
        .await
        .map_err(RpcError::internal)?
        .map_err(RpcError::internal)?;
    tracing::warn!(%session, recordings, "recordings were erased");
    Ok(())
}
