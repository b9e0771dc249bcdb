//! One connection from its `Open` to its end.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use iap_identity::{SessionId, TraceId};
use iap_proto::AuditMode;
use iap_runtime::tls::{self, ClientHelloLimits, Replay};
use iap_runtime::traces::Recorder;
use iap_runtime::waiting_room::{Place, Source};
use iap_runtime::{big_stack, say_seldom};
use iap_tunnel::Status;
use uuid::Uuid;

use super::ask::{Admitted, Asked};
use super::fetch;
use super::greet::{self, GreetError, Greeted};
use super::handshake::{self, AttemptSeed, ClientStream, Entered, Entry, NotEntered, Rejected};
use super::{DataStream, Entrance, Open};
use crate::control::Link;
use crate::decide::{Permit, Refusal, is_heard};
use crate::handlers::{self, Course, Joined, Outcome, Visit, Visitor, farewell};
use crate::journal::{Denied, Mismatch};
use crate::session::{Caller, Live, Resumes, SessionFacts, Started, live, review, spans};

/// Serves one connection; `place` is its share of the unauthenticated ones.
pub(super) fn serve(
    entrance: Arc<Entrance>,
    open: Open,
    link: Link,
    place: Place,
) -> impl Future<Output = ()> + Send {
    let trace = TraceId::of_connection(&open.connection_id);
    let passage = Passage {
        recorder: entrance.parts.traces.follow(trace),
        entrance,
        open,
        link,
    };
    // What leads in is large, and gone before a session rests.
    let leading_in = Box::pin(passage.lead_in(place));
    async move {
        if let Some((begun, joined)) = leading_in.await {
            begun.run(joined).await;
        }
    }
}

/// One connection's way in.
pub(super) struct Passage {
    pub(super) entrance: Arc<Entrance>,
    pub(super) open: Open,
    pub(super) link: Link,
    /// Sends nothing of a client who has not proven who it is.
    pub(super) recorder: Recorder,
}

/// How a client's way in ended.
enum Came {
    /// With a proof of who it is, for a session that begins or, without a seed, one that is gone on with.
    In(Box<Entered>, Option<AttemptSeed>),
    /// Without; the connection, where there is an alert to be read on it.
    Rejected(Option<Replay<DataStream>>),
}

impl Passage {
    /// Everything up to a session whose bytes can move; nothing where there is none.
    async fn lead_in(self, place: Place) -> Option<(Begun, Joined)> {
        let came = tokio::select! {
            came = Box::pin(self.come_in()) => came,
            () = place.gave_way() => {
                self.gave_way();
                return None;
            }
        };
        let (entered, seed) = match came {
            Came::In(entered, seed) => (entered, seed),
            Came::Rejected(None) => return None,
            Came::Rejected(Some(stream)) => {
                // Its verdict is out: who takes its place meanwhile only shortens the farewell.
                tokio::select! {
                    () = Box::pin(tls::farewell(stream)) => {}
                    () = place.gave_way() => {}
                }
                return None;
            }
        };
        let Entered {
            stream,
            caller,
            entry,
        } = *entered;
        let Some(seed) = seed else {
            drop(place);
            match entry {
                Entry::Watch => Box::pin(self.watch(stream, caller)).await,
                Entry::Framed { .. } | Entry::Inspected | Entry::Raw(_) | Entry::Refused(_) => {
                    Box::pin(self.come_back(stream, caller)).await;
                }
            }
            return None;
        };
        let admitted = match entry {
            Entry::Refused(refusal) => {
                Box::pin(self.turn_away(stream, caller, seed, refusal)).await;
                // Whoever is refused keeps their place among the unauthenticated until they have been told.
                drop(place);
                return None;
            }
            Entry::Framed { resumable } => {
                drop(place);
                Box::pin(self.ask_framed(stream, caller, seed, resumable)).await?
            }
            // Nobody is greeted so at a service's name.
            Entry::Watch => return None,
            Entry::Inspected => {
                drop(place);
                Box::pin(self.ask_postgres(stream, caller, seed)).await?
            }
            Entry::Raw(permit) => {
                drop(place);
                let client = self.raw_client(stream, &seed, &permit);
                let asked = Asked::default();
                Box::new(Admitted {
                    client: Visitor::Stream(client),
                    caller,
                    seed,
                    permit,
                    asked,
                    early: None,
                })
            }
        };
        let admitted = match is_heard(&admitted.permit.service().facts) {
            true => Box::pin(self.hear(admitted)).await?,
            false => admitted,
        };
        Box::pin(self.admit(admitted)).await
    }

