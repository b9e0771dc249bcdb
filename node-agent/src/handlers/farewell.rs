//! The last words to a client that knows nothing of `iap/1`, in its own protocol where that has any.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use iap_audit::CloseReason;
use iap_identity::{ServiceName, SessionId};
use iap_tunnel::fatal::{SQLSTATE_DENIED, SQLSTATE_ENDED, SQLSTATE_UNAVAILABLE};
use iap_tunnel::{Boundaries, Fatal, StartupMachine, StartupStep};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::postgres::Tap;
use crate::decide::Refusal;
use crate::session::Ending;

/// A startup message is read in pieces of this size.
const PIECE_BYTES: usize = 1024;

/// Somebody who may not, for a PostgreSQL client.
pub(crate) fn denied(
    refusal: &Refusal,
    session: SessionId,
    user: &str,
    service: &ServiceName,
    contact: Option<&str>,
) -> Fatal {
    let whom = contact.unwrap_or("your operator");
    let step_up = refusal.step_up();
    let hint = match refusal {
        Refusal::Denied(_) if step_up.is_some() => {
            let command = step_up.unwrap_or_default().command();
            format!("Log in with: {command}")
        }
        Refusal::Denied(_) if refusal.wants_renewal() => {
            "Renew the certificate with: iapctl login".to_owned()
        }
        Refusal::Denied(_) | Refusal::Ceiling(_) | Refusal::NotServed => {
            format!("Ask {whom}, who can see why with: iapctl policy explain {user} {service}")
        }
        Refusal::Locked(_) | Refusal::Killed(_) => format!("Ask {whom}."),
        Refusal::Outage(_) => "Try again in a moment.".to_owned(),
    };
    Fatal {
        sqlstate: match refusal {
            Refusal::Outage(_) => SQLSTATE_UNAVAILABLE,
            Refusal::Locked(_)
            | Refusal::Killed(_)
            | Refusal::NotServed
            | Refusal::Denied(_)
            | Refusal::Ceiling(_) => SQLSTATE_DENIED,
        },
        message: refusal.text(),
        detail: Some(format!("Session {session}.")),
        hint: Some(hint),
    }
}

/// The same in one breath, for protocols with room for one text.
pub(crate) fn in_one(fatal: Fatal) -> String {
    let message = super::ssh::sentence(&fatal.message);
    let message = message.trim_end_matches('.');
    let rest = [fatal.detail, fatal.hint].into_iter().flatten();
    rest.fold(format!("{message}."), |text, next| format!("{text} {next}"))
}

/// Nobody's fault who asks.
pub(crate) fn unavailable(text: &str, session: SessionId) -> Fatal {
    Fatal {
        sqlstate: SQLSTATE_UNAVAILABLE,
        message: text.to_owned(),
        detail: Some(format!("Session {session}.")),
        hint: None,
    }
}

/// A live session that is ended by order; nothing where the client or the backend ended it.
pub(crate) fn ended(
    ending: &Ending,
    session: SessionId,
    service: &ServiceName,
    contact: &str,
) -> Option<Fatal> {
    let message = sentence(ending.reason, service)?;
    let hint = match ending.reason {
        CloseReason::LoginDeadline => "Log in again with: iapctl login".to_owned(),
        CloseReason::Shutdown => "Connect again.".to_owned(),
        _ if contact.is_empty() => "Ask your operator.".to_owned(),
        _ => format!("Ask {contact}."),
    };
    Some(Fatal {
        sqlstate: SQLSTATE_ENDED,
        message,
        detail: Some(format!("Session {session}.")),
        hint: Some(hint),
    })
}

