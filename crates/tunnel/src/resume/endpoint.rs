//! One end of a session.

use super::frame::{self, Close};
use super::incoming::{Arrived, Incoming};
use super::outgoing::Outgoing;
use super::{REPEAT_BYTES_MAX, Violation, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN};

/// One end of a session, through all its connections.
#[derive(Debug)]
pub struct Endpoint {
    pub(super) outgoing: Outgoing,
    pub(super) incoming: Incoming,
    pub(super) peer_closed: Option<Close>,
    /// The other end has spoken on this connection after it had its answer.
    pub(super) is_answered: bool,
}

/// What goes on the wire next, in order; all pieces are empty when there is nothing.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    /// Frames that are no bytes of the session, and a header; then bytes, which may lie in two places.
    pub pieces: [&'a [u8]; 3],
}

/// Bytes that go out before it is known whether the other end has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repeat {
    /// The frames; none where there is nothing to repeat, or too much.
    pub frames: Vec<u8>,
    /// The position behind the last byte in them, or 0.
    pub end: u64,
}

impl Transmit<'_> {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.iter().all(|piece| piece.is_empty())
    }
}

impl Endpoint {
    /// An end at the beginning, without a connection. Neither end has more than `window` bytes on the way that the other has
    /// not acknowledged; both are told the same, within [`WINDOW_BYTES_MIN`] and [`WINDOW_BYTES_MAX`].
    #[must_use]
    pub fn new(window: usize) -> Self {
        let window = window.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        Self {
            outgoing: Outgoing::new(window),
            incoming: Incoming::new(window),
            peer_closed: None,
            is_answered: true,
        }
    }

    /// The window that both ends are told of, where the session began before that. What was sent and what arrived counts.
    pub fn agree(&mut self, window: usize) {
        let window = window.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        self.outgoing.agree(window);
        self.incoming.agree(window);
    }

    /// How many bytes [`write`](Self::write) would take, if no more than `window` were kept in all. However small that is,
    /// [`WINDOW_BYTES_MIN`] may always be.
    #[must_use]
    pub fn room(&self, window: usize) -> usize {
        self.outgoing.room(window)
    }

    /// Takes bytes to be sent. They are kept until the other end has passed them on.
    pub fn write(&mut self, bytes: &[u8]) {
        self.outgoing.write(bytes);
    }

    /// There are no more bytes to send.
    pub fn finish(&mut self) {
        self.outgoing.finish();
    }

