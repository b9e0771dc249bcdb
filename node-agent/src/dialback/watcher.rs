//! Somebody who wants to watch a session that this agent records: decided on from memory, put on record, and then shown.
//! Whoever may not hears what they would hear if there were no such session.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iap_audit::{Event, EventKind};
use iap_identity::SessionId;
use iap_tunnel::{Status, WatchRequest};

use super::handshake::ClientStream;
use super::hello::{read_frame, say_last, write_status};
use super::serve::Passage;
use crate::decide::WatchRefusal;
use crate::session::{Caller, Live};
use crate::watch::{Audience, Left, Onlooker, Seat, Showing, Watch, Watching, record};

const NO_SESSION: &str = "no_session";
const NOT_RECORDED: &str = "not_recorded";
const LOCKED: &str = "locked";

/// Somebody whose watching is on record.
struct Admitted {
    onlooker: Onlooker,
    audience: Arc<Audience>,
    watching: Watching,
    _seat: Seat,
}

impl Passage {
    /// Everything from the handshake at the agent's own name to the end of watching.
    pub(super) async fn watch(&self, mut stream: ClientStream, caller: Caller) {
        let parts = &self.entrance.parts;
        let limits = parts.limits.now();
        let request = match read_request(&mut stream, limits.hello_frame_bytes_max, limits.handshake()).await
        {
            Ok(request) => request,
            Err(error) => {
                parts.metrics.handshake_failed("hello");
                tracing::info!(client = %self.open.client_address, %error, "nobody is shown anything");
                return;
            }
        };
        let admitted = match self.admit_watcher(&caller, request.session_id).await {
            Ok(admitted) => admitted,
            Err(status) => return say_last(&mut stream, &status).await,
        };
        let Admitted {
            onlooker,
            audience,
            watching,
            _seat,
        } = *admitted;
        let (session, user) = (request.session_id, caller.record().name);
        tracing::info!(%session, user, client = %self.open.client_address, "somebody watches");
        let left = match write_status(&mut stream, &self.watching_status(&onlooker.live)).await {
            Err(error) => Left::Lost(error),
            Ok(()) => {
                let showing = Showing {
                    session,
                    audience: &audience,
                    wanted: request.recording,
                    watchers: &self.entrance.watchers,
                    bytes_max: limits.watcher_bytes_max,
                    tally: watching.tally(),
                };
                showing.run(stream, &onlooker).await
            }
        };
        tracing::info!(%session, user, why = left.code(), "somebody watches no longer");
        watching.end(&left).await;
    }

    /// Decides, takes a seat, and writes it down.
    async fn admit_watcher(&self, caller: &Caller, session: SessionId) -> Result<Box<Admitted>, Status> {
        let parts = &self.entrance.parts;
        if parts.gate.lock_on_proxy(&self.link.through).is_some() {
            return Err(self.watch_unavailable("the proxy that this connection came through is locked", true));
        }
        // Before whether there is such a session, which is not theirs to know.
        if let Some(lock) = parts.gate.lock_on_caller(caller) {
            self.watch_refused(caller, session, None, &lock.to_string());
            return Err(self.watch_denied(LOCKED, "Access is locked.".to_owned(), session));
        }
        let Some(live) = parts.registry.find(&session) else {
            self.watch_refused(caller, session, None, "there is no such session here");
            return Err(self.no_session(session));
        };
        let onlooker = Onlooker {
            gate: Arc::clone(&parts.gate),
            live: Arc::clone(&live),
            caller: caller.clone(),
            client: self.open.client_address,
            through: self.link.through.clone(),
        };
        let decided = parts
            .gate
            .decide_on_watcher(onlooker.attempt(), onlooker.owner())
            .await;
        let may = decided.map_err(|refusal| self.refuse_watcher(caller, &live, &refusal))?;
        let Some(audience) = live.audience().cloned() else {
            let text = format!(
                "Session {session} is not one whose terminal is recorded: its service is {}.",
                live.facts.protocol.as_str()
            );
            return Err(self.watch_denied(NOT_RECORDED, text, session));
        };
        let limits = parts.limits.now();
        let watch = Watch {
            live: Arc::clone(&live),
            watcher: caller.clone(),
            client: self.open.client_address,
            asserted_by: self.link.through.proxy,
            connection_id: self.open.connection_id,
            may,
        };
        let seats = self.entrance.watchers.seats(limits.watchers_max);
        let name = caller.record().name;
        let Some(seat) = audience.enter(&name, limits.watchers_per_session_max, seats) else {
            let text = match limits.watchers_max {
                0 => "sessions cannot be watched here, by limits.watchers_max",
                _ => "as many watch as may",
            };
            return Err(self.watch_unavailable(text, limits.watchers_max > 0));
        };
        let mode = live.permit().service().audit;
        let watching = record::begin(watch, &parts.journal, mode)
            .await
            .map_err(|error| {
                tracing::error!(%session, %error, "nobody watches without a record of it");
                self.watch_unavailable(error.public_text(), true)
            })?;
        Ok(Box::new(Admitted {
            onlooker,
            audience,
            watching,
            _seat: seat,
        }))
    }

