//! PostgreSQL, read as it goes by: protocol `postgres` with `inspect = true`.
//!
//! The client's startup message is answered here: its login and database are decided on, the agent logs in to the backend
//! itself, and hands the client a key of its own for requests to cancel. From there on both directions pass as they are,
//! and a [`Tap`] looks at them.

mod cancel;
mod login;
mod record;
mod secure;
mod settings;
mod startup;
mod tap;
mod told;

use std::sync::Arc;
use std::time::Duration;

use iap_audit::CloseReason;
use iap_identity::ClusterName;
use iap_postgres::Startup;
use iap_proto::AuditMode;
use iap_tunnel::fatal::SQLSTATE_UNAVAILABLE;
use iap_tunnel::{Boundaries, CancelRequest, Fatal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use cancel::Cancels;
pub use settings::{Announce, Capture, ParameterCapture, PostgresSettings, SettingName};

pub(crate) use record::Writing;
pub(crate) use startup::{FirstWord, first_word, say_fatal, target};
pub(crate) use tap::Tap;

use super::farewell::{self, Delivered};
use super::stream::SessionStream;
use super::tcp::Joined;
use super::{Client, Course};
use crate::backend::{self, BackendStream, DialFailure};
use crate::config::LocalService;
use crate::credentials::Credentials;
use crate::decide::Gate;
use crate::session::{Caller, Ending, Live, SESSION};
use login::{LoggedIn, LoginFailure};
use secure::{SecureError, Shown};

/// How long a client that came by `iap/1` may take until its program connects: as long as somebody looks for a password.
const FIRST_WORD_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a client may take to hear its last words.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(5);

/// What it needs.
pub(super) struct Visit<'a> {
    /// The client, who waits to be told that the session runs.
    pub(super) client: Client,
    /// The backend, as this host's own file has it.
    pub(super) backend: &'a LocalService,
    /// The cluster of its names.
    pub(super) cluster: &'a ClusterName,
    /// Who decides about the login that the client names.
    pub(super) gate: &'a Arc<Gate>,
    /// The keys by which clients cancel.
    pub(super) cancels: &'a Cancels,
    /// What to log in to the backend with, held in advance.
    pub(super) credentials: &'a Credentials,
    /// What it follows from then on.
    pub(super) course: Course<'a>,
}

/// Reads the client's startup, logs in to the backend, and answers the client.
pub(super) async fn begin(visit: Visit<'_>) -> Result<Box<Joined>, Ending> {
    let Visit {
        client,
        backend: local,
        cluster,
        gate,
        cancels,
        credentials,
        course,
    } = visit;
    let (started, live) = (course.started, course.live);
    let client = client.postgres_started(started, live, cluster).await;
    let (mut stream, startup) =
        client.map_err(|error| Ending::because(CloseReason::ClientLost, error.to_string()))?;
    let startup = match startup {
        Some(startup) => startup,
        None => match course.late_startup(&mut stream, cluster, gate, cancels).await {
            Ok(startup) => startup,
            Err(refused) => return Err(refused.tell(&course, &mut stream).await),
        },
    };
    let prepared = async {
        startup::check(&startup, &live.permit()).map_err(|fatal| {
            let detail = fatal.message.clone();
            Refused::new(fatal, Ending::because(CloseReason::Policy, detail))
        })?;
        let backend = course
            .dial(local, cluster)
            .await
            .map_err(|failure| course.not_reached(failure))?;
        course.log_in(backend, &startup, local, credentials).await
    };
    let prepared = tokio::select! {
        biased;
        _ = live.switch().cancelled() => Err(course.cut()),
        prepared = prepared => prepared,
    };
    match prepared {
        Ok((backend, logged_in)) => course.join(stream, backend, logged_in, &startup, cancels).await,
        Err(refused) => Err(refused.tell(&course, &mut stream).await),
    }
}

/// Acts on a request to cancel that a client brought on a connection of its own.
pub(crate) async fn cancel(
    cancels: &Cancels,
    request: &CancelRequest,
    caller: Option<&Caller>,
    cluster: &ClusterName,
    patience: Duration,
) {
    let Some((live, message)) = cancels.find(request, caller) else {
        tracing::debug!("a request to cancel with a key of no session");
        return;
    };
    let session = live.facts.session_id;
    match tokio::time::timeout(patience, hand_on(&live, cluster, &message, patience)).await {
        Ok(Ok(())) => tracing::info!(%session, "a statement is cancelled by its client"),
        Ok(Err(error)) => tracing::warn!(%session, %error, "a request to cancel did not reach the backend"),
        Err(_elapsed) => tracing::warn!(%session, "a request to cancel did not reach the backend in time"),
    }
}

