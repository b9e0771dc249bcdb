//! One session: TLS to the service's own name, through the proxy, then the `iap/1` frames (docs/protocol.md).

use std::sync::Arc;
use std::time::Duration;

use iap_identity::{ServerName, SessionId};
use iap_runtime::net::{self, HostPort};
use iap_runtime::resume::{Allowance, Patience, Resumable};
use iap_runtime::tls::{self, AlertDescription, HandshakeError, Replay};
use iap_runtime::traces::Recorder;
use iap_tunnel::resume::{Endpoint, WINDOW_BYTES_MIN};
use iap_tunnel::{ALPN_IAP, ALPN_RESUME, FRAME_BYTES_MAX, Hello, LengthPrefixed, Status, StepUp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::early::Early;
use super::redial::Redial;
use super::source::{Sessions, Wanted};
use super::span::{self, SessionSpan};
use super::stream::{Connection, SessionStream, connection};
use crate::clock;
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::identity::Identity;

const CONNECT_SECONDS_MAX: u64 = 10;
/// How long one proxy may hang before the next is tried beside it.
const NEXT_PROXY_SECONDS: u64 = 2;
/// Dial-back, decision, record and the backend's own answer, on the slowest link.
const ANSWER_SECONDS_MAX: u64 = 30;
const READ_BYTES: usize = 4 * 1024;
/// A denial by rule, which whoever may read the policy can have explained; others are locks and outages.
const DENIED_BY_POLICY: &str = "denied";
/// The denial that asks which of several logins is meant.
const LOGIN_CHOICE: &str = "login_choice";

/// A session that was granted.
pub struct Session {
    /// The bytes of the backend.
    pub stream: SessionStream,
    /// Its id in the record.
    pub session_id: SessionId,
    /// The login the agent chose, where it sees logins.
    pub login: Option<String>,
    /// The service's protocol.
    pub protocol: String,
    /// Sent when the session is over.
    pub span: SessionSpan,
}

/// What the agent says, short of a failure.
pub(super) enum Answer {
    Granted(Box<Session>),
    Renew,
    /// Another login would change the denial.
    StepUp(StepUp, String),
}

pub(super) async fn dial(
    identity: &Identity,
    sessions: &Arc<Sessions>,
    early: &mut Early<'_>,
    recorder: &Recorder,
) -> Result<Answer, Failure> {
    let wanted = sessions.wanted();
    // Some streams have nothing to give before they have been asked once.
    early.said();
    let stream = reach(identity, wanted, recorder).await?;
    let talk = tokio::time::timeout(
        Duration::from_secs(ANSWER_SECONDS_MAX),
        ask(identity, sessions, stream, early, recorder),
    );
    talk.await.map_err(|_| {
        Failure::failed(format!(
            "'{}' did not answer within {ANSWER_SECONDS_MAX} s",
            wanted.service.as_str()
        ))
    })?
}

/// Any proxy will do: the next is tried instead of one through which the service is not reached, and beside one that
/// hangs.
async fn reach(identity: &Identity, wanted: &Wanted, recorder: &Recorder) -> Result<Connection, Failure> {
    let proxies = identity
        .proxies()
        .map_err(|error| Failure::failed(format!("{error:#}")))?;
    let attempt = |proxy: HostPort| async move {
        let mark = recorder.mark();
        let reached = net::reach(&proxy, Duration::from_secs(CONNECT_SECONDS_MAX)).await;
        recorder.phase("dial", mark, |details| {
            details.text("server.address", proxy.host());
            details.number("server.port", proxy.port().into());
            if reached.is_err() {
                details.failed("not reached");
            }
        });
        let (tcp, _route) = reached.map_err(|error| unreachable_proxy(&proxy, &error))?;
        let mark = recorder.mark();
        let shaken = handshake(identity, wanted, tcp).await;
        recorder.phase("tls", mark, |details| {
            if shaken.is_err() {
                details.failed("no handshake");
            }
        });
        shaken
    };
    let raced = net::race(proxies.into(), attempt, Duration::from_secs(NEXT_PROXY_SECONDS)).await;
    raced.map_err(|failures| telling(failures.into_iter().map(|(_, failure)| failure)))
}

/// What a proxy or an agent said counts more than that another could not be reached.
fn telling(failures: impl Iterator<Item = Failure>) -> Failure {
    failures.fold(Failure::failed("no proxy is known"), |told, next| {
        match told.status() {
            ExitStatus::Failed => next,
            _ => told,
        }
    })
}

fn unreachable_proxy(proxy: &HostPort, error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot reach the proxy at {proxy}")).because(error.to_string())
}

async fn ask(
    identity: &Identity,
    sessions: &Arc<Sessions>,
    mut stream: Connection,
    early: &mut Early<'_>,
    recorder: &Recorder,
) -> Result<Answer, Failure> {
    let mark = recorder.mark();
    let wanted = sessions.wanted();
    let mut endpoint = (stream.get_ref().1.alpn_protocol() == Some(ALPN_RESUME.as_bytes()))
        .then(|| Endpoint::new(WINDOW_BYTES_MIN));
    let explain = |error: std::io::Error| explain(&error, identity, wanted);
    let hello = Hello {
        version: iap_tunnel::status::HELLO_VERSION,
        connect_id: sessions.connect_id(),
        login: wanted.login.clone(),
        database: wanted.database.clone(),
        resume: None,
    };
    let mut first = hello
        .encode()
        .map_err(|error| Failure::failed(error.to_string()))?;
    match &mut endpoint {
        Some(endpoint) => push_frames(endpoint, early.said(), &mut first),
        None => first.extend_from_slice(early.said()),
    }
    stream.write_all(&first).await.map_err(explain)?;
    stream.flush().await.map_err(explain)?;
    let (payload, rest) = read_frame(&mut stream).await.map_err(explain)?;
    let status = Status::decode(&payload).map_err(|error| unreadable(error.to_string()))?;
    recorder.phase("ask", mark, |_| {});
    let service = &wanted.service;
    match status {
        Status::Granted {
            session_id,
            login,
            protocol,
            resume_name,
            resume,
            trace_id,
        } => {
            let stream = match (endpoint, resume, resume_name) {
                (Some(mut endpoint), Some(offer), Some(name)) => {
                    let agent = ServerName::parse(&name, identity.home.cluster())
                        .map_err(|error| unreadable(error.to_string()))?;
                    endpoint.agree(offer.window_bytes);
                    let redial = Redial::new(Arc::clone(sessions), session_id, agent, &offer);
                    resumable_stream(stream, &rest, endpoint, redial)?
                }
                (Some(_), _, _) => {
                    return Err(unreadable("it does not say how the session goes on".to_owned()));
                }
                (None, _, _) => SessionStream::Direct(Box::new(Replay::new(rest, stream))),
            };
            Ok(Answer::Granted(Box::new(Session {
                stream,
                session_id,
                login: login.map(|login| login.as_str().to_owned()),
                protocol,
                span: SessionSpan::granted(recorder, trace_id, service, session_id),
            })))
        }
        Status::Resumed { .. } => Err(unreadable(
            "it goes on with a session that was not begun".to_owned(),
        )),
        Status::Watching { .. } => Err(unreadable("it shows another session".to_owned())),
        Status::Renew => Ok(Answer::Renew),
        Status::Denied {
            text,
            step_up: Some(needed),
            trace_id,
            ..
        } => {
            span::refused(recorder, trace_id, service, "denied");
            Ok(Answer::StepUp(needed, text))
        }
        Status::Denied {
            code,
            text,
            contact,
            session_id: _,
            step_up: None,
            trace_id,
        } => {
            span::refused(recorder, trace_id, service, "denied");
            Err(denied(&identity.peer.name, wanted, &code, text, contact))
        }
        Status::Unavailable {
            text,
            retry,
            trace_id,
        } => {
            span::refused(recorder, trace_id, service, "unavailable");
            Err(unavailable(wanted, text, retry))
        }
    }
}

fn unreadable(why: String) -> Failure {
    Failure::failed("the agent's answer cannot be read").because(why)
}

/// Lets a session begin with `bytes`, which need no more than the smallest window, and puts their frames behind `wire`.
fn push_frames(endpoint: &mut Endpoint, bytes: &[u8], wire: &mut Vec<u8>) {
    endpoint.write(bytes);
    while endpoint.has_frames() {
        let frame = endpoint.transmit().pieces.concat();
        endpoint.transmitted(frame.len());
        wire.extend(frame);
    }
}

fn resumable_stream(
    stream: Connection,
    read: &[u8],
    endpoint: Endpoint,
    redial: Redial,
) -> Result<SessionStream, Failure> {
    let resumable = Resumable::new(stream, read, endpoint, redial, Allowance::default());
    let resumable = resumable.map_err(|violation| unreadable(violation.to_string()))?;
    Ok(SessionStream::Resumable(Box::new(
        resumable.with_patience(Patience::default()),
    )))
}

async fn handshake(identity: &Identity, wanted: &Wanted, tcp: TcpStream) -> Result<Connection, Failure> {
    let config = identity
        .service_config(&[ALPN_RESUME, ALPN_IAP])
        .map_err(|error| Failure::failed(format!("{error:#}")))?;
    let host = ServerName::Service(wanted.service.clone()).host(identity.home.cluster());
    let connecting = tls::connect(tcp, &host, config, Duration::from_secs(ANSWER_SECONDS_MAX));
    connecting.await.map(connection).map_err(|error| match error {
        HandshakeError::Failed(error) => explain(&error, identity, wanted),
        HandshakeError::TimedOut { .. } | HandshakeError::Name { .. } => Failure::failed(error.to_string()),
    })
}

/// The first frame, and whatever came right behind it.
pub(super) async fn read_frame(stream: &mut Connection) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
    let mut frames = LengthPrefixed::new(FRAME_BYTES_MAX);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        frames.push(buffer.get(..count).unwrap_or_default());
        if let Some(frame) = frames.next_frame().map_err(std::io::Error::other)? {
            return Ok((frame, frames.into_rest()));
        }
    }
}

