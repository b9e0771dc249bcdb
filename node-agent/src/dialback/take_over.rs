//! Sessions that this agent's predecessor has left: each is decided on anew, and then waits for its client.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use iap_audit::CloseReason;
use iap_identity::TraceId;
use iap_runtime::handover::monotonic;
use iap_runtime::pump::Counters;
use iap_runtime::shutdown::INTERRUPTED;
use iap_runtime::spool::Room;
use tokio::time::Instant;

use super::Entrance;
use super::serve::Begun;
use crate::backend::BackendStream;
use crate::decide::{Attempt, Permit, Refusal};
use crate::handlers::{self, GoingOn, Joined, Outcome};
use crate::session::handover::handed::{Bundle, HandedSession, unusable};
use crate::session::handover::keeping::{Keeping, ToKeep};
use crate::session::live::Reserved;
use crate::session::resumption::{Expected, ResumableStream};
use crate::session::{Ending, Live, Started, review};

/// How long the auth server may take to tell this agent what was locked or taken away while there was no agent. If it
/// does not, what is known counts, as for new sessions.
const FEED_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether what is waited for has come.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is to become of a session.
enum Verdict {
    GoesOn(Permit),
    Ends(Ending),
    /// This agent is told to stop before it is known.
    Stays,
}

impl Entrance {
    /// Takes sessions over. Once this returns, none of their clients is told that its session is over.
    pub(crate) fn take_over(self: &Arc<Self>, sessions: Vec<HandedSession>) {
        for session in sessions {
            let expected = self.resumptions.expect(session.session_id());
            // Before anybody new can have it; and a shutdown waits for whoever has one.
            let place = self.parts.registry.reserve();
            let entrance = Arc::clone(self);
            let shutdown = self.parts.shutdown.clone();
            // What leads to where it goes on is gone once it rests.
            let leading = Box::pin(async move { entrance.go_on(session, expected, place).await });
            shutdown.spawn(async move {
                if let Some((begun, joined)) = leading.await {
                    begun.run(joined).await;
                }
            });
        }
    }

    async fn go_on(
        self: Arc<Self>,
        session: HandedSession,
        expected: Expected,
        place: Option<Reserved>,
    ) -> Option<(Begun, Joined)> {
        let id = session.session_id();
        let Some(place) = place else {
            let why = "the agent serves as many sessions as it may";
            let ending = Ending::because(CloseReason::Shutdown, why);
            self.end_handed(session, ending).await;
            return None;
        };
        match self.decide_on(&session).await {
            // It lies where it lay, unless all are to end.
            Verdict::Stays
                if self.parts.handover.keeps() && self.parts.shutdown.reason() != Some(INTERRUPTED) => {}
            Verdict::Stays => {
                let ending = Ending::because(CloseReason::Shutdown, "the agent was told to stop");
                self.end_handed(session, ending).await;
            }
            Verdict::Ends(ending) => self.end_handed(session, ending).await,
            Verdict::GoesOn(permit) => {
                match Box::pin(self.bring_back(session, permit, expected, place)).await {
                    Ok(begun) => return begun,
                    Err((session, ending)) => {
                        tracing::error!(session = %id, ?ending, "a session cannot be gone on with");
                        self.end_handed(*session, ending).await;
                    }
                }
            }
        }
        None
    }

