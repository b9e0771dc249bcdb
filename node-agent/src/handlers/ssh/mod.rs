//! SSH that is recorded: this agent is the client's SSH server and sshd's SSH client, and sees what passes between.
//!
//! The login is the SSH user name, so the client is [heard](hear) before it is decided on: it has a server to talk to and
//! nothing behind it. Then, as with every service, come the decision, the recorded start, and only then sshd
//! ([`begin`]).
//!
//! Reading order: [`front`] (what clients may ask), [`back`] (what sshd answers), [`channel`] (what passes between the two),
//! [`observer`] (what is put on record), [`window`] (why nothing piles up).

mod activity;
mod back;
mod channel;
mod front;
mod host_key;
mod line;
mod mailbox;
mod notice;
mod observer;
mod server_key;
mod settings;
mod severable;
mod stay;
pub mod transfer;
mod window;

use std::sync::Arc;
use std::time::Duration;

use iap_audit::CloseReason;
use iap_identity::{LoginName, SessionId};
use russh::Disconnect;
use russh::server::{self, RunningSession};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::farewell;
use super::stream::SessionStream;
use super::tcp::{Held, Hold};
use super::{Course, Outcome};
use crate::backend;
use crate::config::LocalService;
use crate::credentials::Credentials;
use crate::recording::Recorder;
use crate::session::Ending;
use activity::Activity;
use back::{Back, Departure};
use front::{Answer, Front, Knock};
pub(crate) use host_key::{HostKeyError, HostKeys};
pub(crate) use settings::RawSsh;
pub use settings::{Environment, KnownBy, KnownServer, SshSettings};
use severable::{Scissors, Severable};
use stay::Stay;

/// Channels of one session at once, as many as OpenSSH's `MaxSessions` allows by default.
const CHANNELS_MAX: usize = 10;
/// How long sshd may take to answer a request.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// Either side is asked for a sign of life after so much silence.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
/// So many of them unanswered, and it is gone.
const KEEPALIVES_MAX: usize = 4;
/// Logging in to sshd, once it is dialled.
const LOGIN_PATIENCE: Duration = Duration::from_secs(20);
/// Last words, and then the end of the connection.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(2);
/// What is still to be written when the session is over.
const FINISH_PATIENCE: Duration = Duration::from_secs(10);

/// A client that has said as whom it wants in, and waits.
pub(crate) struct Guest {
    login: LoginName,
    answer: oneshot::Sender<Answer>,
    running: RunningSession<Front>,
    handle: server::Handle,
    scissors: Scissors,
}

/// Why nobody was heard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unheard {
    /// The key that clients are to see.
    #[error(transparent)]
    HostKey(#[from] HostKeyError),
    /// It speaks no SSH, or has gone.
    #[error("the client spoke no SSH: {0}")]
    Protocol(#[from] russh::Error),
    /// It said nothing in time.
    #[error("the client did not say in time as whom it wants in")]
    TimedOut,
    /// It asked for a login that is none.
    #[error("the client asked for something that is no login")]
    NoLogin,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Guest")
            .field("login", &self.login)
            .finish_non_exhaustive()
    }
}

/// Hears as whom a client wants in, within `patience`.
pub(crate) async fn hear(
    stream: SessionStream,
    (keys, credentials): (&HostKeys, &Credentials),
    service: (&iap_identity::ServiceName, &SshSettings),
    (session, is_watchable): (SessionId, bool),
    patience: Duration,
) -> Result<Guest, Unheard> {
    let (host_key, host_certificate) = keys.of(service.0, service.1, credentials).await?;
    let may_be_watched = match is_watchable {
        true => " They may be watched while they run.",
        false => "",
    };
    let banner = format!(
        "Sessions to {} are recorded.{may_be_watched} Session {session}.\r\n",
        service.0
    );
    let (knock, knocked) = oneshot::channel();
    let scissors = Scissors::default();
    let stream: Severable<SessionStream> = scissors.around(stream);
    let hearing = async {
        let config = front::config(host_key, host_certificate);
        let running = server::run_stream(config, stream, Front::new(banner, knock)).await?;
        let knock = knocked.await.map_err(|_| russh::Error::Disconnect)?;
        Ok::<_, russh::Error>((running, knock))
    };
    let heard = tokio::time::timeout(patience, hearing).await;
    let (running, Knock { login, answer }) = heard.map_err(|_elapsed| Unheard::TimedOut)??;
    let guest = Guest {
        login: LoginName::parse(&login).map_err(|_| Unheard::NoLogin)?,
        answer,
        handle: running.handle(),
        running,
        scissors,
    };
    Ok(guest)
}