    /// Everything before the client is proven.
    async fn come_in(&self) -> Came {
        let Some(greeted) = self.greet().await else {
            return Came::Rejected(None);
        };
        let seed = greeted.service.clone().map(|service| AttemptSeed {
            session_id: SessionId::from_uuid(Uuid::now_v7()),
            service,
            client: self.open.client_address,
        });
        self.shake_hands(greeted, seed).await
    }

    /// It kept its place too long when another needed it.
    fn gave_way(&self) {
        tracing::debug!(connection = %self.open.connection_id, client = %self.open.client_address, "gave way");
        self.entrance.parts.metrics.handshake_failed("gave_way");
        self.link.verdict(self.open.connection_id, false);
    }

    async fn greet(&self) -> Option<Greeted> {
        let parts = &self.entrance.parts;
        let said = &self.entrance.said;
        let limits = parts.limits.now();
        let mark = self.recorder.mark();
        let fetched = match Box::pin(fetch::fetch(&self.open, &self.link, &limits, said)).await {
            Ok(fetched) => fetched,
            Err(error) => {
                if !error.is_for_want_of_descriptors() {
                    say_seldom!(said.not_fetched, warn, connection = %self.open.connection_id, %error, "not fetched");
                }
                parts.metrics.handshake_failed("dial_back");
                self.link
                    .refuse(self.open.connection_id, "the agent could not dial back");
                return None;
            }
        };
        self.recorder.phase("fetch", mark, |details| {
            details.text("iap.way", fetched.stream.way());
        });
        let mark = self.recorder.mark();
        let limits = ClientHelloLimits {
            bytes_max: limits.client_hello_bytes_max,
            timeout: limits.handshake(),
        };
        let offer = Arc::clone(&parts.offers.borrow());
        let own = greet::Own {
            id: parts.agent_id,
            cluster: &parts.cluster,
            certified: Arc::clone(&parts.identity.current().certified),
            offer: &offer,
            resumes: self.entrance.resumptions.are_on(),
        };
        match greet::greet(fetched, self.open.service.as_ref(), own, limits).await {
            Ok(greeted) => {
                self.recorder.phase("greet", mark, |_| {});
                Some(greeted)
            }
            Err(error) => {
                self.not_greeted(error);
                None
            }
        }
    }

    fn not_greeted(&self, error: GreetError) {
        let parts = &self.entrance.parts;
        let (connection, proxy) = (self.open.connection_id, self.link.through.proxy);
        say_seldom!(self.entrance.said.turned_away, info, %connection, %proxy, %error, "turned away");
        parts.metrics.handshake_failed("client_hello");
        self.link.verdict(self.open.connection_id, false);
        if let GreetError::NameMismatch { asked, said } = &error {
            parts.journal.mismatched(Mismatch {
                asked: asked.clone(),
                said: said.clone(),
                reason: error.to_string(),
                client: self.open.client_address,
                asserted_by: self.link.through.proxy,
                at: parts.gate.now(),
            });
        }
    }

    async fn shake_hands(&self, greeted: Greeted, seed: Option<AttemptSeed>) -> Came {
        let parts = &self.entrance.parts;
        let patience = parts.limits.now().handshake();
        let mark = self.recorder.mark();
        let shaken = handshake::shake_hands(greeted, seed.clone(), &parts.gate, patience).await;
        match shaken {
            Ok(entered) => {
                self.recorder.phase("handshake", mark, |_| {});
                self.link.verdict(self.open.connection_id, true);
                let source = Source::of(self.open.client_address.ip());
                let shares = &self.entrance.handshakes;
                shares.remember(self.link.through.proxy, source, Instant::now());
                Came::In(Box::new(entered), seed)
            }
            Err(Rejected { error, stream }) => {
                // Before the client has read its alert: by the time it comes again, the proxy knows.
                let service = seed.as_ref().map(|seed| &seed.service);
                let client = self.open.client_address;
                self.link
                    .verdict(self.open.connection_id, error.is_authenticated());
                parts.metrics.handshake_failed(error.label());
                match error.is_authenticated() {
                    true => tracing::info!(?service, %client, %error, "no session"),
                    false => {
                        say_seldom!(self.entrance.said.no_session, info, ?service, %client, %error, "no session");
                    }
                }
                if let (NotEntered::Refused(caller, refusal), Some(seed)) = (&error, &seed) {
                    self.recorder
                        .phase("handshake", mark, |details| details.failed("denied"));
                    self.record_denial(caller, seed, refusal);
                    self.trace_refusal(caller, seed, refusal);
                }
                Came::Rejected(stream)
            }
        }
    }