/// A denial in one sentence, with whom to ask.
fn denied(user: &str, wanted: &Wanted, code: &str, text: String, contact: Option<String>) -> Failure {
    let service = wanted.service.as_str();
    if code == LOGIN_CHOICE {
        return Failure::usage(text).next(format!("iapctl connect {service} --login LOGIN"));
    }
    let whom = contact
        .filter(|contact| !contact.is_empty())
        .unwrap_or_else(|| "your operator".to_owned());
    let next = if code == DENIED_BY_POLICY {
        format!("ask {whom}, who can see why with: iapctl policy explain {user} {service}")
    } else {
        format!("ask {whom}")
    };
    Failure::denied(text).next(next)
}

fn unavailable(wanted: &Wanted, text: String, retry: bool) -> Failure {
    let failure = Failure::failed(format!("'{}' is not available", wanted.service.as_str())).because(text);
    if retry {
        failure.next("try again in a moment")
    } else {
        failure
    }
}

/// What TLS says, in words.
fn explain(error: &std::io::Error, identity: &Identity, wanted: &Wanted) -> Failure {
    let service = wanted.service.as_str();
    match crate::api::causes(error).find_map(crate::api::tls_error) {
        Some(rustls::Error::AlertReceived(alert)) => explain_alert(*alert, identity, wanted),
        Some(rustls::Error::InvalidCertificate(why)) => {
            let now = time::OffsetDateTime::now_utc();
            clock::server_out_of_time(why, &format!("'{service}'"), now).unwrap_or_else(|| {
                Failure::failed(format!(
                    "whatever answered for '{service}' could not prove to be it"
                ))
                .because(format!("{why}"))
                .next("tell your operator; nothing was sent")
            })
        }
        Some(other) => {
            Failure::failed(format!("the TLS connection to '{service}' failed")).because(other.to_string())
        }
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => absent(identity, wanted),
        None => Failure::failed(format!("the connection to '{service}' failed")).because(error.to_string()),
    }
}

