//! A client that comes back over another connection: the same person, the same key, the newest ticket, and a decision of
//! now. A refusal by rule or lock ends the session.

use std::sync::Arc;
use std::time::Instant;

use iap_identity::SessionId;
use iap_runtime::resume::Arrival;
use iap_tunnel::Status;
use iap_tunnel::resume::{ResumeRequest, Ticket, Violation};

use super::handshake::{AttemptSeed, ClientStream};
use super::hello::{read_hello, say_last};
use super::serve::Passage;
use crate::decide::Refusal;
use crate::session::handover::keeping::Returned;
use crate::session::resumption::{Resumption, cannot_stand};
use crate::session::{Caller, Presence, review};

const OVER: &str = "session_over";
const REFUSED: &str = "resume_refused";

impl Passage {
    /// Everything from the handshake at the agent's own name to the session that goes on.
    pub(super) async fn come_back(&self, mut stream: ClientStream, caller: Caller) {
        let parts = &self.entrance.parts;
        let limits = parts.limits.now();
        let hello = match read_hello(&mut stream, limits.hello_frame_bytes_max, limits.handshake()).await {
            Ok(hello) => hello,
            Err(error) => {
                parts.metrics.handshake_failed("hello");
                tracing::info!(client = %self.open.client_address, %error, "no session to go on with");
                return;
            }
        };
        let Some(request) = hello.resume else {
            let text = "At an agent's own name sessions are gone on with, and none was named.";
            return say_last(&mut stream, &self.denied(REFUSED, text, None)).await;
        };
        if let Err(status) = self.go_on(&mut Some(stream), &caller, &request).await {
            let (Some(mut stream), status) = *status else {
                return;
            };
            say_last(&mut stream, &status).await;
        }
    }

    /// Hands the connection to its session, or says why not.
    async fn go_on(
        &self,
        stream: &mut Option<ClientStream>,
        caller: &Caller,
        request: &ResumeRequest,
    ) -> Result<(), Box<(Option<ClientStream>, Status)>> {
        let mut refuse = |status| Err(Box::new((stream.take(), status)));
        let session = request.session_id;
        let Some(resumption) = self.entrance.resumptions.find(&session) else {
            if self.entrance.resumptions.is_expected(&session) {
                return refuse(self.unavailable("the agent takes its predecessor's sessions over"));
            }
            if self.entrance.leaves_sessions() {
                return refuse(self.unavailable("the agent's successor goes on with its sessions"));
            }
            return refuse(self.denied(OVER, "The session is over.", Some(session)));
        };
        if !resumption.admits(caller, &request.ticket) {
            self.ticket_refused(caller, &resumption);
            let text = "This session is not yours to go on with.";
            return refuse(self.denied(REFUSED, text, Some(session)));
        }
        if let Err(status) = self.decide_again(caller, &resumption).await {
            return refuse(*status);
        }
        if let Some(ending) = resumption.live.cut_because() {
            let text = format!("The session was ended: {}.", ending.reason.as_str());
            return refuse(self.denied(OVER, &text, Some(session)));
        }
        // What its successor is told of a session by then would not count this.
        if self.entrance.parts.handover.is_asked() {
            return refuse(self.unavailable("the agent's successor goes on with its sessions"));
        }
        let Ok(ticket) = resumption.trade(&request.ticket) else {
            return refuse(self.unavailable("the agent's system has no randomness"));
        };
        resumption.live.facts.resumes.note();
        if let Some(keeping) = resumption.live.keeping() {
            let noted = keeping.note(|| Returned {
                presence: self.presence(caller),
                tickets: resumption.tickets(),
                resumes: resumption.live.facts.resumes.count(),
            });
            if let Err(error) = noted {
                tracing::warn!(%session, %error, "the session is kept as it was before");
                return refuse(self.unavailable("the agent cannot note where its sessions stand"));
            }
        }
        self.record(caller, &resumption);
        if let Some(connection) = stream.take() {
            resumption.hand_over(self.arrival(connection, request, ticket));
            self.link.resumable(self.open.connection_id);
        }
        Ok(())
    }

