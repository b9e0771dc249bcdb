//! A stream of bytes that goes on over another connection when one is lost: [`iap_tunnel::resume`] with sockets and clocks.
//!
//! To whoever reads and writes it, a lost connection is silence. It fails only when there is no going on.

mod allowance;
mod ledger;
mod liveness;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

pub use allowance::{Allowance, Budget};
use iap_tunnel::resume::{Close, Endpoint, Impossible, Standing, Violation};
pub use ledger::Ledger;
pub use liveness::Patience;
use liveness::{Liveness, Verdict};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};

/// What was read is acknowledged after so long, if nothing was sent meanwhile that it could ride along with.
const ACKNOWLEDGED_AFTER: Duration = Duration::from_millis(250);
/// While nobody reads what came, the other end hears so often that somebody is there.
const STALLED_SAYS_EVERY: Duration = Duration::from_secs(1);
/// So much is read, to find acknowledgements, while nobody reads what came.
const STALLED_BYTES_MAX: usize = 64 * 1024;
/// So much waits for the connection before no more is taken.
const UNSENT_BYTES_MAX: usize = 64 * 1024;
/// What is read at once that is not read into its target.
const PIECE_BYTES: usize = 4 * 1024;
/// How long somebody who cannot go on may take to be told so.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to go on over.
pub struct Arrival<C> {
    /// The connection.
    pub connection: C,
    /// What was read of it already, behind whatever led here.
    pub read: Vec<u8>,
    /// Where the other end stands.
    pub position: u64,
    /// The end of what this end has repeated over it already.
    pub repeated: u64,
    /// Makes the answer that goes out first, of where this end stands or of why there is no going on. Nothing when the
    /// other end knows already.
    pub answer: Option<Answer>,
}

impl<C> std::fmt::Debug for Arrival<C> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Arrival")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// Makes an answer.
pub type Answer = Box<dyn FnOnce(Result<u64, &Violation>) -> Vec<u8> + Send>;

/// Where connections come from.
pub trait Reconnect<C> {
    /// Whether one may come while there is one, and takes its place.
    const REPLACES: bool;

    /// The next connection, for a session that stands where `endpoint` does.
    ///
    /// # Errors
    /// When there will be none.
    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
        endpoint: &mut Endpoint,
    ) -> Poll<io::Result<Arrival<C>>>;

    /// The connection is lost.
    fn lost(&mut self, why: &io::Error);

    /// There is one again.
    fn found(&mut self);

    /// Something came over it from an end that has had its answer.
    fn heard(&mut self) {}

    /// Why the connection there is has to be given up, if it has: another comes in its place.
    fn gives_up(&mut self) -> Option<io::Error> {
        None
    }
}

/// One end of a session, over one connection after the other.
pub struct Resumable<C, R> {
    endpoint: Endpoint,
    connection: Option<C>,
    reconnect: R,
    allowance: Allowance,
    liveness: Option<Liveness>,
    acknowledging: Option<Pin<Box<Sleep>>>,
    is_unflushed: bool,
    /// Whoever reads has everything that came, and waits for more.
    reader_waits: bool,
    /// Why there is no going on.
    dead: Option<io::ErrorKind>,
    /// For a session whose process may be killed.
    ledger: Option<Arc<Ledger>>,
}

impl<C, R> std::fmt::Debug for Resumable<C, R> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Resumable")
            .field("endpoint", &self.endpoint)
            .field("is_connected", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}

impl<C, R> Resumable<C, R>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    R: Reconnect<C> + Unpin,
{
    /// A session that begins over `connection`, of which `read` was read already. Whatever of `endpoint` was sent was sent
    /// over this connection.
    ///
    /// # Errors
    /// When `read` is no beginning.
    pub fn new(
        connection: C,
        read: &[u8],
        mut endpoint: Endpoint,
        reconnect: R,
        allowance: Allowance,
    ) -> Result<Self, Violation> {
        endpoint.push(read)?;
        Ok(Self::at(endpoint, Some(connection), reconnect, allowance))
    }

    /// A session that stands where another process left it, and has no connection.
    ///
    /// # Errors
    /// When none can stand there.
    pub fn restore(
        standing: &Standing,
        kept: Vec<u8>,
        reconnect: R,
        mut allowance: Allowance,
    ) -> Result<Self, Impossible> {
        let endpoint = Endpoint::restore(standing, kept)?;
        allowance.settle(endpoint.kept());
        Ok(Self::at(endpoint, None, reconnect, allowance))
    }