fn explain_alert(alert: AlertDescription, identity: &Identity, wanted: &Wanted) -> Failure {
    let service = wanted.service.as_str();
    let user = &identity.peer.name;
    match alert {
        AlertDescription::AccessDenied => Failure::denied(format!("{user} may not reach '{service}'"))
            .next(format!("iapctl policy explain {user} {service}")),
        AlertDescription::CertificateRevoked => {
            Failure::denied(format!("{user} is locked out")).next("ask your operator")
        }
        AlertDescription::CertificateExpired => {
            let now = time::OffsetDateTime::now_utc();
            clock::expired_elsewhere(&format!("'{service}'"), identity.peer.not_after, now)
                .unwrap_or_else(|| Failure::login_needed("your login has expired").next("iapctl login"))
        }
        AlertDescription::UnknownCA | AlertDescription::BadCertificate => {
            Failure::login_needed(format!("'{service}' does not accept this login")).next("iapctl login")
        }
        AlertDescription::UnrecognisedName => absent(identity, wanted),
        AlertDescription::InternalError => Failure::failed(format!("'{service}' is not available"))
            .because("no agent took the connection")
            .next("try again in a moment"),
        other => Failure::failed(format!("'{service}' refused the connection"))
            .because(format!("TLS alert {other:?}")),
    }
}

/// Nobody serves the name: for a service on the user's list that is an outage, else a mistyped name.
fn absent(identity: &Identity, wanted: &Wanted) -> Failure {
    let service = wanted.service.as_str();
    let known = identity
        .home
        .services()
        .is_ok_and(|services| services.iter().any(|known| known.name == service));
    if known {
        Failure::failed(format!("'{service}' is not available"))
            .because("no agent serves it now")
            .next("try again in a moment")
    } else {
        Failure::usage(format!("there is no service '{service}'"))
            .because("no agent serves that name")
            .next("iapctl ls")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use iap_identity::ServiceName;

    fn wanted() -> Wanted {
        Wanted {
            service: ServiceName::parse("db-prod").unwrap(),
            login: None,
            database: None,
        }
    }

    #[test]
    fn a_denial_names_whom_to_ask() {
        let failure = denied(
            "bob@example.com",
            &wanted(),
            DENIED_BY_POLICY,
            "bob may not.".to_owned(),
            Some("dba@example.com".to_owned()),
        );
        assert_eq!(failure.status().code(), 3);
        let said = format!("{failure:?}");
        assert!(said.contains("ask dba@example.com"), "{said}");
        assert!(
            said.contains("iapctl policy explain bob@example.com db-prod"),
            "{said}"
        );
    }

    #[test]
    fn a_choice_of_logins_is_bad_input_and_not_a_denial() {
        let failure = denied(
            "bob@example.com",
            &wanted(),
            LOGIN_CHOICE,
            "several logins: a, b".to_owned(),
            None,
        );
        assert_eq!(failure.status().code(), 2);
    }

    #[test]
    fn an_unavailable_service_is_our_failure() {
        assert_eq!(unavailable(&wanted(), "down".to_owned(), true).status().code(), 1);
    }
}
