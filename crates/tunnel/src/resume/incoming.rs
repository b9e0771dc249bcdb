//! What arrives: frames taken apart, bytes held until somebody takes them.

use std::collections::VecDeque;
use std::io::Read as _;

use super::Violation;
use super::frame::{CLOSE_BYTES_MAX, HEADER_BYTES, Header, Kind};
use super::standing::Receives;

/// An empty buffer that is larger is given back.
const UNUSED_BYTES_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Incoming {
    window: usize,
    /// Bytes that arrived and were not taken.
    held: VecDeque<u8>,
    /// Everything before was taken; the end counts as one.
    taken: u64,
    /// What the other end was told, or will be at once.
    acknowledged: u64,
    is_finished: bool,
    /// Nothing has come over this connection yet, and others were before it.
    may_repeat: bool,
    /// So many of the next bytes were taken before: this end said that it stands before them, or the other end repeats them.
    again: u64,
    state: State,
    /// For an end that acknowledges what was passed on, and not what was taken: everything before was; the end counts as one.
    /// The rest may be lost. So the other end keeps it, and sends it again on another connection.
    passed_on: Option<u64>,
}

/// Where in a frame we are.
#[derive(Debug)]
enum State {
    Header {
        bytes: [u8; HEADER_BYTES],
        filled: usize,
    },
    Data {
        left: usize,
    },
    Control {
        kind: Kind,
        bytes: Vec<u8>,
        left: usize,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Header {
            bytes: [0; HEADER_BYTES],
            filled: 0,
        }
    }
}

/// What arrived besides bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    Acknowledgement(Vec<u8>),
    Ask,
    Finish,
    Close(Vec<u8>),
    Repeat(Vec<u8>),
}

impl Incoming {
    pub(super) fn new(window: usize) -> Self {
        Self {
            window,
            held: VecDeque::new(),
            taken: 0,
            acknowledged: 0,
            is_finished: false,
            may_repeat: false,
            again: 0,
            state: State::default(),
            passed_on: None,
        }
    }

    pub(super) fn agree(&mut self, window: usize) {
        self.window = window;
    }

    /// Where it stands, but for what is held.
    pub(super) fn standing(&self) -> Receives {
        Receives {
            taken: self.taken,
            acknowledged: self.acknowledged,
            is_finished: self.is_at_end(),
        }
    }

