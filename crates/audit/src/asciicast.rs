//! Terminal recordings in asciicast v2 (docs.asciinema.org, "asciicast v2"): a header line, then one line for each
//! event, `[seconds, code, text]`. Written and read here; times and bytes are arguments.
//!
//! Terminals speak bytes and the format is text. Characters that are split between two reads are joined, and bytes that
//! are no UTF-8 become U+FFFD; everything else is kept as it was, escape sequences included. Whoever shows a recording
//! elsewhere than on a terminal uses [`neutralised`].

use std::time::Duration;

use serde_json::{Map, Value, json};

/// The longest event line that is read. One event is written for each read of at most 32 KiB, of which a byte becomes
/// 6 characters at most.
pub const LINE_BYTES_MAX: usize = 256 * 1024;
/// The longest time that an event may lie behind the beginning.
const SECONDS_MAX: f64 = 366.0 * 86_400.0;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Columns at the beginning.
    pub width: u32,
    /// Rows at the beginning.
    pub height: u32,
    /// When it began, in seconds since 1970.
    pub timestamp: i64,
    /// What ran, where it was not a shell.
    pub command: Option<String>,
    /// `TERM`.
    pub term: Option<String>,
}

/// What an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Printed to the terminal.
    Output,
    /// Typed.
    Input,
    /// The terminal's new size, `COLUMNSxROWS`.
    Resize,
    /// A remark: here, what is missing.
    Marker,
}

/// One event, as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Since the beginning.
    pub at: Duration,
    /// What.
    pub code: Code,
    /// Its text.
    pub text: String,
}

/// Why a line is none of a recording.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AsciicastError {
    /// The first line is no header of version 2.
    #[error("the recording does not begin with a header of asciicast v2")]
    Header,
    /// A line is no event.
    #[error("a line of the recording is no event of asciicast v2")]
    Event,
    /// A line is too long.
    #[error("a line of the recording is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
}

impl Code {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Output => "o",
            Self::Input => "i",
            Self::Resize => "r",
            Self::Marker => "m",
        }
    }

    fn parse(code: &str) -> Option<Self> {
        match code {
            "o" => Some(Self::Output),
            "i" => Some(Self::Input),
            "r" => Some(Self::Resize),
            "m" => Some(Self::Marker),
            _ => None,
        }
    }
}

impl Header {
    /// The line, with its end.
    pub fn line(&self) -> Vec<u8> {
        let mut fields = Map::new();
        fields.insert("version".to_owned(), json!(2));
        fields.insert("width".to_owned(), json!(self.width));
        fields.insert("height".to_owned(), json!(self.height));
        fields.insert("timestamp".to_owned(), json!(self.timestamp));
        if let Some(command) = &self.command {
            fields.insert("command".to_owned(), json!(command));
        }
        if let Some(term) = &self.term {
            fields.insert("env".to_owned(), json!({ "TERM": term }));
        }
        let mut line = Value::Object(fields).to_string().into_bytes();
        line.push(b'\n');
        line
    }

    /// Reads the first line, with or without its end.
    ///
    /// # Errors
    /// When it is no header of version 2.
    pub fn parse(line: &[u8]) -> Result<Self, AsciicastError> {
        if line.len() > LINE_BYTES_MAX {
            return Err(AsciicastError::TooLong);
        }
        let value: Value = serde_json::from_slice(line).map_err(|_| AsciicastError::Header)?;
        let number = |name: &str| value.get(name).and_then(Value::as_u64);
        let side = |name| number(name).and_then(|side| u32::try_from(side).ok());
        if number("version") != Some(2) {
            return Err(AsciicastError::Header);
        }
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        Ok(Self {
            width: side("width").ok_or(AsciicastError::Header)?,
            height: side("height").ok_or(AsciicastError::Header)?,
            timestamp: value.get("timestamp").and_then(Value::as_i64).unwrap_or_default(),
            command: text(value.get("command")),
            term: text(value.get("env").and_then(|env| env.get("TERM"))),
        })
    }
}