    /// Decides with the certificate of now. An outage takes nothing from a session that lives: it has a grace of its own.
    async fn decide_again(&self, caller: &Caller, resumption: &Resumption) -> Result<(), Box<Status>> {
        let (parts, live) = (&self.entrance.parts, &resumption.live);
        let seed = AttemptSeed {
            session_id: live.facts.session_id,
            service: live.facts.service.clone(),
            client: self.open.client_address,
        };
        if let Some(lock) = parts.gate.lock_on_proxy(&self.link.through) {
            tracing::warn!(%lock, "the proxy that a client comes back through is locked");
            return Err(Box::new(
                self.unavailable("the proxy that this connection came through is locked"),
            ));
        }
        match parts.gate.decide(seed.attempt(caller.clone())).await {
            Ok(permit) => live.renew(permit),
            Err(Refusal::Outage(_)) => {}
            Err(refusal) if refusal.wants_renewal() => return Err(Box::new(Status::Renew)),
            Err(refusal) => {
                self.record_denial(caller, &seed, &refusal);
                if let Some(ending) = review::cut_ending(&refusal, live.permit().grant().rule()) {
                    live.cut(ending);
                }
                return Err(Box::new(self.refusal_status(&seed, &refusal)));
            }
        }
        live.move_to(self.presence(caller));
        Ok(())
    }

    fn presence(&self, caller: &Caller) -> Presence {
        Presence {
            caller: caller.clone(),
            client: self.open.client_address,
            through: self.link.through.clone(),
        }
    }

    fn arrival(
        &self,
        connection: ClientStream,
        request: &ResumeRequest,
        ticket: Ticket,
    ) -> Arrival<ClientStream> {
        let (session, trace_id) = (request.session_id, self.recorder.trace());
        let answer = move |stands: Result<u64, &Violation>| {
            let status = match stands {
                Ok(position) => Status::Resumed {
                    position,
                    ticket,
                    trace_id,
                },
                Err(violation) => Status::Denied {
                    code: REFUSED.to_owned(),
                    text: cannot_stand(violation),
                    contact: None,
                    session_id: Some(session),
                    step_up: None,
                    trace_id,
                },
            };
            // A status of these is far below the bound of a frame.
            status.encode().unwrap_or_default()
        };
        Arrival {
            connection,
            read: Vec::new(),
            position: request.position,
            repeated: 0,
            answer: Some(Box::new(answer)),
        }
    }

    fn record(&self, caller: &Caller, resumption: &Arc<Resumption>) {
        let parts = &self.entrance.parts;
        let live = &resumption.live;
        let back = self.presence(caller);
        let (now, id) = parts.journal.stamp();
        let permit = live.permit();
        let event = live
            .facts
            .resume_event(permit.grant(), now, id, &back, self.open.connection_id);
        parts.journal.note(event);
        parts.metrics.session_resumed();
        tracing::info!(session = %live.facts.session_id, client = %self.open.client_address, "the client came back");
    }

    /// At most once a second: whoever has a certificate could try at any rate.
    fn ticket_refused(&self, caller: &Caller, resumption: &Resumption) {
        let parts = &self.entrance.parts;
        parts.metrics.denied(REFUSED);
        let Some(unsaid) = self.entrance.said.ticket_refused.due(Instant::now()) else {
            return;
        };
        let session = resumption.live.facts.session_id;
        let user = caller.record();
        tracing::warn!(%session, user = user.name, client = %self.open.client_address, unsaid, "a ticket that is not good");
        let (now, id) = parts.journal.stamp();
        let event = iap_audit::Event::new(iap_audit::EventKind::SessionResumeRefused, now, id)
            .session(&session)
            .connection(&self.open.connection_id)
            .user(&user)
            .serial(caller.peer().serial())
            .service(&resumption.live.facts.service)
            .agent(&parts.agent_id)
            .client_address(self.open.client_address)
            .field("client_asserted_by", self.link.through.proxy.to_string())
            .field("unsaid", unsaid);
        parts.journal.note(event);
    }

    fn denied(&self, code: &str, text: &str, session_id: Option<SessionId>) -> Status {
        Status::Denied {
            code: code.to_owned(),
            text: text.to_owned(),
            contact: None,
            session_id,
            step_up: None,
            trace_id: self.recorder.trace(),
        }
    }

    fn unavailable(&self, text: &str) -> Status {
        Status::Unavailable {
            text: text.to_owned(),
            retry: true,
            trace_id: self.recorder.trace(),
        }
    }
}
