//! The handshake, by rustls, up to the moment from which on its keys are ours.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{CommonState, Error};
use tokio::io::{AsyncRead, AsyncWrite};

use super::keys::HEADER_BYTES;
use super::negotiated::Negotiated;
use super::received::Received;
use super::schedule::{End, Schedule, TrafficSecrets};
use super::sending::Sending;
use super::session::Session;
use super::{TlsStream, invalid};

pub(super) enum Connection {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// A handshake under way.
pub(super) struct Shaking<S> {
    pub(super) io: S,
    connection: Connection,
    /// Where rustls puts what the connection's next keys will be made from.
    secrets: Arc<TrafficSecrets>,
    received: Received,
    /// Up to here rustls is shown what arrives: one record after the other, so that it opens none behind those of the
    /// handshake.
    shown: usize,
    sending: Sending,
}

/// What rustls made of what it was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Something; there may be more.
    Some,
    /// Nothing comes of it before it is shown more.
    NeedsMore,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Shaking<S> {
    pub(super) fn new(io: S, connection: Connection, secrets: Arc<TrafficSecrets>) -> Self {
        Self {
            io,
            connection,
            secrets,
            received: Received::default(),
            shown: 0,
            sending: Sending::default(),
        }
    }

    /// Until it is over on this side, and everything has left that it has to say.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.process() {
                Ok(Progress::Some) => continue,
                Ok(Progress::NeedsMore) => {}
                Err(error) => return Poll::Ready(Err(self.fail(context, error))),
            }
            if !self.connection.common().is_handshaking() {
                return self.poll_send(context);
            }
            if self.show_next() {
                continue;
            }
            ready!(self.poll_send(context))?;
            if ready!(self.received.poll_fill(&mut self.io, context))? == 0 {
                let error = io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof");
                return Poll::Ready(Err(error));
            }
        }
    }

    /// Shows rustls the next record, as much of it as there is. Whether there is one.
    fn show_next(&mut self) -> bool {
        let behind = self.received.filled().get(self.shown..).unwrap_or_default();
        let &[_, _, _, high, low, ..] = behind else {
            return false;
        };
        self.shown += HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
        true
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.sending.poll_drain(&mut self.io, context))?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    /// Takes rustls one step further.
    fn process(&mut self) -> Result<Progress, Error> {
        let filled = self.received.filled();
        let shown = filled.len().min(self.shown);
        let shown = filled.get_mut(..shown).unwrap_or_default();
        let (discard, progress) = match &mut self.connection {
            Connection::Client(connection) => step(connection.process_tls_records(shown), &mut self.sending),
            Connection::Server(connection) => step(connection.process_tls_records(shown), &mut self.sending),
        };
        self.received.discard(discard);
        self.shown = self.shown.saturating_sub(discard);
        progress
    }

    /// Tries to send the alert that says what was wrong; the error is what counts.
    fn fail(&mut self, context: &mut Context<'_>, error: Error) -> io::Error {
        // Each step takes one message off those that rustls wants sent. Beyond these it would go on with what failed.
        while self.connection.common().wants_write() && self.process().is_ok() {}
        let _ = self.poll_send(context);
        invalid(error)
    }

    /// The connection that it led to.
    pub(super) fn into_stream(self) -> Result<TlsStream<S>, (io::Error, S)> {
        let Self {
            io,
            connection,
            secrets,
            received,
            sending,
            ..
        } = self;
        match connection.into_session(&secrets) {
            Ok((session, negotiated)) => Ok(TlsStream::new(io, session, negotiated, received, sending)),
            Err(error) => Err((invalid(error), io)),
        }
    }
}

impl Connection {
    fn common(&self) -> &CommonState {
        match self {
            Self::Client(connection) => connection,
            Self::Server(connection) => connection,
        }
    }

    fn into_session(self, secrets: &TrafficSecrets) -> Result<(Session, Negotiated), Error> {
        let negotiated = Negotiated::of(self.common());
        let suite = negotiated.negotiated_cipher_suite();
        let suite = suite.ok_or(Error::HandshakeNotComplete)?;
        let (end, keys) = match self {
            Self::Client(connection) => (End::Client, connection.dangerous_into_kernel_connection()?.0),
            Self::Server(connection) => (End::Server, connection.dangerous_into_kernel_connection()?.0),
        };
        let schedule = Schedule::new(end, suite, secrets)?;
        Ok((Session::new(end, keys, schedule)?, negotiated))
    }
}

/// Handles one state of rustls; returns how much of what it was shown is done with.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    sending: &mut Sending,
) -> (usize, Result<Progress, Error>) {
    let UnbufferedStatus { discard, state } = status;
    let progress = state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(mut message) => {
            sending.push(|space| message.encode(space));
            Ok(Progress::Some)
        }
        // Everything is sent in the order in which it was encrypted.
        ConnectionState::TransmitTlsData(message) => {
            message.done();
            Ok(Progress::Some)
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Ok(Progress::NeedsMore),
        // No configuration of ours allows early data, and what is behind the handshake is not shown.
        _ => Err(Error::General("more than a handshake".to_owned())),
    });
    (discard, progress)
}
