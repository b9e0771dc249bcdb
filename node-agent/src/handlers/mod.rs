//! Protocol handlers: siblings behind one small interface. A handler gets a [`Visit`]: the client's stream,
//! the proof that the session's start is recorded (without which no backend can be dialled), and the switch
//! that cuts it. It [begins](begin) the session, which leaves nothing behind but its two ends; then it
//! [follows](Course::follow) it, and returns what became of it.
//!
//! A new protocol is a new folder here and one more arm in [`begin`].

pub mod client;
pub(crate) mod farewell;
pub(crate) mod postgres;
pub(crate) mod stream;
mod tcp;

use std::sync::Arc;

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
pub use tcp::Joined;

use crate::backend::BackendStream;
use crate::config::LocalService;
use crate::credentials::Credentials;
use crate::decide::Gate;
use crate::decide::Permit;
use crate::limits::Limits;
use crate::session::handover::keeping::Keeping;
use crate::session::resumption::ResumableStream;
use crate::session::{Ending, Handover, Live, Started};

/// Everything a handler gets.
#[derive(Debug)]
pub struct Visit<'a> {
    /// The client, who waits to be told that the session runs.
    pub client: Client,
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
}

impl Kind {
    /// A service whose record asks for more than this agent can do is not served at all: handing its bytes
    /// on unread would skip what its operator relies on.
    fn of(service: &ServiceFacts) -> Option<Self> {
        match (service.protocol, service.inspect) {
            (Protocol::Tcp, _) => Some(Self::Bytes),
            (Protocol::Postgres | Protocol::Ssh | Protocol::Http, false) => Some(Self::Bytes),
            (Protocol::Postgres, true) => Some(Self::Postgres),
            (Protocol::Ssh | Protocol::Http, true) => None,
        }
    }
}

/// Whether this agent can serve it.
#[must_use]
pub fn can_serve(service: &ServiceFacts) -> bool {
    Kind::of(service).is_some()
}

/// Whether a client without `iap/1` has to say as whom it comes before that can be decided.
pub(crate) fn sees_login_late(service: &ServiceFacts) -> bool {
    Kind::of(service) == Some(Kind::Postgres)
}

/// How closely its sessions are watched.
pub(crate) fn observed(service: &ServiceFacts) -> Observed {
    match Kind::of(service) {
        Some(Kind::Postgres) => Observed::Statements,
        Some(Kind::Bytes) | None => Observed::Bytes,
    }
}

/// What a session of bytes goes on with; no other is left by a predecessor.
///
/// # Errors
/// Why it ends instead.
pub(crate) fn go_on(session: GoingOn) -> Result<Box<Joined>, Ending> {
    tcp::go_on(session)
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
pub async fn begin(permit: &Permit, visit: Visit<'_>) -> Result<Box<Joined>, Ending> {
    match Kind::of(&permit.service().facts) {
        Some(Kind::Bytes) => tcp::begin(visit).await,
        Some(Kind::Postgres) => Box::pin(postgres::begin(visit)).await,
        None => {
            let text = "the agent cannot serve this kind of service";
            Box::pin(visit.client.unavailable(text, false)).await;
            Err(not_served())
        }
    }
}
