//! The pump for two TCP sockets on Linux: read and write while messages are small (about 17 % cheaper), splice(2)
//! once reads fill the buffer, and back when the stream pauses.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use rustix::pipe::{SpliceFlags, splice as splice_bytes};
use tokio::io::{AsyncRead, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::buffers::BUFFER_BYTES;
use super::idle::Activity;
use super::pipes::Pipe;
use super::{
    Cancellation, CloseReason, Closed, Counters, Fault, LiveLimits, Side, buffers, ignore_gone, reason_of,
};
use crate::buffers::Buffer;

/// Reads in a row that fill the buffer before splicing begins.
const FULL_READS_UNTIL_SPLICE: u32 = 2;
/// Pieces below this many bytes, this often in a row, are messages rather than a stream.
const SMALL_PIECE_BYTES: usize = 4096;
const SMALL_PIECES_UNTIL_COPY: u32 = 8;
/// A pipe is two file descriptors: a stream that pauses longer gives it back.
const PIPE_KEPT: Duration = Duration::from_millis(50);

/// Moves bytes both ways until the session ends. What it returns is final: nothing moves afterwards.
pub async fn splice(
    client: &mut TcpStream,
    backend: &mut TcpStream,
    limits: &impl LiveLimits,
    counters: &Counters,
    cancellation: &Cancellation,
) -> Closed {
    let activity = Activity::start(Duration::ZERO);
    let reason = tokio::select! {
        biased;
        reason = cancellation.cancelled() => CloseReason::Cancelled(reason),
        reason = both_directions(client, backend, counters, &activity) => reason,
        () = activity.ran_out(limits) => CloseReason::Idle,
    };
    Closed::new(counters, reason)
}

async fn both_directions(
    client: &mut TcpStream,
    backend: &mut TcpStream,
    counters: &Counters,
    activity: &Activity,
) -> CloseReason {
    let (client_read, client_write) = client.split();
    let (backend_read, backend_write) = backend.split();
    let inward = Direction {
        from: client_read,
        to: backend_write,
        from_side: Side::Client,
        to_side: Side::Backend,
        delivered: &counters.0.to_backend,
        activity,
    };
    let outward = Direction {
        from: backend_read,
        to: client_write,
        from_side: Side::Backend,
        to_side: Side::Client,
        delivered: &counters.0.to_client,
        activity,
    };
    let (inward, outward) = (inward.run(), outward.run());
    tokio::pin!(inward, outward);
    let (first, rest) = tokio::select! {
        ended = &mut inward => (ended.map(|()| Side::Client), Side::Backend),
        ended = &mut outward => (ended.map(|()| Side::Backend), Side::Client),
    };
    let first_closed = match first {
        Ok(side) => side,
        Err(fault) => return reason_of(None, Some(fault)),
    };
    activity.half_closed();
    let second = match rest {
        Side::Client => inward.await,
        Side::Backend => outward.await,
    };
    reason_of(Some(first_closed), second.err())
}

struct Direction<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    from_side: Side,
    to_side: Side,
    delivered: &'a AtomicU64,
    activity: &'a Activity,
}

/// Why one way of moving bytes gave over to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Bulk,
    Messages,
    Ended,
}

impl Direction<'_> {
    async fn run(mut self) -> Result<(), Fault> {
        let mut pace = Pace::Messages;
        loop {
            pace = match pace {
                Pace::Messages => self.copy_messages().await?,
                // Boxed, so that a session at rest does not hold its size.
                Pace::Bulk => Box::pin(self.splice_bulk()).await?,
                Pace::Ended => break,
            };
        }
        ignore_gone(self.to.shutdown().await).map_err(self.to_side.at())
    }

    async fn copy_messages(&mut self) -> Result<Pace, Fault> {
        let mut full_reads = 0;
        loop {
            let (buffer, length) = self.read_message().await.map_err(self.from_side.at())?;
            if length == 0 {
                return Ok(Pace::Ended);
            }
            let bytes = buffer.get(..length).unwrap_or_default();
            self.to.write_all(bytes).await.map_err(self.to_side.at())?;
            self.note_delivered(length);
            full_reads = if length == BUFFER_BYTES { full_reads + 1 } else { 0 };
            if full_reads >= FULL_READS_UNTIL_SPLICE {
                return Ok(Pace::Bulk);
            }
        }
    }

    /// The buffer is taken anew at each attempt, so that waiting holds none.
    async fn read_message(&mut self) -> io::Result<(Buffer, usize)> {
        poll_fn(|context| {
            let mut buffer = buffers::take(false);
            let mut space = ReadBuf::new(&mut buffer);
            ready!(Pin::new(&mut self.from).poll_read(context, &mut space))?;
            let length = space.filled().len();
            Poll::Ready(Ok((buffer, length)))
        })
        .await
    }

    async fn splice_bulk(&mut self) -> Result<Pace, Fault> {
        let Ok(mut pipe) = Pipe::take() else {
            return Ok(Pace::Messages);
        };
        let mut small_pieces = 0;
        loop {
            match self.fill(&mut pipe).map_err(self.from_side.at())? {
                Filled::Bytes(0) => return Ok(Pace::Ended),
                Filled::Bytes(bytes) => {
                    self.drain(&mut pipe).await.map_err(self.to_side.at())?;
                    small_pieces = if bytes < SMALL_PIECE_BYTES {
                        small_pieces + 1
                    } else {
                        0
                    };
                }
                Filled::NothingYet if !self.more_soon().await.map_err(self.from_side.at())? => {
                    return Ok(Pace::Messages);
                }
                Filled::NothingYet => {}
            }
            if small_pieces >= SMALL_PIECES_UNTIL_COPY {
                return Ok(Pace::Messages);
            }
        }
    }

    /// The pipe is empty, so that "would block" can only mean the socket.
    fn fill(&self, pipe: &mut Pipe) -> io::Result<Filled> {
        let socket = self.from.as_ref();
        let spliced = socket.try_io(Interest::READABLE, || {
            let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
            Ok(splice_bytes(
                socket,
                None,
                pipe.write_end()?,
                None,
                pipe.capacity_bytes(),
                flags,
            )?)
        });
        match spliced {
            Ok(bytes) => {
                pipe.filled(bytes);
                Ok(Filled::Bytes(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Filled::NothingYet),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Filled::NothingYet),
            Err(error) => Err(error),
        }
    }

    async fn drain(&self, pipe: &mut Pipe) -> io::Result<()> {
        let socket = self.to.as_ref();
        while pipe.held_bytes() > 0 {
            let written = socket
                .async_io(Interest::WRITABLE, || {
                    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                    Ok(splice_bytes(
                        pipe.read_end()?,
                        None,
                        socket,
                        None,
                        pipe.held_bytes(),
                        flags,
                    )?)
                })
                .await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            pipe.drained(written);
            self.note_delivered(written);
        }
        Ok(())
    }

    async fn more_soon(&self) -> io::Result<bool> {
        match tokio::time::timeout(PIPE_KEPT, self.from.readable()).await {
            Ok(ready) => ready.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    fn note_delivered(&self, bytes: usize) {
        self.delivered.fetch_add(bytes as u64, Ordering::Relaxed);
        self.activity.note();
    }
}

enum Filled {
    Bytes(usize),
    NothingYet,
}
