//! From a record's exact bytes to what the store keeps of it.

use iap_audit::{EventKind, RecordError, RecordView, SourceId};
use iap_identity::SessionId;
use serde_json::Value;

use crate::store::{ERASED_FIELD, NewRecord, SessionChange, hash_of};

/// The bytes are no record, or one that does not say what its kind has to.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    /// Not a record at all.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A record that speaks for us.
    #[error("{what} is for the auth server alone to say")]
    NotAnAgents {
        /// The event, or the field.
        what: String,
    },
    /// A session's record without a session, or without what it must say of it.
    #[error("a {event} record lacks `{field}`")]
    Lacks {
        /// The kind.
        event: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// A record that was read, and whose it says it is.
#[derive(Debug)]
pub struct Incoming {
    /// The source it names.
    pub source: SourceId,
    /// What the store keeps.
    pub record: NewRecord,
}

/// Reads the exact bytes of an agent's record.
pub fn read_record(bytes: &[u8]) -> Result<Incoming, IncomingError> {
    read(bytes, |view| {
        check_author(view)?;
        session_change(view)
    })
}

/// Reads the exact bytes of a record of our own: it can end the sessions of any agent.
pub(super) fn read_own_record(bytes: &[u8]) -> Result<Incoming, IncomingError> {
    read(bytes, own_change)
}

fn read(
    bytes: &[u8],
    change: fn(&RecordView) -> Result<Option<SessionChange>, IncomingError>,
) -> Result<Incoming, IncomingError> {
    let view = RecordView::parse(bytes)?;
    let previous =
        iap_identity::hex_to_32(&view.agent_prev).ok_or(RecordError::Field { name: "agent_prev" })?;
    Ok(Incoming {
        source: view.agent_id,
        record: NewRecord {
            source_seq: view.agent_seq,
            previous,
            hash: hash_of(bytes),
            bytes: bytes.to_vec(),
            time: view.time,
            session: view.session_id.map(SessionId::from_uuid),
            change: change(&view)?,
            event: view.event,
            payload: None,
            erases: None,
        },
    })
}

/// An agent tells of sessions and of itself. What else is known happens here, and nobody is to take its word for it.
fn check_author(view: &RecordView) -> Result<(), IncomingError> {
    if view.kind().is_some_and(|kind| !kind.is_of_agents()) {
        let what = format!("the event {}", view.event);
        return Err(IncomingError::NotAnAgents { what });
    }
    match view.fields.contains_key(ERASED_FIELD) {
        true => Err(IncomingError::NotAnAgents {
            what: format!("`{ERASED_FIELD}`"),
        }),
        false => Ok(()),
    }
}

fn session_change(view: &RecordView) -> Result<Option<SessionChange>, IncomingError> {
    match view.kind() {
        Some(kind @ EventKind::SessionStart) => session_start(view, kind.as_str()).map(Some),
        Some(kind @ EventKind::SessionEnd) => session_end(view, kind.as_str()).map(Some),
        Some(_) | None => Ok(None),
    }
}

/// Of sessions, we write nothing but the end of those whose agent was lost.
fn own_change(view: &RecordView) -> Result<Option<SessionChange>, IncomingError> {
    let event = EventKind::SessionEnd.as_str();
    if view.kind() != Some(EventKind::SessionEnd) {
        return Ok(None);
    }
    let text = |field| {
        let value = view.fields.get(field).and_then(Value::as_str);
        value
            .map(str::to_owned)
            .ok_or(IncomingError::Lacks { event, field })
    };
    Ok(Some(SessionChange::Lost {
        agent: text("agent")?,
        close_reason: text("close_reason")?,
    }))
}

fn session_start(view: &RecordView, event: &'static str) -> Result<SessionChange, IncomingError> {
    let text = |value: Option<&Value>, field| {
        value
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or(IncomingError::Lacks { event, field })
    };
    let user = view.fields.get("user");
    view.session_id.ok_or(IncomingError::Lacks {
        event,
        field: "session_id",
    })?;
    Ok(SessionChange::Start {
        user_id: text(user.and_then(|user| user.get("id")), "user.id")?,
        user_name: text(user.and_then(|user| user.get("name")), "user.name")?,
        service: text(view.fields.get("service"), "service")?,
        agent: view.agent_id.to_string(),
        decision: view
            .fields
            .get("decision")
            .map_or_else(|| "null".to_owned(), Value::to_string),
    })
}

fn session_end(view: &RecordView, event: &'static str) -> Result<SessionChange, IncomingError> {
    let number = |field| view.fields.get(field).and_then(Value::as_u64).unwrap_or(0);
    view.session_id.ok_or(IncomingError::Lacks {
        event,
        field: "session_id",
    })?;
    let reason = view.fields.get("close_reason").and_then(Value::as_str);
    Ok(SessionChange::End {
        agent: view.agent_id.to_string(),
        bytes_in: number("bytes_in"),
        bytes_out: number("bytes_out"),
        close_reason: reason
            .ok_or(IncomingError::Lacks {
                event,
                field: "close_reason",
            })?
            .to_owned(),
    })
}