impl Guest {
    /// As whom it wants in.
    pub(crate) fn login(&self) -> &LoginName {
        &self.login
    }

    /// Says why not, and closes.
    pub(crate) async fn refuse(self, why: String) {
        let Self { answer, running, .. } = self;
        let _ = answer.send(Answer::Refused(why));
        let _ = tokio::time::timeout(FAREWELL_PATIENCE, running).await;
    }
}

/// What a handler of SSH gets besides its course.
#[derive(Debug)]
pub(crate) struct Visit<'a> {
    pub(crate) guest: Box<Guest>,
    pub(crate) backend: &'a LocalService,
    pub(crate) settings: &'a SshSettings,
    pub(crate) cluster: &'a iap_identity::ClusterName,
    pub(crate) credentials: &'a Credentials,
    pub(crate) recorder: Recorder,
    pub(crate) course: Course<'a>,
}

/// A client and sshd, joined.
pub(crate) struct Joined {
    running: RunningSession<Front>,
    handle: server::Handle,
    stay: Arc<Stay>,
    departure: Arc<Departure>,
    activity: Arc<Activity>,
    hold: Hold,
    /// The client's connection ends with the first of these, sshd's with the second.
    _scissors: (Scissors, Scissors),
}

impl std::fmt::Debug for Joined {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Joined").finish_non_exhaustive()
    }
}

/// Dials sshd, logs in, and lets the client in.
pub(crate) async fn begin(visit: Visit<'_>) -> Result<Box<Joined>, Ending> {
    let Visit {
        guest,
        backend,
        settings,
        cluster,
        credentials,
        recorder,
        course,
    } = visit;
    let (started, live) = (course.started, course.live);
    let mark = course.recorder.mark();
    let (hold, scissors) = (Hold::default(), Scissors::default());
    let joining = async {
        let dialled = backend::dial(backend, started, cluster, course.limits.now().backend_dial()).await;
        let stream = dialled.map_err(|failure| (failure.close_reason(), failure.text().to_owned()))?;
        let stream = Held::new(scissors.around(stream), hold.clone());
        let service = &started.facts().service;
        log_in(stream, settings, credentials, (service, guest.login())).await
    };
    let joined = tokio::select! {
        biased;
        _ = live.switch().cancelled() => {
            guest.refuse("The session was ended before it began.".to_owned()).await;
            return Err(live.cut_ending());
        }
        joined = joining => joined,
    };
    course.recorder.phase("dial backend", mark, |details| {
        if let Err((reason, _)) = &joined {
            details.failed(reason.as_str());
        }
    });
    let Back {
        handle: back,
        lines,
        departure,
    } = match joined {
        Ok(back) => back,
        Err((reason, text)) => {
            started.connect_failed(&text);
            guest
                .refuse(format!("{}. Session {}.", sentence(&text), started.session_id()))
                .await;
            return Err(Ending::plain(reason));
        }
    };
    course.recorder.send_phases(crate::session::SESSION);
    let activity = Arc::new(Activity::new());
    let stay = Arc::new(Stay {
        back,
        lines,
        environment: settings.environment.clone(),
        live: Arc::clone(live),
        scribe: started.scribe(),
        notices: settings.watch_notice,
        recorder,
        activity: Arc::clone(&activity),
        channels: TaskTracker::new(),
        over: CancellationToken::new(),
        farewell: watch::Sender::new(None),
    });
    let Guest {
        answer,
        running,
        handle,
        scissors: front_scissors,
        ..
    } = *guest;
    if answer.send(Answer::Welcome(Arc::clone(&stay))).is_err() {
        return Err(Ending::plain(CloseReason::ClientLost));
    }
    Ok(Box::new(Joined {
        running,
        handle,
        stay,
        departure,
        activity,
        hold,
        _scissors: (front_scissors, scissors),
    }))
}