/// On a connection of its own, which the backend closes once it has acted ("Canceling Requests in Progress"). The key in it
/// takes the same protection as the session.
async fn hand_on(
    live: &Live,
    cluster: &ClusterName,
    message: &[u8],
    patience: Duration,
) -> Result<(), SecureError> {
    let permit = live.permit();
    let local = permit.local();
    let stream = backend::dial_beside(live, cluster, patience).await?;
    let mut stream = secure::secure(stream, &local.backend, &local.postgres, None, patience).await?;
    stream.write_all(message).await?;
    stream.flush().await?;
    let mut closed = [0];
    let _ = stream.read(&mut closed).await;
    Ok(())
}

/// Why a client that was let in has no session, and what it is told.
struct Refused {
    fatal: Option<Fatal>,
    ending: Ending,
}

impl Refused {
    fn new(fatal: Fatal, ending: Ending) -> Self {
        Self {
            fatal: Some(fatal),
            ending,
        }
    }

    /// Nobody is there to be told.
    fn silent(ending: Ending) -> Self {
        Self { fatal: None, ending }
    }

    async fn tell(self, course: &Course<'_>, stream: &mut SessionStream) -> Ending {
        let text = self.fatal.as_ref().map(|fatal| fatal.message.clone());
        if let Some(mut fatal) = self.fatal {
            let session = course.started.session_id();
            fatal.detail.get_or_insert_with(|| format!("Session {session}."));
            let telling = async {
                stream.write_all(&fatal.encode()).await?;
                stream.flush().await
            };
            let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, telling).await;
        }
        if let Some(text) = text {
            stream.close(self.ending.reason.as_str(), &text);
        }
        let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, stream.shutdown()).await;
        self.ending
    }
}

