//! A TLS connection that holds no buffers while nothing moves.
//!
//! rustls comes in two forms. The usual one keeps what arrives in a buffer of its own, 4 KiB for as long as the
//! connection lasts; the one used here works in its caller's. Those come from a pool and go back as soon as they are
//! empty, so that thousands of sessions at rest have none.

mod received;
mod sending;

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffers::Pool;
use received::Received;
use sending::Sending;

/// The most plaintext in one record (RFC 8446 §5.1).
const FRAGMENT_BYTES_MAX: usize = 16 * 1024;
/// The most that its protection adds: a header, the content type and a tag (RFC 8446 §5.2).
const PROTECTION_BYTES: usize = 5 + 1 + 16;
/// Records that are encrypted or decrypted at once.
const RECORDS: usize = 4;
/// As many records of the largest size, and a small one beside them.
const BUFFER_BYTES: usize = RECORDS * (FRAGMENT_BYTES_MAX + PROTECTION_BYTES) + 1024;
/// More than this many unused ones are given back to the allocator.
const UNUSED_BUFFERS_MAX: usize = 64;
/// A close_notify alert is a record of a few bytes.
const CLOSE_NOTIFY_BYTES: usize = 64;

static BUFFERS: Pool = Pool::new(BUFFER_BYTES, UNUSED_BUFFERS_MAX);

/// One end of an established connection.
#[derive(Debug)]
pub struct TlsStream<S> {
    io: S,
    connection: Box<Connection>,
    /// What has arrived and is not decrypted.
    received: Received,
    /// What is decrypted and was not asked for yet.
    plain: Plain,
    /// What is encrypted and has not left.
    sending: Sending,
    /// Whether the peer has said that nothing more comes.
    is_read_closed: bool,
    /// Whether the peer was told so, or of an error.
    is_write_closed: bool,
    /// What was wrong: rustls must not be asked to go on.
    failure: Option<Error>,
}

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// It holds keys.
impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Client(_) => "Client",
            Self::Server(_) => "Server",
        })
    }
}

#[derive(Debug, Default)]
struct Plain {
    bytes: Vec<u8>,
    given: usize,
}

/// What rustls made of what has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Something; there may be more.
    Some,
    /// Nothing comes of it before more arrives.
    NeedsMore,
    /// The peer has closed its direction.
    PeerClosed,
}

/// What is to be written.
enum Order<'a> {
    Bytes(&'a [u8]),
    CloseNotify,
}

