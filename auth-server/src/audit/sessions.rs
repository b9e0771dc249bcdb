//! Sessions as `sessions ls` and `sessions show` tell of them.

use std::collections::BTreeMap;

use iap_audit::PAYLOAD_PLACE_FIELD;
use iap_identity::{AgentId, SessionId};
use iap_policy::Verb;
use iap_proto::v1;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::authority::format_time;
use crate::context::AppContext;
use crate::rpc::{RpcError, UserCaller};
use crate::store::{SessionFilter, SessionRow};

const SESSIONS_DEFAULT: u32 = 100;
const SESSIONS_MAX: u32 = 10_000;
/// What of a session is shown at once, as JSON: its statements, and everything else. Both fit into one reply.
const SHOWN_STATEMENTS_BYTES_MAX: usize = 2 << 20;
const SHOWN_OTHERS_BYTES_MAX: usize = 1 << 20;
const PAGE_RECORDS: u32 = 100;

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
    let Shown {
        records, left_out, ..
    } = records(context, &session).await?;
    Ok(json!({ "session": render(&session), "records": records, "left_out": left_out }).to_string())
}

/// The first of a session's records, and how many there are beyond.
#[derive(Debug, Default)]
struct Shown {
    records: Vec<Value>,
    left_out: u64,
    statements_bytes: usize,
    others_bytes: usize,
}

impl Shown {
    fn take(&mut self, row: Map<String, Value>) {
        let row = Value::Object(row);
        let (bytes, bytes_max) = match row.get(PAYLOAD_PLACE_FIELD) {
            Some(_) => (&mut self.statements_bytes, SHOWN_STATEMENTS_BYTES_MAX),
            None => (&mut self.others_bytes, SHOWN_OTHERS_BYTES_MAX),
        };
        // Beyond the first that does not fit nothing does: what is shown has no holes.
        *bytes += row.to_string().len();
        match *bytes <= bytes_max {
            true => self.records.push(row),
            false => self.left_out += 1,
        }
    }
}

/// What its own agent says of it, and we. Another agent may name it, and a search finds that; here it would pass for true.
async fn records(context: &AppContext, session: &SessionRow) -> Result<Shown, RpcError> {
    let (mut shown, mut after_seq, mut strangers) = (Shown::default(), 0, BTreeMap::new());
    loop {
        let page = context
            .store
            .session_records(session.session_id, after_seq, PAGE_RECORDS)
            .await?;
        let Some(last) = page.last() else { return Ok(shown) };
        after_seq = last.seq;
        for record in page {
            if !is_strangers(context, session, record.source, &mut strangers).await? {
                record.rows().into_iter().for_each(|row| shown.take(row));
            }
        }
    }
}

async fn is_strangers(
    context: &AppContext,
    session: &SessionRow,
    source: Uuid,
    known: &mut BTreeMap<Uuid, bool>,
) -> Result<bool, RpcError> {
    if source.to_string() == session.agent {
        return Ok(false);
    }
    if let Some(is_strangers) = known.get(&source) {
        return Ok(*is_strangers);
    }
    let agent = context.store.agent(AgentId::from_uuid(source)).await?;
    known.insert(source, agent.is_some());
    Ok(agent.is_some())
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
