//! Protocol handlers: siblings behind one small interface. A handler gets a [`Visit`]: the client's stream,
//! the proof that the session's start is recorded (without which no backend can be dialled), and the switch
//! that cuts it. It [begins](begin) the session, which leaves nothing behind but its two ends; then it
//! [follows](Course::follow) it, and returns what became of it.
//!
//! A new protocol is a new folder here and one more arm in [`begin`].

pub mod client;
pub(crate) mod farewell;
pub(crate) mod postgres;
pub mod ssh;
pub(crate) mod stream;
mod tcp;

use std::sync::Arc;

use futures_util::future::Either;
use iap_audit::Observed;
use iap_identity::ClusterName;
use iap_policy::{Protocol, ServiceFacts};
use iap_runtime::config::InForce;
use iap_runtime::pump::UnderWay;
use iap_runtime::traces::Recorder;
use iap_tunnel::Boundaries;
use tokio::sync::watch;

pub use client::Client;
pub(crate) use client::Returning;
pub(crate) use postgres::cancel;
pub use postgres::{Announce, Cancels, Capture, ParameterCapture, PostgresSettings, SettingName};
use ssh::Guest;

use crate::backend::{self, BackendStream, DialFailure};
use crate::config::LocalService;
use crate::credentials::Credentials;
use crate::decide::{Gate, Permit};
use crate::limits::Limits;
use crate::recording::{self, Recordings};
use crate::session::handover::keeping::Keeping;
use crate::session::resumption::ResumableStream;
use crate::session::{Ending, Handover, Live, Started};

/// Who waits to be told that the session runs.
#[derive(Debug)]
pub(crate) enum Visitor {
    /// A client that has said nothing of what follows.
    Stream(Client),
    /// A client that has said in SSH as whom it wants in.
    Ssh(Box<Guest>),
}

impl Visitor {
    /// Tells it that there will be no session, and closes.
    pub(crate) async fn unavailable(self, text: &str, retry: bool) {
        match self {
            Self::Stream(client) => client.unavailable(text, retry).await,
            Self::Ssh(guest) => guest.refuse(ssh::sentence(text)).await,
        }
    }
}

/// The two ends of a session, whichever way they speak.
#[derive(Debug)]
pub(crate) enum Joined {
    /// Bytes, passed on as they are, read or unread.
    Bytes(Box<tcp::Joined>),
    /// SSH, seen and recorded.
    Ssh(Box<ssh::Joined>),
}

/// Everything a handler gets.
#[derive(Debug)]
pub(crate) struct Visit<'a> {
    /// The client, who waits to be told that the session runs.
    pub client: Visitor,
    /// Where recordings lie.
    pub recordings: &'a Recordings,
    /// The backend, as this host's own file has it.
    pub backend: &'a LocalService,
    /// The cluster of its names.
    pub cluster: &'a ClusterName,
    /// Who decides about what is only known later.
    pub gate: &'a Arc<Gate>,
    /// The keys by which clients cancel.
    pub cancels: &'a Cancels,
    /// What to log in to backends with, held in advance.
    pub credentials: &'a Credentials,
    /// What it follows from then on.
    pub course: Course<'a>,
}

/// A session that goes on where another process has left it.
#[derive(Debug)]
pub(crate) struct GoingOn {
    /// The client, who is away.
    pub(crate) client: ResumableStream,
    /// The backend, which knows nothing of it.
    pub(crate) backend: BackendStream,
    /// What lies between the two.
    pub(crate) under_way: UnderWay,
    /// Where a PostgreSQL backend stands between its messages.
    pub(crate) boundaries: Option<Boundaries>,
    /// Where it is kept for the case that this agent is killed.
    pub(crate) keeping: Option<Arc<Keeping>>,
    /// The switch that cuts it.
    pub(crate) live: Arc<Live>,
}

/// What a session follows while its bytes move.
#[derive(Debug)]
pub struct Course<'a> {
    /// The recorded start: facts, grant and counters.
    pub started: &'a Started,
    /// The switch that cuts the session.
    pub live: &'a Arc<Live>,
    /// The agent's bounds.
    pub limits: &'a InForce<Limits>,
    /// Notes what takes how long.
    pub recorder: &'a Recorder,
    /// The way to the agent's successor.
    pub handover: Option<&'a Handover>,
    /// Where the session must not outlive its records: whether the spool is full.
    pub audit_full: Option<watch::Receiver<bool>>,
}

/// What became of a session.
#[derive(Debug)]
pub enum Outcome {
    /// It is over.
    Ended(Ending),
    /// The agent's successor goes on with it.
    HandedOver,
}

/// What this agent can do with a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Bytes, unread.
    Bytes,
    /// PostgreSQL, its statements recorded.
    Postgres,
    /// SSH, ended here and recorded.
    Ssh,
}

