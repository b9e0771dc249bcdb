//! A TLS connection that works in few large steps, and holds no buffers while nothing moves.
//!
//! rustls shakes hands. Records are opened and sealed here, in buffers from a pool that go back
//! as soon as they are empty: from where they arrived into their reader's memory, and from their writer's into what is sent,
//! without a copy in between.

mod keys;
mod negotiated;
mod received;
mod schedule;
mod sending;
mod session;
mod shake;

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{AlertDescription, ClientConfig, Error, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffers::Pool;
use keys::{FRAGMENT_BYTES_MAX, PROTECTION_BYTES, TYPE_BYTES, opened_bytes};
pub use negotiated::Negotiated;
use received::Received;
use schedule::TrafficSecrets;
use sending::Sending;
use session::{Fault, Opened, Session, record_bytes};
use shake::{Connection, Shaking};

/// Room for so many records of the largest size, and a small one beside them.
const fn room_for(records: usize) -> usize {
    records * (FRAGMENT_BYTES_MAX + PROTECTION_BYTES) + 1024
}

/// Records that are opened or sealed at once, at first and where much is moving.
const RECORDS: usize = 4;
const RECORDS_BUSY: usize = 16;
/// So many buffers of the larger size there are at once. Whoever finds none has one of the smaller.
const LARGE_BUFFERS_MAX: usize = 64;
/// More than this many unused ones are given back to the allocator.
const UNUSED_BUFFERS_MAX: usize = 64;
/// So many records with nothing for the application are looked at before others have their turn.
const EMPTY_HANDED_MAX: usize = 64;

static BUFFERS: Pool = Pool::new(
    room_for(RECORDS),
    UNUSED_BUFFERS_MAX,
    room_for(RECORDS_BUSY),
    LARGE_BUFFERS_MAX,
);

/// One end of an established connection.
pub struct TlsStream<S> {
    io: S,
    session: Box<Session>,
    negotiated: Box<Negotiated>,
    received: Received,
    sending: Sending,
    /// Whether the peer has said that nothing more comes.
    is_read_closed: bool,
    /// Whether the peer was told so, or of an error.
    is_write_closed: bool,
    /// What was wrong: nothing is opened or sealed any more.
    failure: Option<Box<Error>>,
}

/// It holds keys.
impl<S: fmt::Debug> fmt::Debug for TlsStream<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TlsStream")
            .field("io", &self.io)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl<S> TlsStream<S> {
    /// The stream below, and what was negotiated.
    pub fn get_ref(&self) -> (&S, &Negotiated) {
        (&self.io, &self.negotiated)
    }

    /// The stream below. What is read from it or written to it is lost to the connection.
    pub fn io_mut(&mut self) -> &mut S {
        &mut self.io
    }

    /// Lets go of the peer's certificates, for who has looked at them and keeps the connection for hours.
    pub fn forget_certificates(&mut self) {
        self.negotiated.forget_certificates();
    }

    fn new(io: S, session: Session, negotiated: Negotiated, received: Received, sending: Sending) -> Self {
        Self {
            io,
            session: Box::new(session),
            negotiated: Box::new(negotiated),
            received,
            sending,
            is_read_closed: false,
            is_write_closed: false,
            failure: None,
        }
    }

    /// Whether it takes no more than its own size and that of its keys.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.received.is_empty() && self.sending.is_empty()
    }

    #[cfg(test)]
    pub(super) fn change_keys_after(&mut self, records: u64) {
        self.session.change_keys_after(records);
    }

    fn check(&self) -> io::Result<()> {
        match &self.failure {
            Some(error) => Err(invalid(Error::clone(error))),
            None => Ok(()),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Answers a client. What is left of the connection comes back with an error, its alert sent.
    pub(super) async fn accept(io: S, config: Arc<ServerConfig>) -> Result<Self, (io::Error, S)> {
        let secrets = Arc::new(TrafficSecrets::default());
        let mut config = ServerConfig::clone(&config);
        config.key_log = Arc::clone(&secrets) as _;
        match UnbufferedServerConnection::new(Arc::new(config)) {
            Ok(connection) => Self::establish(io, Connection::Server(Box::new(connection)), secrets).await,
            Err(error) => Err((invalid(error), io)),
        }
    }

    /// Connects as a client that asks for `name`.
    pub(super) async fn connect(
        io: S,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, (io::Error, S)> {
        let secrets = Arc::new(TrafficSecrets::default());
        let mut config = ClientConfig::clone(&config);
        config.key_log = Arc::clone(&secrets) as _;
        match UnbufferedClientConnection::new(Arc::new(config), name) {
            Ok(connection) => Self::establish(io, Connection::Client(Box::new(connection)), secrets).await,
            Err(error) => Err((invalid(error), io)),
        }
    }

    async fn establish(
        io: S,
        connection: Connection,
        secrets: Arc<TrafficSecrets>,
    ) -> Result<Self, (io::Error, S)> {
        let mut shaking = Shaking::new(io, connection, secrets);
        match poll_fn(|context| shaking.poll(context)).await {
            Ok(()) => shaking.into_stream(),
            Err(error) => Err((error, shaking.io)),
        }
    }

    /// Opens what has arrived, as far as `target` has room, one record at least where there is one. Ready without a byte when
    /// more has to arrive, or the peer has closed.
    fn poll_open(&mut self, context: &mut Context<'_>, target: &mut ReadBuf<'_>) -> Poll<Result<(), Fault>> {
        let had = target.filled().len();
        let mut empty_handed = 0;
        // Nothing is answered any more by whoever has said that nothing more comes.
        let mut unsaid = Vec::new();
        while !self.is_read_closed {
            let arrived = self.received.filled();
            let Some(length) = record_bytes(arrived)? else {
                break;
            };
            let Some(record) = arrived.get_mut(..length) else {
                break;
            };
            // Where the content fits and its type does not, it is opened in its place and copied: the target is full then.
            let content = opened_bytes(length).map_or(0, |bytes| bytes.saturating_sub(TYPE_BYTES));
            if content > target.remaining() && target.filled().len() > had {
                break;
            }
            let space = target.initialize_unfilled();
            let answer = match self.is_write_closed {
                true => &mut unsaid,
                false => self.sending.messages(),
            };
            match self.session.open(record, space, answer)? {
                Opened::Into(bytes) => {
                    target.advance(bytes);
                    self.received.discard(length);
                }
                Opened::InPlace(place) => {
                    self.received.opened(length, place);
                    self.received.give(target);
                    break;
                }
                Opened::Nothing => {
                    self.received.discard(length);
                    empty_handed += 1;
                }
                Opened::Closed => {
                    self.is_read_closed = true;
                    // What follows does not count (RFC 8446 §6.1).
                    self.received.forget();
                }
            }
            if empty_handed == EMPTY_HANDED_MAX {
                if target.filled().len() > had {
                    break;
                }
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Tries to send the alert that says what was wrong.
    fn fail(&mut self, context: &mut Context<'_>, fault: Fault) {
        if let Some(alert) = fault.alert
            && !self.is_write_closed
        {
            let _ = self.session.seal_alert(alert, self.sending.messages());
        }
        self.is_write_closed = true;
        self.failure = Some(Box::new(fault.error));
        self.received.forget();
        let _ = self.poll_send(context);
    }

    /// Sends everything that was sealed.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.sending.poll_drain(&mut self.io, context))?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_write_pieces(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        if self.is_write_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.sending.poll_drain(&mut self.io, context))?;
        let wanted = pieces
            .iter()
            .fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let session = &mut self.session;
        let sealed = self.sending.fill(wanted, |space| session.seal(pieces, space));
        let taken = match sealed {
            Ok(taken) => taken,
            Err(error) => {
                self.is_write_closed = true;
                self.failure = Some(Box::new(error.clone()));
                return Poll::Ready(Err(invalid(error)));
            }
        };
        // What does not leave now leaves before anything else does.
        match self.sending.poll_drain(&mut self.io, context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let had = target.filled().len();
        if target.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            this.received.give(target);
            if target.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let must_yield = match this.failure {
                None => match this.poll_open(context, target) {
                    Poll::Ready(Ok(())) => false,
                    Poll::Ready(Err(fault)) => {
                        this.fail(context, fault);
                        false
                    }
                    Poll::Pending => true,
                },
                Some(_) => false,
            };
            // What came before an error is given first.
            if target.filled().len() > had {
                return Poll::Ready(Ok(()));
            }
            this.check()?;
            if must_yield {
                return Poll::Pending;
            }
            if this.is_read_closed {
                return Poll::Ready(Ok(()));
            }
            if ready!(this.received.poll_fill(&mut this.io, context))? == 0 {
                let what = "peer closed connection without sending TLS close_notify";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, what)));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_pieces(context, &[IoSlice::new(bytes)])
    }

    /// Pieces that are smaller than a record share one.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_pieces(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_write_closed {
            this.is_write_closed = true;
            let sealed = this
                .session
                .seal_alert(AlertDescription::CloseNotify, this.sending.messages());
            sealed.map_err(io::Error::other)?;
        }
        ready!(this.sending.poll_drain(&mut this.io, context))?;
        match ready!(Pin::new(&mut this.io).poll_shutdown(context)) {
            // It has gone already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            other => Poll::Ready(other),
        }
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
