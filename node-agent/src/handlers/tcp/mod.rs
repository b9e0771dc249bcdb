//! Bytes, passed on unread: protocol `tcp`, and any other with `inspect = false`.

mod hold;

use std::sync::Arc;

use iap_audit::CloseReason;
use iap_policy::Protocol;
use iap_runtime::pump::{self, PumpLimits, Relayed, UnderWay, Yielded};
use iap_runtime::say_seldom;
use iap_runtime::seldom::Seldom;
use iap_tunnel::Boundaries;

use super::farewell::{self, Delivered};
use super::stream::SessionStream;
use super::{Course, GoingOn, Outcome, Visit};
use crate::backend::{self, BackendStream};
use crate::session::handover::keeping::{Keeping, Returned};
use crate::session::handover::leaving::Standstill;
use crate::session::{Ending, Handover, Live, SESSION};
use hold::{Held, Hold};

static NOT_KEPT: Seldom = Seldom::new();

/// A session as it lies between its two ends.
type Session = Yielded<Delivered<SessionStream>, Held<BackendStream>>;

/// Dials the backend, tells the client, moves bytes until something ends the session or the agent's successor goes on with
/// it.
pub(super) async fn serve(visit: Visit<'_>) -> Outcome {
    let Visit {
        client,
        backend,
        cluster,
        course,
    } = visit;
    let (started, live, recorder) = (course.started, course.live, course.recorder);
    let mark = recorder.mark();
    // What is over before the bytes flow is boxed: a session at rest holds its own size alone.
    let dialling = Box::pin(backend::dial(
        backend,
        started,
        cluster,
        course.limits.now().backend_dial(),
    ));
    let dialled = tokio::select! {
        biased;
        _ = live.switch().cancelled() => {
            Box::pin(client.unavailable("the session was ended before it began", true)).await;
            return Outcome::Ended(cut_ending(live));
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
            return Outcome::Ended(Ending::plain(failure.close_reason()));
        }
    };
    let client = match Box::pin(client.granted(started, live, cluster)).await {
        Ok(client) => client,
        Err(error) => return Outcome::Ended(Ending::because(CloseReason::ClientLost, error.to_string())),
    };
    // A session may last for hours; how it began can be seen meanwhile.
    recorder.send_phases(SESSION);
    let boundaries = (started.facts().protocol == Protocol::Postgres).then(Boundaries::new);
    let client = Delivered::new(client, boundaries);
    let keeping = match course.handover {
        Some(handover) if handover.survives_kill() => {
            Box::pin(course.keep(handover, &client, &backend)).await
        }
        Some(_) | None => None,
    };
    Box::pin(course.follow(client, backend, UnderWay::default(), keeping)).await
}

/// Goes on with a session that another process has left.
pub(super) async fn go_on(session: GoingOn<'_>) -> Outcome {
    let client = SessionStream::Resumable(Box::new(session.client));
    let client = Delivered::new(client, session.boundaries);
    session
        .course
        .follow(client, session.backend, session.under_way, session.keeping)
        .await
}

