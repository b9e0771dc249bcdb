//! Two ends over connections that break, and peers that do not keep to the protocol.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]
use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const WINDOW: usize = WINDOW_BYTES_MIN;

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
            passed_end: false,
        };
        Self {
            ends: [side(), side()],
            is_connected: true,
        }
    }

    /// The same, whose first end may be killed at any time.
    fn mortal() -> Self {
        let mut pair = Self::new();
        pair.pass_on(0, 0);
        pair
    }

    /// Passes on at most so many bytes of those that were read.
    fn pass_on(&mut self, at: usize, count: usize) {
        let side = &mut self.ends[at];
        let position = (side.passed_on.unwrap_or(0) + count).min(side.read.len());
        side.passed_on = Some(position);
        let is_all = position == side.read.len() && side.endpoint.is_at_end();
        side.passed_end |= is_all && count > 0;
        let position = position as u64 + u64::from(side.passed_end);
        side.endpoint.passed_on(position);
    }

    /// The first end is killed; another process knows what it has passed on and what it has written, and keeps up to
    /// `more` bytes that the other end has acknowledged.
    fn kill(&mut self, more: usize) {
        let side = &mut self.ends[0];
        let position = side.passed_on.unwrap();
        side.read.truncate(position);
        let was = side.endpoint.standing().unwrap().0;
        let base = (side.endpoint.acknowledged() as usize).saturating_sub(more);
        let is_finished = was.outgoing.is_finished;
        let is_shut = side.passed_end;
        let standing = Standing {
            window: was.window,
            outgoing: Sends {
                base: base as u64,
                sent: side.written.len() as u64,
                is_finished,
                finish_sent: is_finished,
                finish_acknowledged: false,
            },
            incoming: Receives {
                taken: position as u64,
                acknowledged: position as u64 + u64::from(is_shut),
                is_finished: is_shut,
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
        self.cut();
    }

    fn resume(&mut self) {
        let positions = [0, 1].map(|at| self.ends[at].endpoint.position());
        for (at, side) in self.ends.iter_mut().enumerate() {
            side.endpoint.attach(positions[1 - at]).unwrap();
        }
        self.is_connected = true;
    }

    fn check(&self) {
        for at in [0, 1] {
            let (read, written) = (&self.ends[at].read, &self.ends[1 - at].written);
            assert!(read.len() <= written.len() && *read == written[..read.len()]);
            let kept_max = 2 * WINDOW + KEPT_BEYOND_WINDOW_BYTES_MAX;
            assert!(self.ends[at].endpoint.kept() <= kept_max);
        }
    }

    /// Until both have everything.
    fn settle(&mut self) {
        if !self.is_connected {
            self.resume();
        }
        for side in &mut self.ends {
            side.endpoint.finish();
        }
        for _ in 0..100_000 {
            let mut moved = 0;
            for at in [0, 1] {
                if self.ends[at].passed_on.is_some() {
                    self.pass_on(at, usize::MAX / 2);
                }
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
    Cut,
    HandOver(usize),
    Resume,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = 0..2usize;
    let count = prop_oneof![0..20usize, 0..5_000usize, 0..200_000usize];
    let step = prop_oneof![
        4 => (end.clone(), count.clone()).prop_map(|(at, n)| Step::Write(at, n)),
        4 => (end.clone(), count.clone()).prop_map(|(at, n)| Step::Send(at, n)),
        4 => (end.clone(), count.clone(), any::<bool>()).prop_map(|(at, n, eager)| Step::Deliver(at, n, eager)),
        4 => (end.clone(), count).prop_map(|(at, n)| Step::Read(at, n)),
        1 => end.clone().prop_map(Step::Ask),
        1 => end.clone().prop_map(Step::Acknowledge),
        1 => Just(Step::Cut),
        1 => end.clone().prop_map(Step::HandOver),
        2 => Just(Step::Resume),
    ];
    let rare = end.prop_map(Step::Finish);
    proptest::collection::vec(prop_oneof![40 => step, 1 => rare], 0..200)
}

proptest! {
    #[test]
    fn both_ends_get_every_byte_once_and_in_order_however_often_the_connection_breaks(steps in steps()) {
        let mut pair = Pair::new();
        for step in steps {
            match step {
                Step::Write(at, count) => pair.write(at, count),
                Step::Finish(at) => pair.ends[at].endpoint.finish(),
                Step::Send(at, count) => drop(pair.send(at, count)),
                Step::Deliver(at, count, eager) => drop(pair.deliver(at, count, eager)),
                Step::Read(at, count) => drop(pair.read(at, count)),
                Step::Ask(at) => pair.ends[at].endpoint.ask(),
                Step::Acknowledge(at) => pair.ends[at].endpoint.acknowledge(),
                Step::Cut => pair.cut(),
                Step::HandOver(at) => pair.hand_over(at),
                Step::Resume if pair.is_connected => {}
                Step::Resume => pair.resume(),
            }
            pair.check();
        }
        pair.settle();
    }

    #[test]
    fn an_end_that_is_killed_again_and_again_loses_no_byte_and_doubles_none(
        steps in steps(),
        kills in proptest::collection::vec(any::<(u8, u16)>(), 0..20),
    ) {
        let mut pair = Pair::mortal();
        let mut kills = kills.into_iter();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Write(at, count) => pair.write(at, count),
                Step::Finish(at) => pair.ends[at].endpoint.finish(),
                Step::Send(at, count) => drop(pair.send(at, count)),
                Step::Deliver(at, count, eager) => drop(pair.deliver(at, count, eager)),
                Step::Read(at, count) => drop(pair.read(at, count)),
                Step::Ask(at) => pair.pass_on(0, 100 * at),
                Step::Acknowledge(at) => pair.pass_on(0, 100_000 * at),
                Step::Cut => pair.cut(),
                Step::HandOver(_) => {
                    if let Some((_, more)) = kills.next() {
                        pair.kill(more.into());
                    }
                }
                Step::Resume if pair.is_connected => {}
                Step::Resume => pair.resume(),
            }
            if number % 16 == 0 && let Some((chance, more)) = kills.next() && chance > 128 {
                pair.kill(more.into());
            }
            pair.check();
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

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let [.., high, middle, low] = payload.len().to_be_bytes();
    [&[kind, high, middle, low], payload].concat()
}

fn acknowledge(position: u64) -> Vec<u8> {
    frame(1, &position.to_be_bytes())
}

/// An end that has sent `bytes`.
fn sent(bytes: &[u8]) -> Endpoint {
    let mut endpoint = Endpoint::new(WINDOW);
    endpoint.write(bytes);
    let count = endpoint.transmit().pieces.concat().len();
    endpoint.transmitted(count);
    endpoint
}

#[test]
fn the_frames_are_those_of_the_specification() {
    let mut endpoint = Endpoint::new(WINDOW);
    endpoint.push(&frame(0, b"abc")).unwrap();
    assert_eq!(endpoint.read(&mut [0; 8]), 3);
    endpoint.write(b"hello");
    endpoint.ask();
    endpoint.finish();
    let mut wire = Vec::new();
    while endpoint.has_frames() {
        let bytes = endpoint.transmit().pieces.concat();
        endpoint.transmitted(bytes.len());
        wire.extend(bytes);
    }
    let expected = [acknowledge(3), frame(3, b""), frame(0, b"hello"), frame(2, b"")];
    assert_eq!(wire, expected.concat());
}

#[test]
fn what_was_not_acknowledged_is_sent_again_behind_the_preface() {
    let mut endpoint = sent(b"hello");
    endpoint.detach();
    endpoint.attach(2).unwrap();
    endpoint.preface(b"status".to_vec());
    let mut wire = Vec::new();
    while endpoint.has_frames() {
        let bytes = endpoint.transmit().pieces.concat();
        endpoint.transmitted(bytes.len());
        wire.extend(bytes);
    }
    assert_eq!(
        wire,
        [b"status".to_vec(), acknowledge(0), frame(0, b"llo")].concat()
    );
    assert_eq!(endpoint.kept(), 3);
}

#[test]
fn positions_that_cannot_be_end_the_session() {
    let ahead = Violation::AheadOfSent { position: 6, sent: 5 };
    assert_eq!(sent(b"hello").push(&acknowledge(6)), Err(ahead.clone()));
    assert_eq!(sent(b"hello").attach(6), Err(ahead));
    let mut endpoint = sent(b"hello");
    endpoint.push(&acknowledge(3)).unwrap();
    let behind = Violation::BehindAcknowledged {
        position: 2,
        acknowledged: 3,
    };
    assert_eq!(endpoint.push(&acknowledge(2)), Err(behind.clone()));
    assert_eq!(endpoint.attach(2), Err(behind));
    // Written and never sent: nobody can have it.
    let mut endpoint = Endpoint::new(WINDOW);
    endpoint.write(b"hello");
    assert!(matches!(endpoint.attach(1), Err(Violation::AheadOfSent { .. })));
}

#[test]
fn an_end_that_was_acknowledged_is_not_asked_for_again() {
    let mut endpoint = Endpoint::new(WINDOW);
    endpoint.finish();
    let finish = endpoint.transmit().pieces.concat();
    assert_eq!(finish, frame(2, b""));
    endpoint.transmitted(finish.len());
    endpoint.push(&acknowledge(1)).unwrap();
    assert!(endpoint.is_drained());
    assert!(matches!(
        endpoint.attach(0),
        Err(Violation::BehindAcknowledged { .. })
    ));
    endpoint.attach(1).unwrap();
    assert_eq!(endpoint.transmit().pieces.concat(), acknowledge(0));
}

#[test]
fn malformed_frames_end_the_session() {
    let long = [0, 4, 0, 1];
    for (bytes, expected) in [
        (frame(5, b""), Violation::UnknownKind { kind: 5 }),
        (frame(0, b""), Violation::WrongLength { kind: 0, bytes: 0 }),
        (
            long.to_vec(),
            Violation::WrongLength {
                kind: 0,
                bytes: 0x4_0001,
            },
        ),
        (frame(1, b"1234567"), Violation::WrongLength { kind: 1, bytes: 7 }),
        (frame(2, b"x"), Violation::WrongLength { kind: 2, bytes: 1 }),
        (frame(3, b"x"), Violation::WrongLength { kind: 3, bytes: 1 }),
        (
            frame(4, &[b' '; CLOSE_BYTES_MAX + 1]),
            Violation::WrongLength {
                kind: 4,
                bytes: CLOSE_BYTES_MAX + 1,
            },
        ),
        (frame(4, b"{"), Violation::MalformedClose),
        ([frame(2, b""), frame(2, b"")].concat(), Violation::AfterEnd),
        ([frame(2, b""), frame(0, b"x")].concat(), Violation::AfterEnd),
        ([frame(4, b""), frame(3, b"")].concat(), Violation::AfterEnd),
    ] {
        assert_eq!(Endpoint::new(WINDOW).push(&bytes), Err(expected), "{bytes:?}");
    }
}

#[test]
fn more_than_the_window_is_refused_before_it_is_held() {
    let mut endpoint = Endpoint::new(WINDOW);
    endpoint.push(&frame(0, &vec![0; WINDOW])).unwrap();
    let beyond = endpoint.push(&frame(0, b"x"));
    assert!(matches!(beyond, Err(Violation::BeyondWindow { .. })));
    // Coming back does not widen it: what was held is forgotten.
    endpoint.detach();
    assert_eq!((endpoint.kept(), endpoint.position()), (0, 0));
}

#[test]
fn a_close_goes_behind_the_bytes_and_says_why() {
    let mut endpoint = sent(b"");
    endpoint.write(b"last");
    let close = Close {
        code: "lock".into(),
        text: "alice is locked".into(),
    };
    endpoint.close(close.clone());
    let mut peer = Endpoint::new(WINDOW);
    while endpoint.has_frames() {
        let bytes = endpoint.transmit().pieces.concat();
        endpoint.transmitted(bytes.len());
        peer.push(&bytes).unwrap();
    }
    let mut target = [0; 8];
    assert_eq!(peer.read(&mut target), 4);
    assert_eq!(peer.peer_closed(), Some(&close));
    let unspeakable = Close {
        code: String::new(),
        text: "\u{1}".repeat(200),
    };
    let mut endpoint = Endpoint::new(WINDOW);
    endpoint.close(unspeakable);
    let bytes = endpoint.transmit().pieces.concat();
    assert_eq!(bytes, frame(4, b""));
}

#[test]
fn a_full_buffer_takes_no_more_and_a_smaller_window_leaves_the_least() {
    let mut endpoint = Endpoint::new(4 * WINDOW);
    assert_eq!(endpoint.room(usize::MAX), 4 * WINDOW);
    assert_eq!(endpoint.room(0), WINDOW_BYTES_MIN);
    endpoint.write(&vec![0; WINDOW]);
    assert_eq!((endpoint.room(0), endpoint.room(2 * WINDOW)), (0, WINDOW));
    endpoint.finish();
    assert_eq!(endpoint.room(usize::MAX), 0);
}

#[test]
fn nothing_is_handed_over_once_either_end_has_closed() {
    let mut endpoint = sent(b"hello");
    assert!(endpoint.standing().is_some());
    endpoint.push(&frame(4, b"")).unwrap();
    assert!(endpoint.standing().is_none());
    let mut endpoint = sent(b"hello");
    endpoint.close(Close::without_a_word());
    let bytes = endpoint.transmit().pieces.concat();
    endpoint.transmitted(bytes.len());
    assert!(endpoint.standing().is_none(), "also once the other end was told");
}

#[test]
fn no_end_stands_where_none_can() {
    let (standing, kept) = {
        let endpoint = sent(b"hello");
        let (standing, kept) = endpoint.standing().unwrap();
        (standing, kept.concat())
    };
    Endpoint::restore(&standing, kept.clone()).unwrap();
    let spoilt: &[fn(&mut Standing)] = &[
        |it| it.window = 0,
        |it| it.window = u64::MAX,
        |it| it.outgoing.base = u64::MAX - 5,
        |it| it.outgoing.base = 6,
        |it| it.outgoing.sent = 6,
        |it| it.outgoing.finish_sent = true,
        |it| (it.outgoing.is_finished, it.outgoing.finish_sent, it.outgoing.sent) = (true, true, 4),
        |it| {
            (it.outgoing.is_finished, it.outgoing.finish_sent) = (true, true);
            it.outgoing.finish_acknowledged = true;
        },
        |it| it.incoming.acknowledged = 1,
        |it| (it.incoming.taken, it.incoming.is_finished) = (u64::MAX, true),
        |it| (it.incoming.taken, it.incoming.acknowledged) = (u64::MAX, u64::MAX),
    ];
    for (number, spoil) in spoilt.iter().enumerate() {
        let mut standing = standing.clone();
        spoil(&mut standing);
        assert!(
            Endpoint::restore(&standing, kept.clone()).is_err(),
            "number {number}: {standing:?}"
        );
    }
    let beyond = vec![0; WINDOW + KEPT_BEYOND_WINDOW_BYTES_MAX + 1];
    assert!(Endpoint::restore(&standing, beyond).is_err());
}
