//! What the agent's spans say of a session: ids, times, counts and words from closed lists. Who the user is called, what
//! a rule is called and everything the client said itself stay in the audit log.

use iap_identity::{Anchor, ServiceName, SessionId, TraceId};
use iap_runtime::pump::Counters;
use iap_runtime::traces::{Details, Kind, Recorder, Root};

use super::{Caller, Ending, SessionFacts};
use crate::decide::Refusal;

/// A session, or the attempt at one, below the proxy's span of its connection.
pub(crate) const SESSION: Root = Root {
    anchor: Some(Anchor::Agent),
    parent: Some(Anchor::Proxy),
    name: "session",
    kind: Kind::Server,
};

/// Ends the trace of somebody who proved who they are and was refused.
pub(crate) fn refused(
    recorder: &Recorder,
    session: SessionId,
    service: &ServiceName,
    caller: &Caller,
    refusal: &Refusal,
) {
    recorder.finish(SESSION, |details| {
        whose(details, session, service, caller);
        let outcome = match refusal.wants_renewal() {
            true => "renew",
            false => "denied",
        };
        details.text("iap.outcome", outcome);
        details.text("iap.denial", refusal.code());
        details.failed(outcome);
    });
}

/// Ends the trace of a session that was allowed and never began, for want of `what`.
pub(crate) fn unavailable(
    recorder: &Recorder,
    session: SessionId,
    service: &ServiceName,
    caller: &Caller,
    what: &'static str,
) {
    recorder.finish(SESSION, |details| {
        whose(details, session, service, caller);
        details.text("iap.outcome", "unavailable");
        details.failed(what);
    });
}

/// Ends the trace of a session that is over.
pub(crate) fn ended(recorder: &Recorder, facts: &SessionFacts, counters: &Counters, ending: &Ending) {
    recorder.finish(SESSION, |details| {
        whose(details, facts.session_id, &facts.service, &facts.caller);
        details.text("iap.protocol", facts.protocol.as_str());
        details.text("iap.proxy", facts.through.proxy);
        if let Some(connect_id) = facts.connect_id {
            details.text("iap.connect_id", connect_id);
        }
        details.text("iap.outcome", "granted");
        details.number("iap.bytes_in", counters.bytes_in());
        details.number("iap.bytes_out", counters.bytes_out());
        details.text("iap.close_reason", ending.reason.as_str());
    });
}

fn whose(details: &mut Details, session: SessionId, service: &ServiceName, caller: &Caller) {
    details.text("iap.session_id", session);
    details.text("iap.service", service);
    if let Some(login) = caller.login_id() {
        details.text("iap.login_id", login);
        if let Some(trace) = TraceId::of_login(&login) {
            details.link(trace, Anchor::Login);
        }
    }
}