impl Entry {
    /// Reads a line, with or without its end.
    ///
    /// # Errors
    /// When it is no event of asciicast v2.
    pub fn parse(line: &[u8]) -> Result<Self, AsciicastError> {
        if line.len() > LINE_BYTES_MAX {
            return Err(AsciicastError::TooLong);
        }
        let (seconds, code, text): (f64, String, String) =
            serde_json::from_slice(line).map_err(|_| AsciicastError::Event)?;
        if !(0.0..=SECONDS_MAX).contains(&seconds) {
            return Err(AsciicastError::Event);
        }
        Ok(Self {
            at: Duration::try_from_secs_f64(seconds).map_err(|_| AsciicastError::Event)?,
            code: Code::parse(&code).ok_or(AsciicastError::Event)?,
            text,
        })
    }
}

/// Writes the lines of events. Bytes that do not end a character wait for the next of the same kind.
#[derive(Debug, Default)]
pub struct Encoder {
    output: Split,
    input: Split,
    /// No line's time is before the one above it.
    newest: Duration,
}

impl Encoder {
    /// What was printed.
    pub fn output(&mut self, at: Duration, bytes: &[u8], lines: &mut Vec<u8>) {
        let text = self.output.join(bytes);
        self.line(at, Code::Output, &text, lines);
    }

    /// What was typed.
    pub fn input(&mut self, at: Duration, bytes: &[u8], lines: &mut Vec<u8>) {
        let text = self.input.join(bytes);
        self.line(at, Code::Input, &text, lines);
    }

    /// The terminal's new size.
    pub fn resize(&mut self, at: Duration, columns: u32, rows: u32, lines: &mut Vec<u8>) {
        self.line(at, Code::Resize, &format!("{columns}x{rows}"), lines);
    }

    /// A remark.
    pub fn marker(&mut self, at: Duration, text: &str, lines: &mut Vec<u8>) {
        self.line(at, Code::Marker, text, lines);
    }

    /// The end: characters that were never ended.
    pub fn finish(&mut self, at: Duration, lines: &mut Vec<u8>) {
        let (output, input) = (self.output.rest(), self.input.rest());
        self.line(at, Code::Output, &output, lines);
        self.line(at, Code::Input, &input, lines);
    }

    fn line(&mut self, at: Duration, code: Code, text: &str, lines: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        self.newest = self.newest.max(at);
        let (seconds, micros) = (self.newest.as_secs(), self.newest.subsec_micros());
        let text = Value::String(text.to_owned());
        lines.extend(format!("[{seconds}.{micros:06}, \"{}\", {text}]\n", code.as_str()).into_bytes());
    }
}

/// The bytes of a character that has not ended: three at most.
#[derive(Debug, Default)]
struct Split(Vec<u8>);

impl Split {
    fn join(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.0);
        all.extend_from_slice(bytes);
        let whole = all.len() - unfinished(&all);
        self.0 = all.split_off(whole);
        match String::from_utf8(all) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }

    fn rest(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }
}

/// How many bytes at the end begin a character and do not end it.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    (tail..bytes.len())
        .find(|&start| {
            let rest = bytes.get(start..).unwrap_or_default();
            std::str::from_utf8(rest)
                .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
        })
        .map_or(0, |start| bytes.len() - start)
}

