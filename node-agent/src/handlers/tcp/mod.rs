//! Bytes, passed on unread: protocol `tcp`, and any other with `inspect = false`.

mod hold;

use iap_audit::CloseReason;
use iap_policy::Protocol;
use iap_runtime::pump::{self, PumpLimits};

use super::Visit;
use super::farewell::{self, Delivered};
use super::stream::SessionStream;
use crate::backend::{self, BackendStream};
use crate::session::{Ending, Live, SESSION};
use hold::{Held, Hold};

/// Dials the backend, tells the client, moves bytes until something ends the session.
pub(super) async fn serve(visit: Visit<'_>) -> Ending {
    let Visit {
        client,
        started,
        live,
        backend,
        cluster,
        limits,
        recorder,
        audit_full,
    } = visit;
    let mark = recorder.mark();
    // What is over before the bytes flow is boxed: a session at rest holds its own size alone.
    let dialling = Box::pin(backend::dial(
        backend,
        started,
        cluster,
        limits.now().backend_dial(),
    ));
    let dialled = tokio::select! {
        biased;
        _ = live.switch().cancelled() => {
            Box::pin(client.unavailable("the session was ended before it began", true)).await;
            return cut_ending(live);
        }
        dialled = dialling => dialled,
    };
    recorder.phase("dial backend", mark, |details| {
        if let Err(failure) = &dialled {
            details.failed(failure.close_reason().as_str());
        }
    });
    let backend = match dialled {
        Ok(backend) => backend,
        Err(failure) => {
            started.connect_failed(failure.text());
            Box::pin(client.unavailable(failure.text(), true)).await;
            return Ending::plain(failure.close_reason());
        }
    };
    let client = match Box::pin(client.granted(started, live, cluster)).await {
        Ok(client) => client,
        Err(error) => return Ending::because(CloseReason::ClientLost, error.to_string()),
    };
    // A session may last for hours; how it began can be seen meanwhile.
    recorder.send_phases(SESSION);
    let mark = recorder.mark();
    let hold = Hold::default();
    let moving = Box::pin(move_bytes(
        client,
        Held::new(backend, hold.clone()),
        started,
        live,
    ));
    let ending = tokio::select! {
        // First, so that no byte moves once the spool is known to be full.
        biased;
        never = hold.while_full(audit_full, limits, live) => match never {},
        ending = moving => ending,
    };
    recorder.phase("relay", mark, |_| {});
    ending
}

async fn move_bytes(
    client: SessionStream,
    backend: Held<BackendStream>,
    started: &crate::session::Started,
    live: &Live,
) -> Ending {
    let limits = PumpLimits {
        idle: live.idle_limit(),
        ..PumpLimits::default()
    };
    let client = Delivered::new(client, started.facts().protocol == Protocol::Postgres);
    let last_words = async |client: &mut Delivered<SessionStream>, reason: &pump::CloseReason| {
        let ending = match reason {
            pump::CloseReason::Cancelled(_)
            | pump::CloseReason::Idle
            | pump::CloseReason::BackendFailed(_) => ending_of(reason, live),
            pump::CloseReason::ClientClosed
            | pump::CloseReason::BackendClosed
            | pump::CloseReason::ClientFailed(_) => return,
        };
        let permit = live.permit();
        let (facts, contact) = (started.facts(), permit.service().contact.as_str());
        let fatal = farewell::ended(&ending, facts.session_id, &facts.service, contact);
        if let Some(fatal) = &fatal {
            client.say(fatal).await;
        }
        let text = fatal.map(|fatal| fatal.message).unwrap_or_default();
        client.inner_mut().close(ending.reason.as_str(), &text);
    };
    let switch = live.switch();
    let closed = pump::copy_saying(client, backend, &limits, started.counters(), switch, last_words).await;
    ending_of(&closed.reason, live)
}

fn ending_of(reason: &pump::CloseReason, live: &Live) -> Ending {
    match reason {
        pump::CloseReason::ClientClosed => Ending::plain(CloseReason::ClientClosed),
        pump::CloseReason::BackendClosed => Ending::plain(CloseReason::BackendClosed),
        pump::CloseReason::ClientFailed(error) => Ending::because(CloseReason::ClientLost, error.to_string()),
        pump::CloseReason::BackendFailed(error) => {
            Ending::because(CloseReason::BackendLost, error.to_string())
        }
        pump::CloseReason::Idle => {
            let permit = live.permit();
            let rule = permit.grant().rule();
            Ending::because(CloseReason::IdleLimit, format!("rule {rule:?}"))
        }
        pump::CloseReason::Cancelled(_) => cut_ending(live),
    }
}

fn cut_ending(live: &Live) -> Ending {
    live.cut_because()
        .cloned()
        .unwrap_or_else(|| Ending::plain(CloseReason::InternalError))
}
