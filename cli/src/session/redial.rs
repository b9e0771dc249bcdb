//! Coming back to a session over another connection: through any proxy, with the login as it is then.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use iap_identity::{ServerName, SessionId};
use iap_runtime::backoff::Backoff;
use iap_runtime::net::{self, HostPort};
use iap_runtime::resume::{Arrival, Reconnect};
use iap_runtime::tls::{self, AlertDescription, HandshakeError};
use iap_tunnel::resume::{Endpoint, Repeat, ResumeOffer, ResumeRequest, Ticket};
use iap_tunnel::{ALPN_RESUME, Hello, Status};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use super::dial::read_frame;
use super::source::Sessions;
use super::stream::{Connection, connection};
use crate::identity::Identity;

const CONNECT_SECONDS_MAX: u64 = 5;
const ANSWER_SECONDS_MAX: u64 = 10;
/// How long one proxy may hang before the next is tried beside it.
const NEXT_PROXY_SECONDS: u64 = 1;
/// Between attempts: at first, and at most.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(2);

/// How a session is come back to.
pub struct Redial {
    sessions: Arc<Sessions>,
    session_id: SessionId,
    agent: ServerName,
    ticket: Ticket,
    patience: Duration,
    repeats: Option<Repeats>,
    attempts: Option<Attempts>,
}

/// Where an attempt gets from its session what is to be repeated, at the moment when its hello goes out.
#[derive(Clone, Default)]
struct Repeats(Arc<Mutex<Moment>>);

#[derive(Default)]
enum Moment {
    /// No hello is to go out yet.
    #[default]
    Early,
    Now,
    /// These frames go out with it.
    Frames(Repeat),
}

type Attempts = Pin<Box<dyn Future<Output = io::Result<Back>> + Send>>;

/// There again.
struct Back {
    connection: Connection,
    /// What came behind the agent's answer.
    read: Vec<u8>,
    position: u64,
    /// The end of what went out with the hello.
    repeated: u64,
    ticket: Ticket,
}

/// Why an attempt led nowhere.
enum Failed {
    /// The session is over.
    Final(String),
    /// Another attempt may lead there.
    ForNow(String),
    /// Another will, with a renewed certificate.
    Renew,
}

impl Redial {
    pub(super) fn new(
        sessions: Arc<Sessions>,
        session_id: SessionId,
        agent: ServerName,
        offer: &ResumeOffer,
    ) -> Self {
        Self {
            sessions,
            session_id,
            agent,
            ticket: offer.ticket,
            patience: Duration::from_secs(offer.seconds),
            repeats: offer.repeats.then(Repeats::default),
            attempts: None,
        }
    }
}

impl Reconnect<Connection> for Redial {
    const REPLACES: bool = false;

    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
        endpoint: &mut Endpoint,
    ) -> Poll<io::Result<Arrival<Connection>>> {
        let attempts = self.attempts.get_or_insert_with(|| {
            let request = ResumeRequest {
                session_id: self.session_id,
                ticket: self.ticket,
                position: endpoint.position(),
            };
            let attempts = Attempting {
                sessions: Arc::clone(&self.sessions),
                agent: self.agent.clone(),
                request,
                repeats: self.repeats.clone(),
            };
            Box::pin(attempts.come_back(self.patience))
        });
        let back = loop {
            match attempts.as_mut().poll(context) {
                Poll::Ready(back) => break back?,
                Poll::Pending => match &self.repeats {
                    Some(repeats) if repeats.give(endpoint) => {}
                    Some(_) | None => return Poll::Pending,
                },
            }
        };
        self.ticket = back.ticket;
        Poll::Ready(Ok(Arrival {
            connection: back.connection,
            read: back.read,
            position: back.position,
            repeated: back.repeated,
            answer: None,
        }))
    }

    fn lost(&mut self, why: &io::Error) {
        self.attempts = None;
        self.sessions.say(&format!(
            "the connection of session {} is lost, and looked for again: {why}",
            self.session_id.as_uuid()
        ));
    }

    fn found(&mut self) {
        self.attempts = None;
        self.sessions
            .say(&format!("session {} goes on", self.session_id.as_uuid()));
    }
}

impl Repeats {
    /// Gives what is to be repeated if its moment has come.
    fn give(&self, endpoint: &mut Endpoint) -> bool {
        let mut moment = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_now = matches!(*moment, Moment::Now);
        if is_now {
            *moment = Moment::Frames(endpoint.repeat());
        }
        is_now
    }

