//! What is told of SFTP, with streams as OpenSSH and as strangers write them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;

fn packet(kind: u8, id: u32, fields: &[&[u8]]) -> Vec<u8> {
    let mut body = vec![kind];
    body.extend(id.to_be_bytes());
    for field in fields {
        body.extend_from_slice(field);
    }
    let mut packet = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    packet.extend(body);
    packet
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let mut field = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    field.extend_from_slice(bytes);
    field
}

fn init() -> Vec<u8> {
    packet(1, 3, &[])
}

/// What a put of `contents` to `/tmp/a` looks like, each way.
fn put(contents: &[u8]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let requests = vec![
        init(),
        packet(kind::OPEN, 7, &[&string(b"/tmp/a"), &[0; 8]]),
        packet(kind::WRITE, 8, &[&string(b"h1"), &[0; 8], &string(contents)]),
        packet(kind::CLOSE, 9, &[&string(b"h1")]),
    ];
    let answers = vec![
        packet(2, 3, &[]),
        packet(kind::HANDLE, 7, &[&string(b"h1")]),
        packet(kind::STATUS, 8, &[&[0; 4], &string(b""), &string(b"")]),
        packet(kind::STATUS, 9, &[&[0; 4], &string(b""), &string(b"")]),
    ];
    (requests, answers)
}

fn transfer(bytes: (u64, u64), ok: bool) -> FileEvent {
    FileEvent {
        operation: Operation::Transfer,
        path: "/tmp/a".to_owned(),
        target: None,
        bytes: Some(bytes),
        ok,
    }
}

#[test]
fn a_file_that_was_put_is_told_of_once_with_its_size_however_the_stream_is_cut() {
    let (requests, answers) = put(&[7; 40_000]);
    for cut in [1, 3, 1000, 100_000] {
        let mut reader = Reader::default();
        let mut events = Vec::new();
        for (request, answer) in requests.iter().zip(&answers) {
            for piece in request.chunks(cut) {
                events.extend(reader.push(Direction::ToServer, piece));
            }
            for piece in answer.chunks(cut) {
                events.extend(reader.push(Direction::ToClient, piece));
            }
        }
        assert_eq!(events, [transfer((0, 40_000), true)], "cut {cut}");
        assert_eq!(reader.finish(), []);
    }
}

#[test]
fn a_file_that_is_open_at_the_end_is_told_of_as_far_as_it_came() {
    let (requests, answers) = put(b"abc");
    let mut reader = Reader::default();
    for (request, answer) in requests.iter().zip(&answers).take(3) {
        reader.push(Direction::ToServer, request);
        reader.push(Direction::ToClient, answer);
    }
    assert_eq!(reader.finish(), [transfer((0, 3), false)]);
}

#[test]
fn what_the_server_refused_is_told_as_refused() {
    let mut reader = Reader::default();
    reader.push(
        Direction::ToServer,
        &packet(kind::REMOVE, 1, &[&string(b"/etc/passwd")]),
    );
    let denied = packet(
        kind::STATUS,
        1,
        &[&3_u32.to_be_bytes(), &string(b"no"), &string(b"")],
    );
    let events = reader.push(Direction::ToClient, &denied);
    assert_eq!((events[0].operation, events[0].ok), (Operation::Remove, false));
}

#[test]
fn a_rename_names_both_ends() {
    let mut reader = Reader::default();
    let renamed = [string(b"posix-rename@openssh.com"), string(b"a"), string(b"b")].concat();
    reader.push(Direction::ToServer, &packet(kind::EXTENDED, 1, &[&renamed]));
    let events = reader.push(Direction::ToClient, &packet(kind::STATUS, 1, &[&[0; 4]]));
    assert_eq!(
        (events[0].path.as_str(), events[0].target.as_deref()),
        ("a", Some("b"))
    );
}

