//! What SFTP and scp tell of files, read from copies of both directions: the same events however the streams are cut,
//! and never more of them, nor longer ones, than bytes that told of them.

use iap_agent::handlers::ssh::transfer::{Direction, FileEvent, scp, sftp};

use super::Seeds;
use crate::input::choice;

/// An event takes at least this many bytes of a stream, and what is open at the end is told of once more.
const EVENTS_PER_BYTE_MAX: usize = 2;

pub(crate) fn run(bytes: &[u8]) {
    let Some((how, stream)) = choice(bytes, u8::MAX) else {
        return;
    };
    let turns = turns(stream);
    let whole = events(how, &turns, usize::MAX);
    assert_eq!(whole, events(how, &turns, 1), "cut into bytes");
    assert_eq!(whole, events(how, &turns, 7), "cut into sevens");
    assert!(whole.len() <= EVENTS_PER_BYTE_MAX * stream.len().max(1));
    for event in &whole {
        // A byte that is no UTF-8 becomes three.
        assert!(event.path.len() <= 3 * (stream.len() + 16), "{event:?}");
    }
}

/// Length, then so many bytes, alternately from the client and from the server; a length's highest bit keeps the side.
fn turns(mut stream: &[u8]) -> Vec<(Direction, &[u8])> {
    let mut turns = Vec::new();
    let mut direction = Direction::ToServer;
    while let Some((length, rest)) = stream.split_first() {
        let (turn, rest) = rest.split_at(usize::from(length & 0x7f).min(rest.len()));
        turns.push((direction, turn));
        if length & 0x80 == 0 {
            direction = match direction {
                Direction::ToServer => Direction::ToClient,
                Direction::ToClient => Direction::ToServer,
            };
        }
        stream = rest;
    }
    turns
}

fn events(how: u8, turns: &[(Direction, &[u8])], size: usize) -> Vec<FileEvent> {
    let pieces = turns
        .iter()
        .flat_map(|(direction, turn)| turn.chunks(size).map(|piece| (*direction, piece)));
    let mut events = Vec::new();
    let command = match how % 5 {
        0 | 1 => {
            let mut reader = sftp::Reader::default();
            for (direction, piece) in pieces {
                events.extend(reader.push(direction, piece));
            }
            events.extend(reader.finish());
            return sorted(events);
        }
        2 => b"scp -t /srv/there".as_slice(),
        3 => b"scp -r -d -t /srv",
        _ => b"scp -f /srv/here",
    };
    let mut reader = scp::Reader::of(command).unwrap();
    for (direction, piece) in pieces {
        events.extend(reader.push(direction, piece));
    }
    events.extend(reader.finish());
    events
}

/// What is open when a stream is given up comes in no order.
fn sorted(mut events: Vec<FileEvent>) -> Vec<FileEvent> {
    events.sort_by_key(|event| format!("{event:?}"));
    events
}

pub(crate) fn seeds() -> Seeds {
    let string = |text: &[u8]| [&u32::try_from(text.len()).unwrap().to_be_bytes(), text].concat();
    let packet = |kind: u8, id: u32, fields: &[u8]| {
        let body = [&[kind], id.to_be_bytes().as_slice(), fields].concat();
        string(&body)
    };
    let turn = |bytes: &[u8]| [&[u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let put = [
        turn(&packet(3, 7, &[string(b"/tmp/a"), vec![0; 8]].concat())),
        turn(&packet(102, 7, &string(b"h1"))),
        turn(&packet(
            6,
            8,
            &[string(b"h1"), vec![0; 8], string(b"contents")].concat(),
        )),
        turn(&packet(101, 8, &[0; 4])),
        turn(&packet(4, 9, &string(b"h1"))),
        turn(&packet(101, 9, &[0; 4])),
    ];
    let rename = [
        turn(&packet(18, 1, &[string(b"a"), string(b"b")].concat())),
        turn(&packet(101, 1, &3_u32.to_be_bytes())),
    ];
    let scp = turn(b"D0755 0 dir\nC0644 5 a file\nhello\0E\nC0600 0 empty\n\0");
    let source = [turn(b"\0"), turn(b"C0644 3 here\nabc\0"), turn(b"\0")];
    let named = |name: &str, how: u8, bytes: &[u8]| (name.to_owned(), [&[how], bytes].concat());
    vec![
        named("sftp-put", 0, &put.concat()),
        named("sftp-rename", 0, &rename.concat()),
        named("sftp-rubbish", 0, &turn(&[0xff; 16])),
        named("scp-sink", 2, &scp),
        named("scp-folder", 3, &scp),
        named("scp-source", 4, &source.concat()),
    ]
}
