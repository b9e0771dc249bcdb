//! The pump for two TCP sockets on Linux: read and write while messages are small (about 17 % cheaper), splice(2)
//! once reads fill the buffer, and back when the stream pauses.

use std::borrow::Borrow;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::pipe::{SpliceFlags, splice as splice_bytes};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::buffers::BUFFER_BYTES;
use super::held::{Held, poll_deliver};
use super::idle::Activity;
use super::pipes::Pipe;
use super::{
    Cancellation, CloseReason, Closed, Counters, Fault, LiveLimits, Side, buffers, ignore_gone, reason_of,
};

/// Reads in a row that fill the buffer before splicing begins.
const FULL_READS_UNTIL_SPLICE: u32 = 2;
/// Pieces below this many bytes, this often in a row, are messages rather than a stream.
const SMALL_PIECE_BYTES: usize = 4096;
const SMALL_PIECES_UNTIL_COPY: u32 = 8;
/// A pipe is two file descriptors: a stream that pauses longer gives it back.
const PIPE_KEPT: Duration = Duration::from_millis(50);

/// Moves bytes both ways until the session ends. What it returns is final: nothing moves afterwards.
pub fn splice<'a>(
    client: &'a mut TcpStream,
    backend: &'a mut TcpStream,
    limits: &impl LiveLimits,
    counters: impl Borrow<Counters>,
    cancellation: &Cancellation,
) -> impl Future<Output = Closed> {
    let mut relay = Relay::new(client, backend);
    async move {
        let counters = counters.borrow();
        let reason = tokio::select! {
            biased;
            reason = cancellation.cancelled() => CloseReason::Cancelled(reason),
            reason = poll_fn(|context| relay.poll(context, limits, counters)) => reason,
        };
        Closed::new(counters, reason)
    }
}

struct Relay<'a> {
    client: &'a mut TcpStream,
    backend: &'a mut TcpStream,
    inward: Direction,
    outward: Direction,
    first_closed: Option<Side>,
    activity: Activity,
}

impl<'a> Relay<'a> {
    fn new(client: &'a mut TcpStream, backend: &'a mut TcpStream) -> Self {
        Self {
            client,
            backend,
            inward: Direction::from(Side::Client),
            outward: Direction::from(Side::Backend),
            first_closed: None,
            activity: Activity::start(Duration::ZERO),
        }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        limits: &impl LiveLimits,
        counters: &Counters,
    ) -> Poll<CloseReason> {
        let mut moved = |to, bytes| {
            counters.delivered(to, bytes);
            self.activity.note();
        };
        let inward = self.inward.poll(context, self.client, self.backend, &mut moved);
        let outward = self.outward.poll(context, self.backend, self.client, &mut moved);
        for (side, ended) in [(Side::Client, &inward), (Side::Backend, &outward)] {
            if matches!(ended, Poll::Ready(Ok(()))) && self.first_closed.is_none() {
                self.first_closed = Some(side);
                self.activity.half_closed();
            }
        }
        match (inward, outward) {
            (Poll::Ready(Err(fault)), _) | (_, Poll::Ready(Err(fault))) => {
                Poll::Ready(reason_of(self.first_closed, Some(fault)))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(reason_of(self.first_closed, None)),
            (Poll::Pending, _) | (_, Poll::Pending) => {
                let ran_out = ready!(self.activity.poll_ran_out(context, limits));
                Poll::Ready(ran_out.reason(self.first_closed))
            }
        }
    }
}

/// One direction.
struct Direction {
    from: Side,
    pace: Pace,
    /// Messages read and not delivered. The buffer is there only while it holds bytes.
    held: Option<Held>,
    full_reads: u32,
}

/// The way bytes move.
enum Pace {
    Messages,
    /// Boxed, so that a session at rest does not hold its size.
    Bulk(Box<Bulk>),
    Closing,
    Closed,
}

/// A stream through a pipe.
struct Bulk {
    pipe: Pipe,
    small_pieces: u32,
    /// Since when nothing came, there while nothing does.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Direction {
    fn from(side: Side) -> Self {
        Self {
            from: side,
            pace: Pace::Messages,
            held: None,
            full_reads: 0,
        }
    }

