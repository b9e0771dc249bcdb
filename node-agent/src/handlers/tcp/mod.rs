//! Bytes, passed on unread: protocol `tcp`, and any other with `inspect = false`.

mod hold;

use std::pin::Pin;
use std::sync::Arc;

use iap_audit::CloseReason;
use iap_identity::ClusterName;
use iap_policy::Protocol;
use iap_runtime::pump::{self, Relayed, UnderWay, Yielded};
use iap_runtime::say_seldom;
use iap_runtime::seldom::Seldom;
use iap_tunnel::Boundaries;

use super::farewell::{self, Delivered};
use super::postgres::Writing;
use super::stream::SessionStream;
use super::{Client, Course, GoingOn, Outcome};
use crate::backend::BackendStream;
use crate::config::LocalService;
use crate::session::handover::keeping::{Keeping, Returned};
use crate::session::handover::leaving::Standstill;
use crate::session::{Ending, Handover, Live, SESSION};
pub(in crate::handlers) use hold::{Held, Hold};

static NOT_KEPT: Seldom = Seldom::new();

/// A session as it lies between its two ends.
type Session = Yielded<Delivered<SessionStream>, Held<BackendStream>>;

/// What a handler of bytes gets besides its course.
#[derive(Debug)]
pub(super) struct Visit<'a> {
    pub(super) client: Client,
    pub(super) backend: &'a LocalService,
    pub(super) cluster: &'a ClusterName,
    pub(super) course: Course<'a>,
}

/// The two ends of a session, and what lies between them.
#[derive(Debug)]
pub(crate) struct Joined {
    client: Delivered<SessionStream>,
    backend: BackendStream,
    under_way: UnderWay,
    /// Over once what was seen of an inspected session is on record.
    writing: Option<Writing>,
}

/// Dials the backend and tells the client.
pub(super) async fn begin(visit: Visit<'_>) -> Result<Box<Joined>, Ending> {
    let Visit {
        client,
        backend,
        cluster,
        course,
    } = visit;
    let (started, live, recorder) = (course.started, course.live, course.recorder);
    let dialled = tokio::select! {
        biased;
        _ = live.switch().cancelled() => {
            client.unavailable("the session was ended before it began", true).await;
            return Err(live.cut_ending());
        }
        dialled = course.dial(backend, cluster) => dialled,
    };
    let backend = match dialled {
        Ok(backend) => backend,
        Err(failure) => {
            client.unavailable(failure.text(), true).await;
            return Err(Ending::plain(failure.close_reason()));
        }
    };
    let client = match client.granted(started, live, cluster).await {
        Ok(client) => client,
        Err(error) => return Err(Ending::because(CloseReason::ClientLost, error.to_string())),
    };
    // A session may last for hours; how it began can be seen meanwhile.
    recorder.send_phases(SESSION);
    let boundaries = (started.facts().protocol == Protocol::Postgres).then(Boundaries::new);
    let joined = Joined {
        client: Delivered::new(client, boundaries),
        backend,
        under_way: UnderWay::default(),
        writing: None,
    };
    let keeping = match course.handover {
        Some(handover) if handover.survives_kill() => Box::pin(course.keep(handover, &joined)).await,
        Some(_) | None => None,
    };
    let joined = match keeping {
        Some(keeping) => joined.kept(keeping, live)?,
        None => joined,
    };
    Ok(Box::new(joined))
}

/// The ends of a session that another process has left.
pub(super) fn go_on(session: GoingOn) -> Result<Box<Joined>, Ending> {
    let client = SessionStream::Resumable(Box::new(session.client));
    let joined = Joined {
        client: Delivered::new(client, session.boundaries),
        backend: session.backend,
        under_way: session.under_way,
        writing: None,
    };
    let joined = match session.keeping {
        Some(keeping) => joined.kept(keeping, &session.live)?,
        None => joined,
    };
    Ok(Box::new(joined))
}

impl Joined {
    /// A session whose bytes are looked at as they pass.
    pub(super) fn inspected(
        client: Delivered<SessionStream>,
        backend: BackendStream,
        writing: Writing,
    ) -> Self {
        Self {
            client,
            backend,
            under_way: UnderWay::default(),
            writing: Some(writing),
        }
    }

