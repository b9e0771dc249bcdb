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
}

impl Pair {
    fn new() -> Self {
        let side = || Side {
            endpoint: Endpoint::new(WINDOW),
            wire: VecDeque::new(),
            written: Vec::new(),
            read: Vec::new(),
        };
        Self {
            ends: [side(), side()],
            is_connected: true,
        }
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

    fn check(&self) {
        for at in [0, 1] {
            let (read, written) = (&self.ends[at].read, &self.ends[1 - at].written);
            assert!(read.len() <= written.len() && *read == written[..read.len()]);
            assert!(self.ends[at].endpoint.kept() <= 2 * WINDOW);
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
    Cut,
    HandOver(usize),
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
        1 => Just(Step::Cut),
        1 => end.clone().prop_map(Step::HandOver),
        2 => any::<bool>().prop_map(Step::Resume),
        1 => count.prop_map(Step::ResumeInVain),
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
                Step::Resume(_) | Step::ResumeInVain(_) if pair.is_connected => {}
                Step::Resume(repeats) => pair.resume(repeats),
                Step::ResumeInVain(count) => pair.resume_in_vain(count),
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

fn repeat(position: u64) -> Vec<u8> {
    frame(5, &position.to_be_bytes())
}

#[test]
fn what_is_kept_is_repeated_in_advance_and_not_sent_twice() {
    let mut endpoint = sent(b"hello");
    endpoint.push(&acknowledge(2)).unwrap();
    endpoint.detach();
    endpoint.write(b", you");
    let in_advance = endpoint.repeat();
    assert_eq!(in_advance.frames, [repeat(2), frame(0, b"llo, you")].concat());
    endpoint.write(b"!");
    endpoint.attach_behind(3, in_advance.end).unwrap();
    let wire = endpoint.transmit().pieces.concat();
    assert_eq!(wire, [acknowledge(0), frame(0, b"!")].concat());
    // It may have arrived before that connection broke, too.
    endpoint.detach();
    endpoint.attach(10).unwrap();
    assert_eq!(
        endpoint.transmit().pieces.concat(),
        [acknowledge(0), frame(0, b"!")].concat()
    );
    endpoint.write(&vec![0; REPEAT_BYTES_MAX]);
    assert_eq!(
        endpoint.repeat(),
        Repeat::default(),
        "too much, and most of it has arrived"
    );
}

#[test]
fn what_was_taken_is_passed_over_when_it_is_repeated() {
    let mut endpoint = Endpoint::new(WINDOW);
    endpoint.push(&frame(0, b"hello")).unwrap();
    assert_eq!(endpoint.read(&mut [0; 8]), 5);
    endpoint.attach(0).unwrap();
    endpoint
        .push(&[repeat(3), frame(0, b"lo, yo"), frame(0, b"u")].concat())
        .unwrap();
    let mut target = [0; 8];
    let count = endpoint.read(&mut target);
    assert_eq!((&target[..count], endpoint.position()), (&b", you"[..], 10));
    assert!(!endpoint.is_answered());
    endpoint.push(&acknowledge(0)).unwrap();
    assert!(endpoint.is_answered());
}

#[test]
fn a_repeat_comes_first_on_the_way_back_and_from_where_it_may() {
    let taken = || {
        let mut endpoint = Endpoint::new(WINDOW);
        endpoint
            .push(&[frame(0, b"hello"), frame(2, b"")].concat())
            .unwrap();
        assert_eq!(endpoint.read(&mut [0; 8]), 5);
        endpoint
    };
    assert_eq!(Endpoint::new(WINDOW).push(&repeat(0)), Err(Violation::LateRepeat));
    assert_eq!(taken().push(&repeat(5)), Err(Violation::LateRepeat));
    let back = || {
        let mut endpoint = taken();
        endpoint.attach(0).unwrap();
        endpoint
    };
    back().push(&[repeat(0), frame(0, b"hello")].concat()).unwrap();
    let behind = [repeat(0), frame(0, b"hello!")].concat();
    assert_eq!(back().push(&behind), Err(Violation::AfterEnd));
    let twice = [repeat(5), repeat(5)].concat();
    assert_eq!(back().push(&twice), Err(Violation::LateRepeat));
    let elsewhere = Violation::RepeatFromElsewhere {
        position: 6,
        taken: 5,
    };
    assert_eq!(back().push(&repeat(6)), Err(elsewhere));
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
        (frame(6, b""), Violation::UnknownKind { kind: 6 }),
        (frame(5, b"1234567"), Violation::WrongLength { kind: 5, bytes: 7 }),
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
    let beyond = vec![0; WINDOW + 1];
    assert!(Endpoint::restore(&standing, beyond).is_err());
}