    /// Answers a client that was refused, in the words of the service's protocol.
    async fn turn_away(&self, mut stream: ClientStream, caller: Caller, seed: AttemptSeed, refusal: Refusal) {
        self.record_denial(&caller, &seed, &refusal);
        let parts = &self.entrance.parts;
        let fatal = self.fatal_of(&caller, &seed, &refusal);
        farewell::tell_postgres(&mut stream, &fatal, parts.limits.now().handshake()).await;
        self.trace_refusal(&caller, &seed, &refusal);
    }

    /// Whom to ask, by the service's record.
    pub(super) fn contact(&self, seed: &AttemptSeed) -> Option<String> {
        let parts = &self.entrance.parts;
        let view = parts.gate.view()?;
        let service = view.service_for(&seed.service, &parts.agent_id)?;
        Some(service.contact.clone()).filter(|contact| !contact.is_empty())
    }

    pub(super) fn trace_refusal(&self, caller: &Caller, seed: &AttemptSeed, refusal: &Refusal) {
        spans::refused(&self.recorder, seed.session_id, &seed.service, caller, refusal);
    }

    pub(super) fn record_denial(&self, caller: &Caller, seed: &AttemptSeed, refusal: &Refusal) {
        let parts = &self.entrance.parts;
        parts.metrics.denied(refusal.code());
        let decision = refusal.decision(parts.gate.view().as_deref());
        parts.journal.denied(Denied {
            session_id: seed.session_id,
            connection_id: self.open.connection_id,
            caller: caller.clone(),
            service: seed.service.clone(),
            client: seed.client,
            asserted_by: self.link.through.proxy,
            refusal: refusal.clone(),
            decision,
            at: parts.gate.now(),
        });
    }

    pub(super) fn refusal_status(&self, seed: &AttemptSeed, refusal: &Refusal) -> Status {
        if refusal.wants_renewal() {
            return Status::Renew;
        }
        if let Refusal::Outage(outage) = refusal {
            return Status::Unavailable {
                text: outage.text().to_owned(),
                retry: false,
                trace_id: self.recorder.trace(),
            };
        }
        Status::Denied {
            code: refusal.public_code().to_owned(),
            text: refusal.text(),
            contact: self.contact(seed),
            session_id: Some(seed.session_id),
            step_up: refusal.step_up(),
            trace_id: self.recorder.trace(),
        }
    }

    /// From the permit to an open backend. The order is the contract: room, durable start record, registry,
    /// and only then, inside the handler, the backend.
    async fn admit(&self, admitted: Box<Admitted>) -> Option<(Begun, Joined)> {
        let parts = &self.entrance.parts;
        if parts.shutdown.is_triggered() {
            let text = "the agent is stopping";
            Box::pin(self.not_now(*admitted, "stopping", text)).await;
            return None;
        }
        // A lock that is newer than the permit is seen once the session is among the live ones.
        if parts.gate.lock_on_proxy(&self.link.through).is_some() {
            let text = "the proxy that this connection came through is locked";
            Box::pin(self.not_now(*admitted, "proxy_locked", text)).await;
            return None;
        }
        let Some(slot) = parts.registry.reserve() else {
            let text = "the agent serves as many sessions as it may";
            Box::pin(self.not_now(*admitted, "sessions_max", text)).await;
            return None;
        };
        let Admitted {
            client,
            caller,
            seed,
            permit,
            asked,
            early,
        } = *admitted;
        let mode = permit.service().audit;
        let (facts, live) = match early {
            Some((facts, live)) => (facts, Some(live)),
            None => (Arc::new(self.facts(caller, seed, &permit, asked)), None),
        };
        let mark = self.recorder.mark();
        let started = match Box::pin(parts.journal.start(&facts, &permit, mode)).await {
            Ok(started) => started,
            Err(error) => {
                tracing::error!(session = %facts.session_id, %error, "no session without its record");
                parts.metrics.denied("audit_unavailable");
                Box::pin(client.unavailable(error.public_text(), true)).await;
                let (session, why) = (facts.session_id, "audit_unavailable");
                spans::unavailable(&self.recorder, session, &facts.service, &facts.caller, why);
                return None;
            }
        };
        self.recorder.phase("record", mark, |_| {});
        let live = live.unwrap_or_else(|| Arc::new(Live::new(Arc::clone(&facts), permit.clone())));
        let entered = parts.registry.enter(slot, Arc::clone(&live));
        Box::pin(self.entrance.decide_again_if_stale(&permit, &live)).await;
        let permit = live.permit();
        parts.metrics.session_started();
        let begun = Begun {
            entrance: Arc::clone(&self.entrance),
            recorder: self.recorder.clone(),
            started,
            entered,
        };
        let visit = Visit {
            client,
            recordings: &parts.recordings,
            backend: permit.local(),
            cluster: &parts.cluster,
            gate: &parts.gate,
            cancels: &self.entrance.cancels,
            credentials: &parts.credentials,
            course: begun.course(),
        };
        match Box::pin(handlers::begin(&permit, visit)).await {
            Ok(joined) => Some((begun, joined)),
            Err(ending) => {
                begun.conclude(Outcome::Ended(ending)).await;
                None
            }
        }
    }

