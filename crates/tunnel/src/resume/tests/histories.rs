//! Two ends over connections that break, of which one may be killed.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Two ends and what is on its way between them.
struct Pair {
    ends: [Side; 2],
    is_connected: bool,
}

struct Side {
    endpoint: Endpoint,
    /// On its way to the other end.
    wire: VecDeque<u8>,
    written: Vec<u8>,
    read: Vec<u8>,
    /// How much of what was read was passed on, for an end that may be killed.
    passed_on: Option<usize>,
    /// Whoever reads here has seen the end, or even passed it on.
    read_end: bool,
    passed_end: bool,
}

impl Pair {
    fn new() -> Self {
        let side = || Side {
            endpoint: Endpoint::new(WINDOW),
            wire: VecDeque::new(),
            written: Vec::new(),
            read: Vec::new(),
            passed_on: None,
            read_end: false,
            passed_end: false,
        };
        Self {
            ends: [side(), side()],
            is_connected: true,
        }
    }

    /// The same, whose second end may be killed at any time.
    fn mortal() -> Self {
        let mut pair = Self::new();
        pair.ends[1].passed_on = Some(0);
        pair.pass_on(0);
        pair
    }

    /// An end that may be killed passes on at most so many bytes of those that were read.
    fn pass_on(&mut self, count: usize) {
        let side = &mut self.ends[1];
        let Some(before) = side.passed_on else {
            return;
        };
        side.read_end |= side.endpoint.is_at_end();
        let position = (before + count).min(side.read.len());
        side.passed_on = Some(position);
        side.passed_end |= side.read_end && position == side.read.len() && count > 0;
        side.endpoint
            .passed_on(position as u64 + u64::from(side.passed_end));
    }

    /// An end that may be killed is; another process knows what it has passed on and what it has written, and keeps up to
    /// `more` bytes that the other end has acknowledged.
    fn kill(&mut self, more: usize) {
        let side = &mut self.ends[1];
        let Some(position) = side.passed_on else {
            return;
        };
        side.read.truncate(position);
        side.read_end = side.passed_end;
        let was = side.endpoint.standing().unwrap().0;
        let sent = side.written.len();
        let base = (side.endpoint.acknowledged() as usize).saturating_sub(more);
        let base = base.max(sent.saturating_sub(WINDOW + KEPT_BEYOND_WINDOW_BYTES_MAX));
        let is_finished = was.outgoing.is_finished;
        let standing = Standing {
            window: was.window,
            outgoing: Sends {
                base: base as u64,
                sent: sent as u64,
                is_finished,
                finish_sent: is_finished,
                finish_acknowledged: false,
            },
            incoming: Receives {
                taken: position as u64,
                acknowledged: position as u64 + u64::from(side.passed_end),
                is_finished: side.passed_end,
            },
        };
        side.endpoint = Endpoint::restore(&standing, side.written[base..].to_vec()).unwrap();
        side.endpoint.passed_on(standing.incoming.acknowledged);
        self.cut();
    }

    fn write(&mut self, at: usize, count: usize) {
        let side = &mut self.ends[at];
        let count = count.min(side.endpoint.room(WINDOW));
        let start = side.written.len();
        let bytes: Vec<u8> = (start..start + count).map(|n| (n ^ (n >> 8)) as u8).collect();
        side.endpoint.write(&bytes);
        side.written.extend(bytes);
    }

    /// Sends at most so many bytes.
    fn send(&mut self, at: usize, count: usize) -> usize {
        if !self.is_connected {
            return 0;
        }
        let side = &mut self.ends[at];
        let bytes: Vec<u8> = side.endpoint.transmit().pieces.concat();
        let count = count.min(bytes.len());
        side.wire.extend(&bytes[..count]);
        side.endpoint.transmitted(count);
        count
    }

    /// Delivers at most so many bytes to the end, which takes its own bytes directly where it can if it is `eager`.
    fn deliver(&mut self, at: usize, count: usize, eager: bool) -> usize {
        let mut delivered = 0;
        while delivered < count && !self.ends[1 - at].wire.is_empty() {
            let endpoint = &self.ends[at].endpoint;
            let (direct, wanted) = (endpoint.direct(), endpoint.wanted());
            let size = wanted.min(count - delivered).min(self.ends[1 - at].wire.len());
            let bytes: Vec<u8> = self.ends[1 - at].wire.drain(..size).collect();
            let side = &mut self.ends[at];
            if eager && direct > 0 {
                side.endpoint.took(size);
                side.read.extend(bytes);
            } else {
                side.endpoint.push(&bytes).unwrap();
            }
            delivered += size;
        }
        delivered
    }

    fn read(&mut self, at: usize, count: usize) -> usize {
        let side = &mut self.ends[at];
        let mut target = vec![0; count];
        let count = side.endpoint.read(&mut target);
        side.read.extend(&target[..count]);
        count
    }

    fn cut(&mut self) {
        self.is_connected = false;
        for side in &mut self.ends {
            side.wire.clear();
            side.endpoint.detach();
        }
    }

    /// Another process goes on with one end.
    fn hand_over(&mut self, at: usize) {
        let endpoint = &mut self.ends[at].endpoint;
        let (standing, kept) = endpoint.standing().unwrap();
        let text = serde_json::to_string(&standing).unwrap();
        *endpoint = Endpoint::restore(&serde_json::from_str(&text).unwrap(), kept.concat()).unwrap();
        if at == 1 {
            self.pass_on(0);
        }
        self.cut();
    }