    /// What stands there; it was checked.
    pub(super) fn restore(window: usize, receives: &Receives) -> Self {
        Self {
            taken: receives.taken,
            acknowledged: receives.acknowledged,
            is_finished: receives.is_finished,
            ..Self::new(window)
        }
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Everything before was taken, or passed on where that is told; the end, once it is known and everything taken, counts
    /// as one.
    pub(super) fn position(&self) -> u64 {
        let end = u64::from(self.is_at_end());
        match self.passed_on {
            None => self.taken + end,
            // What this connection has not brought again the other end does not know to have sent, unless it was told so.
            Some(passed_on) => passed_on
                .min(self.taken.saturating_sub(self.again) + end)
                .max(self.acknowledged),
        }
    }

    /// Everything before `position` was passed on. From the first time on, only that is acknowledged.
    pub(super) fn passed_on(&mut self, position: u64) {
        let position = position.min(self.taken + 1);
        self.passed_on = Some(self.passed_on.map_or(position, |before| before.max(position)));
    }

    /// The connection before is gone. The other end was told the position, or will be, and sends everything from there.
    pub(super) fn attach(&mut self) {
        self.detach();
        let position = self.position();
        self.again = self.taken.saturating_sub(position);
        // An end that was not passed on comes again, too.
        self.is_finished = position > self.taken;
        self.may_repeat = true;
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.is_finished && self.held.is_empty()
    }

    /// Takes what is held, as far as `target` goes.
    pub(super) fn read(&mut self, target: &mut [u8]) -> usize {
        let count = target.len().min(self.held.len());
        let mut rest = target;
        // It lies in two pieces at most.
        for _ in 0..2 {
            let read = self.held.read(rest).unwrap_or(0);
            rest = rest.get_mut(read..).unwrap_or_default();
        }
        if self.held.is_empty() && self.held.capacity() > UNUSED_BYTES_MAX {
            self.held = VecDeque::new();
        }
        self.taken += count as u64;
        count
    }

    /// How many bytes of the frame at hand could be taken without being held first.
    pub(super) fn direct(&self) -> usize {
        match &self.state {
            State::Data { left } if self.held.is_empty() && self.again == 0 => *left,
            State::Data { .. } | State::Header { .. } | State::Control { .. } => 0,
        }
    }

    /// How many bytes the frame at hand lacks.
    pub(super) fn wanted(&self) -> usize {
        match &self.state {
            State::Header { filled, .. } => HEADER_BYTES - filled,
            State::Data { left } | State::Control { left, .. } => *left,
        }
    }

    /// So many were taken.
    pub(super) fn took(&mut self, count: usize) {
        self.taken += count as u64;
        self.passed(count);
    }

    /// Takes bytes of the wire apart, up to and with the next frame that is not data. Returns that, and how many bytes it took.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(usize, Option<Arrived>), Violation> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = self.wanted().min(rest.len());
            let (piece, behind) = rest.split_at(count);
            rest = behind;
            if let Some(arrived) = self.fill(piece)? {
                return Ok((bytes.len() - rest.len(), Some(arrived)));
            }
        }
        Ok((bytes.len(), None))
    }

    /// Adds to the frame at hand, which lacks at least as much.
    fn fill(&mut self, piece: &[u8]) -> Result<Option<Arrived>, Violation> {
        match &mut self.state {
            State::Header { bytes, filled } => {
                for (to, from) in bytes.iter_mut().skip(*filled).zip(piece) {
                    *to = *from;
                }
                *filled += piece.len();
                if *filled < HEADER_BYTES {
                    return Ok(None);
                }
                let header = Header::read(*bytes)?;
                self.begin(header)
            }
            State::Data { .. } => {
                let known = usize::try_from(self.again).map_or(piece.len(), |again| again.min(piece.len()));
                self.again -= known as u64;
                self.held.extend(piece.get(known..).unwrap_or_default());
                self.passed(piece.len());
                Ok(None)
            }
            State::Control { kind, bytes, left } => {
                bytes.extend_from_slice(piece);
                *left -= piece.len();
                if *left > 0 {
                    return Ok(None);
                }
                let arrived = arrived(*kind, std::mem::take(bytes));
                self.state = State::default();
                Ok(arrived)
            }
        }
    }

    fn begin(&mut self, header: Header) -> Result<Option<Arrived>, Violation> {
        let is_first = std::mem::replace(&mut self.may_repeat, false);
        self.state = match header.kind {
            Kind::Repeat if !is_first => return Err(Violation::LateRepeat),
            Kind::Data => {
                self.admit(header.bytes)?;
                State::Data { left: header.bytes }
            }
            // Nor is there an end before what came before it.
            Kind::Finish if self.is_finished || self.again > 0 => return Err(Violation::AfterEnd),
            Kind::Finish => {
                self.is_finished = true;
                State::default()
            }
            kind if header.bytes == 0 => {
                self.state = State::default();
                return Ok(arrived(kind, Vec::new()));
            }
            kind => State::Control {
                kind,
                bytes: Vec::with_capacity(header.bytes.min(CLOSE_BYTES_MAX)),
                left: header.bytes,
            },
        };
        Ok((header.kind == Kind::Finish).then_some(Arrived::Finish))
    }

    fn admit(&self, bytes: usize) -> Result<(), Violation> {
        let new = (bytes as u64).saturating_sub(self.again);
        if self.is_finished && new > 0 {
            return Err(Violation::AfterEnd);
        }
        let arrived = self.taken + self.held.len() as u64 + new;
        let unacknowledged = arrived.saturating_sub(self.acknowledged);
        match unacknowledged > self.window as u64 {
            true => Err(Violation::BeyondWindow {
                bytes: unacknowledged,
                window: self.window,
            }),
            false => Ok(()),
        }
    }

    /// The next bytes begin at `position`, not behind where this end said that it stands: what of them was taken before is
    /// passed over.
    pub(super) fn repeat(&mut self, position: u64) -> Result<(), Violation> {
        let possible = self.again..=self.window as u64;
        let again = self.taken.checked_sub(position);
        match again.filter(|again| possible.contains(again)) {
            Some(again) => {
                self.again = again;
                Ok(())
            }
            None => Err(Violation::RepeatFromElsewhere {
                position,
                taken: self.taken.saturating_sub(self.again),
            }),
        }
    }

    fn passed(&mut self, count: usize) {
        if let State::Data { left } = &mut self.state {
            *left -= count.min(*left);
            if *left == 0 {
                self.state = State::default();
            }
        }
    }

    /// Whether there is anything to acknowledge.
    pub(super) fn owes(&self) -> bool {
        self.position() > self.acknowledged
    }

    /// Whether the other end will soon have to wait for an acknowledgement, or waits for that of its end.
    pub(super) fn owes_now(&self) -> bool {
        let owed = self.position().saturating_sub(self.acknowledged);
        owed >= (self.window / 4) as u64 || (self.is_at_end() && owed > 0)
    }

    /// The position to acknowledge, which from now on counts as told.
    pub(super) fn acknowledge(&mut self) -> u64 {
        self.acknowledged = self.acknowledged.max(self.position());
        self.acknowledged
    }

    /// The connection is gone. What was held is forgotten: it will come again.
    pub(super) fn detach(&mut self) {
        self.is_finished = self.is_at_end();
        self.held = VecDeque::new();
        self.state = State::default();
    }
}

fn arrived(kind: Kind, payload: Vec<u8>) -> Option<Arrived> {
    match kind {
        Kind::Data => None,
        Kind::Acknowledge => Some(Arrived::Acknowledgement(payload)),
        Kind::Finish => Some(Arrived::Finish),
        Kind::Ask => Some(Arrived::Ask),
        Kind::Close => Some(Arrived::Close(payload)),
        Kind::Repeat => Some(Arrived::Repeat(payload)),
    }
}