    async fn decide_on(&self, session: &HandedSession) -> Verdict {
        let gate = &self.parts.gate;
        let heard_by = Instant::now() + FEED_PATIENCE;
        let gone_by = Instant::now() + self.patience(session);
        let attempt = Attempt {
            session_id: session.session_id(),
            caller: session.last.caller.clone(),
            service: session.state.facts.service.clone(),
            client: session.last.client,
            // Only sessions whose bytes are passed on unread are handed over.
            login: None,
            database: None,
        };
        loop {
            if self.parts.shutdown.is_triggered() {
                return Verdict::Stays;
            }
            if gate.has_heard_feed() || Instant::now() >= heard_by {
                if let Some(lock) = gate.lock_on_proxy(&session.last.through) {
                    return Verdict::Ends(Ending::because(CloseReason::Lock, lock.to_string()));
                }
                match gate.decide(attempt.clone()).await {
                    Ok(_) if self.parts.shutdown.is_triggered() => return Verdict::Stays,
                    Ok(permit) if !handlers::passes_bytes(&permit.service().facts) => {
                        return Verdict::Ends(handlers::not_served());
                    }
                    Ok(permit) => return Verdict::GoesOn(permit),
                    Err(refusal) => {
                        if let Some(ending) = review::cut_ending(&refusal, session.rule()) {
                            return Verdict::Ends(ending);
                        }
                        if let Refusal::Outage(outage) = refusal
                            && Instant::now() >= gone_by
                        {
                            let ending = Ending::because(outage.close_reason(), outage.text());
                            return Verdict::Ends(ending);
                        }
                    }
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// An outage that began before this agent did is not known; no session is waited for longer than its client waits.
    fn patience(&self, session: &HandedSession) -> Duration {
        let deadline = Duration::from_millis(session.state.facts.deadline_milliseconds);
        deadline
            .saturating_sub(monotonic())
            .min(self.parts.limits.now().outage_grace())
    }

    /// From the permit to what moves its bytes; nothing where it ended on the way.
    async fn bring_back(
        self: &Arc<Self>,
        mut session: HandedSession,
        permit: Permit,
        expected: Expected,
        place: Reserved,
    ) -> Result<Option<(Begun, Joined)>, (Box<HandedSession>, Ending)> {
        let parts = &self.parts;
        let facts = Arc::new(session.facts());
        let live = Arc::new(Live::new(Arc::clone(&facts), permit.clone()));
        live.move_to(session.last.clone());
        let kept = std::mem::take(&mut session.state.kept);
        let taken = self
            .resumptions
            .take_over(&live, &session.state.facts, kept)
            .map_err(|error| error.to_string());
        let taken = taken.and_then(|client| {
            let backend = session.backend.try_clone().and_then(BackendStream::take_over);
            Ok((client, backend.map_err(|error| error.to_string())?))
        });
        let (client, backend) = match taken {
            Ok(taken) => taken,
            Err(why) => return Err((Box::new(session), unusable(&why))),
        };
        let cause = session.cause();
        let keeping = match Box::pin(self.keep(&mut session, &client)).await {
            Ok(keeping) => keeping,
            Err(error) => return Err((Box::new(session), unusable(&error.to_string()))),
        };
        let counters = Counters::starting_at(session.state.facts.bytes_in, session.state.facts.bytes_out);
        let bytes = (counters.bytes_in(), counters.bytes_out());
        let started = Started::taken_over(
            Arc::clone(&facts),
            permit.clone(),
            parts.journal.clone(),
            counters,
        );
        let (now, id) = parts.journal.stamp();
        parts
            .journal
            .note(facts.handover_event(permit.grant(), now, id, &session.last, bytes, cause));
        let entered = parts.registry.enter(place, Arc::clone(&live));
        self.decide_again_if_stale(&permit, &live).await;
        parts.metrics.session_taken_over();
        tracing::info!(session = %facts.session_id, from = session.state.facts.agent_version, cause, "a session of the agent's predecessor goes on");
        let recorder = parts.traces.follow(TraceId::of_connection(&facts.connection_id));
        let going_on = GoingOn {
            client,
            backend,
            under_way: session.state.under_way(),
            boundaries: session.state.facts.boundaries,
            keeping,
            live: Arc::clone(&live),
        };
        let begun = Begun {
            entrance: Arc::clone(self),
            recorder,
            started,
            entered,
        };
        let joined = handlers::go_on(going_on);
        drop((expected, session));
        match joined {
            Ok(joined) => Ok(Some((begun, joined))),
            Err(ending) => {
                Box::pin(begun.conclude(Outcome::Ended(ending))).await;
                Ok(None)
            }
        }
    }

    /// Sees to it that nobody else takes the session over, unless this agent is killed and sessions are kept for that.
    async fn keep(
        &self,
        session: &mut HandedSession,
        client: &ResumableStream,
    ) -> io::Result<Option<Arc<Keeping>>> {
        let handover = &self.parts.handover;
        let is_kept = handover.survives_kill();
        if is_kept && let Some(memory) = session.memory.take() {
            let parcel = session.parcel.as_fd().try_clone_to_owned()?;
            let stored = (session.bundle.name(), parcel.into());
            let keeping = handover.keep_on(&session.state, memory, stored);
            return Ok(keeping.map(Arc::new));
        }
        let keeping = match is_kept {
            true => self.keep_anew(session, client).await,
            false => None,
        };
        session.parcel.empty()?;
        self.forget(&session.bundle).await;
        Ok(keeping)
    }

    /// What cannot be kept goes on as others do.
    async fn keep_anew(&self, session: &HandedSession, client: &ResumableStream) -> Option<Arc<Keeping>> {
        let (handover, state) = (&self.parts.handover, &session.state);
        let (_, kept) = client.standing()?;
        let to_keep = ToKeep {
            facts: state.facts.clone(),
            kept,
            outward: &state.outward,
            inward_bytes: state.inward.len(),
        };
        let keeping = match handover.keep(to_keep, &session.backend).await {
            Ok(keeping) => keeping,
            Err(error) => {
                let id = session.session_id();
                tracing::debug!(session = %id, %error, "it would not outlive this agent's being killed");
                return None;
            }
        };
        match handover.stored().await {
            Ok(()) => Some(keeping),
            Err(error) => {
                tracing::warn!(%error, "the service manager does not say what it keeps");
                keeping.over().await;
                None
            }
        }
    }

    /// Records why a session that was left does not go on, and lets go of what was left.
    async fn end_handed(&self, session: HandedSession, ending: Ending) {
        let journal = &self.parts.journal;
        let (now, id) = journal.stamp();
        tracing::info!(session = %session.session_id(), reason = ending.reason.as_str(), "session ended");
        journal
            .end(session.end_event(now, id, &ending), Room::Reserve)
            .await;
        if let Err(error) = session.parcel.empty() {
            tracing::debug!(%error, "what was left of a session stays where it is");
        }
        self.forget(&session.bundle).await;
    }

    async fn forget(&self, bundle: &Bundle) {
        if let Some(name) = bundle.less() {
            self.parts.handover.forget(name).await;
        }
    }
}