    fn at(endpoint: Endpoint, connection: Option<C>, reconnect: R, allowance: Allowance) -> Self {
        Self {
            endpoint,
            connection,
            reconnect,
            allowance,
            liveness: None,
            acknowledging: None,
            is_unflushed: false,
            reader_waits: false,
            dead: None,
            ledger: None,
        }
    }

    /// From now on what was read counts as read once the ledger says that it was passed on. Nothing may be acknowledged by
    /// then of what is not.
    pub fn follow(&mut self, ledger: Arc<Ledger>) {
        self.ledger = Some(ledger);
        self.consult();
        self.settle();
    }

    fn consult(&mut self) {
        if let Some(ledger) = &self.ledger {
            self.endpoint.passed_on(ledger.passed_on());
        }
    }

    /// Where the session stands, for another process to go on with, and the bytes that it keeps; nothing when there is no
    /// going on. Holds until anything is read or written.
    pub fn standing(&self) -> Option<(Standing, [&[u8]; 2])> {
        match self.dead {
            None => self.endpoint.standing(),
            Some(_) => None,
        }
    }

    /// Where its connections come from.
    pub fn reconnect(&self) -> &R {
        &self.reconnect
    }

    /// This end finds out by itself that a connection is dead.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self {
            liveness: Some(Liveness::new(patience, Instant::now())),
            ..self
        }
    }

    /// Ends the session for good, behind what was written; the other end is told, if it can be.
    pub fn close(&mut self, close: Close) {
        self.endpoint.close(close);
        let _ = self.poll_transmit(&mut Context::from_waker(Waker::noop()));
    }

    /// Whether there is nothing left to send or to receive.
    pub fn is_over(&self) -> bool {
        self.dead.is_some()
            || self.endpoint.peer_closed().is_some()
            || (self.endpoint.is_drained() && self.endpoint.is_at_end())
    }

    /// Why the other end has ended the session for good, if it has.
    pub fn peer_closed(&self) -> Option<&Close> {
        self.endpoint.peer_closed()
    }

    /// Takes a connection if there is one to take, and fails when there is no going on. Pending without a connection.
    fn poll_connected(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(kind) = self.dead {
            return Poll::Ready(Err(kind.into()));
        }
        self.consult();
        while self.connection.is_none() || R::REPLACES {
            match self.reconnect.poll_next(context, &mut self.endpoint) {
                Poll::Ready(Ok(arrival)) => self.attach(arrival)?,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.die(error))),
                Poll::Pending if self.connection.is_some() => match self.reconnect.gives_up() {
                    Some(why) => self.lost(&why),
                    None => break,
                },
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn attach(&mut self, arrival: Arrival<C>) -> io::Result<()> {
        let Arrival {
            connection,
            read,
            position,
            repeated,
            answer,
        } = arrival;
        let here = self.endpoint.position();
        if let Err(violation) = self.endpoint.attach_behind(position, repeated) {
            if let Some(answer) = answer {
                tokio::spawn(refuse(connection, answer(Err(&violation))));
            }
            return Err(self.violated(violation));
        }
        self.report();
        self.endpoint
            .preface(answer.map_or_else(Vec::new, |answer| answer(Ok(here))));
        self.connection = Some(connection);
        self.is_unflushed = false;
        self.reconnect.found();
        self.heard();
        self.endpoint
            .push(&read)
            .map_err(|violation| self.violated(violation))
    }

    fn lost(&mut self, why: &io::Error) {
        self.connection = None;
        self.endpoint.detach();
        self.reconnect.lost(why);
    }

    fn violated(&mut self, violation: Violation) -> io::Error {
        self.die(io::Error::new(io::ErrorKind::InvalidData, violation))
    }

    fn die(&mut self, error: io::Error) -> io::Error {
        self.connection = None;
        self.dead = Some(error.kind());
        error
    }

    fn heard(&mut self) {
        if let Some(liveness) = &mut self.liveness {
            liveness.heard(Instant::now());
        }
    }

    /// Sends frames until there are none, or the connection takes no more, or is lost.
    fn poll_transmit(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let Some(connection) = &mut self.connection {
            if !self.endpoint.has_frames() {
                return self.poll_flush_connection(context);
            }
            let pieces = self.endpoint.transmit().pieces.map(IoSlice::new);
            let written = ready!(Pin::new(connection).poll_write_vectored(context, &pieces));
            match written {
                Ok(0) => self.lost(&io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.endpoint.transmitted(count);
                    self.is_unflushed = true;
                }
                Err(error) => self.lost(&error),
            }
        }
        Poll::Ready(())
    }

    fn poll_flush_connection(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(connection) = &mut self.connection
            && self.is_unflushed
        {
            match ready!(Pin::new(connection).poll_flush(context)) {
                Ok(()) => self.is_unflushed = false,
                Err(error) => self.lost(&error),
            }
        }
        Poll::Ready(())
    }

    /// Reads the connection into `target`. Ready without a byte when the connection was lost.
    fn poll_connection(&mut self, context: &mut Context<'_>, target: &mut [u8]) -> Poll<usize> {
        let Some(connection) = &mut self.connection else {
            return Poll::Ready(0);
        };
        let mut space = ReadBuf::new(target);
        let read = ready!(Pin::new(connection).poll_read(context, &mut space));
        let count = space.filled().len();
        match read {
            Ok(()) if count > 0 => self.heard(),
            Ok(()) => self.lost(&io::ErrorKind::UnexpectedEof.into()),
            Err(error) => self.lost(&error),
        }
        Poll::Ready(count)
    }

    /// Reads one piece of the frame at hand, and holds what of it is the session's bytes.
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut piece = [0; PIECE_BYTES];
        let wanted = self.endpoint.wanted().min(PIECE_BYTES);
        let target = piece.get_mut(..wanted).unwrap_or_default();
        let count = ready!(self.poll_connection(context, target));
        let pushed = self.endpoint.push(piece.get(..count).unwrap_or_default());
        self.report();
        pushed.map_err(|violation| self.violated(violation))?;
        if count > 0 && self.endpoint.is_answered() {
            self.reconnect.heard();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads frames until there are none or so many bytes are held, while nobody reads those.
    fn poll_frames(&mut self, context: &mut Context<'_>, held_max: usize) -> io::Result<()> {
        // Behind the last frame comes the end of the connection, which is no loss then.
        while self.endpoint.held() < held_max && !self.is_over() && self.poll_connected(context)?.is_ready() {
            if self.poll_frame(context)?.is_pending() {
                break;
            }
        }
        self.settle();
        Ok(())
    }

    /// What there is to do when nothing arrives.
    fn poll_rest(&mut self, context: &mut Context<'_>) {
        if self.owes_word() && self.acknowledging.is_none() {
            let after = match self.endpoint.held() {
                0 => ACKNOWLEDGED_AFTER,
                _ => STALLED_SAYS_EVERY,
            };
            self.acknowledging = Some(Box::pin(tokio::time::sleep(after)));
        }
        if let Some(timer) = &mut self.acknowledging
            && timer.as_mut().poll(context).is_ready()
        {
            self.acknowledging = None;
            if self.owes_word() {
                self.endpoint.acknowledge();
                // To be waited for again.
                context.waker().wake_by_ref();
            }
        }
        self.poll_liveness(context);
        let _ = self.poll_transmit(context);
    }

    /// Something is to be acknowledged, or the other end would take us for dead, because nobody reads here.
    fn owes_word(&self) -> bool {
        self.endpoint.owes_acknowledgement() || self.endpoint.held() > 0
    }

    fn poll_liveness(&mut self, context: &mut Context<'_>) {
        if self.connection.is_none() {
            return;
        }
        let is_outstanding = self.endpoint.is_outstanding();
        let Some(liveness) = &mut self.liveness else {
            return;
        };
        while let Poll::Ready(verdict) = liveness.poll(context, is_outstanding) {
            match verdict {
                Verdict::Ask => self.endpoint.ask(),
                Verdict::Dead => {
                    self.lost(&io::ErrorKind::TimedOut.into());
                    // To be told when there is another.
                    context.waker().wake_by_ref();
                    return;
                }
            }
        }
    }

    fn settle(&mut self) {
        self.allowance.settle(self.endpoint.kept());
        self.report();
    }

    fn report(&self) {
        if let Some(ledger) = &self.ledger {
            ledger.acknowledge(self.endpoint.acknowledged());
        }
    }

    fn closed_by_peer(&self) -> Option<io::Error> {
        let close = self.endpoint.peer_closed()?;
        if close.is_without_a_word() {
            return Some(io::ErrorKind::BrokenPipe.into());
        }
        let Close { code, text } = close;
        let why = if text.is_empty() { code } else { text };
        Some(io::Error::new(io::ErrorKind::ConnectionAborted, why.clone()))
    }
}

async fn refuse<C: AsyncWrite + Unpin>(mut connection: C, answer: Vec<u8>) {
    let telling = async {
        connection.write_all(&answer).await?;
        connection.shutdown().await
    };
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, telling).await;
}

