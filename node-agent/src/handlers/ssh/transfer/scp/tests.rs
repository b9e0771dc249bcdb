//! What is told of scp, with streams as OpenSSH and as strangers write them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;

#[test]
fn only_scp_itself_is_read_as_scp() {
    for good in [
        "scp -t /tmp",
        "scp -r -p -t -- a b",
        "/usr/bin/scp -f x",
        "scp -v -d -t .",
    ] {
        assert!(Reader::of(good.as_bytes()).is_some(), "{good}");
    }
    for bad in [
        "scp",
        "scp -t /tmp; sh",
        "scp -t $(sh)",
        "scp -t `sh`",
        "scp -S sh -t x",
        "sh -t",
        "scp -t x | sh",
        "scp -t x && sh",
        "scp -t\nsh",
    ] {
        assert!(Reader::of(bad.as_bytes()).is_none(), "{bad}");
    }
}

#[test]
fn files_and_folders_are_told_of_however_the_stream_is_cut() {
    let stream = b"T1 0 1 0\nD0755 0 dir\nC0644 5 a file\nhello\0C0600 0 empty\n\0E\nC0644 3 b\nabc\0";
    for cut in 1..stream.len() {
        let mut reader = Reader::of(b"scp -r -t /srv").unwrap();
        let mut events = Vec::new();
        for piece in stream.chunks(cut) {
            events.extend(reader.push(Direction::ToServer, piece));
        }
        // The beginning, the folder's times, the folder, each file twice, and the folder's end.
        events.extend(reader.push(Direction::ToClient, &[0; 10]));
        let seen: Vec<_> = events
            .iter()
            .map(|event| {
                (
                    event.operation.as_str(),
                    event.path.as_str(),
                    event.bytes,
                    event.ok,
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("mkdir", "/srv/dir", None, true),
                ("transfer", "/srv/dir/a file", Some((0, 5)), true),
                ("transfer", "/srv/dir/empty", Some((0, 0)), true),
                ("transfer", "/srv/b", Some((0, 3)), true),
            ],
            "cut {cut}"
        );
        assert_eq!(reader.finish(), []);
    }
}

#[test]
fn of_a_single_file_both_names_are_told() {
    let mut reader = Reader::of(b"scp -t /srv/there").unwrap();
    reader.push(Direction::ToServer, b"C0644 1 here\nx\0");
    let events = reader.push(Direction::ToClient, b"\0\0\0");
    let told = (events[0].path.as_str(), events[0].target.as_deref());
    assert_eq!(told, ("/srv/there", Some("here")));
}

#[test]
fn a_file_that_is_under_way_at_the_end_is_told_of_as_far_as_it_came() {
    let mut reader = Reader::of(b"scp -f /srv/a").unwrap();
    assert_eq!(reader.push(Direction::ToServer, b"\0"), []);
    reader.push(Direction::ToClient, b"C0644 10 a\n123");
    let events = reader.finish();
    assert_eq!((events[0].bytes, events[0].ok), (Some((3, 0)), false));
    assert_eq!(events[0].path, "/srv/a");
}

/// A path, its bytes each way, and whether it is there.
type Told = (String, Option<(u64, u64)>, bool);

/// What both say in turn, and what is told of it.
fn told(command: &str, turns: &[(Direction, &[u8])]) -> Vec<Told> {
    let mut reader = Reader::of(command.as_bytes()).unwrap();
    let mut events = Vec::new();
    for (direction, bytes) in turns {
        events.extend(reader.push(*direction, bytes));
    }
    assert!(!reader.is_lost(), "{events:?}");
    events.extend(reader.finish());
    let told = events
        .into_iter()
        .map(|event| (event.path, event.bytes, event.ok));
    told.collect()
}

#[test]
fn a_file_that_is_refused_is_not_sent_and_the_next_is_told_of() {
    use Direction::{ToClient, ToServer};
    let seen = told(
        "scp -r -t /srv",
        &[
            (ToClient, b"\0"),
            (ToServer, b"C0644 1000 no\n"),
            (ToClient, b"\x01scp: /srv/no: Permission denied\n"),
            (ToServer, b"D0755 0 none\n"),
            (ToClient, b"\x01scp: /srv/none: Permission denied\n"),
            (ToServer, b"C0644 0 empty\n"),
            (ToClient, b"\x01scp: /srv/empty: Permission denied\n"),
            (ToServer, b"C0644 3 yes\n"),
            (ToClient, b"\0"),
            (ToServer, b"abc\0"),
            (ToClient, b"\0"),
        ],
    );
    let there = |name: &str, bytes, ok| (format!("/srv/{name}"), bytes, ok);
    assert_eq!(
        seen,
        [
            there("no", Some((0, 0)), false),
            there("none", None, false),
            there("empty", Some((0, 0)), false),
            there("yes", Some((0, 3)), true),
        ]
    );
    // Whoever fetches may refuse, too.
    let seen = told(
        "scp -f /srv/*",
        &[
            (ToServer, b"\0"),
            (ToClient, b"C0644 1000 no\n"),
            (ToServer, b"\x01no room\n"),
            (ToClient, b"C0644 3 yes\n"),
            (ToServer, b"\0"),
            (ToClient, b"abc\0"),
            (ToServer, b"\0"),
        ],
    );
    assert_eq!(
        seen,
        [there("no", Some((0, 0)), false), there("yes", Some((3, 0)), true)]
    );
}

#[test]
fn a_file_is_there_once_whoever_takes_it_has_said_so() {
    use Direction::{ToClient, ToServer};
    let (begun, sent) = (
        (ToClient, b"\0".as_slice()),
        (ToServer, b"C0644 3 a\nabc\0".as_slice()),
    );
    for (last, ok) in [
        (b"\0\0".as_slice(), true),
        (b"\0\x01scp: a: No space left on device\n", false),
        (b"\0", false),
    ] {
        let seen = told("scp -t /srv/a", &[begun, sent, (ToClient, last)]);
        assert_eq!(seen, [("/srv/a".to_owned(), Some((0, 3)), ok)], "{last:?}");
    }
    // Whoever sends may find out that it could not read.
    let seen = told(
        "scp -t -- /srv/",
        &[
            begun,
            (
                ToServer,
                b"C0644 3 a\n\0\0\0\x01scp: a: read error\nC0644 1 b\nx\0",
            ),
            (ToClient, b"\0\0\0\0"),
        ],
    );
    assert_eq!(
        seen,
        [
            ("/srv/a".to_owned(), Some((0, 3)), false),
            ("/srv/b".to_owned(), Some((0, 1)), true)
        ]
    );
}

#[test]
fn what_is_sent_although_it_was_refused_is_not_guessed_at() {
    let mut reader = Reader::of(b"scp -t /srv/").unwrap();
    reader.push(Direction::ToServer, b"C0644 1000 a\nC0644 1 b\nx\0");
    let events = reader.push(Direction::ToClient, b"\0\x01no\n\0\0");
    assert_eq!(
        (events, reader.is_lost()),
        (vec![FileEvent::not_understood("scp")], true)
    );
}

#[test]
fn a_stream_of_something_else_is_given_up() {
    for bad in [
        b"hello\n".as_slice(),
        b"C0644 x a\n",
        b"C0644 1\n",
        b"C9999 1 a\n",
        b"E\n",
    ] {
        let mut reader = Reader::of(b"scp -t x").unwrap();
        let events = reader.push(Direction::ToServer, bad);
        assert_eq!(events, [FileEvent::not_understood("scp")], "{bad:?}");
        assert_eq!(reader.push(Direction::ToServer, b"C0644 1 a\nb\0"), []);
    }
}