impl Kind {
    /// A service whose record asks for more than this agent can do is not served at all: handing its bytes
    /// on unread would skip what its operator relies on.
    fn of(service: &ServiceFacts) -> Option<Self> {
        match (service.protocol, service.inspect) {
            (Protocol::Tcp, _) => Some(Self::Bytes),
            (Protocol::Postgres | Protocol::Ssh | Protocol::Http, false) => Some(Self::Bytes),
            (Protocol::Postgres, true) => Some(Self::Postgres),
            (Protocol::Ssh, true) => Some(Self::Ssh),
            (Protocol::Http, true) => None,
        }
    }
}

/// Why this agent cannot serve it, if it cannot.
#[must_use]
pub fn obstacle(service: &ServiceFacts, local: &LocalService) -> Option<&'static str> {
    match Kind::of(service) {
        Some(Kind::Bytes | Kind::Postgres) => None,
        Some(Kind::Ssh) if local.ssh.is_some() => None,
        Some(Kind::Ssh) => {
            Some("its record asks for recording, and the agent's own file has no [service.ssh]")
        }
        None => Some("its record asks for inspection, which this agent does not do"),
    }
}

/// Whether a session is of bytes that are passed on unread.
#[must_use]
pub(crate) fn passes_bytes(service: &ServiceFacts) -> bool {
    Kind::of(service) == Some(Kind::Bytes)
}

/// Whether a client without `iap/1` has to say as whom it comes before that can be decided.
#[must_use]
pub(crate) fn sees_login_late(service: &ServiceFacts) -> bool {
    Kind::of(service) == Some(Kind::Postgres)
}

/// How closely its sessions are watched.
#[must_use]
pub(crate) fn observed(service: &ServiceFacts) -> Observed {
    match Kind::of(service) {
        Some(Kind::Postgres) => Observed::Statements,
        Some(Kind::Ssh) => Observed::Terminal,
        Some(Kind::Bytes) | None => Observed::Bytes,
    }
}

/// What a session of bytes goes on with; no other is left by a predecessor.
///
/// # Errors
/// Why it ends instead.
pub(crate) fn go_on(session: GoingOn) -> Result<Joined, Ending> {
    tcp::go_on(session).map(Joined::Bytes)
}

/// Why a session ends that this agent cannot serve.
pub(crate) fn not_served() -> Ending {
    let why = "the service asks for inspection, which this agent does not do";
    Ending::because(iap_audit::CloseReason::ServiceRemoved, why)
}

/// Begins one session: dials the backend, and tells the client.
///
/// # Errors
/// How it ended before it began.
pub(crate) async fn begin(permit: &Permit, visit: Visit<'_>) -> Result<Joined, Ending> {
    let Visit {
        client,
        recordings,
        backend,
        cluster,
        gate,
        cancels,
        credentials,
        course,
    } = visit;
    match (Kind::of(&permit.service().facts), client, &backend.ssh) {
        (Some(Kind::Bytes), Visitor::Stream(client), _) => {
            let visit = tcp::Visit {
                client,
                backend,
                cluster,
                course,
            };
            tcp::begin(visit).await.map(Joined::Bytes)
        }
        (Some(Kind::Postgres), Visitor::Stream(client), _) => {
            let visit = postgres::Visit {
                client,
                backend,
                cluster,
                gate,
                cancels,
                credentials,
                course,
            };
            Box::pin(postgres::begin(visit)).await.map(Joined::Bytes)
        }
        (Some(Kind::Ssh), Visitor::Ssh(guest), Some(settings)) => {
            let (scribe, live) = (course.started.scribe(), Arc::clone(course.live));
            let mode = permit.service().recording.unwrap_or_default();
            let recorder =
                recording::Recorder::new(recordings.clone(), scribe, live, mode, course.limits.clone());
            let visit = ssh::Visit {
                guest,
                backend,
                settings,
                cluster,
                credentials,
                recorder,
                course,
            };
            Box::pin(ssh::begin(visit)).await.map(Joined::Ssh)
        }
        // The record or the file has changed since the client was heard.
        (_, client, _) => {
            let text = "the agent cannot serve this kind of service";
            Box::pin(client.unavailable(text, false)).await;
            Err(not_served())
        }
    }
}

impl Course<'_> {
    /// Dials the backend, and notes how that went.
    async fn dial(
        &self,
        backend: &LocalService,
        cluster: &ClusterName,
    ) -> Result<BackendStream, DialFailure> {
        let mark = self.recorder.mark();
        let patience = self.limits.now().backend_dial();
        let dialled = backend::dial(backend, self.started, cluster, patience).await;
        self.recorder.phase("dial backend", mark, |details| {
            if let Err(failure) = &dialled {
                details.failed(failure.close_reason().as_str());
            }
        });
        dialled.inspect_err(|failure| self.started.connect_failed(failure.text()))
    }

    /// Follows a session to its end.
    pub(crate) fn follow(self, joined: Joined) -> impl Future<Output = Outcome> + Send {
        match joined {
            Joined::Bytes(joined) => Either::Left(self.follow_bytes(joined)),
            Joined::Ssh(joined) => Either::Right(Box::pin(self.follow_ssh(joined))),
        }
    }
}