impl<C, R> AsyncRead for Resumable<C, R>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    R: Reconnect<C> + Unpin,
{
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let connected = this.poll_connected(context)?;
            this.reader_waits = false;
            if this.endpoint.held() > 0 {
                let count = this.endpoint.read(buffer.initialize_unfilled());
                buffer.advance(count);
                this.settle();
                let _ = this.poll_transmit(context);
                return Poll::Ready(Ok(()));
            }
            if this.endpoint.is_at_end() {
                let _ = this.poll_transmit(context);
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = this.closed_by_peer() {
                // Who is gone without a word has nothing more to send, as somebody who closes a socket.
                return match error.kind() {
                    io::ErrorKind::BrokenPipe => Poll::Ready(Ok(())),
                    _ => Poll::Ready(Err(error)),
                };
            }
            if connected.is_pending() {
                this.reader_waits = true;
                return Poll::Pending;
            }
            let direct = this.endpoint.direct().min(buffer.remaining());
            if direct > 0 {
                let target = buffer.initialize_unfilled_to(direct);
                let Poll::Ready(count) = this.poll_connection(context, target) else {
                    this.reader_waits = true;
                    this.poll_rest(context);
                    return Poll::Pending;
                };
                if count > 0 {
                    buffer.advance(count);
                    this.endpoint.took(count);
                    if this.endpoint.has_frames() {
                        let _ = this.poll_transmit(context);
                    }
                    return Poll::Ready(Ok(()));
                }
            } else if this.poll_frame(context)?.is_pending() {
                this.reader_waits = true;
                this.poll_rest(context);
                return Poll::Pending;
            }
        }
    }
}