    /// The frames that go out with a hello of now. Whoever polls this gives them.
    async fn take(&self) -> Repeat {
        std::future::poll_fn(|_| {
            let mut moment = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match std::mem::take(&mut *moment) {
                Moment::Frames(frames) => Poll::Ready(frames),
                Moment::Early | Moment::Now => {
                    *moment = Moment::Now;
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// What the attempts to come back have in common.
struct Attempting {
    sessions: Arc<Sessions>,
    agent: ServerName,
    request: ResumeRequest,
    repeats: Option<Repeats>,
}

impl Attempting {
    /// Tries until it is there, or has been told that there is no going on, or the agent waits no longer.
    async fn come_back(self, patience: Duration) -> io::Result<Back> {
        let deadline = Instant::now() + patience;
        let mut backoff = Backoff::new(AGAIN_AFTER, AGAIN_AFTER_MAX);
        loop {
            let why = match self.attempt().await {
                Ok(back) => return Ok(back),
                Err(Failed::Final(why)) => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)),
                Err(Failed::ForNow(why)) => why,
                Err(Failed::Renew) => match self.sessions.renew().await {
                    Ok(()) => "the certificate was renewed".to_owned(),
                    Err(why) => why,
                },
            };
            self.sessions.say(&format!("not back yet: {why}"));
            let pause = backoff.next_delay();
            if Instant::now() + pause >= deadline {
                let seconds = patience.as_secs();
                let why =
                    format!("the connection was lost, and there was no other within {seconds} s: {why}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self) -> Result<Back, Failed> {
        let identity = self.sessions.for_coming_back().await.map_err(Failed::ForNow)?;
        let connection = reach(&identity, &self.agent).await?;
        match tokio::time::timeout(Duration::from_secs(ANSWER_SECONDS_MAX), self.ask(connection)).await {
            Ok(answered) => answered,
            Err(_) => Err(Failed::ForNow(format!("no answer within {ANSWER_SECONDS_MAX} s"))),
        }
    }

    async fn ask(&self, mut connection: Connection) -> Result<Back, Failed> {
        let wanted = self.sessions.wanted();
        let hello = Hello {
            version: iap_tunnel::status::HELLO_VERSION,
            connect_id: self.sessions.connect_id(),
            login: wanted.login.clone(),
            database: wanted.database.clone(),
            resume: Some(self.request.clone()),
        };
        let mut first = hello.encode().map_err(|error| Failed::Final(error.to_string()))?;
        let repeat = match &self.repeats {
            Some(repeats) => repeats.take().await,
            None => Repeat::default(),
        };
        first.extend(repeat.frames);
        let exchange = async {
            connection.write_all(&first).await?;
            connection.flush().await?;
            read_frame(&mut connection).await
        };
        let (payload, read) = exchange
            .await
            .map_err(|error| match tls::alert_received(&error) {
                Some(alert) => by_alert(alert),
                None => Failed::ForNow(error.to_string()),
            })?;
        match Status::decode(&payload).map_err(|error| Failed::Final(error.to_string()))? {
            Status::Resumed {
                position,
                ticket,
                trace_id: _,
            } => Ok(Back {
                connection,
                read,
                position,
                repeated: repeat.end,
                ticket,
            }),
            Status::Renew => Err(Failed::Renew),
            Status::Denied { text, .. } => Err(Failed::Final(text)),
            Status::Unavailable { text, .. } => Err(Failed::ForNow(text)),
            Status::Granted { .. } | Status::Watching { .. } => {
                Err(Failed::Final("the agent began another session".to_owned()))
            }
        }
    }
}

async fn reach(identity: &Identity, agent: &ServerName) -> Result<Connection, Failed> {
    let for_now = |error: anyhow::Error| Failed::ForNow(format!("{error:#}"));
    let proxies = identity.proxies().map_err(for_now)?;
    let attempt = |proxy: HostPort| async move {
        let reached = net::reach(&proxy, Duration::from_secs(CONNECT_SECONDS_MAX)).await;
        let (tcp, _route) =
            reached.map_err(|error| Failed::ForNow(format!("cannot reach the proxy at {proxy}: {error}")))?;
        let config = identity.service_config(&[ALPN_RESUME]).map_err(for_now)?;
        let host = agent.host(identity.home.cluster());
        let patience = Duration::from_secs(ANSWER_SECONDS_MAX);
        tls::connect(tcp, &host, config, patience)
            .await
            .map(connection)
            .map_err(|error| refused(&error))
    };
    let raced = net::race(proxies.into(), attempt, Duration::from_secs(NEXT_PROXY_SECONDS)).await;
    raced.map_err(|failures| {
        let none = Failed::ForNow("no proxy is known".to_owned());
        // What says that there is no going on counts more than that a proxy could not be reached.
        failures.into_iter().fold(none, |told, (_, next)| match told {
            Failed::Final(_) => told,
            Failed::ForNow(_) | Failed::Renew => next,
        })
    })
}

fn refused(error: &HandshakeError) -> Failed {
    match error.alert_received() {
        Some(alert) => by_alert(alert),
        None => Failed::ForNow(error.to_string()),
    }
}

/// An agent that is not there yet, or at another proxy, may come.
fn by_alert(alert: AlertDescription) -> Failed {
    match alert {
        AlertDescription::CertificateRevoked => Failed::Final("access is locked".to_owned()),
        AlertDescription::AccessDenied => Failed::Final("access is denied".to_owned()),
        AlertDescription::CertificateExpired => Failed::Renew,
        AlertDescription::NoApplicationProtocol => {
            Failed::Final("the agent lets nobody come back any more".to_owned())
        }
        other => Failed::ForNow(format!("TLS alert {other:?}")),
    }
}