/// Why a session ended, as whoever sat in it reads it. Rules and locks are named to auditors alone.
fn sentence(reason: CloseReason, service: &ServiceName) -> Option<String> {
    Some(match reason {
        CloseReason::Policy => format!("Policy no longer allows this session to {service}."),
        CloseReason::Lock => "Access is locked.".to_owned(),
        CloseReason::Killed => "An administrator ended this session.".to_owned(),
        CloseReason::SessionLimit => "This session has lasted as long as policy allows.".to_owned(),
        CloseReason::IdleLimit => "This session was idle for longer than policy allows.".to_owned(),
        CloseReason::LoginDeadline => "The login that this session belongs to has ended.".to_owned(),
        CloseReason::FeedTooOld => {
            "The auth server has been out of reach for longer than sessions may go on without it.".to_owned()
        }
        CloseReason::SnapshotTooOld => "The rules are older than sessions may go on with.".to_owned(),
        CloseReason::AuditUnavailable => "The agent cannot write audit records.".to_owned(),
        CloseReason::Protocol => {
            format!("What was sent cannot be followed, and statements to {service} are recorded.")
        }
        CloseReason::ServiceRemoved => format!("{service} is no longer served here."),
        CloseReason::Shutdown => "The agent is stopping.".to_owned(),
        CloseReason::ClientClosed
        | CloseReason::BackendClosed
        | CloseReason::ClientLost
        | CloseReason::BackendLost
        | CloseReason::BackendRefused
        | CloseReason::BackendTimeout
        | CloseReason::BackendUnreachable
        | CloseReason::AgentLost
        | CloseReason::InternalError => return None,
    })
}

/// Reads a PostgreSQL client's startup message, answers it with the last words and closes. A client that says
/// something else, or nothing within `patience`, is only closed.
pub(crate) async fn tell_postgres<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    fatal: &Fatal,
    patience: Duration,
) {
    let telling = async {
        read_startup(stream).await?;
        stream.write_all(&fatal.encode()).await?;
        stream.flush().await
    };
    match tokio::time::timeout(patience, telling).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a PostgreSQL client was not told why"),
        Err(_elapsed) => tracing::debug!("a PostgreSQL client said nothing in time"),
    }
    let _ = tokio::time::timeout(patience, stream.shutdown()).await;
}

async fn read_startup<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    let mut machine = StartupMachine::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = stream.read(&mut piece).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let arrived = piece.get(..count).unwrap_or_default();
        match machine.push(arrived).map_err(io::Error::other)? {
            StartupStep::NeedMore => {}
            StartupStep::Started => return Ok(()),
            StartupStep::RefuseEncryption => {
                stream.write_all(b"N").await?;
                stream.flush().await?;
            }
        }
    }
}

/// A client's stream that knows, while a PostgreSQL backend is delivered to it, whether last words would come
/// between two messages.
#[derive(Debug)]
pub(crate) struct Delivered<S> {
    stream: S,
    boundaries: Option<Boundaries>,
    /// Who looks at what passes, in a session that is inspected.
    tap: Option<Box<Tap>>,
    /// A PostgreSQL backend has closed: its protocol knows no half of a connection, and nobody is left to hear the client.
    is_over: bool,
}

impl<S: AsyncWrite + Unpin> Delivered<S> {
    /// Follows on from `boundaries`; without them nothing is followed and nothing said.
    pub(crate) fn new(stream: S, boundaries: Option<Boundaries>) -> Self {
        Self {
            stream,
            boundaries,
            tap: None,
            is_over: false,
        }
    }

    /// The same, looked at as it passes.
    pub(crate) fn tapped(self, tap: Tap) -> Self {
        Self {
            tap: Some(Box::new(tap)),
            ..self
        }
    }

    /// Whether somebody looks at what passes.
    pub(crate) fn is_tapped(&self) -> bool {
        self.tap.is_some()
    }

    /// The stream below.
    pub(crate) fn inner(&self) -> &S {
        &self.stream
    }

    /// How far it has followed.
    pub(crate) fn boundaries(&self) -> Option<Boundaries> {
        self.boundaries
    }

    /// The stream below.
    pub(crate) fn inner_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Says the last words where they can be understood.
    pub(crate) async fn say(&mut self, fatal: &Fatal) {
        if !self.boundaries.is_some_and(|boundaries| boundaries.is_between()) {
            return;
        }
        // Whoever has gone does not hear it.
        if self.stream.write_all(&fatal.encode()).await.is_ok() {
            let _ = self.stream.flush().await;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Delivered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.is_over {
            return Poll::Ready(Ok(()));
        }
        let Some(tap) = &mut this.tap else {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        };
        ready!(tap.poll_takes_more(context));
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        if tap.client_sent(read).is_err() {
            // Not a byte of it goes on; the order to end the session is given.
            buffer.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Delivered<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        let bytes = bytes.get(..written).unwrap_or_default();
        if let Some(boundaries) = &mut this.boundaries {
            boundaries.push(bytes);
        }
        if let Some(tap) = &mut this.tap {
            tap.backend_sent(bytes);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        if this.boundaries.is_some() && !std::mem::replace(&mut this.is_over, true) {
            // Whoever reads of it in the same task has done so before.
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }
}