    /// Both go on over another connection, over which the first repeats what it keeps in advance if it `repeats`.
    fn resume(&mut self, repeats: bool) {
        let positions = [0, 1].map(|at| self.ends[at].endpoint.position());
        let [first, second] = &mut self.ends;
        let repeat = if repeats {
            first.endpoint.repeat()
        } else {
            Repeat::default()
        };
        first.wire.extend(repeat.frames);
        first.endpoint.attach_behind(positions[1], repeat.end).unwrap();
        second.endpoint.attach(positions[0]).unwrap();
        self.is_connected = true;
    }

    /// So much of what the first repeats arrives and is read, and the connection is gone before it hears the answer.
    fn resume_in_vain(&mut self, count: usize) {
        let position = self.ends[0].endpoint.position();
        let frames = self.ends[0].endpoint.repeat().frames;
        let second = &mut self.ends[1].endpoint;
        second.attach(position).unwrap();
        second.push(&frames[..count.min(frames.len())]).unwrap();
        assert!(!second.is_answered());
        self.read(1, usize::from(u16::MAX));
        self.cut();
    }

    fn check(&mut self) {
        for at in [0, 1] {
            self.ends[at].read_end |= self.ends[at].endpoint.is_at_end();
            let (read, written) = (&self.ends[at].read, &self.ends[1 - at].written);
            assert!(read.len() <= written.len() && *read == written[..read.len()]);
            let kept_max = 2 * WINDOW + KEPT_BEYOND_WINDOW_BYTES_MAX;
            assert!(self.ends[at].endpoint.kept() <= kept_max);
        }
    }

    /// Until both have everything.
    fn settle(&mut self) {
        if !self.is_connected {
            self.resume(true);
        }
        for side in &mut self.ends {
            side.endpoint.finish();
        }
        for _ in 0..100_000 {
            let mut moved = 0;
            self.pass_on(usize::MAX / 2);
            for at in [0, 1] {
                moved += self.send(at, usize::MAX);
                moved += self.deliver(1 - at, usize::MAX, false);
                moved += self.read(1 - at, 1 << 20);
            }
            if moved == 0 {
                break;
            }
        }
        for at in [0, 1] {
            let side = &self.ends[at];
            assert!(side.endpoint.is_at_end() && side.endpoint.is_drained());
            assert!(!side.endpoint.is_outstanding() && !side.endpoint.has_frames());
            assert_eq!(side.endpoint.kept(), 0);
            assert_eq!(side.read, self.ends[1 - at].written);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize),
    Finish(usize),
    Send(usize, usize),
    Deliver(usize, usize, bool),
    Read(usize, usize),
    Ask(usize),
    Acknowledge(usize),
    PassOn(usize),
    Cut,
    HandOver(usize),
    Kill(usize),
    Resume(bool),
    ResumeInVain(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = 0..2usize;
    let count = prop_oneof![0..20usize, 0..5_000usize, 0..200_000usize];
    let step = prop_oneof![
        4 => (end.clone(), count.clone()).prop_map(|(at, n)| Step::Write(at, n)),
        4 => (end.clone(), count.clone()).prop_map(|(at, n)| Step::Send(at, n)),
        4 => (end.clone(), count.clone(), any::<bool>()).prop_map(|(at, n, eager)| Step::Deliver(at, n, eager)),
        4 => (end.clone(), count.clone()).prop_map(|(at, n)| Step::Read(at, n)),
        1 => end.clone().prop_map(Step::Ask),
        1 => end.clone().prop_map(Step::Acknowledge),
        4 => count.clone().prop_map(Step::PassOn),
        1 => Just(Step::Cut),
        1 => end.clone().prop_map(Step::HandOver),
        1 => count.clone().prop_map(Step::Kill),
        2 => any::<bool>().prop_map(Step::Resume),
        1 => count.prop_map(Step::ResumeInVain),
    ];
    let rare = end.prop_map(Step::Finish);
    proptest::collection::vec(prop_oneof![40 => step, 1 => rare], 0..200)
}

impl Pair {
    fn take(&mut self, step: Step) {
        match step {
            Step::Write(at, count) => self.write(at, count),
            Step::Finish(at) => self.ends[at].endpoint.finish(),
            Step::Send(at, count) => drop(self.send(at, count)),
            Step::Deliver(at, count, eager) => drop(self.deliver(at, count, eager)),
            Step::Read(at, count) => drop(self.read(at, count)),
            Step::Ask(at) => self.ends[at].endpoint.ask(),
            Step::Acknowledge(at) => self.ends[at].endpoint.acknowledge(),
            Step::PassOn(count) => self.pass_on(count),
            Step::Cut => self.cut(),
            Step::HandOver(at) => self.hand_over(at),
            Step::Kill(more) => self.kill(more),
            Step::Resume(_) | Step::ResumeInVain(_) if self.is_connected => {}
            Step::Resume(repeats) => self.resume(repeats),
            Step::ResumeInVain(count) => self.resume_in_vain(count),
        }
        self.check();
    }
}

proptest! {
    #[test]
    fn both_ends_get_every_byte_once_and_in_order_however_often_the_connection_breaks(steps in steps()) {
        let mut pair = Pair::new();
        for step in steps {
            pair.take(step);
        }
        pair.settle();
    }

    #[test]
    fn an_end_that_is_killed_again_and_again_loses_no_byte_and_doubles_none(steps in steps()) {
        let mut pair = Pair::mortal();
        for step in steps {
            pair.take(step);
        }
        pair.settle();
    }

    #[test]
    fn no_bytes_from_a_peer_bring_an_end_down(pieces in proptest::collection::vec(any::<Vec<u8>>(), 0..50)) {
        let mut endpoint = Endpoint::new(WINDOW);
        endpoint.write(b"kept");
        for piece in pieces {
            if endpoint.push(&piece).is_err() {
                return Ok(());
            }
            prop_assert!(endpoint.kept() <= 4 + WINDOW);
        }
    }
}
