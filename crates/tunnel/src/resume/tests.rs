//! What the ends say to each other, and peers that do not keep to the protocol.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]
mod histories;

use super::*;

const WINDOW: usize = WINDOW_BYTES_MIN;

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

/// An end that has taken "hello" and the end behind it, passed on some of that, and goes on over another connection.
fn passing_on(passed_on: u64) -> Endpoint {
    let mut endpoint = Endpoint::new(WINDOW);
    endpoint.passed_on(0);
    endpoint
        .push(&[frame(0, b"hello"), frame(2, b"")].concat())
        .unwrap();
    assert_eq!(endpoint.read(&mut [0; 8]), 5);
    endpoint.passed_on(passed_on);
    assert_eq!(endpoint.position(), passed_on);
    endpoint.attach(0).unwrap();
    assert_eq!(endpoint.transmit().pieces.concat(), acknowledge(passed_on));
    endpoint
}

#[test]
fn what_was_not_passed_on_comes_again_and_counts_once_it_has() {
    let mut endpoint = passing_on(2);
    // Taken over the connection before, and now passed on: the other end does not know to have sent it over this one.
    endpoint.passed_on(6);
    assert_eq!((endpoint.position(), endpoint.is_at_end()), (2, false));
    endpoint.push(&frame(0, b"l")).unwrap();
    assert_eq!(endpoint.position(), 3);
    endpoint.push(&frame(0, b"lo")).unwrap();
    assert_eq!((endpoint.position(), endpoint.held()), (5, 0));
    endpoint.push(&frame(2, b"")).unwrap();
    assert_eq!((endpoint.position(), endpoint.is_at_end()), (6, true));
    // Nor does the end come before what came before it.
    assert_eq!(passing_on(2).push(&frame(2, b"")), Err(Violation::AfterEnd));
    let beyond = [frame(0, b"llo!"), frame(2, b"")].concat();
    passing_on(2).push(&beyond).unwrap();
    assert_eq!(passing_on(6).push(&frame(0, b"!")), Err(Violation::AfterEnd));
}

#[test]
fn what_is_repeated_begins_no_later_than_where_the_receiver_said_it_stands() {
    let mut endpoint = passing_on(2);
    endpoint
        .push(&[repeat(1), frame(0, b"ello, yo"), frame(0, b"u")].concat())
        .unwrap();
    let mut target = [0; 8];
    let count = endpoint.read(&mut target);
    assert_eq!((&target[..count], endpoint.position()), (&b", you"[..], 2));
    endpoint.passed_on(10);
    assert_eq!(endpoint.position(), 10);
    // What it was told it stands at is not taken back.
    let mut endpoint = passing_on(4);
    endpoint.push(&[repeat(1), frame(0, b"el")].concat()).unwrap();
    endpoint.passed_on(5);
    assert_eq!((endpoint.position(), endpoint.direct()), (4, 0));
    endpoint.detach();
    assert_eq!(endpoint.position(), 4);
    let elsewhere = Violation::RepeatFromElsewhere {
        position: 3,
        taken: 2,
    };
    assert_eq!(passing_on(2).push(&repeat(3)), Err(elsewhere));
}

#[test]
fn what_went_out_over_any_connection_may_have_arrived() {
    let mut endpoint = sent(b"hello");
    endpoint.finish();
    let finish = endpoint.transmit().pieces.concat();
    endpoint.transmitted(finish.len());
    endpoint.attach(1).unwrap();
    assert!(
        endpoint.push(&acknowledge(2)).is_err(),
        "not sent over this connection"
    );
    endpoint.attach(1).unwrap();
    let (standing, kept) = endpoint.standing().unwrap();
    let mut successor = Endpoint::restore(&standing, kept.concat()).unwrap();
    for end in [&mut endpoint, &mut successor] {
        let ahead = Violation::AheadOfSent { position: 7, sent: 6 };
        assert_eq!(end.attach(7), Err(ahead));
        end.attach(6).unwrap();
        assert!(end.is_drained());
    }
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
    let beyond = vec![0; WINDOW + KEPT_BEYOND_WINDOW_BYTES_MAX + 1];
    assert!(Endpoint::restore(&standing, beyond).is_err());
}