    /// `moved` hears of what was delivered.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        moved: &mut impl FnMut(Side, usize),
    ) -> Poll<Result<(), Fault>> {
        let (from_side, to_side) = (self.from, self.from.other());
        loop {
            self.pace = match &mut self.pace {
                Pace::Messages => {
                    let delivered = poll_deliver(&mut self.held, context, to, |bytes| moved(to_side, bytes));
                    ready!(delivered).map_err(to_side.at())?;
                    ready!(self.poll_fetch(context, from)).map_err(from_side.at())?
                }
                Pace::Bulk(bulk) => {
                    let drained = bulk.poll_drain(context, to, |bytes| moved(to_side, bytes));
                    ready!(drained).map_err(to_side.at())?;
                    match ready!(bulk.poll_fill(context, from)).map_err(from_side.at())? {
                        Some(next) => next,
                        None => continue,
                    }
                }
                Pace::Closing => {
                    let closed = ready!(Pin::new(&mut *to).poll_shutdown(context));
                    ignore_gone(closed).map_err(to_side.at())?;
                    Pace::Closed
                }
                Pace::Closed => return Poll::Ready(Ok(())),
            };
        }
    }

    /// Reads a message, unless what comes is a stream. The buffer is taken anew at each attempt, so that waiting holds none.
    fn poll_fetch(&mut self, context: &mut Context<'_>, from: &mut TcpStream) -> Poll<io::Result<Pace>> {
        if self.full_reads >= FULL_READS_UNTIL_SPLICE {
            self.full_reads = 0;
            if let Ok(pipe) = Pipe::take() {
                return Poll::Ready(Ok(Pace::Bulk(Box::new(Bulk::through(pipe)))));
            }
        }
        let mut buffer = buffers::take(false);
        let mut space = ReadBuf::new(&mut buffer);
        ready!(Pin::new(from).poll_read(context, &mut space))?;
        let end = space.filled().len();
        if end == 0 {
            return Poll::Ready(Ok(Pace::Closing));
        }
        self.full_reads = if end == BUFFER_BYTES {
            self.full_reads + 1
        } else {
            0
        };
        self.held = Some(Held {
            buffer,
            start: 0,
            end,
        });
        Poll::Ready(Ok(Pace::Messages))
    }
}

impl Bulk {
    fn through(pipe: Pipe) -> Self {
        Self {
            pipe,
            small_pieces: 0,
            pause: None,
        }
    }

    /// Until the pipe is empty.
    fn poll_drain(
        &mut self,
        context: &mut Context<'_>,
        to: &TcpStream,
        mut moved: impl FnMut(usize),
    ) -> Poll<io::Result<()>> {
        while self.pipe.held_bytes() > 0 {
            ready!(to.poll_write_ready(context))?;
            let pipe = &self.pipe;
            let spliced = to.try_io(Interest::WRITABLE, || {
                let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                Ok(splice_bytes(
                    pipe.read_end()?,
                    None,
                    to,
                    None,
                    pipe.held_bytes(),
                    flags,
                )?)
            });
            match so_far(spliced)? {
                Some(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Some(bytes) => {
                    self.pipe.drained(bytes);
                    moved(bytes);
                }
                None => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Fills the empty pipe, so that "would block" can only mean the socket. Says what comes next, where it is not more of
    /// the same.
    fn poll_fill(&mut self, context: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<Option<Pace>>> {
        if self.small_pieces >= SMALL_PIECES_UNTIL_COPY {
            return Poll::Ready(Ok(Some(Pace::Messages)));
        }
        loop {
            let pipe = &self.pipe;
            let spliced = from.try_io(Interest::READABLE, || {
                let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                Ok(splice_bytes(
                    from,
                    None,
                    pipe.write_end()?,
                    None,
                    pipe.capacity_bytes(),
                    flags,
                )?)
            });
            match so_far(spliced)? {
                Some(0) => return Poll::Ready(Ok(Some(Pace::Closing))),
                Some(bytes) => {
                    self.pipe.filled(bytes);
                    self.pause = None;
                    self.small_pieces = match bytes < SMALL_PIECE_BYTES {
                        true => self.small_pieces + 1,
                        false => 0,
                    };
                    return Poll::Ready(Ok(None));
                }
                None => {}
            }
            match from.poll_read_ready(context)? {
                Poll::Ready(()) => {}
                Poll::Pending => {
                    let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(PIPE_KEPT)));
                    ready!(pause.as_mut().poll(context));
                    return Poll::Ready(Ok(Some(Pace::Messages)));
                }
            }
        }
    }
}

/// How much was spliced, if anything.
fn so_far(spliced: io::Result<usize>) -> io::Result<Option<usize>> {
    match spliced {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error),
    }
}
