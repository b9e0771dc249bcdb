//! The pump for any two streams, such as TLS to TCP.

use std::borrow::Borrow;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::held::{Held, poll_deliver};
use super::idle::Activity;
use super::under_way::{Relayed, Stretch, UnderWay, Yielded};
use super::{
    Cancellation, CloseReason, Closed, Counters, Fault, LiveLimits, Side, buffers, ignore_gone, reason_of,
};
use crate::buffers::Buffer;

/// How long a peer that no longer reads may hold up the last words of a session that is over.
const FAREWELL: Duration = Duration::from_secs(1);
/// After a read of so much, the next buffer is a large one.
const BUSY_BYTES: usize = 48 * 1024;

// None of these is an `async fn`: its future would hold the session twice, as what it was called with and as what it works on.

/// Moves bytes both ways until the session ends. What it returns is final: nothing moves afterwards.
pub fn copy<C, B>(
    client: C,
    backend: B,
    limits: &impl LiveLimits,
    counters: impl Borrow<Counters>,
    cancellation: &Cancellation,
) -> impl Future<Output = Closed>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    copy_saying(client, backend, limits, counters, cancellation, async |_, _| {})
}

/// The same, with a word to the client once nothing moves any more and before it is closed. Word and close have a
/// second.
pub fn copy_saying<C, B>(
    client: C,
    backend: B,
    limits: &impl LiveLimits,
    counters: impl Borrow<Counters>,
    cancellation: &Cancellation,
    last_words: impl AsyncFnOnce(&mut C, &CloseReason),
) -> impl Future<Output = Closed>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let session = Yielded {
        client,
        backend,
        under_way: UnderWay::default(),
    };
    let never = std::future::pending();
    go_on(session, limits, counters, cancellation, never, last_words).map(|relayed| match relayed {
        Relayed::Closed(closed) => closed,
        // Nobody asks for it.
        Relayed::Yielded(_) => Closed::new(&Counters::new(), CloseReason::Cancelled("yielded".into())),
    })
}

/// The same from where a session stands, until it ends or `asked` is ready: then it is given up as it stands, and neither
/// end hears of that.
pub fn go_on<C, B>(
    session: Yielded<C, B>,
    limits: &impl LiveLimits,
    counters: impl Borrow<Counters>,
    cancellation: &Cancellation,
    asked: impl Future<Output = ()> + Unpin,
    last_words: impl AsyncFnOnce(&mut C, &CloseReason),
) -> impl Future<Output = Relayed<C, B>>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut relay = Relay::new(session);
    async move {
        let counters = counters.borrow();
        let reason = tokio::select! {
            biased;
            reason = cancellation.cancelled() => CloseReason::Cancelled(reason),
            () = asked => return Relayed::Yielded(Box::new(relay.into_yielded())),
            reason = poll_fn(|context| relay.poll(context, limits, counters)) => reason,
        };
        let closed = Closed::new(counters, reason);
        // Boxed, so that a session at rest does not hold its size.
        Box::pin(relay.farewell(&closed.reason, last_words)).await;
        Relayed::Closed(closed)
    }
}

struct Relay<C, B> {
    client: C,
    backend: B,
    inward: Direction,
    outward: Direction,
    first_closed: Option<Side>,
    activity: Activity,
}

