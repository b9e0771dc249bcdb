//! Watching: what an agent and a watcher say to each other is read as it was meant or refused, and whatever a terminal
//! printed, what it shows can be worked out and is lines of a recording.

use std::cell::Cell;
use std::time::Duration;

use iap_agent::watch::keyframe::{COLUMNS_MAX, ROWS_MAX};
use iap_agent::watch::{Canvas, Keyframe};
use iap_audit::asciicast::{Encoder, Entry};
use iap_identity::SessionId;
use iap_tunnel::frame::LENGTH_BYTES;
use iap_tunnel::watch::{Begin, End, WATCH_VERSION};
use iap_tunnel::{WATCH_FRAME_BYTES_MAX, WatchFrame, WatchRequest};

use super::Seeds;
use crate::input::{choice, pieces};

/// Looks at the clock before it is given up: what can be printed without an end is.
const LOOKS_MAX: usize = 64;

pub(crate) fn run(bytes: &[u8]) {
    frames(bytes);
    let Some((size, stream)) = choice(bytes, u8::MAX) else {
        return;
    };
    let mut lines = Vec::new();
    let mut encoder = Encoder::default();
    for (at, piece) in (0..).zip(pieces(stream, size)) {
        match piece {
            [b'#', columns, rows, ..] => {
                let (columns, rows) = (u32::from(*columns) * 8, u32::from(*rows) * 8);
                encoder.resize(Duration::from_millis(at), columns, rows, &mut lines);
            }
            piece => encoder.output(Duration::from_millis(at), piece, &mut lines),
        }
    }
    encoder.finish(Duration::ZERO, &mut lines);
    let is_terminal = !size.is_multiple_of(2);
    let Some(keyframe) = draw((u32::from(size), 24), is_terminal, &lines) else {
        return;
    };
    assert!(keyframe.size.0 <= COLUMNS_MAX && keyframe.size.1 <= ROWS_MAX);
    let lines = keyframe.lines();
    let entries = lines.split_inclusive(|byte| *byte == b'\n');
    let text: String = entries.map(|line| Entry::parse(line).unwrap().text).collect();
    assert_eq!(text, keyframe.text);
    if let Some(again) = draw(keyframe.size, true, &lines) {
        assert_eq!(again.size, keyframe.size);
        assert_eq!(again.is_full_screen, keyframe.is_full_screen);
    }
    // A stranger's lines are no recording, and draw what they draw.
    draw((80, 24), true, stream);
}

fn draw(size: (u32, u32), is_terminal: bool, lines: &[u8]) -> Option<Keyframe> {
    let mut canvas = Canvas::new(size, is_terminal)?;
    let looks = Cell::new(0);
    let is_due = || {
        looks.set(looks.get() + 1);
        looks.get() > LOOKS_MAX
    };
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        canvas.push(line, is_due).ok()?;
    }
    Some(canvas.keyframe())
}

fn frames(bytes: &[u8]) {
    if let Ok(request) = WatchRequest::decode(bytes) {
        let written = request.encode().unwrap();
        assert_eq!(WatchRequest::decode(&written[LENGTH_BYTES..]).unwrap(), request);
    }
    if let Ok(Some(frame)) = WatchFrame::decode(bytes) {
        // JSON escapes may grow beyond the frame, and of numbers some may be left out; then it is not the same.
        let Ok(written) = frame.encode() else {
            return;
        };
        assert!(written.len() <= LENGTH_BYTES + WATCH_FRAME_BYTES_MAX);
        let again = WatchFrame::decode(&written[LENGTH_BYTES..]).unwrap().unwrap();
        assert_eq!(again.encode().unwrap(), written);
    }
}

pub(crate) fn seeds() -> Seeds {
    let frame = |frame: WatchFrame| frame.encode().unwrap()[LENGTH_BYTES..].to_vec();
    let request = WatchRequest {
        version: WATCH_VERSION,
        session_id: SessionId::from_uuid(super::snapshot::ID),
        recording: Some(2),
    };
    let begin = Begin {
        recording: 1,
        header: r#"{"version":2,"width":80,"height":24}"#.to_owned(),
        whole: true,
    };
    let end = End {
        code: "session_over".to_owned(),
        text: "It is over.".to_owned(),
    };
    let shown = |size: u8, bytes: &[u8]| [&[size], bytes].concat();
    vec![
        (
            "request".into(),
            request.encode().unwrap()[LENGTH_BYTES..].to_vec(),
        ),
        ("begin".into(), frame(WatchFrame::Begin(begin))),
        (
            "lines".into(),
            frame(WatchFrame::Lines(b"[1.0, \"o\", \"a\"]\n".to_vec())),
        ),
        ("missed".into(), frame(WatchFrame::Missed(1 << 40))),
        ("recordings".into(), frame(WatchFrame::Recordings(vec![1, 2]))),
        ("end".into(), frame(WatchFrame::End(end))),
        (
            "full-screen".into(),
            shown(
                41,
                b"$ vim\r\n\x1b[?1049h\x1b[2;4r\x1b[31m\x1b[2J\x1b[3;3Hx\x1b7\x1b[?25l\x1b[",
            ),
        ),
        (
            "scrolled".into(),
            shown(
                21,
                b"a\r\nb\r\n\x1b[2;3r\x1bM\x1bD\x1b[5S\x1b[3T\x1b[2L\x1b[1M\x1b[4@\x1b[2P",
            ),
        ),
        ("repeated".into(), shown(31, b"x\x1b[65535b\x1b[65535b")),
        ("resized".into(), shown(3, b"abc#\x02\x01def#\xff\xffghi#\0\0jkl")),
        (
            "wide".into(),
            shown(9, "日本語\u{1b}[1;79H日\u{1b}#8\u{1b}(0qqx".as_bytes()),
        ),
        ("no-terminal".into(), shown(40, b"one\ntwo\n")),
    ]
}