    /// What somebody is told who may not, and what the record is.
    fn refuse_watcher(&self, caller: &Caller, live: &Live, refusal: &WatchRefusal) -> Status {
        let session = live.facts.session_id;
        match refusal {
            WatchRefusal::Outage(outage) => return self.watch_unavailable(outage.text(), false),
            WatchRefusal::CertificateEnded | WatchRefusal::Renew => return Status::Renew,
            WatchRefusal::Locked(_) | WatchRefusal::NotAllowed(_) | WatchRefusal::NotServed => {}
        }
        self.watch_refused(caller, session, Some(live), &refusal.detail());
        self.no_session(session)
    }

    /// At most once a second: whoever has a certificate could ask at any rate.
    fn watch_refused(&self, caller: &Caller, session: SessionId, live: Option<&Live>, why: &str) {
        let parts = &self.entrance.parts;
        parts.metrics.denied("watch_refused");
        let Some(unsaid) = self.entrance.said.watch_refused.due(Instant::now()) else {
            return;
        };
        let user = caller.record();
        tracing::warn!(%session, user = user.name, client = %self.open.client_address, why, unsaid, "somebody may not watch");
        let (now, id) = parts.journal.stamp();
        let event = Event::new(EventKind::SessionWatchRefused, now, id)
            .connection(&self.open.connection_id)
            .user(&user)
            .serial(caller.peer().serial())
            .agent(&parts.agent_id)
            .client_address(self.open.client_address)
            .field("client_asserted_by", self.link.through.proxy.to_string())
            .field("unsaid", unsaid)
            .reason(why);
        // What a stranger has made up is no session's record.
        let event = match live {
            Some(live) => event.session(&session).service(&live.facts.service),
            None => event.field("asked_session", session.to_string()),
        };
        parts.journal.note(event);
    }

    fn watching_status(&self, live: &Live) -> Status {
        let permit = live.permit();
        Status::Watching {
            session_id: live.facts.session_id,
            user: live.caller().record().name,
            service: live.facts.service.as_str().to_owned(),
            login: permit.grant().login().cloned(),
            trace_id: self.recorder.trace(),
        }
    }

    fn no_session(&self, session: SessionId) -> Status {
        let text = format!("There is no session {session} that you may watch at this agent now.");
        self.watch_denied(NO_SESSION, text, session)
    }

    fn watch_denied(&self, code: &str, text: String, session: SessionId) -> Status {
        Status::Denied {
            code: code.to_owned(),
            text,
            contact: None,
            session_id: Some(session),
            step_up: None,
            trace_id: self.recorder.trace(),
        }
    }

    fn watch_unavailable(&self, text: &str, retry: bool) -> Status {
        Status::Unavailable {
            text: text.to_owned(),
            retry,
            trace_id: self.recorder.trace(),
        }
    }
}

async fn read_request(
    stream: &mut ClientStream,
    bytes_max: usize,
    patience: Duration,
) -> io::Result<WatchRequest> {
    let reading = tokio::time::timeout(patience, read_frame(stream, bytes_max)).await;
    let frame = reading.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?;
    WatchRequest::decode(&frame.map_err(io::Error::other)?).map_err(io::Error::other)
}