/// What goes wrong here is the operator's to see; the user hears that the backend refused.
async fn log_in(
    stream: Held<Severable<backend::BackendStream>>,
    settings: &SshSettings,
    credentials: &Credentials,
    (service, login): (&iap_identity::ServiceName, &LoginName),
) -> Result<Back, (CloseReason, String)> {
    let refused = |text: String| (CloseReason::BackendRefused, text);
    let means = back::means(settings, credentials, service, login).await;
    let means = means.map_err(|error| {
        tracing::error!(%service, %login, %error, "the agent has nothing to log in to sshd with");
        refused("the agent has nothing to log in to the service's sshd with".to_owned())
    })?;
    back::log_in(stream, means, login, LOGIN_PATIENCE)
        .await
        .map_err(|error| {
            tracing::warn!(%login, %error, "not logged in at sshd");
            match error {
                back::NotLoggedIn::Refused(login) => {
                    refused(format!("the service's sshd does not let {login} in"))
                }
                back::NotLoggedIn::WantsMore(login, methods) => refused(format!(
                    "the service's sshd wants more than the agent's key to let {login} in ({methods})"
                )),
                back::NotLoggedIn::TimedOut => (
                    CloseReason::BackendTimeout,
                    "the service's sshd did not answer in time".to_owned(),
                ),
                back::NotLoggedIn::Transport(_) => {
                    refused("the service's sshd is not the one its agent knows, or speaks no SSH".to_owned())
                }
            }
        })
}

/// With a capital letter.
pub(super) fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + characters.as_str()
}

/// What ended a session.
enum Over {
    /// The client's side.
    Client(Option<String>),
    /// sshd's side.
    Backend(Option<String>),
    /// An order, or a limit.
    Cut(Ending),
}

impl Course<'_> {
    /// Lets both sides talk until something ends the session.
    pub(crate) async fn follow_ssh(mut self, joined: Box<Joined>) -> Outcome {
        let mark = self.recorder.mark();
        let Joined {
            mut running,
            handle,
            stay,
            departure,
            activity,
            hold,
            _scissors,
        } = *joined;
        let audit_full = self.audit_full.take();
        let over = tokio::select! {
            biased;
            never = hold.while_full(audit_full, self.limits, self.live) => match never {},
            _ = self.live.switch().cancelled() => Over::Cut(self.live.cut_ending()),
            ended = &mut running => Over::Client(ended.err().map(|error| error.to_string())),
            () = departure.gone() => Over::Backend(departure.why()),
            () = activity.ran_out(self.live.idle_limit()) => {
                let rule = self.live.permit().grant().rule().to_owned();
                Over::Cut(Ending::because(CloseReason::IdleLimit, format!("rule {rule:?}")))
            }
        };
        let ending = match over {
            Over::Client(None) => Ending::plain(CloseReason::ClientClosed),
            // A client with nothing open any more often leaves without a word, its proxy command being ended first.
            Over::Client(Some(_)) if stay.channels.is_empty() => Ending::plain(CloseReason::ClientClosed),
            Over::Client(Some(error)) => Ending::because(CloseReason::ClientLost, error),
            Over::Backend(None) => Ending::plain(CloseReason::BackendClosed),
            Over::Backend(Some(error)) => Ending::because(CloseReason::BackendLost, error),
            Over::Cut(ending) => ending,
        };
        self.take_leave(&ending, &stay, &handle, running).await;
        stay.over.cancel();
        stay.channels.close();
        let finishing = tokio::time::timeout(FINISH_PATIENCE, stay.channels.wait());
        if finishing.await.is_err() {
            tracing::error!(session = %self.started.session_id(), "what was seen is not all on record");
        }
        let _ = stay.back.disconnect(Disconnect::ByApplication, "", "en").await;
        self.recorder.phase("relay", mark, |_| {});
        Outcome::Ended(ending)
    }

    /// Tells whoever sits at a terminal why, and then the client.
    async fn take_leave(
        &self,
        ending: &Ending,
        stay: &Stay,
        handle: &server::Handle,
        running: RunningSession<Front>,
    ) {
        let facts = self.started.facts();
        let permit = self.live.permit();
        let contact = permit.service().contact.clone();
        let last = farewell::ended(ending, facts.session_id, &facts.service, &contact);
        let words = match (last, ending.reason) {
            (Some(fatal), _) => format!("{} {}", fatal.message, fatal.detail.unwrap_or_default()),
            (None, CloseReason::BackendClosed | CloseReason::BackendLost) => {
                // What it has sent before is still on its way to the client.
                stay.channels.close();
                let _ = tokio::time::timeout(FAREWELL_PATIENCE, stay.channels.wait()).await;
                format!("The service ended the connection. Session {}.", facts.session_id)
            }
            (None, _) => return,
        };
        stay.channels.close();
        stay.farewell.send_replace(Some(Arc::from(words.as_str())));
        let _ = tokio::time::timeout(FAREWELL_PATIENCE, stay.channels.wait()).await;
        let telling = handle.disconnect(Disconnect::ByApplication, words, "en".to_owned());
        let _ = tokio::time::timeout(FAREWELL_PATIENCE, telling).await;
        let _ = tokio::time::timeout(FAREWELL_PATIENCE, running).await;
    }
}