    /// Ends what was allowed and cannot begin, for want of `what`.
    async fn not_now(&self, admitted: Admitted, what: &'static str, text: &str) {
        self.entrance.parts.metrics.denied(what);
        let Admitted {
            client, caller, seed, ..
        } = admitted;
        client.unavailable(text, true).await;
        spans::unavailable(&self.recorder, seed.session_id, &seed.service, &caller, what);
    }

    pub(super) fn facts(
        &self,
        caller: Caller,
        seed: AttemptSeed,
        permit: &Permit,
        asked: Asked,
    ) -> SessionFacts {
        SessionFacts {
            session_id: seed.session_id,
            connection_id: self.open.connection_id,
            connect_id: asked.connect_id,
            caller,
            service: seed.service,
            protocol: permit.service().facts.protocol,
            agent: self.entrance.parts.agent_id,
            client: seed.client,
            through: self.link.through.clone(),
            observed: handlers::observed(&permit.service().facts),
            target: asked.target.map(OnceLock::from).unwrap_or_default(),
            asked_login: asked.login,
            asked_database: asked.database,
            resumes: Resumes::default(),
            started: self.entrance.parts.gate.now(),
        }
    }
}

impl Entrance {
    /// A view published between the decision and the registry's entry was not seen by the reviewer for
    /// this session.
    pub(super) async fn decide_again_if_stale(&self, permit: &Permit, live: &Arc<Live>) {
        let gate = &self.parts.gate;
        if !gate.is_current(permit) {
            let (gate, live) = (Arc::clone(gate), Arc::clone(live));
            big_stack::run_async(move || review::review(&gate, &live)).await;
        }
    }
}

/// A session that has begun: what it is held by until its end is recorded, or its successor's.
pub(super) struct Begun {
    pub(super) entrance: Arc<Entrance>,
    pub(super) recorder: Recorder,
    pub(super) started: Started,
    pub(super) entered: live::Entered,
}

impl Begun {
    /// What its handler follows.
    fn course(&self) -> Course<'_> {
        let parts = &self.entrance.parts;
        let live = self.entered.live();
        let mode = live.permit().service().audit;
        Course {
            started: &self.started,
            live,
            limits: &parts.limits,
            recorder: &self.recorder,
            handover: Some(&parts.handover),
            audit_full: (mode != AuditMode::BestEffort).then(|| parts.journal.fullness()),
        }
    }

    /// Moves its bytes until it ends, or its successor goes on with it.
    #[expect(
        clippy::manual_async_fn,
        reason = "the future of an async fn holds its arguments twice"
    )]
    pub(super) fn run(self, joined: Joined) -> impl Future<Output = ()> + Send {
        async move {
            let outcome = self.course().follow(joined).await;
            Box::pin(self.conclude(outcome)).await;
        }
    }

    /// Records the end, or leaves that to the successor.
    pub(super) async fn conclude(self, outcome: Outcome) {
        let session = self.started.session_id();
        match outcome {
            Outcome::Ended(ending) => {
                tracing::info!(%session, reason = ending.reason.as_str(), "session ended");
                let counters = self.started.counters();
                self.entrance.parts.metrics.session_ended(counters);
                spans::ended(&self.recorder, self.started.facts(), counters, &ending);
                if let Some(audience) = self.entered.live().audience() {
                    audience.closes(Some(&ending));
                }
                self.started.end(ending).await;
                if let Some(keeping) = self.entered.live().keeping() {
                    Box::pin(keeping.over()).await;
                }
            }
            Outcome::HandedOver => {
                tracing::info!(%session, "the session is left to this agent's successor");
                self.started.handed_over();
            }
        }
        drop(self.entered);
    }
}