impl<C, R> AsyncWrite for Resumable<C, R>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    R: Reconnect<C> + Unpin,
{
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let _ = this.poll_connected(context)?;
        if let Some(error) = this.closed_by_peer() {
            return Poll::Ready(Err(error));
        }
        if this.endpoint.unsent() >= UNSENT_BYTES_MAX {
            let _ = this.poll_transmit(context);
            let _ = this.poll_connected(context)?;
            if this.endpoint.unsent() >= UNSENT_BYTES_MAX {
                return Poll::Pending;
            }
        }
        if this.endpoint.room(this.allowance.window()) == 0 {
            let _ = this.poll_transmit(context);
            this.poll_frames(context, usize::MAX)?;
        }
        let count = bytes.len().min(this.endpoint.room(this.allowance.window()));
        if count == 0 && !bytes.is_empty() {
            return match this.closed_by_peer() {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            };
        }
        this.endpoint.write(bytes.get(..count).unwrap_or_default());
        this.settle();
        if let Some(liveness) = &mut this.liveness {
            liveness.outstanding(Instant::now());
        }
        let _ = this.poll_transmit(context);
        Poll::Ready(Ok(count))
    }

    /// What was written is kept: without a connection there is nothing to wait for. While nobody reads, this is where the
    /// other end is heard.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let _ = this.poll_connected(context)?;
        if !this.reader_waits {
            this.poll_frames(context, STALLED_BYTES_MAX)?;
            this.poll_rest(context);
            // Everything that came was read, and nobody is there to send to.
            if this.endpoint.held() == 0
                && let Some(error) = this.closed_by_peer()
            {
                return Poll::Ready(Err(error));
            }
        }
        ready!(this.poll_transmit(context));
        Poll::Ready(Ok(()))
    }

    /// Ready once the other end has everything, and knows that there is no more.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.endpoint.finish();
        loop {
            this.consult();
            if this.endpoint.is_drained() || this.endpoint.peer_closed().is_some() {
                let _ = this.poll_transmit(context);
                return Poll::Ready(Ok(()));
            }
            let _ = this.poll_connected(context)?;
            let _ = this.poll_transmit(context);
            this.poll_frames(context, usize::MAX)?;
            if !this.endpoint.is_drained() && this.endpoint.peer_closed().is_none() {
                this.poll_rest(context);
                return Poll::Pending;
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty());
        self.poll_write(context, first.map_or(&[], |slice| slice))
    }
}