impl<S> TlsStream<S> {
    /// The stream below, and what was negotiated.
    pub fn get_ref(&self) -> (&S, &CommonState) {
        (&self.io, self.connection.common())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Answers a client. What is left of the connection comes back with an error, its alert sent.
    pub(super) async fn accept(io: S, config: Arc<ServerConfig>) -> Result<Self, (io::Error, S)> {
        match UnbufferedServerConnection::new(config) {
            Ok(connection) => Self::establish(io, Connection::Server(connection)).await,
            Err(error) => Err((invalid(error), io)),
        }
    }

    /// Connects as a client that asks for `name`.
    pub(super) async fn connect(
        io: S,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, (io::Error, S)> {
        match UnbufferedClientConnection::new(config, name) {
            Ok(connection) => Self::establish(io, Connection::Client(connection)).await,
            Err(error) => Err((invalid(error), io)),
        }
    }

    /// The stream below. What is read from it or written to it is lost to the connection.
    pub fn io_mut(&mut self) -> &mut S {
        &mut self.io
    }

    /// Whether it takes no more than its own size and that of its keys.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.received.is_empty() && self.plain.is_empty() && self.sending.is_empty()
    }

    async fn establish(io: S, connection: Connection) -> Result<Self, (io::Error, S)> {
        let mut stream = Self {
            io,
            connection: Box::new(connection),
            received: Received::default(),
            plain: Plain::default(),
            sending: Sending::default(),
            is_read_closed: false,
            is_write_closed: false,
            failure: None,
        };
        match poll_fn(|context| stream.poll_handshake(context)).await {
            Ok(()) => Ok(stream),
            Err(error) => Err((error, stream.io)),
        }
    }

    fn poll_handshake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let progress = match self.process(None) {
                Ok(progress) => progress,
                Err(error) => return Poll::Ready(Err(self.fail(context, error))),
            };
            if progress == Progress::Some {
                continue;
            }
            ready!(self.poll_send(context))?;
            if !self.connection.common().is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if progress == Progress::PeerClosed
                || ready!(self.received.poll_fill(&mut self.io, context))? == 0
            {
                let error = io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof");
                return Poll::Ready(Err(error));
            }
        }
    }

    /// Sends everything encrypted so far.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.sending.poll_drain(&mut self.io, context))?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    /// Takes rustls one step further. What it decrypts goes to `target` as far as that has room.
    fn process(&mut self, target: Option<&mut ReadBuf<'_>>) -> Result<Progress, Error> {
        let (plain, sending) = (&mut self.plain, &mut self.sending);
        let (discard, progress) = match &mut *self.connection {
            Connection::Client(connection) => step(
                connection.process_tls_records(self.received.filled()),
                plain,
                target,
                sending,
            ),
            Connection::Server(connection) => step(
                connection.process_tls_records(self.received.filled()),
                plain,
                target,
                sending,
            ),
        };
        self.received.discard(discard);
        if progress == Ok(Progress::PeerClosed) {
            self.is_read_closed = true;
            // What follows a close_notify does not count (RFC 8446 §6.1).
            self.received = Received::default();
        }
        progress
    }

    /// Tries to send the alert that says what was wrong; the error is what counts.
    fn fail(&mut self, context: &mut Context<'_>, error: Error) -> io::Error {
        self.is_write_closed = true;
        self.failure = Some(error.clone());
        // Each step takes one message off those that rustls wants sent. Beyond these it would go on with what failed.
        while self.connection.common().wants_write() && self.process(None).is_ok() {}
        let _ = self.poll_send(context);
        invalid(error)
    }

    /// Decrypts what has arrived, a record at least where there is one, and as many more as surely fit.
    fn decrypt(&mut self, target: &mut ReadBuf<'_>) -> Result<(), Error> {
        let had = target.filled().len();
        while !self.is_read_closed && !self.received.is_empty() {
            if self.process(Some(target))? == Progress::NeedsMore {
                break;
            }
            let got = target.filled().len() - had;
            if !self.plain.is_empty() || (got > 0 && target.remaining() < FRAGMENT_BYTES_MAX) {
                break;
            }
        }
        Ok(())
    }

    /// Makes way for an order: what has arrived comes first for rustls, whether or not somebody asks for it, and
    /// records leave in the order of their encryption.
    fn poll_make_way(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.failure.is_none() {
            match self.process(None) {
                Ok(Progress::Some) => {}
                Ok(Progress::NeedsMore | Progress::PeerClosed) => break,
                Err(error) => return Poll::Ready(Err(self.fail(context, error))),
            }
        }
        self.sending.poll_drain(&mut self.io, context)
    }

    /// Encrypts as much of the order as one buffer takes, once there is way for it.
    fn encrypt(&mut self, order: &Order<'_>) -> io::Result<usize> {
        let sending = &mut self.sending;
        let (discard, encrypted) = match &mut *self.connection {
            Connection::Client(connection) => encrypt(
                connection.process_tls_records(self.received.filled()),
                order,
                sending,
            ),
            Connection::Server(connection) => encrypt(
                connection.process_tls_records(self.received.filled()),
                order,
                sending,
            ),
        };
        self.received.discard(discard);
        encrypted
    }
}

impl Connection {
    fn common(&self) -> &CommonState {
        match self {
            Self::Client(connection) => connection,
            Self::Server(connection) => connection,
        }
    }
}

