//! Sessions of agents that have not been heard of for long: their end, in our own chain (`source = "auth"`). An agent
//! that comes back after all sends its own end records, which replace these in the view of sessions.

use std::time::Duration;

use iap_audit::{CloseReason, EventKind};
use iap_identity::AgentId;
use iap_runtime::shutdown::Shutdown;
use serde_json::{Map, Value};

use super::RecordError;
use crate::context::AppContext;
use crate::store::{SessionRow, StoreError};

const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The rest is found a minute later.
const SESSIONS_PER_LOOK_MAX: u32 = 1000;

/// Looks until shutdown.
pub async fn run(context: std::sync::Arc<AppContext>, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = end_lost_sessions(&context).await {
            tracing::error!(%error, "the sessions of absent agents could not be ended");
        }
    }
}

/// Records the end of every open session whose agent was not heard of for `audit.agent_lost_after`; returns how many.
///
/// # Errors
/// When the store fails, or the record cannot be written; the next look finds what is left.
pub async fn end_lost_sessions(context: &AppContext) -> Result<usize, RecordError> {
    let absent_since = context.clock.now() - context.config.audit.agent_lost_after;
    let open = context
        .store
        .sessions_of_absent_agents(absent_since, SESSIONS_PER_LOOK_MAX)
        .await?;
    let mut ended = 0;
    for session in open {
        let follows = AgentId::parse(&session.agent)
            .is_ok_and(|agent| context.feed.watchers().contains(*agent.as_uuid()));
        if !follows {
            end(context, &session).await?;
            ended += 1;
        }
    }
    if ended > 0 {
        tracing::warn!(
            sessions = ended,
            "sessions of agents that were not heard of for long are recorded as lost"
        );
    }
    Ok(ended)
}

async fn end(context: &AppContext, session: &SessionRow) -> Result<(), RecordError> {
    let start = start_record(context, session).await?;
    let hours = context.config.audit.agent_lost_after.as_secs() / 3600;
    let why = match hours {
        0 => "its agent was not heard of for too long".to_owned(),
        hours => format!("its agent was not heard of for {hours} h"),
    };
    let event = context
        .audit
        .event(EventKind::SessionEnd)?
        .session(&session.session_id)
        .close(CloseReason::AgentLost, Some(&why))
        .field("agent", session.agent.clone())
        .field("source", "auth")
        .answering(&start);
    context.audit.record(event).await
}

async fn start_record(context: &AppContext, session: &SessionRow) -> Result<Map<String, Value>, StoreError> {
    let records = context
        .store
        .session_records(session.session_id, 0, u32::MAX)
        .await?;
    let parsed = records
        .iter()
        .filter_map(|record| serde_json::from_slice::<Map<String, Value>>(&record.bytes).ok());
    let is_start = |record: &Map<String, Value>| {
        record
            .get("event")
            .is_some_and(|event| event == EventKind::SessionStart.as_str())
    };
    Ok(parsed.into_iter().find(is_start).unwrap_or_default())
}
