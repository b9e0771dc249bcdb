//! Watching a session of somebody's: `iap-watch/1` at the name of the agent that holds it (docs/protocol.md).

use std::time::Duration;

use iap_identity::{AgentId, ServerName};
use iap_runtime::net::{self, HostPort};
use iap_runtime::tls::{self, AlertDescription};
use iap_tunnel::watch::WATCH_TAKEN;
use iap_tunnel::{ALPN_WATCH, LengthPrefixed, Status, WATCH_FRAME_BYTES_MAX, WatchFrame, WatchRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::dial::read_frame;
use super::stream::{Connection, connection};
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::identity::Identity;

const CONNECT_SECONDS_MAX: u64 = 10;
/// How long one proxy may hang before the next is tried beside it.
const NEXT_PROXY_SECONDS: u64 = 2;
const ANSWER_SECONDS_MAX: u64 = 30;
const READ_BYTES: usize = 16 * 1024;

/// What an agent says to whoever wants to watch, short of a failure.
pub enum WatchAnswer {
    /// What the session shows follows.
    Watching(Box<Watched>),
    /// With a renewed certificate it may say something else.
    Renew,
}

/// A session that is watched.
pub struct Watched {
    /// Whose it is.
    pub user: String,
    /// On which service.
    pub service: String,
    /// As which login.
    pub login: Option<String>,
    connection: Connection,
    frames: LengthPrefixed,
    buffer: Vec<u8>,
    /// Frames of kinds that are not known, passed over since the last that was taken.
    skipped: usize,
}

impl Watched {
    /// Says that the frame was taken. Whether that arrives shows at the next.
    pub async fn taken(&mut self) {
        let said = vec![WATCH_TAKEN; 1 + std::mem::take(&mut self.skipped)];
        if self.connection.write_all(&said).await.is_ok() {
            let _ = self.connection.flush().await;
        }
    }

    /// The next frame; nothing once the agent has closed. Nothing is lost when this is given up.
    ///
    /// # Errors
    /// When the connection breaks, or what comes makes no sense.
    pub async fn next(&mut self) -> Result<Option<WatchFrame>, Failure> {
        loop {
            while let Some(payload) = self.frames.next_frame().map_err(unreadable)? {
                match WatchFrame::decode(&payload).map_err(unreadable)? {
                    Some(frame) => return Ok(Some(frame)),
                    None => self.skipped += 1,
                }
            }
            let read = self.connection.read(&mut self.buffer).await;
            let read = read.map_err(|error| {
                Failure::failed("the connection to the session's agent is lost").because(error.to_string())
            })?;
            if read == 0 {
                return Ok(None);
            }
            self.frames.push(self.buffer.get(..read).unwrap_or_default());
        }
    }
}

/// Asks the agent to be shown a session.
///
/// # Errors
/// When it cannot be reached, or says no.
pub async fn watch(
    identity: &Identity,
    agent: AgentId,
    request: &WatchRequest,
) -> Result<WatchAnswer, Failure> {
    let connection = reach(identity, agent).await?;
    let asking = tokio::time::timeout(
        Duration::from_secs(ANSWER_SECONDS_MAX),
        ask(connection, agent, request),
    );
    asking.await.map_err(|_elapsed| {
        Failure::failed(format!(
            "the session's agent did not answer within {ANSWER_SECONDS_MAX} s"
        ))
    })?
}

async fn ask(
    mut connection: Connection,
    agent: AgentId,
    request: &WatchRequest,
) -> Result<WatchAnswer, Failure> {
    let hello = request.encode().map_err(unreadable)?;
    let exchange = async {
        connection.write_all(&hello).await?;
        connection.flush().await?;
        read_frame(&mut connection).await
    };
    let (payload, rest) = exchange
        .await
        .map_err(|error| match tls::alert_received(&error) {
            Some(alert) => by_alert(alert, agent),
            None => {
                Failure::failed("the connection to the session's agent is lost").because(error.to_string())
            }
        })?;
    match Status::decode(&payload).map_err(unreadable)? {
        Status::Watching {
            user, service, login, ..
        } => {
            let mut frames = LengthPrefixed::new(WATCH_FRAME_BYTES_MAX);
            frames.push(&rest);
            Ok(WatchAnswer::Watching(Box::new(Watched {
                user,
                service,
                login: login.map(|login| login.as_str().to_owned()),
                connection,
                frames,
                buffer: vec![0; READ_BYTES],
                skipped: 0,
            })))
        }
        Status::Renew => Ok(WatchAnswer::Renew),
        Status::Denied { code, text, .. } => Err(denied(&code, text, request)),
        Status::Unavailable { text, retry, .. } => {
            let failure = Failure::failed("the session cannot be watched now").because(text);
            Err(match retry {
                true => failure.next("try again in a moment"),
                false => failure,
            })
        }
        Status::Granted { .. } | Status::Resumed { .. } => {
            Err(unreadable("it is the answer to another question"))
        }
    }
}

fn denied(code: &str, text: String, request: &WatchRequest) -> Failure {
    let session = request.session_id;
    match code {
        "not_recorded" => Failure::usage(text).next(format!("iapctl sessions show {session}")),
        "no_session" => Failure::usage(text)
            .because("it is over or elsewhere, or the policy does not give you recording.read")
            .next(format!("iapctl sessions play {session}")),
        _ => Failure::denied(text).next("ask your operator"),
    }
}

fn unreadable(why: impl ToString) -> Failure {
    Failure::failed("the agent's answer cannot be read").because(why.to_string())
}

async fn reach(identity: &Identity, agent: AgentId) -> Result<Connection, Failure> {
    let broken = |error: anyhow::Error| Failure::failed(format!("{error:#}"));
    let proxies = identity.proxies().map_err(broken)?;
    let host = ServerName::Agent(agent).host(identity.home.cluster());
    let attempt = |proxy: HostPort| {
        let host = &host;
        async move {
            let reached = net::reach(&proxy, Duration::from_secs(CONNECT_SECONDS_MAX)).await;
            let (tcp, _route) = reached.map_err(|error| {
                Failure::failed(format!("cannot reach the proxy at {proxy}")).because(error.to_string())
            })?;
            let config = identity.service_config(&[ALPN_WATCH]).map_err(broken)?;
            let shaken = tls::connect(tcp, host, config, Duration::from_secs(ANSWER_SECONDS_MAX)).await;
            shaken
                .map(connection)
                .map_err(|error| match error.alert_received() {
                    Some(alert) => by_alert(alert, agent),
                    None => Failure::failed("the session's agent is not reached").because(error.to_string()),
                })
        }
    };
    let raced = net::race(proxies.into(), attempt, Duration::from_secs(NEXT_PROXY_SECONDS)).await;
    raced.map_err(|failures| {
        let none = Failure::failed("no proxy is known");
        failures
            .into_iter()
            .fold(none, |told, (_, next)| match told.status() {
                ExitStatus::Failed => next,
                _ => told,
            })
    })
}

fn by_alert(alert: AlertDescription, agent: AgentId) -> Failure {
    match alert {
        AlertDescription::NoApplicationProtocol => {
            Failure::usage("sessions cannot be watched at this agent").because("it is older than this iapctl")
        }
        AlertDescription::UnrecognisedName | AlertDescription::InternalError => {
            Failure::failed("the session's agent is not reached")
                .because(format!("no proxy has a connection of agent {agent} now"))
                .next("try again in a moment")
        }
        AlertDescription::CertificateExpired => {
            Failure::login_needed("your login has expired").next("iapctl login")
        }
        AlertDescription::CertificateRevoked | AlertDescription::AccessDenied => {
            Failure::denied("you are locked out").next("ask your operator")
        }
        AlertDescription::UnknownCA | AlertDescription::BadCertificate => {
            Failure::login_needed("the agent does not accept this login").next("iapctl login")
        }
        other => Failure::failed("the session's agent refused the connection")
            .because(format!("TLS alert {other:?}")),
    }
}
