//! Sessions as `sessions ls` and `sessions show` tell of them.

use iap_identity::SessionId;
use iap_policy::Verb;
use iap_proto::v1;
use serde_json::{Value, json};

use crate::authority::format_time;
use crate::context::AppContext;
use crate::rpc::{RpcError, UserCaller};
use crate::store::{SessionFilter, SessionRow};

const SESSIONS_DEFAULT: u32 = 100;
const SESSIONS_MAX: u32 = 10_000;

/// Sessions as a JSON array, the newest first: one's own, or everybody's with audit.read.
pub async fn list(
    context: &AppContext,
    caller: &UserCaller,
    request: v1::SessionsRequest,
) -> Result<String, RpcError> {
    let limit = match request.limit {
        0 => SESSIONS_DEFAULT,
        limit if limit <= SESSIONS_MAX => limit,
        _ => {
            return Err(RpcError::invalid(format!(
                "at most {SESSIONS_MAX} sessions can be asked for"
            )));
        }
    };
    let since = match request.since_unix_ms {
        0 => None,
        since => Some(
            iap_proto::convert::time_from_wire("SessionsRequest.since_unix_ms", since)
                .map_err(RpcError::invalid)?,
        ),
    };
    let filter = SessionFilter {
        user_id: (!caller.may(Verb::AuditRead)).then(|| caller.facts.id.clone()),
        user: Some(request.user).filter(|user| !user.is_empty()),
        service: Some(request.service).filter(|service| !service.is_empty()),
        live_only: request.live_only,
        since,
        limit,
    };
    let sessions = context.store.sessions(&filter).await?;
    Ok(Value::Array(sessions.iter().map(render).collect()).to_string())
}

/// One session and its records as a JSON object. Another's session is not there for those without
/// audit.read.
pub async fn show(context: &AppContext, caller: &UserCaller, id: SessionId) -> Result<String, RpcError> {
    let session = context.store.session(id).await?;
    let visible = session.filter(|session| caller.may(Verb::AuditRead) || session.user_id == caller.facts.id);
    let session = visible.ok_or_else(|| RpcError::not_found(format!("there is no session {id}")))?;
    let records: Vec<Value> = context
        .store
        .session_records(id)
        .await?
        .iter()
        .filter_map(|record| record.fields().map(Value::Object))
        .collect();
    Ok(json!({ "session": render(&session), "records": records }).to_string())
}

fn render(session: &SessionRow) -> Value {
    json!({
        "session_id": session.session_id.to_string(),
        "user": session.user_name,
        "service": session.service,
        "agent": session.agent,
        "start": format_time(session.start),
        "end": session.end.map(format_time),
        "bytes_in": session.bytes_in,
        "bytes_out": session.bytes_out,
        "close_reason": session.close_reason,
        "decision": serde_json::from_str::<Value>(&session.decision).unwrap_or(Value::Null),
    })
}
