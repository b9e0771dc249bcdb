//! What `iapctl` says of a session to a collector of its user's: the time it took to get there, as its own side saw it,
//! in the trace that the agent named.

use iap_identity::{Anchor, ServiceName, SessionId, TraceId};
use iap_runtime::pump::Closed;
use iap_runtime::traces::{Details, Kind, Recorder, Root};

/// A session, from wanting it to its end. It began before any other program knew of it, so it has nothing above it.
const CONNECT: Root = Root {
    anchor: Some(Anchor::Client),
    parent: None,
    name: "iapctl connect",
    kind: Kind::Client,
};

/// The span of a session that was granted; ended with it. Nothing where none is recorded.
pub struct SessionSpan(Option<Box<Granted>>);

struct Granted {
    recorder: Recorder,
    trace: Option<TraceId>,
    service: ServiceName,
    session_id: SessionId,
}

impl SessionSpan {
    /// Sends how the session began. Without a trace of the agent's there is nothing to belong to.
    pub(super) fn granted(
        recorder: &Recorder,
        trace: Option<TraceId>,
        service: &ServiceName,
        session_id: SessionId,
    ) -> Self {
        recorder.send_phases_as(trace, CONNECT);
        Self(recorder.is_on().then(|| {
            Box::new(Granted {
                recorder: recorder.clone(),
                trace,
                service: service.clone(),
                session_id,
            })
        }))
    }

    /// The session is over.
    pub(super) fn end(mut self, closed: &Closed) {
        self.finish(|details| {
            details.number("iap.bytes_in", closed.bytes_in);
            details.number("iap.bytes_out", closed.bytes_out);
            details.text("iap.close_reason", closed.reason.as_str());
        });
    }

    fn finish(&mut self, describe: impl FnOnce(&mut Details)) {
        let Some(granted) = self.0.take() else { return };
        let recorder = &granted.recorder;
        recorder.finish_as(granted.trace, CONNECT, recorder.mark(), |details| {
            whose(details, granted.trace, &granted.service);
            details.text("iap.session_id", granted.session_id);
            details.text("iap.outcome", "granted");
            describe(details);
        });
    }
}

impl Drop for SessionSpan {
    fn drop(&mut self) {
        self.finish(|_| {});
    }
}

/// Ends the trace of a session that the agent did not grant; `outcome` is the word of its answer.
pub(super) fn refused(
    recorder: &Recorder,
    trace: Option<TraceId>,
    service: &ServiceName,
    outcome: &'static str,
) {
    recorder.finish_as(trace, CONNECT, recorder.mark(), |details| {
        whose(details, trace, service);
        details.text("iap.outcome", outcome);
        details.failed(outcome);
    });
}

fn whose(details: &mut Details, trace: Option<TraceId>, service: &ServiceName) {
    details.text("iap.service", service);
    if let Some(trace) = trace {
        details.link(trace, Anchor::Proxy);
    }
}
