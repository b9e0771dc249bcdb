//! An agent sends a recording, or what is new of one.

use std::sync::Arc;
use std::time::Duration;

use iap_identity::{AgentPeer, SessionId};
use iap_proto::v1;
use tonic::Streaming;

use super::store::{LibraryError, Name, Place, RECORDING_BYTES_MAX, Writing};
use crate::context::AppContext;
use crate::rpc::{ErrorCode, RpcError};

/// How long the next part may take.
const PART_TIMEOUT: Duration = Duration::from_secs(15);
const PART_BYTES_MAX: usize = 256 * 1024;
/// Places of pieces in one part.
const PLACES_MAX: usize = 4096;

/// Takes the parts of one recording. What is acknowledged is durable, and if its end came, whole.
///
/// # Errors
/// When it is not this agent's session, or parts are missing.
pub async fn receive(
    context: &Arc<AppContext>,
    agent: &AgentPeer,
    mut parts: Streaming<v1::RecordingPart>,
) -> Result<v1::RecordingHeld, RpcError> {
    let Some(first) = next(&mut parts).await? else {
        return Err(RpcError::invalid("a recording has at least one part"));
    };
    let name = Name {
        session: SessionId::from_bytes(&first.session_id).map_err(RpcError::invalid)?,
        number: first.recording,
    };
    if name.number == 0 {
        return Err(RpcError::invalid("recordings are numbered from 1"));
    }
    check_agent(context, agent, name.session).await?;
    if is_erased(context, name).await? {
        return pass_over(first, parts).await;
    }
    let library = Arc::clone(&context.recordings);
    let mut writing = match blocking(move || library.write(name)).await? {
        Place::Open(writing) => writing,
        Place::Taken => return Err(RpcError::conflict("this recording is being sent already")),
        Place::Whole(name) => return compare(context, name, first, parts).await,
    };
    // Whoever erases marks first: either we see the mark now, or they see us write.
    if is_erased(context, name).await? {
        let library = Arc::clone(&context.recordings);
        blocking(move || library.erase(name.session, &[name.number])).await?;
        drop(writing);
        return pass_over(first, parts).await;
    }
    let mut part = Some(first);
    while let Some(arrived) = part {
        let end = arrived.end.clone();
        let (back, held) = take(writing, arrived).await?;
        writing = back;
        if !held {
            return Ok(v1::RecordingHeld {
                bytes: writing.bytes(),
                complete: false,
            });
        }
        if let Some(end) = end {
            return conclude(writing, end).await;
        }
        part = next(&mut parts).await?;
    }
    blocking(move || {
        writing.sync()?;
        Ok(v1::RecordingHeld {
            bytes: writing.bytes(),
            complete: false,
        })
    })
    .await
}

async fn is_erased(context: &AppContext, name: Name) -> Result<bool, RpcError> {
    let erased = context.store.erased_recordings(name.session).await?;
    Ok(erased.iter().any(|(number, _)| *number == name.number))
}

/// Takes nothing of a recording that came whole before. An agent that did not hear of it is told so; one that says now that
/// the recording is another is refused, because what is here is what was recorded.
async fn compare(
    context: &AppContext,
    name: Name,
    first: v1::RecordingPart,
    mut parts: Streaming<v1::RecordingPart>,
) -> Result<v1::RecordingHeld, RpcError> {
    let mut part = Some(first);
    while let Some(arrived) = part {
        if let Some(end) = arrived.end {
            let library = Arc::clone(&context.recordings);
            let is_same =
                blocking(
                    move || Ok(library.length(name) == end.bytes && library.sha256(name)? == end.sha256),
                );
            if !is_same.await? {
                let Name { session, number } = name;
                tracing::error!(%session, number, "an agent would replace a recording that came whole");
                return Err(RpcError::conflict(
                    "this recording came whole before, and was another",
                ));
            }
            return Ok(v1::RecordingHeld {
                bytes: end.bytes,
                complete: true,
            });
        }
        part = next(&mut parts).await?;
    }
    Ok(v1::RecordingHeld {
        bytes: context.recordings.length(name),
        complete: false,
    })
}

/// Takes what belongs to an erased recording from the agent, which may then forget it, and keeps nothing.
async fn pass_over(
    first: v1::RecordingPart,
    mut parts: Streaming<v1::RecordingPart>,
) -> Result<v1::RecordingHeld, RpcError> {
    let (mut part, mut held) = (Some(first), v1::RecordingHeld::default());
    while let Some(arrived) = part {
        held.bytes = arrived.offset.saturating_add(arrived.data.len() as u64);
        held.complete = arrived.end.is_some();
        part = match held.complete {
            true => None,
            false => next(&mut parts).await?,
        };
    }
    Ok(held)
}

/// A session's records come another way; until its start is here, nobody knows whose it is.
async fn check_agent(context: &AppContext, agent: &AgentPeer, session: SessionId) -> Result<(), RpcError> {
    match context.store.session(session).await? {
        Some(row) if row.agent == agent.id.to_string() => Ok(()),
        Some(_) => Err(RpcError::denied("the session is another agent's")),
        None => Err(RpcError::not_found(format!(
            "there is no session {session} on record yet"
        ))),
    }
}

async fn next(parts: &mut Streaming<v1::RecordingPart>) -> Result<Option<v1::RecordingPart>, RpcError> {
    match tokio::time::timeout(PART_TIMEOUT, parts.message()).await {
        Ok(Ok(part)) => Ok(part),
        Ok(Err(status)) => Err(RpcError::invalid(status.message())),
        Err(_elapsed) => Err(RpcError::invalid("the next part did not come in time")),
    }
}

/// Keeps a part; whether nothing is missing before it.
async fn take(mut writing: Writing, part: v1::RecordingPart) -> Result<(Writing, bool), RpcError> {
    if part.data.len() > PART_BYTES_MAX || part.index.len() > PLACES_MAX {
        return Err(RpcError::invalid("a part of a recording is too large"));
    }
    let end = part.offset.saturating_add(part.data.len() as u64);
    if end > RECORDING_BYTES_MAX {
        return Err(RpcError::new(
            ErrorCode::TooMany,
            format!("a recording has at most {RECORDING_BYTES_MAX} bytes"),
        ));
    }
    blocking(move || {
        let before = writing.bytes();
        let held = writing.append(part.offset, &part.data)?;
        // Each piece that is new has one place: the next begins behind it.
        let mut from = before;
        let places = part.index.iter().filter_map(|place| {
            let is_new = from <= place.offset && place.offset < writing.bytes();
            is_new.then(|| {
                from = place.offset + 1;
                (place.offset, place.micros)
            })
        });
        let places: Vec<_> = places.collect();
        writing.index(places.into_iter())?;
        Ok((writing, held))
    })
    .await
}

/// The end came: what is here must be what the agent has put on record.
async fn conclude(mut writing: Writing, end: v1::RecordingEnd) -> Result<v1::RecordingHeld, RpcError> {
    blocking(move || {
        let is_whole = writing.bytes() == end.bytes && writing.sha256()? == end.sha256;
        match is_whole {
            true => writing.close()?,
            false => {
                writing.start_anew()?;
                writing.sync()?;
            }
        }
        Ok(v1::RecordingHeld {
            bytes: writing.bytes(),
            complete: is_whole,
        })
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LibraryError> + Send + 'static,
) -> Result<T, RpcError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Err(error @ LibraryError::NoRoom(_))) => Err(RpcError::new(ErrorCode::TooMany, error.to_string())),
        Ok(done) => done.map_err(RpcError::internal),
        Err(error) => Err(RpcError::internal(error)),
    }
}