    /// Whether the other end has passed on everything, and knows that there is no more.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.outgoing.is_drained()
    }

    /// Whether the other end has still to acknowledge something.
    #[must_use]
    pub fn is_outstanding(&self) -> bool {
        self.outgoing.is_outstanding()
    }

    /// Bytes that no connection has taken yet.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.outgoing.unsent()
    }

    /// Bytes of memory that the session's bytes take here.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.outgoing.kept() + self.incoming.held()
    }

    /// How many bytes have arrived that wait to be read.
    #[must_use]
    pub fn held(&self) -> usize {
        self.incoming.held()
    }

    /// Gives what has arrived, as far as `target` goes; 0 when nothing has.
    pub fn read(&mut self, target: &mut [u8]) -> usize {
        let count = self.incoming.read(target);
        self.acknowledge_if_due();
        count
    }

    /// Whether everything the other end had to send was read.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.incoming.is_at_end()
    }

    /// How many of the next bytes on the wire are the session's own, and nothing before them waits to be read: they may be
    /// read from the connection into their target. [`took`](Self::took) is told how many were.
    #[must_use]
    pub fn direct(&self) -> usize {
        self.incoming.direct()
    }

    /// So many bytes were read past this, at most [`direct`](Self::direct).
    pub fn took(&mut self, count: usize) {
        self.incoming.took(count);
        self.acknowledge_if_due();
    }

    /// How many bytes of the wire the frame at hand lacks, its header at first. Whoever reads no more than that from the
    /// connection can use [`direct`](Self::direct) for the next.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.incoming.wanted()
    }

    /// Bytes came from the connection.
    ///
    /// # Errors
    /// The session is over when the other end violates the protocol.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.peer_closed.is_some() {
                return Err(Violation::AfterEnd);
            }
            let (count, arrived) = self.incoming.push(rest)?;
            rest = rest.get(count..).unwrap_or_default();
            match arrived {
                Some(Arrived::Acknowledgement(payload)) => {
                    self.is_answered = true;
                    self.outgoing.acknowledged(frame::position(&payload))?;
                }
                Some(Arrived::Ask) => self.acknowledge(),
                Some(Arrived::Repeat(payload)) => self.incoming.repeat(frame::position(&payload))?,
                Some(Arrived::Close(payload)) => self.peer_closed = Some(Close::decode(&payload)?),
                Some(Arrived::Finish) | None => self.acknowledge_if_due(),
            }
        }
        Ok(())
    }

    /// Everything before `position` was passed on by whoever reads here, the end counting as one. From the first time on
    /// only that is acknowledged and is this end's [`position`](Self::position): the other end keeps the rest, so that
    /// it is not lost with this one. Nothing may be acknowledged by then that is not passed on.
    pub fn passed_on(&mut self, position: u64) {
        self.incoming.passed_on(position);
        self.acknowledge_if_due();
    }

    /// The other end has passed on everything before.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.outgoing.base()
    }

    /// Whether there is anything for the wire.
    #[must_use]
    pub fn has_frames(&self) -> bool {
        self.outgoing.has_frames()
    }

    /// What goes on the wire next. [`transmitted`](Self::transmitted) is told how much of it went.
    pub fn transmit(&mut self) -> Transmit<'_> {
        let incoming = &mut self.incoming;
        self.outgoing
            .transmit(|| incoming.owes().then(|| incoming.acknowledge()))
    }

    /// So many bytes were taken of what [`transmit`](Self::transmit) gave.
    pub fn transmitted(&mut self, bytes: usize) {
        self.outgoing.transmitted(bytes);
    }

    /// Whether something that was read has not been acknowledged. It will be along with the next bytes, or when it is much.
    #[must_use]
    pub fn owes_acknowledgement(&self) -> bool {
        self.incoming.owes()
    }

    /// Acknowledges with the next frames, also what the other end was told before.
    pub fn acknowledge(&mut self) {
        let position = self.incoming.acknowledge();
        self.outgoing.acknowledge(position);
    }

    /// Asks for an acknowledgement: whether the other end is there.
    pub fn ask(&mut self) {
        self.outgoing.ask();
    }

    /// Ends the session for good, behind what was written before.
    pub fn close(&mut self, close: Close) {
        self.outgoing.close(close);
    }

    /// Why the other end has ended the session for good, if it has.
    #[must_use]
    pub fn peer_closed(&self) -> Option<&Close> {
        self.peer_closed.as_ref()
    }

    /// The connection is gone. Whatever arrived and was not read is forgotten, and will come again.
    pub fn detach(&mut self) {
        self.incoming.detach();
    }

    /// Where this end stands, for the other end's [`attach`](Self::attach): everything before was read. Holds until more is read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.incoming.position()
    }

    /// What may be sent over a new connection before it is known where the other end stands: everything that is kept, if
    /// that is at most [`REPEAT_BYTES_MAX`].
    pub fn repeat(&mut self) -> Repeat {
        self.outgoing.repeat(REPEAT_BYTES_MAX)
    }

    /// Whether the other end, since this one was attached, has shown that it knows where this one stands.
    #[must_use]
    pub const fn is_answered(&self) -> bool {
        self.is_answered
    }

    /// Goes on over a new connection: the other end stands at `position`, and was told where this one does, or will be by a
    /// [`preface`](Self::preface).
    ///
    /// # Errors
    /// When it cannot stand there; then there is no going on.
    pub fn attach(&mut self, position: u64) -> Result<(), Violation> {
        self.attach_behind(position, 0)
    }

    /// As [`attach`](Self::attach), where everything before `repeated`, the end of a [`Repeat`], went out over the connection
    /// already.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub fn attach_behind(&mut self, position: u64, repeated: u64) -> Result<(), Violation> {
        self.incoming.attach();
        self.outgoing.attach(position, repeated)?;
        self.is_answered = false;
        // The other end knows it already. It hears that this one has its answer.
        self.acknowledge();
        Ok(())
    }

    /// What goes out on a new connection before any frame.
    pub fn preface(&mut self, bytes: Vec<u8>) {
        self.outgoing.preface(bytes);
    }

    fn acknowledge_if_due(&mut self) {
        if self.incoming.owes_now() {
            self.acknowledge();
        }
    }
}
