//! What a client says it wants, by whichever protocol it speaks, and the decision on it.

use std::sync::Arc;

use iap_identity::{ConnectId, LoginName};
use iap_policy::Protocol;
use iap_tunnel::Fatal;
use iap_tunnel::fatal::SQLSTATE_DENIED;
use tokio::io::AsyncWriteExt as _;

use super::handshake::{AttemptSeed, ClientStream};
use super::hello::{read_hello, say_last};
use super::serve::Passage;
use crate::decide::{Attempt, Permit, Refusal};
use crate::handlers::postgres::{self, FirstWord};
use crate::handlers::{Client, Returning, Visitor, farewell};
use crate::session::{Caller, Live, SessionFacts, Target};

/// What the client said about itself in its hello.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// What it has said in its startup message, where that is what was decided on.
    pub(super) target: Option<Target>,
    pub(super) connect_id: Option<ConnectId>,
    pub(super) login: Option<LoginName>,
    pub(super) database: Option<String>,
}

/// A client that may have a session.
pub(super) struct Admitted {
    pub(super) client: Visitor,
    pub(super) caller: Caller,
    pub(super) seed: AttemptSeed,
    pub(super) permit: Permit,
    pub(super) asked: Asked,
    /// What is settled, and the switch, where a client was heard first: it may come back from then on.
    pub(super) early: Option<(Arc<SessionFacts>, Arc<Live>)>,
}

impl Passage {
    /// Reads the hello and decides; nothing where the client has had its answer.
    pub(super) async fn ask_framed(
        &self,
        mut stream: ClientStream,
        caller: Caller,
        seed: AttemptSeed,
        resumable: bool,
    ) -> Option<Box<Admitted>> {
        let parts = &self.entrance.parts;
        let limits = parts.limits.now();
        let mark = self.recorder.mark();
        let hello = match read_hello(&mut stream, limits.hello_frame_bytes_max, limits.handshake()).await {
            Ok(hello) => hello,
            Err(error) => {
                parts.metrics.handshake_failed("hello");
                tracing::info!(service = %seed.service, client = %seed.client, %error, "no session");
                return None;
            }
        };
        let asked = Asked {
            target: None,
            connect_id: Some(hello.connect_id),
            login: hello.login,
            database: hello.database,
        };
        self.recorder.phase("hello", mark, |_| {});
        let mut attempt = seed.attempt(caller.clone());
        attempt.login.clone_from(&asked.login);
        // Where none is named it is the login's, as PostgreSQL has it; the client may name one yet.
        let named = asked.login.as_ref().map(|login| login.as_str().to_owned());
        attempt.database = asked.database.clone().or(named);
        match self.decide(attempt).await {
            Ok(permit) => {
                let returning = resumable.then(|| Returning {
                    resumptions: self.entrance.resumptions.clone(),
                    link: self.link.clone(),
                    connection_id: self.open.connection_id,
                });
                Some(Box::new(Admitted {
                    client: Visitor::Stream(Client::framed(stream, self.recorder.trace(), returning)),
                    caller,
                    seed,
                    permit,
                    asked,
                    early: None,
                }))
            }
            Err(refusal) => {
                // Nobody is refused by "renew your certificate": what becomes of the next attempt is the answer.
                if !refusal.wants_renewal() {
                    self.record_denial(&caller, &seed, &refusal);
                }
                say_last(&mut stream, &self.refusal_status(&seed, &refusal)).await;
                self.trace_refusal(&caller, &seed, &refusal);
                None
            }
        }
    }

    /// Reads a PostgreSQL client's startup message and decides; nothing where the client has had its answer.
    pub(super) async fn ask_postgres(
        &self,
        mut stream: ClientStream,
        caller: Caller,
        seed: AttemptSeed,
    ) -> Option<Box<Admitted>> {
        let parts = &self.entrance.parts;
        let limits = parts.limits.now();
        let patience = limits.handshake();
        let mark = self.recorder.mark();
        let startup = match postgres::first_word(&mut stream, patience).await {
            Ok(FirstWord::Startup(startup)) => startup,
            Ok(FirstWord::Cancel(request)) => {
                let (cancels, dial) = (&self.entrance.cancels, limits.backend_dial());
                postgres::cancel(cancels, &request, Some(&caller), &parts.cluster, dial).await;
                let _ = stream.shutdown().await;
                return None;
            }
            Err(error) => {
                parts.metrics.handshake_failed("startup");
                tracing::info!(service = %seed.service, client = %seed.client, %error, "no session");
                match error.fatal() {
                    Some(fatal) => postgres::say_fatal(&mut stream, &fatal, patience).await,
                    None => drop(stream.shutdown().await),
                }
                return None;
            }
        };
        let target = match postgres::target(&startup) {
            Ok(target) => target,
            Err(text) => {
                tracing::info!(service = %seed.service, client = %seed.client, error = %text, "no session");
                let fatal = Fatal {
                    sqlstate: SQLSTATE_DENIED,
                    message: text,
                    detail: None,
                    hint: None,
                };
                postgres::say_fatal(&mut stream, &fatal, patience).await;
                return None;
            }
        };
        self.recorder.phase("startup", mark, |_| {});
        let mut attempt = seed.attempt(caller.clone());
        attempt.login = Some(target.login.clone());
        attempt.database = Some(target.database.clone());
        match self.decide(attempt).await {
            Ok(permit) => Some(Box::new(Admitted {
                client: Visitor::Stream(Client::started(stream, startup, seed.session_id, patience)),
                caller,
                seed,
                permit,
                asked: Asked {
                    target: Some(target),
                    ..Asked::default()
                },
                early: None,
            })),
            Err(refusal) => {
                self.record_denial(&caller, &seed, &refusal);
                let fatal = self.fatal_of(&caller, &seed, &refusal);
                postgres::say_fatal(&mut stream, &fatal, patience).await;
                self.trace_refusal(&caller, &seed, &refusal);
                None
            }
        }
    }

    pub(super) async fn decide(&self, attempt: Attempt) -> Result<Permit, Refusal> {
        self.entrance
            .parts
            .gate
            .decide_on_trace(attempt, &self.recorder)
            .await
    }

    pub(super) fn fatal_of(&self, caller: &Caller, seed: &AttemptSeed, refusal: &Refusal) -> Fatal {
        let (name, contact) = (caller.record().name, self.contact(seed));
        farewell::denied(refusal, seed.session_id, &name, &seed.service, contact.as_deref())
    }

    pub(super) fn raw_client(&self, stream: ClientStream, seed: &AttemptSeed, permit: &Permit) -> Client {
        match permit.service().facts.protocol {
            Protocol::Postgres => {
                let patience = self.entrance.parts.limits.now().handshake();
                Client::postgres(stream, seed.session_id, patience)
            }
            Protocol::Tcp | Protocol::Ssh | Protocol::Http => Client::raw(stream),
        }
    }
}