/// Handles one state of rustls; returns how much of what arrived is done with.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &mut Plain,
    mut target: Option<&mut ReadBuf<'_>>,
    sending: &mut Sending,
) -> (usize, Result<Progress, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let state = match state {
        Ok(state) => state,
        Err(error) => return (discard, Err(error)),
    };
    let progress = match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        plain.take(record.payload, target.as_deref_mut());
                    }
                    Err(error) => return (discard, Err(error)),
                }
            }
            Ok(Progress::Some)
        }
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
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Progress::PeerClosed),
        // No configuration of ours allows early data.
        ConnectionState::ReadEarlyData(_) => Err(Error::General("early data".to_owned())),
        _ => Err(Error::General("an unknown state".to_owned())),
    };
    (discard, progress)
}

/// Encrypts, in the one state in which that can be done.
fn encrypt<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    order: &Order<'_>,
    sending: &mut Sending,
) -> (usize, io::Result<usize>) {
    let encrypted = match (status.state, order) {
        (Ok(ConnectionState::WriteTraffic(mut traffic)), Order::Bytes(bytes)) => {
            let bytes = bytes.get(..RECORDS * FRAGMENT_BYTES_MAX).unwrap_or(bytes);
            let filled = sending.fill(|space| traffic.encrypt(bytes, space));
            filled.map(|()| bytes.len())
        }
        (Ok(ConnectionState::WriteTraffic(mut traffic)), Order::CloseNotify) => {
            let mut alert = [0; CLOSE_NOTIFY_BYTES];
            let length = traffic.queue_close_notify(&mut alert);
            let length = length.map_err(io::Error::other);
            length.map(|length| {
                sending.append(alert.get(..length).unwrap_or_default());
                0
            })
        }
        (Ok(_), _) => Err(io::ErrorKind::NotConnected.into()),
        (Err(error), _) => Err(invalid(error)),
    };
    (status.discard, encrypted)
}

impl Plain {
    fn is_empty(&self) -> bool {
        self.given == self.bytes.len()
    }

    /// Gives to `target` what fits, and keeps the rest.
    fn take(&mut self, payload: &[u8], target: Option<&mut ReadBuf<'_>>) {
        let fits = match &target {
            Some(target) if self.is_empty() => payload.len().min(target.remaining()),
            Some(_) | None => 0,
        };
        let (now, later) = payload.split_at(fits);
        if let Some(target) = target {
            target.put_slice(now);
        }
        self.bytes.extend_from_slice(later);
    }

    fn give(&mut self, target: &mut ReadBuf<'_>) {
        let rest = self.bytes.get(self.given..).unwrap_or_default();
        let fits = rest.len().min(target.remaining());
        target.put_slice(rest.get(..fits).unwrap_or_default());
        self.given += fits;
        if self.is_empty() {
            *self = Self::default();
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
        loop {
            this.plain.give(target);
            if target.filled().len() > had || target.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = &this.failure {
                return Poll::Ready(Err(invalid(error.clone())));
            }
            if let Err(error) = this.decrypt(target) {
                let error = this.fail(context, error);
                // What came before it is given first.
                return match target.filled().len() > had || !this.plain.is_empty() {
                    true => continue,
                    false => Poll::Ready(Err(error)),
                };
            }
            if target.filled().len() > had || this.is_read_closed {
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
        let this = self.get_mut();
        ready!(this.poll_make_way(context))?;
        if let Some(error) = &this.failure {
            return Poll::Ready(Err(invalid(error.clone())));
        }
        if this.is_write_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let taken = this.encrypt(&Order::Bytes(bytes))?;
        // What does not leave now leaves before anything else does.
        match this.sending.poll_drain(&mut this.io, context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    /// Pieces that are smaller than a record share one.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut together = BUFFERS.take();
        let mut length = 0;
        for piece in pieces {
            let room = together
                .get_mut(length..RECORDS * FRAGMENT_BYTES_MAX)
                .unwrap_or_default();
            let taken = piece.len().min(room.len());
            for (place, byte) in room.iter_mut().zip(piece.iter().take(taken)) {
                *place = *byte;
            }
            length += taken;
        }
        self.poll_write(context, together.get(..length).unwrap_or_default())
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
            ready!(this.poll_make_way(context))?;
            this.is_write_closed = true;
            this.encrypt(&Order::CloseNotify)?;
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