#[test]
fn a_stream_of_something_else_is_given_up_once() {
    let mut reader = Reader::default();
    let events = reader.push(Direction::ToServer, b"\xff\xff\xff\xffrubbish");
    assert_eq!(events, [FileEvent::not_understood("sftp")]);
    assert_eq!(reader.push(Direction::ToServer, b"\xff\xff\xff\xff"), []);
    let mut reader = Reader::default();
    let short = packet(kind::OPEN, 1, &[&u32::MAX.to_be_bytes()]);
    assert_eq!(
        reader.push(Direction::ToServer, &short),
        [FileEvent::not_understood("sftp")]
    );
}

fn status(id: u32, code: u32) -> Vec<u8> {
    packet(
        kind::STATUS,
        id,
        &[&code.to_be_bytes(), &string(b""), &string(b"")],
    )
}

#[test]
fn an_id_that_is_used_again_before_its_answer_hides_nothing() {
    const STAT: u8 = 17;
    const ATTRS: u8 = 105;
    let mut reader = Reader::default();
    // All with one id, and handles are guessed: the server does one after the other.
    let requests = [
        packet(STAT, 5, &[&string(b"/")]),
        packet(kind::OPEN, 5, &[&string(b"/tmp/b"), &[0; 8]]),
        packet(kind::OPEN, 5, &[&string(b"/tmp/a"), &[0; 8]]),
        packet(kind::WRITE, 5, &[&string(b"h2"), &[0; 8], &string(b"abc")]),
        packet(kind::CLOSE, 5, &[&string(b"h2")]),
    ];
    assert_eq!(reader.push(Direction::ToServer, &requests.concat()), []);
    let answers = [
        packet(ATTRS, 5, &[&[0; 4]]),
        status(5, 3),
        packet(kind::HANDLE, 5, &[&string(b"h2")]),
        status(5, 0),
        status(5, 0),
    ];
    let refused = FileEvent {
        path: "/tmp/b".to_owned(),
        bytes: None,
        ..transfer((0, 0), false)
    };
    assert_eq!(
        reader.push(Direction::ToClient, &answers.concat()),
        [refused, transfer((0, 3), true)]
    );
}

#[test]
fn a_path_of_any_length_ends_no_reading() {
    let (requests, answers) = put(b"abc");
    let long = vec![b'x'; 100_000];
    for before in [
        packet(kind::REMOVE, 1, &[&string(&long)]),
        packet(kind::RENAME, 1, &[&string(&long), &string(b"/tmp/a")]),
        packet(kind::WRITE, 1, &[&string(&long), &[0; 8], &string(b"abc")]),
        packet(kind::CLOSE, 1, &[&string(&long)]),
    ] {
        let mut reader = Reader::default();
        reader.push(Direction::ToServer, &before);
        reader.push(Direction::ToClient, &status(1, 4));
        let mut events = Vec::new();
        for (request, answer) in requests.iter().zip(&answers) {
            reader.push(Direction::ToServer, request);
            events.extend(reader.push(Direction::ToClient, answer));
        }
        assert_eq!((events, reader.is_lost()), (vec![transfer((0, 3), true)], false));
    }
}

#[test]
fn what_is_done_by_way_of_an_open_file_names_its_path() {
    let mut reader = Reader::default();
    for (id, path, handle) in [(1, b"/tmp/a", b"h1"), (2, b"/tmp/b", b"h2")] {
        reader.push(
            Direction::ToServer,
            &packet(kind::OPEN, id, &[&string(path), &[0; 8]]),
        );
        reader.push(Direction::ToClient, &packet(kind::HANDLE, id, &[&string(handle)]));
    }
    let copying = [
        string(b"copy-data"),
        string(b"h1"),
        vec![0; 16],
        string(b"h2"),
        vec![0; 8],
    ]
    .concat();
    for (request, operation, target) in [
        (
            packet(kind::FSETSTAT, 3, &[&string(b"h1"), &[0; 4]]),
            Operation::Attributes,
            None,
        ),
        (
            packet(kind::EXTENDED, 3, &[&copying]),
            Operation::Copy,
            Some("/tmp/b".to_owned()),
        ),
    ] {
        reader.push(Direction::ToServer, &request);
        assert_eq!(
            reader.push(Direction::ToClient, &status(3, 0)),
            [event(operation, "/tmp/a".to_owned(), target, true)]
        );
    }
}