    /// From now on it is kept for the case that this agent is killed, and nothing of it is lost then.
    fn kept(mut self, keeping: Arc<Keeping>, live: &Live) -> Result<Self, Ending> {
        let SessionStream::Resumable(stream) = self.client.inner_mut() else {
            return Ok(self);
        };
        self.backend = self
            .backend
            .kept(&keeping)
            .map_err(|error| Ending::because(CloseReason::BackendLost, error.to_string()))?;
        stream.follow(keeping.ledger());
        live.is_kept_by(Arc::clone(&keeping));
        // Its client may have come back before that, and hears of its next ticket once bytes move.
        let noted = keeping.note(|| {
            let waits = stream.reconnect().waits();
            Returned {
                presence: live.presence().clone(),
                tickets: (waits.ticket, waits.next_ticket),
                resumes: live.facts.resumes.count(),
            }
        });
        noted.map_err(|error| Ending::because(CloseReason::InternalError, error.to_string()))?;
        Ok(self)
    }

    /// Two ends whose bytes can be held.
    #[expect(
        clippy::boxed_local,
        reason = "it frees the box, which a session at rest would hold otherwise"
    )]
    fn held_by(self: Box<Self>, hold: &Hold) -> Session {
        Yielded {
            client: self.client,
            backend: Held::new(self.backend, hold.clone()),
            under_way: self.under_way,
        }
    }
}

impl Course<'_> {
    /// Keeps a session that begins for the case that this agent is killed. What cannot be kept goes on as others do.
    async fn keep(&self, handover: &Handover, joined: &Joined) -> Option<Arc<Keeping>> {
        let (SessionStream::Resumable(client), BackendStream::Tcp(_)) =
            (joined.client.inner(), &joined.backend)
        else {
            return None;
        };
        if !self.started.is_on_record() {
            return None;
        }
        let standstill = Standstill {
            started: self.started,
            live: self.live,
            client,
            boundaries: None,
            backend: &joined.backend,
            under_way: &joined.under_way,
        };
        let session = self.started.session_id();
        let kept = handover.keep_new(standstill).await;
        kept.inspect_err(|error| say_seldom!(NOT_KEPT, warn, %session, %error, "a session would not outlive its agent's being killed"))
            .ok()
    }

    /// Moves bytes until something ends the session or the agent's successor goes on with it. No `async fn`, whose future
    /// would hold all of this twice.
    pub(super) fn follow_bytes(mut self, mut joined: Box<Joined>) -> impl Future<Output = Outcome> + Send {
        let can_come_back = matches!(joined.client.inner(), SessionStream::Resumable(_));
        if !can_come_back || joined.client.is_tapped() || !self.started.is_on_record() {
            self.handover = None;
        }
        let writing = joined.writing.take();
        if self.handover.is_some() {
            self.live.may_move();
        }
        let mark = self.recorder.mark();
        let audit_full = self.audit_full.take();
        async move {
            let hold = Hold::default();
            let session = joined.held_by(&hold);
            let relayed = tokio::select! {
                // First, so that no byte moves once the spool is known to be full.
                biased;
                never = hold.while_full(audit_full, self.limits, self.live) => match never {},
                relayed = self.relay(session, self.asked()) => relayed,
            };
            let outcome = match relayed {
                Relayed::Closed(closed) => Outcome::Ended(ending_of(&closed.reason, self.live)),
                Relayed::Yielded(session) => Box::pin(self.leave(*session)).await,
            };
            self.recorder.phase("relay", mark, |_| {});
            if let Some(writing) = writing {
                // Its end comes behind them on record.
                let _ = writing.await;
            }
            outcome
        }
    }

    /// Ready once the session is to be left to the agent's successor. In a box: most sessions cannot be.
    fn asked(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        match self.handover {
            Some(handover) => Box::pin(handover.asked()),
            None => Box::pin(std::future::pending()),
        }
    }

    fn relay(
        &self,
        session: Session,
        asked: impl Future<Output = ()> + Unpin,
    ) -> impl Future<Output = Relayed<Delivered<SessionStream>, Held<BackendStream>>> {
        let (live, started) = (self.live, self.started);
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
            live.idle_limit(),
            started.counters(),
            live.switch(),
            asked,
            last_words,
        )
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
            Relayed::Yielded(_) => Outcome::Ended(self.live.cut_ending()),
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
        pump::CloseReason::Cancelled(_) => live.cut_ending(),
    }
}
