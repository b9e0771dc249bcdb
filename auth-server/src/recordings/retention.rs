//! How long recordings are kept: by age and by their total, the oldest first, each on record before it is erased.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use iap_audit::EventKind;
use iap_identity::SessionId;
use iap_runtime::shutdown::Shutdown;
use time::OffsetDateTime;

use super::store::{Held, Name};
use crate::config::WhenFull;
use crate::context::AppContext;
use crate::login::ourselves;
use crate::rpc::RpcError;
use crate::store::Erasure;

/// Between two looks at how old recordings are.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(3600);
const LOOK_EVERY_MIN: Duration = Duration::from_secs(1);

/// Keeps to the configuration until shutdown.
pub async fn run(context: Arc<AppContext>, shutdown: Shutdown) {
    let keep = context.config.recordings.keep;
    let every = keep.map_or(LOOK_EVERY_MAX, |keep| {
        (keep / 10).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX)
    });
    let mut ticks = tokio::time::interval(every);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
            () = context.recordings.grown() => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            kept = keep_to_limits(&context) => if let Err(error) = kept {
                tracing::error!(%error, "old recordings could not be erased");
            }
        }
    }
}

/// Erases what is too old, and then the oldest while there is too much; returns of how many sessions. Sessions that go on
/// keep theirs.
///
/// # Errors
/// When a record cannot be written, or a file not be removed; the next look goes on.
pub async fn keep_to_limits(context: &AppContext) -> Result<usize, RpcError> {
    let limits = &context.config.recordings;
    let library = Arc::clone(&context.recordings);
    let sessions = tokio::task::spawn_blocking(move || library.sessions()).await;
    let sessions = sessions
        .map_err(RpcError::internal)?
        .map_err(RpcError::internal)?;
    let bytes_max = limits
        .bytes_max
        .filter(|_| limits.when_full == WhenFull::EraseOldest);
    let now = context.clock.now();
    let mut erased = 0;
    for held in sessions {
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
        expire(context, &held, why).await?;
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

async fn expire(context: &AppContext, held: &Held, why: String) -> Result<(), RpcError> {
    let author = ourselves(context);
    let now = context.clock.now();
    let erasure = Erasure {
        id: context.random.uuid_v7(now)?,
        at: now,
        by: author.name.clone(),
        reason: why,
    };
    let numbers: BTreeSet<u32> = held.recordings.iter().map(|(number, _)| *number).collect();
    let event = context.audit.event(EventKind::RecordingExpired)?;
    let event = event
        .user(&author)
        .session(&held.session)
        .field("erasure_id", erasure.id.to_string())
        .field("recordings", numbers.iter().copied().collect::<Vec<_>>())
        .field("recording_bytes", held.bytes())
        .reason(&erasure.reason);
    context.audit.record(event).await?;
    remove(context, held.session, &numbers, &erasure).await
}

/// Marks recordings as erased, so that nothing more of them is taken, and removes their files.
///
/// # Errors
/// When the mark cannot be set, or a file not be removed.
pub async fn remove(
    context: &AppContext,
    session: SessionId,
    numbers: &BTreeSet<u32>,
    erasure: &Erasure,
) -> Result<(), RpcError> {
    let listed: Vec<u32> = numbers.iter().copied().collect();
    context.store.erase_recordings(session, &listed, erasure).await?;
    let library = Arc::clone(&context.recordings);
    let names = listed.into_iter().map(move |number| Name { session, number });
    let removing =
        tokio::task::spawn_blocking(move || names.into_iter().try_for_each(|name| library.erase(name)));
    removing
        .await
        .map_err(RpcError::internal)?
        .map_err(RpcError::internal)?;
    tracing::warn!(%session, by = %erasure.by, reason = %erasure.reason, "recordings were erased");
    Ok(())
}