impl Course<'_> {
    /// The startup message of a client that was let in before it said it.
    async fn late_startup(
        &self,
        stream: &mut SessionStream,
        cluster: &ClusterName,
        gate: &Arc<Gate>,
        cancels: &Cancels,
    ) -> Result<Startup, Refused> {
        let word = tokio::select! {
            biased;
            _ = self.live.switch().cancelled() => return Err(self.cut()),
            word = first_word(stream, FIRST_WORD_TIMEOUT) => word,
        };
        match word {
            Ok(FirstWord::Startup(startup)) => {
                self.settle(&startup, gate).await?;
                Ok(*startup)
            }
            Ok(FirstWord::Cancel(request)) => {
                let (caller, patience) = (self.live.caller(), self.limits.now().backend_dial());
                cancel(cancels, &request, Some(&caller), cluster, patience).await;
                Err(Refused::silent(Ending::plain(CloseReason::ClientClosed)))
            }
            Err(error) => Err(Refused {
                fatal: error.fatal(),
                ending: Ending::because(error.close_reason(), error.to_string()),
            }),
        }
    }

    /// Which login and database it is to be, and whether it may: the client has been let in for what it said in its hello,
    /// and says it again, or more, in its startup message.
    async fn settle(&self, startup: &Startup, gate: &Arc<Gate>) -> Result<(), Refused> {
        let facts = self.started.facts();
        let target = target(startup).map_err(|text| self.not_this(&text))?;
        if let Some(asked) = facts.asked_login.as_ref().filter(|asked| **asked != target.login) {
            return Err(self.not_this(&format!(
                "this connection was opened for login {asked}, not {}",
                target.login
            )));
        }
        if let Some(asked) = facts
            .asked_database
            .as_ref()
            .filter(|asked| **asked != target.database)
        {
            return Err(self.not_this(&format!(
                "this connection was opened for database {asked}, not {}",
                target.database
            )));
        }
        let mut attempt = self.live.attempt();
        attempt.login = Some(target.login.clone());
        attempt.database = Some(target.database.clone());
        match gate.decide_on_trace(attempt, self.recorder).await {
            Ok(permit) => self.live.renew(permit),
            Err(refusal) => {
                let user = facts.caller.record().name;
                let permit = self.live.permit();
                let contact = Some(permit.service().contact.as_str()).filter(|contact| !contact.is_empty());
                let fatal = farewell::denied(&refusal, facts.session_id, &user, &facts.service, contact);
                let ending = Ending::because(CloseReason::Policy, refusal.detail());
                return Err(Refused::new(fatal, ending));
            }
        }
        let is_known = self.started.grant().login() == Some(&target.login)
            && facts.asked_database.as_ref() == Some(&target.database);
        let _ = facts.target.set(target);
        if is_known {
            return Ok(());
        }
        // Before it has an effect, as its start was.
        self.started
            .record_login(&self.live.permit())
            .await
            .map_err(|error| {
                let text = error.public_text();
                let fatal = farewell::unavailable(text, facts.session_id);
                Refused::new(
                    fatal,
                    Ending::because(CloseReason::AuditUnavailable, error.to_string()),
                )
            })
    }

    fn not_this(&self, text: &str) -> Refused {
        let service = &self.started.facts().service;
        let hint =
            format!("Name them as you connect: iapctl connect {service} --login LOGIN --database DATABASE");
        Refused::new(
            startup::refused(text, &hint),
            Ending::because(CloseReason::Policy, text),
        )
    }

    fn cut(&self) -> Refused {
        let facts = self.started.facts();
        let ending = self.live.cut_ending();
        let permit = self.live.permit();
        let fatal = farewell::ended(
            &ending,
            facts.session_id,
            &facts.service,
            &permit.service().contact,
        );
        Refused { fatal, ending }
    }

    fn not_reached(&self, failure: DialFailure) -> Refused {
        let fatal = farewell::unavailable(failure.text(), self.started.session_id());
        Refused::new(fatal, Ending::plain(failure.close_reason()))
    }

    async fn log_in(
        &self,
        backend: BackendStream,
        startup: &Startup,
        local: &LocalService,
        credentials: &Credentials,
    ) -> Result<(BackendStream, LoggedIn), Refused> {
        let facts = self.started.facts();
        let target = facts
            .target
            .get()
            .ok_or_else(|| self.not_this("no login was granted"))?;
        let mark = self.recorder.mark();
        let patience = self.limits.now().backend_dial();
        let user = facts.caller.record().name;
        let shown = Shown {
            credentials,
            service: &facts.service,
            target,
        };
        let logging_in = async {
            let settings = &local.postgres;
            let mut backend =
                secure::secure(backend, &local.backend, settings, Some(shown), patience).await?;
            let logged_in = login::log_in(&mut backend, startup, target, &user, settings, patience).await?;
            Ok::<_, LoginFailure>((backend, logged_in))
        };
        let logged_in = logging_in.await;
        self.recorder.phase("log in to backend", mark, |details| {
            if logged_in.is_err() {
                details.failed(CloseReason::BackendRefused.as_str());
            }
        });
        logged_in.map_err(|failure| {
            let session = facts.session_id;
            tracing::warn!(%session, login = %target.login, %failure, "no login at the backend");
            self.started.connect_failed(&failure.to_string());
            let ending = Ending::because(CloseReason::BackendRefused, failure.to_string());
            match failure.backend_said() {
                // Such as a database that does not exist: the client's to know.
                Some(said) => Refused::new(
                    Fatal {
                        sqlstate: backend_class(&said.sqlstate),
                        message: said.message.clone(),
                        detail: None,
                        hint: None,
                    },
                    ending,
                ),
                None => {
                    let text = "the agent cannot log in to the service's backend";
                    Refused::new(farewell::unavailable(text, session), ending)
                }
            }
        })
    }

    async fn join(
        &self,
        mut stream: SessionStream,
        backend: BackendStream,
        logged_in: LoggedIn,
        startup: &Startup,
        cancels: &Cancels,
    ) -> Result<Box<Joined>, Ending> {
        let LoggedIn {
            to_client: mut hello,
            key,
            behind,
        } = logged_in;
        let given = key.and_then(|key| cancels.give(self.live, key, agreed_minor(startup.minor, &hello)));
        let key = given.map(|(key, message)| {
            hello.extend_from_slice(&message);
            key
        });
        let lost = |error: std::io::Error| Ending::because(CloseReason::ClientLost, error.to_string());
        let mut boundaries = Boundaries::new();
        boundaries.push(&hello);
        stream.write_all(&hello).await.map_err(lost)?;
        let permit = self.live.permit();
        let required = permit.service().audit != AuditMode::BestEffort;
        let base = self.started.facts().statement_event(self.started.grant());
        let (statements, writing) = record::begin(
            self.started.journal().clone(),
            base,
            Arc::clone(self.live),
            required,
        );
        let limits = permit.local().postgres.capture.limits();
        let tap = Tap::new(limits, statements, Arc::clone(self.live), key);
        let mut client = Delivered::new(stream, Some(boundaries)).tapped(tap);
        write_all(&mut client, &behind).await.map_err(lost)?;
        self.recorder.send_phases(SESSION);
        Ok(Box::new(Joined::inspected(client, backend, writing)))
    }
}

async fn write_all<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// What the backend agreed to where it could not do as asked (`NegotiateProtocolVersion`).
fn agreed_minor(asked: u16, hello: &[u8]) -> u16 {
    match hello {
        [b'v', _, _, _, _, _, _, high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => asked,
    }
}

/// Classes that a client may act on; all others are those of a backend that cannot be used now.
fn backend_class(sqlstate: &str) -> &'static str {
    match sqlstate {
        "3D000" => "3D000",
        "53300" => "53300",
        "42501" => "42501",
        "28000" | "28P01" => "28000",
        _ => SQLSTATE_UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_agrees_to_less_decides_the_keys_length() {
        assert_eq!(agreed_minor(2, b"R\0\0\0\x08\0\0\0\0"), 2);
        assert_eq!(agreed_minor(2, b"v\0\0\0\x0c\0\x03\0\0\0\0\0\0"), 0);
    }
}
