//! What the auth server's spans are: a login and its renewals, in the trace that the login's id names; and a record of a
//! session, in the trace that its connection's id names. Ids, times and words from closed lists; who somebody is stays in
//! the audit log.

use std::time::Instant;

use iap_audit::RecordView;
use iap_identity::{AgentId, Anchor, ConnectionId, LoginId, TraceId};
use iap_runtime::traces::{Kind, Recorder, Root, Traces};
use serde_json::Value;

use crate::store::NewRecord;

/// From the start of a login to its first certificate.
pub(crate) const LOGIN: Root = Root {
    anchor: Some(Anchor::Login),
    parent: None,
    name: "login",
    kind: Kind::Server,
};
/// A further certificate of a login.
pub(crate) const RENEW: Root = Root {
    anchor: None,
    parent: Some(Anchor::Login),
    name: "renew",
    kind: Kind::Server,
};
/// A record of a session becomes durable here.
const AUDIT_APPEND: Root = Root {
    anchor: None,
    parent: Some(Anchor::Agent),
    name: "audit append",
    kind: Kind::Server,
};

/// Records what is done for a login. A stranger may name any login: nothing of it is sent before the login's own key has
/// been proven.
pub(crate) fn of_login(traces: &Traces, login: &LoginId) -> Recorder {
    traces.follow(TraceId::of_login(login))
}

/// Sends a span for each record of a session that has just become durable, in the session's trace.
pub(crate) fn appended<'a>(
    traces: &Traces,
    agent: AgentId,
    began: Instant,
    records: impl Iterator<Item = &'a NewRecord>,
) {
    if !traces.is_on() {
        return;
    }
    for record in records.filter(|record| record.session.is_some()) {
        let recorder = traces.follow_since(trace_of(record), began);
        recorder.finish(AUDIT_APPEND, |details| {
            details.text("iap.event", &record.event);
            if let Some(session) = &record.session {
                details.text("iap.session_id", session);
            }
            details.text("iap.agent", agent);
            details.number("iap.agent_seq", record.source_seq);
        });
    }
}

fn trace_of(record: &NewRecord) -> Option<TraceId> {
    let view = RecordView::parse(&record.bytes).ok()?;
    let connection = view.fields.get("connection_id").and_then(Value::as_str)?;
    TraceId::of_connection(&ConnectionId::parse(connection).ok()?)
}
