//! Replaying: one's own sessions, and with recording.read everybody's. Whoever reads another's leaves a record.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use iap_audit::EventKind;
use iap_identity::{AgentId, SessionId};
use iap_policy::Verb;
use iap_proto::v1;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::store::Name;
use crate::context::AppContext;
use crate::rpc::{RpcError, UserCaller};
use crate::store::{SessionRow, StoredRecord};

/// A session has ten channels at once, and may have had many.
const LISTED_MAX: usize = 1024;
const PART_BYTES: usize = 128 * 1024;
/// Parts that are read before the client takes them.
const PARTS_AHEAD_MAX: usize = 4;

/// The parts of a recording.
pub type Parts = ReceiverStream<Result<v1::RecordingPart, Status>>;

/// What is recorded of a session as a JSON array: what the trail says of each recording, and how much of it is here.
///
/// # Errors
/// When there is no such session, or it is another's and the caller may not.
pub async fn list(context: &AppContext, caller: &UserCaller, id: SessionId) -> Result<String, RpcError> {
    let session = visible(context, caller, id).await?;
    let limit = u32::try_from(LISTED_MAX).unwrap_or(u32::MAX);
    let told = told(context, &session, limit).await?;
    let erased = context.store.erased_recordings(id).await?;
    let library = Arc::clone(&context.recordings);
    let held = tokio::task::spawn_blocking(move || library.of_session(id)).await;
    let held: BTreeMap<u64, u64> = held
        .map_err(RpcError::internal)?
        .into_iter()
        .map(|(number, bytes)| (number.into(), bytes))
        .collect();
    let number_of = |record: &Value| record.get("recording").and_then(Value::as_u64);
    let mut numbers: BTreeSet<u64> = told.iter().filter_map(number_of).collect();
    numbers.extend(held.keys());
    numbers.extend(erased.iter().map(|(number, _)| u64::from(*number)));
    let list = |number: u64| {
        let erasure = erased.iter().find(|(erased, _)| u64::from(*erased) == number);
        json!({
            "recording": number,
            "held_bytes": held.get(&number).copied().unwrap_or(0),
            "record": told.iter().find(|record| number_of(record) == Some(number)),
            "erased": erasure.map(|(_, erasure)| erasure.to_json()),
            "user": session.user_name,
            "service": session.service,
        })
    };
    let listed: Vec<Value> = numbers.into_iter().take(LISTED_MAX).map(list).collect();
    Ok(Value::Array(listed).to_string())
}

/// What the trail says of a session's recordings: its own agent, that is. Others may name the session too.
///
/// # Errors
/// When it cannot be read.
pub async fn told(context: &AppContext, session: &SessionRow, limit: u32) -> Result<Vec<Value>, RpcError> {
    let (id, kind) = (session.session_id, EventKind::SessionRecording.as_str());
    let records = context.store.session_records_of_kind(id, kind, limit).await?;
    let of_its_agent = |record: &&StoredRecord| record.source.to_string() == session.agent;
    Ok(records
        .iter()
        .filter(of_its_agent)
        .flat_map(StoredRecord::rows)
        .map(Value::Object)
        .collect())
}

/// At which agent a session runs, for whoever wants to watch it there: that agent decides for itself.
///
/// # Errors
/// When there is no such session, or it is another's and the caller may not.
pub async fn place(
    context: &AppContext,
    caller: &UserCaller,
    id: SessionId,
) -> Result<v1::SessionPlaceReply, RpcError> {
    let session = visible(context, caller, id).await?;
    let agent = AgentId::parse(&session.agent).map_err(RpcError::internal)?;
    Ok(v1::SessionPlaceReply {
        agent_id: agent.as_bytes().to_vec(),
        service: session.service,
        user: session.user_name,
        over: session.end.is_some(),
    })
}

/// A recording from the piece that shows a time, as far as it is here.
///
/// # Errors
/// When there is none, or it is another's and the caller may not.
pub async fn read(
    context: &AppContext,
    caller: &UserCaller,
    request: v1::RecordingRequest,
) -> Result<Parts, RpcError> {
    let id = SessionId::from_bytes(&request.session_id).map_err(RpcError::invalid)?;
    let session = visible(context, caller, id).await?;
    let name = Name {
        session: id,
        number: request.recording,
    };
    let erased = context.store.erased_recordings(id).await?;
    if let Some((number, erasure)) = erased.iter().find(|(number, _)| *number == name.number) {
        let text = format!("recording {number} of session {id} was {}", erasure.as_words());
        return Err(RpcError::not_found(text));
    }
    let library = Arc::clone(&context.recordings);
    let opening = tokio::task::spawn_blocking(move || library.read_from(name, request.from_micros));
    let opened = opening.await.map_err(RpcError::internal)?;
    let (file, offset) = opened
        .map_err(|_| RpcError::not_found(format!("no recording {} of session {id} is here", name.number)))?;
    if session.user_id != caller.facts.id {
        let event = context.audit.event(EventKind::RecordingPlayed)?;
        let event = event
            .user(&caller.record())
            .session(&id)
            .field("recording", request.recording);
        context.audit.record(event).await?;
    }
    let (sender, parts) = mpsc::channel(PARTS_AHEAD_MAX);
    tokio::spawn(send(file, offset, sender));
    Ok(ReceiverStream::new(parts))
}

/// Waits for whoever reads without a thread of its own: they may take hours.
async fn send(mut file: File, mut offset: u64, parts: mpsc::Sender<Result<v1::RecordingPart, Status>>) {
    loop {
        let Ok(place) = parts.reserve().await else { return };
        let reading = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; PART_BYTES];
            let read = file.read(&mut buffer)?;
            buffer.truncate(read);
            Ok::<_, std::io::Error>((file, buffer))
        });
        let data = match reading.await {
            Ok(Ok((back, data))) => {
                file = back;
                data
            }
            Ok(Err(error)) => return place.send(Err(Status::from(RpcError::internal(error)))),
            Err(error) => return place.send(Err(Status::from(RpcError::internal(error)))),
        };
        if data.is_empty() {
            return;
        }
        let length = data.len() as u64;
        place.send(Ok(v1::RecordingPart {
            offset,
            data,
            ..v1::RecordingPart::default()
        }));
        offset += length;
    }
}

/// Another's session is not there for those without recording.read.
async fn visible(context: &AppContext, caller: &UserCaller, id: SessionId) -> Result<SessionRow, RpcError> {
    let session = context.store.session(id).await?;
    let visible =
        session.filter(|session| caller.may(Verb::RecordingRead) || session.user_id == caller.facts.id);
    visible.ok_or_else(|| RpcError::not_found(format!("there is no session {id}")))
}