impl<C, B> Relay<C, B>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    fn new(session: Yielded<C, B>) -> Self {
        let Yielded {
            client,
            backend,
            under_way,
        } = session;
        let mut activity = Activity::start(under_way.rested);
        if under_way.first_closed.is_some() {
            activity.is_half_closed();
        }
        Self {
            client,
            backend,
            inward: Direction::from(Side::Client, under_way.inward),
            outward: Direction::from(Side::Backend, under_way.outward),
            first_closed: under_way.first_closed,
            activity,
        }
    }

    fn into_yielded(self) -> Yielded<C, B> {
        Yielded {
            under_way: UnderWay {
                inward: self.inward.into_stretch(),
                outward: self.outward.into_stretch(),
                first_closed: self.first_closed,
                rested: self.activity.rested(),
            },
            client: self.client,
            backend: self.backend,
        }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        limits: &impl LiveLimits,
        counters: &Counters,
    ) -> Poll<CloseReason> {
        let (client, backend) = (&mut self.client, &mut self.backend);
        let mut moved = |to, bytes| {
            counters.delivered(to, bytes);
            self.activity.note();
        };
        let inward = self.inward.poll(context, client, backend, &mut moved);
        let outward = self.outward.poll(context, backend, client, &mut moved);
        self.note_close(Side::Client);
        self.note_close(Side::Backend);
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

    fn note_close(&mut self, side: Side) {
        let direction = match side {
            Side::Client => &self.inward,
            Side::Backend => &self.outward,
        };
        if direction.flow != Flow::Open && self.first_closed.is_none() {
            self.first_closed = Some(side);
            self.activity.half_closed();
        }
    }

    /// Lets both peers know that it is over (a TLS close_notify, a FIN) if they still listen.
    async fn farewell(mut self, reason: &CloseReason, last_words: impl AsyncFnOnce(&mut C, &CloseReason)) {
        let both = async {
            last_words(&mut self.client, reason).await;
            let _ = tokio::join!(self.client.shutdown(), self.backend.shutdown());
        };
        let _ = tokio::time::timeout(FAREWELL, both).await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    Closing,
    Closed,
}

/// One direction. The buffer is there only while it holds bytes.
struct Direction {
    from: Side,
    flow: Flow,
    held: Option<Held>,
    /// Whether the last read brought much.
    is_busy: bool,
}

impl Direction {
    fn from(side: Side, stretch: Stretch) -> Self {
        let end = stretch.bytes.len();
        Self {
            from: side,
            flow: if stretch.is_ended {
                Flow::Closing
            } else {
                Flow::Open
            },
            held: (end > 0).then(|| Held {
                buffer: Buffer::holding(stretch.bytes),
                start: 0,
                end,
            }),
            is_busy: false,
        }
    }

    /// Closing twice does no harm, so that it does not matter how far that has come.
    fn into_stretch(self) -> Stretch {
        let held = self.held.as_ref();
        let bytes = held.and_then(|held| held.buffer.get(held.start..held.end));
        Stretch {
            bytes: bytes.unwrap_or_default().to_vec(),
            is_ended: self.flow != Flow::Open,
        }
    }

    /// `moved` hears of what was delivered.
    fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        moved: &mut impl FnMut(Side, usize),
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let to_side = self.from.other();
        loop {
            let delivered = poll_deliver(&mut self.held, context, to, |bytes| moved(to_side, bytes));
            ready!(delivered).map_err(to_side.at())?;
            match self.flow {
                Flow::Open => match self.poll_fetch(context, from) {
                    Poll::Ready(result) => result.map_err(self.from.at())?,
                    Poll::Pending => return self.poll_flush(context, to),
                },
                Flow::Closing => {
                    let closed = ignore_gone(ready!(Pin::new(&mut *to).poll_shutdown(context)));
                    closed.map_err(to_side.at())?;
                    self.flow = Flow::Closed;
                }
                Flow::Closed => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_fetch<R>(&mut self, context: &mut Context<'_>, from: &mut R) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
    {
        let mut buffer = buffers::take(self.is_busy);
        let mut space = ReadBuf::new(&mut buffer);
        ready!(Pin::new(from).poll_read(context, &mut space))?;
        let end = space.filled().len();
        self.is_busy = end >= BUSY_BYTES;
        if end == 0 {
            self.flow = Flow::Closing;
        } else {
            self.held = Some(Held {
                buffer,
                start: 0,
                end,
            });
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing more to read for now: what was written should leave. A stream that goes on over other connections also
    /// learns here that there is one.
    fn poll_flush<W>(&mut self, context: &mut Context<'_>, to: &mut W) -> Poll<Result<(), Fault>>
    where
        W: AsyncWrite + Unpin,
    {
        ready!(Pin::new(to).poll_flush(context)).map_err(self.from.other().at())?;
        Poll::Pending
    }
}
