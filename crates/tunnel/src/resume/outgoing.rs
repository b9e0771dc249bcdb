//! What is sent: kept until the other end has passed it on.

use std::collections::VecDeque;

use super::frame::{self, Close, DATA_FRAME_BYTES_MAX};
use super::standing::Sends;
use super::{Repeat, Transmit, Violation, WINDOW_BYTES_MIN};

/// An empty buffer that is larger is given back.
const UNUSED_BYTES_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Outgoing {
    window: usize,
    /// The bytes from `base` on, which the other end has not passed on yet.
    kept: VecDeque<u8>,
    base: u64,
    /// Everything before was handed to this connection, or arrived over an earlier one.
    sent: u64,
    /// The same of all connections, the end counting as one: an end that passes on what it took over an earlier connection,
    /// and is killed, has more than this connection has brought it.
    reached: u64,
    is_finished: bool,
    finish_sent: bool,
    finish_acknowledged: bool,
    /// The session was closed from this end.
    is_closed: bool,
    due: Due,
    /// Frames under way; a data frame's header is the last in it.
    head: Vec<u8>,
    head_sent: usize,
    /// What is still to come of the data frame whose header is in `head`, or was.
    payload_left: usize,
}

/// Frames that are to be sent besides the bytes.
#[derive(Debug, Default)]
struct Due {
    acknowledge: Option<u64>,
    ask: bool,
    close: Option<Close>,
}

impl Outgoing {
    pub(super) fn new(window: usize) -> Self {
        Self {
            window,
            kept: VecDeque::new(),
            base: 0,
            sent: 0,
            reached: 0,
            is_finished: false,
            finish_sent: false,
            finish_acknowledged: false,
            is_closed: false,
            due: Due::default(),
            head: Vec::new(),
            head_sent: 0,
            payload_left: 0,
        }
    }

    pub(super) fn agree(&mut self, window: usize) {
        self.window = window;
    }

    /// Where it stands, and what it keeps; nothing once the session is to be closed.
    pub(super) fn standing(&self) -> Option<(Sends, [&[u8]; 2])> {
        if self.is_closed {
            return None;
        }
        let sends = Sends {
            base: self.base,
            sent: self.reached.min(self.end()),
            is_finished: self.is_finished,
            finish_sent: self.reached > self.end(),
            finish_acknowledged: self.finish_acknowledged,
        };
        let (first, second) = self.kept.as_slices();
        Some((sends, [first, second]))
    }

    /// What stands there; it was checked.
    pub(super) fn restore(window: usize, sends: &Sends, kept: Vec<u8>) -> Self {
        Self {
            kept: kept.into(),
            base: sends.base,
            sent: sends.sent,
            reached: sends.sent + u64::from(sends.finish_sent),
            is_finished: sends.is_finished,
            finish_sent: sends.finish_sent,
            finish_acknowledged: sends.finish_acknowledged,
            ..Self::new(window)
        }
    }

    pub(super) fn window(&self) -> usize {
        self.window
    }

    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    /// How many more bytes may be kept within `window`, which may be less than was agreed on.
    pub(super) fn room(&self, window: usize) -> usize {
        let window = window.max(WINDOW_BYTES_MIN).min(self.window);
        match self.is_finished {
            true => 0,
            false => window.saturating_sub(self.kept.len()),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
    }

    pub(super) fn finish(&mut self) {
        self.is_finished = true;
    }

    pub(super) fn ask(&mut self) {
        self.due.ask = true;
    }

    pub(super) fn close(&mut self, close: Close) {
        self.due.close = Some(close);
        self.is_closed = true;
    }

    pub(super) fn acknowledge(&mut self, position: u64) {
        self.due.acknowledge = Some(position);
    }

    /// Whether the other end has everything, and knows that there is no more.
    pub(super) fn is_drained(&self) -> bool {
        self.finish_acknowledged
    }

    /// Whether something was sent, or is to be, that the other end has not acknowledged.
    pub(super) fn is_outstanding(&self) -> bool {
        !self.kept.is_empty() || self.is_finished != self.finish_acknowledged
    }

    /// Bytes that no connection has taken yet.
    pub(super) fn unsent(&self) -> usize {
        self.kept.len() - self.kept_before(self.sent)
    }

    /// The other end has passed on everything before.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Bytes that no connection has taken yet, as far as the other end lets them come. What a process that was killed
    /// leaves may go beyond that.
    fn sendable(&self) -> usize {
        let on_the_way = self.kept_before(self.sent);
        self.unsent().min(self.window.saturating_sub(on_the_way))
    }

    /// Whether frames wait, or are half sent.
    pub(super) fn has_frames(&self) -> bool {
        let is_behind_bytes = self.is_finished != self.finish_sent || self.due.close.is_some();
        self.head_sent < self.head.len()
            || self.payload_left > 0
            || self.sendable() > 0
            || self.due.acknowledge.is_some()
            || self.due.ask
            || (is_behind_bytes && self.unsent() == 0)
    }

    /// What goes on the wire next; empty when there is nothing. `acknowledged` is what may be acknowledged along with bytes.
    pub(super) fn transmit(&mut self, acknowledgement: impl FnOnce() -> Option<u64>) -> Transmit<'_> {
        if self.head_sent == self.head.len() && self.payload_left == 0 {
            self.compose(acknowledgement);
        }
        let head = self.head.get(self.head_sent..).unwrap_or_default();
        let from = self.kept_before(self.sent);
        let (first, second) = part(&self.kept, from, self.payload_left);
        Transmit {
            pieces: [head, first, second],
        }
    }