/// Text without anything that a terminal would obey: control characters, and those that change the direction of text,
/// are shown as what they are.
pub fn neutralised(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        let changes_direction =
            matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match character {
            '\u{1b}' => shown.push_str("\\e"),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            _ if character.is_control() || changes_direction => {
                shown.push_str(&format!("\\u{{{:x}}}", u32::from(character)));
            }
            _ => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use proptest::prelude::*;

    fn entries(lines: &[u8]) -> Vec<Entry> {
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Entry::parse(line).unwrap()).collect()
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = Header {
            width: 80,
            height: 24,
            timestamp: 1_800_000_000,
            command: Some("top".to_owned()),
            term: Some("xterm".to_owned()),
        };
        assert_eq!(Header::parse(&header.line()), Ok(header));
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"version":1,"width":1,"height":1}"#,
            r#"{"version":2,"width":-1,"height":1}"#,
        ] {
            assert_eq!(
                Header::parse(bad.as_bytes()),
                Err(AsciicastError::Header),
                "{bad}"
            );
        }
    }

    #[test]
    fn events_carry_their_times_and_never_go_back() {
        let (mut encoder, mut lines) = (Encoder::default(), Vec::new());
        encoder.output(Duration::from_micros(1_500_000), b"a\x1b[1m\"", &mut lines);
        encoder.resize(Duration::from_secs(1), 132, 43, &mut lines);
        encoder.input(Duration::from_secs(2), b"\x03", &mut lines);
        assert_eq!(
            String::from_utf8(lines.clone()).unwrap(),
            "[1.500000, \"o\", \"a\\u001b[1m\\\"\"]\n[1.500000, \"r\", \"132x43\"]\n[2.000000, \"i\", \"\\u0003\"]\n"
        );
        assert_eq!(entries(&lines)[1].code, Code::Resize);
    }

    #[test]
    fn a_character_that_never_ends_is_shown_as_missing() {
        let (mut encoder, mut lines) = (Encoder::default(), Vec::new());
        encoder.output(Duration::ZERO, "€".as_bytes().get(..2).unwrap(), &mut lines);
        assert!(lines.is_empty());
        encoder.finish(Duration::ZERO, &mut lines);
        assert_eq!(entries(&lines)[0].text, "\u{fffd}");
    }

    #[test]
    fn lines_that_are_no_events_are_refused() {
        for bad in [
            "",
            "{}",
            "[1]",
            "[-1,\"o\",\"\"]",
            "[1e300,\"o\",\"\"]",
            "[1,\"x\",\"\"]",
            "[1,\"o\",1]",
            "[null,\"o\",\"\"]",
        ] {
            assert_eq!(Entry::parse(bad.as_bytes()), Err(AsciicastError::Event), "{bad}");
        }
        assert_eq!(
            Entry::parse(&vec![b' '; LINE_BYTES_MAX + 1]),
            Err(AsciicastError::TooLong)
        );
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_left_in_a_list() {
        assert_eq!(
            neutralised("a\x1b]0;x\x07\u{9b}1m\r\nü\u{202e}"),
            "a\\e]0;x\\u{7}\\u{9b}1m\\r\\nü\\u{202e}"
        );
    }

    proptest! {
        #[test]
        fn text_survives_however_it_is_cut(text in "\\PC{0,40}", cuts in prop::collection::vec(0usize..160, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let (mut encoder, mut lines, mut from) = (Encoder::default(), Vec::new(), 0);
            for cut in cuts {
                encoder.output(Duration::ZERO, &bytes[from..cut], &mut lines);
                from = cut;
            }
            encoder.finish(Duration::ZERO, &mut lines);
            let read: String = entries(&lines).into_iter().map(|entry| entry.text).collect();
            prop_assert_eq!(read, text);
        }

        #[test]
        fn any_bytes_become_what_replacing_them_at_once_gives(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0usize..64) {
            let cut = cut.min(bytes.len());
            let (mut encoder, mut lines) = (Encoder::default(), Vec::new());
            encoder.output(Duration::ZERO, &bytes[..cut], &mut lines);
            encoder.output(Duration::ZERO, &bytes[cut..], &mut lines);
            encoder.finish(Duration::ZERO, &mut lines);
            let read: String = entries(&lines).into_iter().map(|entry| entry.text).collect();
            prop_assert_eq!(read, String::from_utf8_lossy(&bytes));
        }
    }
}