impl Course<'_> {
    /// Keeps a session that begins for the case that this agent is killed. What cannot be kept goes on as others do.
    async fn keep(
        &self,
        handover: &Handover,
        client: &Delivered<SessionStream>,
        backend: &BackendStream,
    ) -> Option<Arc<Keeping>> {
        let (SessionStream::Resumable(stream), BackendStream::Tcp(_)) = (client.inner(), backend) else {
            return None;
        };
        if !self.started.is_on_record() {
            return None;
        }
        let standstill = Standstill {
            started: self.started,
            live: self.live,
            client: stream,
            boundaries: None,
            backend,
            under_way: &UnderWay::default(),
        };
        let session = self.started.session_id();
        let kept = handover.keep_new(standstill).await;
        kept.inspect_err(|error| say_seldom!(NOT_KEPT, warn, %session, %error, "a session would not outlive its agent's being killed"))
            .ok()
    }

    /// Moves bytes.
    async fn follow(
        mut self,
        mut client: Delivered<SessionStream>,
        mut backend: BackendStream,
        under_way: UnderWay,
        keeping: Option<Arc<Keeping>>,
    ) -> Outcome {
        if let (Some(keeping), SessionStream::Resumable(stream)) = (keeping, client.inner_mut()) {
            backend = match backend.kept(&keeping) {
                Ok(backend) => backend,
                Err(error) => {
                    return Outcome::Ended(Ending::because(CloseReason::BackendLost, error.to_string()));
                }
            };
            stream.follow(keeping.ledger());
            self.live.is_kept_by(Arc::clone(&keeping));
            // Its client may have come back before that, and hears of its next ticket once bytes move.
            let noted = keeping.note(|| {
                let waits = stream.reconnect().waits();
                Returned {
                    presence: self.live.presence().clone(),
                    tickets: (waits.ticket, waits.next_ticket),
                    resumes: self.live.facts.resumes.count(),
                }
            });
            if let Err(error) = noted {
                return Outcome::Ended(Ending::because(CloseReason::InternalError, error.to_string()));
            }
        }
        if !matches!(client.inner(), SessionStream::Resumable(_)) || !self.started.is_on_record() {
            self.handover = None;
        }
        if self.handover.is_some() {
            self.live.may_move();
        }
        let mark = self.recorder.mark();
        let hold = Hold::default();
        let session = Yielded {
            client,
            backend: Held::new(backend, hold.clone()),
            under_way,
        };
        let audit_full = self.audit_full.take();
        let moving = Box::pin(self.move_bytes(session));
        let outcome = tokio::select! {
            // First, so that no byte moves once the spool is known to be full.
            biased;
            never = hold.while_full(audit_full, self.limits, self.live) => match never {},
            outcome = moving => outcome,
        };
        self.recorder.phase("relay", mark, |_| {});
        outcome
    }

    async fn move_bytes(&self, session: Session) -> Outcome {
        let asked = async {
            match self.handover {
                Some(handover) => handover.asked().await,
                None => std::future::pending().await,
            }
        };
        match self.relay(session, asked).await {
            Relayed::Closed(closed) => Outcome::Ended(ending_of(&closed.reason, self.live)),
            Relayed::Yielded(session) => Box::pin(self.leave(*session)).await,
        }
    }

    async fn relay(
        &self,
        session: Session,
        asked: impl Future<Output = ()>,
    ) -> Relayed<Delivered<SessionStream>, Held<BackendStream>> {
        let (live, started) = (self.live, self.started);
        let limits = PumpLimits {
            idle: live.idle_limit(),
            ..PumpLimits::default()
        };
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
        pump::go_on(
            session,
            &limits,
            started.counters(),
            live.switch(),
            asked,
            last_words,
        )
        .await
    }

    /// Leaves the session to the agent's successor, and ends it where that cannot be.
    async fn leave(&self, session: Session) -> Outcome {
        match self.give(&session).await {
            Ok(()) => {
                if let Some(keeping) = self.live.keeping() {
                    keeping.left().await;
                }
                return Outcome::HandedOver;
            }
            Err(error) => {
                let id = self.started.session_id();
                tracing::warn!(session = %id, %error, "the session cannot be left to this agent's successor");
                let detail =
                    format!("the agent was told to stop, and the session could not be handed over: {error}");
                self.live.cut(Ending::because(CloseReason::Shutdown, detail));
            }
        }
        match self.relay(session, std::future::pending()).await {
            Relayed::Closed(closed) => Outcome::Ended(ending_of(&closed.reason, self.live)),
            Relayed::Yielded(_) => Outcome::Ended(cut_ending(self.live)),
        }
    }

    async fn give(&self, session: &Session) -> std::io::Result<()> {
        let (Some(handover), SessionStream::Resumable(client)) = (self.handover, session.client.inner())
        else {
            return Err(std::io::ErrorKind::Unsupported.into());
        };
        let standstill = Standstill {
            started: self.started,
            live: self.live,
            client,
            boundaries: session.client.boundaries(),
            backend: session.backend.inner(),
            under_way: &session.under_way,
        };
        handover.give(standstill).await
    }
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
