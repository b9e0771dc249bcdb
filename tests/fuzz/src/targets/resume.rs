//! The frames of `iap-resume/1`: the same in any pieces, read directly or held first, and bounded.

use iap_tunnel::resume::{Close, Endpoint, Violation, WINDOW_BYTES_MIN};

use super::Seeds;
use crate::input::{choice, pieces};

/// What was sent before, so that some of it can be acknowledged.
const SENT: &[u8] = b"sixteen bytes ..";
/// How much of what came before was passed on, where that is told.
const PASSED_ON: u64 = 5;

pub(crate) fn run(bytes: &[u8]) {
    let Some((size, stream)) = choice(bytes, u8::MAX) else {
        return;
    };
    for begins in [Begins::Anew, Begins::Again, Begins::PassingOn] {
        let whole = outcome(stream, 0, false, begins);
        assert_eq!(
            outcome(stream, size, false, begins),
            whole,
            "pieces make no difference"
        );
        // What is read at once is acknowledged sooner, and leaves the other end more of the window.
        if !matches!(whole.ended, Err(Violation::BeyondWindow { .. })) {
            assert_eq!(
                outcome(stream, size, true, begins),
                whole,
                "nor does who holds the bytes"
            );
        }
    }
}

/// Whether the frames are those of a first connection, or of one on which a session goes on: from where everything was taken,
/// or from what was passed on of that.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Begins {
    Anew,
    Again,
    PassingOn,
}

/// What came of it: where it ended, the bytes, what was acknowledged, and what is left to say.
#[derive(Debug, PartialEq)]
struct Outcome {
    ended: Result<(), Violation>,
    read: Vec<u8>,
    is_at_end: bool,
    kept: usize,
    closed: Option<Close>,
}

fn outcome(stream: &[u8], size: u8, direct: bool, begins: Begins) -> Outcome {
    let mut endpoint = Endpoint::new(WINDOW_BYTES_MIN);
    if begins != Begins::Anew {
        let came = [&[0, 0, 0, 16], SENT].concat();
        endpoint.push(&came).expect("a frame");
        assert_eq!(endpoint.read(&mut [0; SENT.len()]), SENT.len());
        if begins == Begins::PassingOn {
            endpoint.passed_on(PASSED_ON);
        }
        endpoint.attach(0).expect("where it began");
    }
    endpoint.write(SENT);
    let sent = endpoint.transmit().pieces.concat().len();
    endpoint.transmitted(sent);
    let mut read = Vec::new();
    let mut ended = Ok(());
    'wire: for piece in pieces(stream, size) {
        let mut rest = piece;
        while !rest.is_empty() {
            let count = endpoint.wanted().min(rest.len());
            let (head, tail) = rest.split_at(count);
            rest = tail;
            if direct && endpoint.direct() > 0 && endpoint.peer_closed().is_none() {
                endpoint.took(count);
                read.extend_from_slice(head);
                continue;
            }
            ended = endpoint.push(head);
            if ended.is_err() {
                break 'wire;
            }
            assert!(endpoint.kept() <= SENT.len() + WINDOW_BYTES_MIN);
        }
    }
    let mut target = vec![0; stream.len()];
    loop {
        let count = endpoint.read(&mut target);
        read.extend_from_slice(&target[..count]);
        if count == 0 {
            break;
        }
    }
    assert!(read.len() <= stream.len(), "more came out than went in");
    match begins {
        Begins::Anew | Begins::Again => assert!(endpoint.position() >= read.len() as u64),
        Begins::PassingOn => assert_eq!(endpoint.position(), PASSED_ON),
    }
    Outcome {
        ended,
        is_at_end: endpoint.is_at_end(),
        kept: endpoint.kept(),
        closed: endpoint.peer_closed().cloned(),
        read,
    }
}

pub(crate) fn seeds() -> Seeds {
    let sends = |act: &dyn Fn(&mut Endpoint)| {
        let mut endpoint = Endpoint::new(WINDOW_BYTES_MIN);
        act(&mut endpoint);
        let mut wire = Vec::new();
        while endpoint.has_frames() {
            let bytes = endpoint.transmit().pieces.concat();
            endpoint.transmitted(bytes.len());
            wire.extend(bytes);
        }
        wire
    };
    let framed = |size: u8, wire: Vec<u8>| [vec![size], wire].concat();
    let acknowledge = |position: u8| vec![1, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, position];
    let repeat = |position: u8| vec![5, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, position];
    let talk = sends(&|endpoint| {
        endpoint.write(b"hello");
        endpoint.ask();
        endpoint.finish();
    });
    let closed = sends(&|endpoint| {
        endpoint.write(b"last");
        endpoint.close(Close {
            code: "lock".to_owned(),
            text: "Access is locked.".to_owned(),
        });
    });
    vec![
        ("talk".into(), framed(3, talk)),
        ("closed".into(), framed(0, closed)),
        (
            "acknowledged".into(),
            framed(1, [acknowledge(5), acknowledge(16)].concat()),
        ),
        ("ahead".into(), framed(0, acknowledge(17))),
        (
            "behind".into(),
            framed(0, [acknowledge(5), acknowledge(4)].concat()),
        ),
        ("too-long".into(), framed(0, vec![0, 4, 0, 1])),
        ("beyond".into(), framed(0, vec![0, 1, 0, 1])),
        (
            "repeated".into(),
            framed(2, [repeat(12), vec![0, 0, 0, 8], b"5678 new".to_vec()].concat()),
        ),
        (
            "repeated-late".into(),
            framed(0, [acknowledge(1), repeat(0)].concat()),
        ),
        ("repeated-ahead".into(), framed(0, repeat(17))),
        (
            "again".into(),
            framed(
                3,
                [vec![0, 0, 0, 15], b"en bytes .. new".to_vec(), vec![2, 0, 0, 0]].concat(),
            ),
        ),
    ]
}
