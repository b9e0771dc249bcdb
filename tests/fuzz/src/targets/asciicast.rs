//! Recordings: whatever a terminal shows becomes lines that are read as they were meant, and lines of a stranger are
//! events or refused.

use std::time::Duration;

use iap_audit::asciicast::{Code, Encoder, Entry, Header, neutralised};

use super::Seeds;
use crate::input::{choice, pieces};

pub(crate) fn run(bytes: &[u8]) {
    let Some((size, stream)) = choice(bytes, u8::MAX) else {
        return;
    };
    let mut encoder = Encoder::default();
    let mut lines = Vec::new();
    for (at, piece) in (0..).zip(pieces(stream, size)) {
        encoder.output(Duration::from_millis(at), piece, &mut lines);
    }
    encoder.finish(Duration::ZERO, &mut lines);
    let mut shown = String::new();
    let mut newest = Duration::ZERO;
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let entry = Entry::parse(line).unwrap();
        assert_eq!(entry.code, Code::Output);
        assert!(entry.at >= newest);
        newest = entry.at;
        shown.push_str(&entry.text);
    }
    assert_eq!(shown, String::from_utf8_lossy(stream));
    assert!(!neutralised(&shown).chars().any(char::is_control));
    for line in stream.split(|byte| *byte == b'\n') {
        if let Ok(header) = Header::parse(line) {
            assert_eq!(Header::parse(&header.line()), Ok(header));
        }
        if let Ok(entry) = Entry::parse(line) {
            assert!(entry.at <= Duration::from_secs(366 * 86_400));
        }
    }
}

pub(crate) fn seeds() -> Seeds {
    let header = Header {
        width: 80,
        height: 24,
        timestamp: 1_800_000_000,
        command: Some("top".to_owned()),
        term: Some("xterm".to_owned()),
    };
    let mut recording = header.line();
    let mut encoder = Encoder::default();
    encoder.output(
        Duration::from_millis(1500),
        "ö\u{1b}[1m".as_bytes(),
        &mut recording,
    );
    encoder.resize(Duration::from_secs(2), 132, 43, &mut recording);
    encoder.input(Duration::from_secs(3), b"\x03", &mut recording);
    encoder.marker(Duration::from_secs(4), "5 bytes are not recorded", &mut recording);
    let named = |name: &str, size: u8, bytes: &[u8]| (name.to_owned(), [&[size], bytes].concat());
    vec![
        named("recording", 40, &recording),
        named("screen", 3, "\u{1b}[2J\u{1b}[1;1Hwörld €\r\n\u{7}".as_bytes()),
        named("cut", 1, &"€".as_bytes()[..2]),
        named("no-text", 5, &[0xff, 0xc3, 0x28, 0xf0, 0x9f]),
    ]
}