    /// So much of it was taken.
    pub(super) fn transmitted(&mut self, bytes: usize) {
        let of_head = bytes.min(self.head.len() - self.head_sent);
        self.head_sent += of_head;
        let of_payload = (bytes - of_head).min(self.payload_left);
        self.payload_left -= of_payload;
        self.sent += of_payload as u64;
        self.reached = self.reached.max(self.sent);
    }

    fn compose(&mut self, acknowledgement: impl FnOnce() -> Option<u64>) {
        self.head.clear();
        self.head_sent = 0;
        let bytes = self.sendable().min(DATA_FRAME_BYTES_MAX);
        let due = std::mem::take(&mut self.due);
        let rides_along = if bytes > 0 { acknowledgement() } else { None };
        if let Some(position) = rides_along.or(due.acknowledge) {
            frame::push_acknowledge(&mut self.head, position);
        }
        if due.ask {
            frame::push_ask(&mut self.head);
        }
        if bytes > 0 {
            frame::push_data_header(&mut self.head, bytes);
            self.payload_left = bytes;
        }
        if self.unsent() > 0 {
            // What else is due comes behind the bytes.
            self.due.close = due.close;
            return;
        }
        if self.is_finished && !self.finish_sent {
            self.finish_sent = true;
            self.reached = self.end() + 1;
            frame::push_finish(&mut self.head);
        }
        if let Some(close) = due.close {
            frame::push_close(&mut self.head, &close);
        }
    }

    /// The other end has passed on everything before `position`.
    pub(super) fn acknowledged(&mut self, position: u64) -> Result<(), Violation> {
        self.check(position, self.sent + u64::from(self.finish_sent))?;
        self.pass(position);
        Ok(())
    }

    fn pass(&mut self, position: u64) {
        self.finish_acknowledged = position > self.end();
        let passed_on = self.kept_before(position);
        self.base += passed_on as u64;
        self.kept.drain(..passed_on);
        if self.kept.is_empty() && self.kept.capacity() > UNUSED_BYTES_MAX {
            self.kept = VecDeque::new();
        }
    }

    /// Everything that is kept, in frames, if that is some bytes and not more than so many. Counts as sent.
    pub(super) fn repeat(&mut self, bytes_max: usize) -> Repeat {
        let bytes = self.kept.len();
        if bytes == 0 || bytes > bytes_max {
            return Repeat::default();
        }
        let mut frames = Vec::new();
        frame::push_repeat(&mut frames, self.base);
        frame::push_data_header(&mut frames, bytes);
        let (first, second) = self.kept.as_slices();
        frames.extend_from_slice(first);
        frames.extend_from_slice(second);
        let end = self.end();
        self.reached = self.reached.max(end);
        Repeat { frames, end }
    }

    /// On a new connection everything goes out from `position` on, which is where the other end stands, or from
    /// `repeated` on, if everything before was repeated over it already.
    pub(super) fn attach(&mut self, position: u64, repeated: u64) -> Result<(), Violation> {
        self.check(position, self.reached)?;
        self.pass(position);
        self.sent = self.base.max(repeated.min(self.end()));
        self.finish_sent = self.finish_acknowledged;
        self.due.acknowledge = None;
        self.due.ask = false;
        self.preface(Vec::new());
        Ok(())
    }

    /// Goes out first on a new connection.
    pub(super) fn preface(&mut self, bytes: Vec<u8>) {
        self.head = bytes;
        self.head_sent = 0;
        self.payload_left = 0;
    }

    fn check(&self, position: u64, sent: u64) -> Result<(), Violation> {
        if position > sent {
            return Err(Violation::AheadOfSent { position, sent });
        }
        let acknowledged = self.base + u64::from(self.finish_acknowledged);
        if position < acknowledged {
            return Err(Violation::BehindAcknowledged {
                position,
                acknowledged,
            });
        }
        Ok(())
    }

    /// The position behind the last byte.
    fn end(&self) -> u64 {
        self.base + self.kept.len() as u64
    }

    /// How many of the kept bytes lie before `position`.
    fn kept_before(&self, position: u64) -> usize {
        let before = position.saturating_sub(self.base);
        usize::try_from(before).map_or(self.kept.len(), |before| before.min(self.kept.len()))
    }
}

/// `bytes` of the queue, from `from` on.
fn part(queue: &VecDeque<u8>, from: usize, bytes: usize) -> (&[u8], &[u8]) {
    let (first, second) = queue.as_slices();
    let to = from + bytes;
    let clamp =
        |position: usize, slice: &[u8], offset: usize| position.saturating_sub(offset).min(slice.len());
    let of = |slice: &'_ [u8], offset: usize| -> std::ops::Range<usize> {
        clamp(from, slice, offset)..clamp(to, slice, offset)
    };
    let (in_first, in_second) = (of(first, 0), of(second, first.len()));
    (
        first.get(in_first).unwrap_or_default(),
        second.get(in_second).unwrap_or_default(),
    )
}
