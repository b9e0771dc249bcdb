//! What a terminal shows, from what was printed to it: the first thing that a watcher gets.
//!
//! The recording so far is fed to a terminal in memory, whose state is then written down as one text that brings any fresh
//! terminal of the same size to it: both screens, the cursor, modes, margins and an escape sequence that has only begun.
//! What was printed is a stranger's word, so size and time are bounded, and whoever calls this does so where a panic of
//! that terminal costs nothing.

use std::time::Duration;

use avt::{ScreenKind, Terminal};
use iap_audit::asciicast::{Code, Encoder, Entry};

/// A terminal is taken to be no wider.
pub const COLUMNS_MAX: u32 = 1000;
/// And no higher.
pub const ROWS_MAX: u32 = 500;
/// Of a terminal whose size nobody knows.
const USUAL_SIZE: (usize, usize) = (80, 24);
/// Characters between two looks at the clock.
const CHARACTERS_AT_ONCE: usize = 512;
/// One event carries no more, so that no line is longer than a reader of recordings takes.
const EVENT_BYTES_MAX: usize = 32 * 1024;

/// A terminal that is brought up to date line by line.
pub struct Canvas {
    terminal: Terminal,
    /// Where there is no terminal, nobody has turned line feeds into new lines yet.
    is_terminal: bool,
    at: Duration,
}

/// What a terminal shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyframe {
    /// Its columns and rows.
    pub size: (u32, u32),
    /// When that was, since the recording began.
    pub at: Duration,
    /// What brings a fresh terminal of that size to it.
    pub text: String,
    /// Whether a program has the screen for itself.
    pub is_full_screen: bool,
}

/// Drawing took longer than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what the terminal shows could not be worked out in time")]
pub struct TooLong;

impl std::fmt::Debug for Canvas {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Canvas").finish_non_exhaustive()
    }
}

impl Canvas {
    /// An empty one of that size, within bounds.
    #[must_use]
    pub fn new(size: (u32, u32), is_terminal: bool) -> Option<Self> {
        let (columns, rows) = bounded(size);
        Some(Self {
            terminal: Terminal::new(columns, rows).ok()?,
            is_terminal,
            at: Duration::ZERO,
        })
    }

    /// Takes a line of the recording; one that is no event changes nothing.
    ///
    /// # Errors
    /// Once `is_due` says that it takes too long.
    pub fn push(&mut self, line: &[u8], is_due: impl Fn() -> bool) -> Result<(), TooLong> {
        let Ok(entry) = Entry::parse(line) else {
            return Ok(());
        };
        self.at = self.at.max(entry.at);
        match entry.code {
            Code::Output if self.is_terminal => self.print(&entry.text, is_due),
            Code::Output => self.print(&entry.text.replace('\n', "\r\n"), is_due),
            Code::Resize => {
                if is_due() {
                    return Err(TooLong);
                }
                if let Some(size) = parse_size(&entry.text) {
                    let (columns, rows) = bounded(size);
                    self.terminal.resize(columns, rows);
                }
                Ok(())
            }
            Code::Input | Code::Marker => Ok(()),
        }
    }

    fn print(&mut self, text: &str, is_due: impl Fn() -> bool) -> Result<(), TooLong> {
        for (number, character) in text.chars().enumerate() {
            if number % CHARACTERS_AT_ONCE == 0 && is_due() {
                return Err(TooLong);
            }
            self.terminal.feed(character);
        }
        Ok(())
    }

    /// What it shows now.
    #[must_use]
    pub fn keyframe(&self) -> Keyframe {
        let (columns, rows) = self.terminal.size();
        let side = |side| u32::try_from(side).unwrap_or(1);
        let is_full_screen = self.terminal.active_screen_kind() == ScreenKind::Alternate;
        let mut text = spelt_out(&self.terminal.dump());
        if is_full_screen {
            // So that every terminal has the cursor where it was once that program ends.
            text = text.replacen("\u{1b}[?1047h", "\u{1b}[?1049h", 1);
        }
        Keyframe {
            size: (side(columns), side(rows)),
            at: self.at,
            text,
            is_full_screen,
        }
    }
}

impl Keyframe {
    /// As lines of a recording.
    #[must_use]
    pub fn lines(&self) -> Vec<u8> {
        let (mut encoder, mut lines) = (Encoder::default(), Vec::new());
        let mut rest = self.text.as_bytes();
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(rest.len().min(EVENT_BYTES_MAX));
            encoder.output(self.at, piece, &mut lines);
            rest = behind;
        }
        encoder.finish(self.at, &mut lines);
        lines
    }
}

/// The same without repetitions (ECMA-48 §8.3.103, `REP`), which not every terminal knows.
fn spelt_out(text: &str) -> String {
    let mut spelt = String::with_capacity(text.len());
    let mut pieces = text.split("\u{1b}[");
    spelt.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let repeated = piece.split_once('b').and_then(|(count, rest)| {
            let count: usize = count.parse().ok()?;
            Some((spelt.chars().next_back()?, count.min(COLUMNS_MAX as usize), rest))
        });
        match repeated {
            Some((character, count, rest)) => {
                spelt.extend(std::iter::repeat_n(character, count));
                spelt.push_str(rest);
            }
            None => {
                spelt.push_str("\u{1b}[");
                spelt.push_str(piece);
            }
        }
    }
    spelt
}

/// `COLUMNSxROWS`.
#[must_use]
pub fn parse_size(text: &str) -> Option<(u32, u32)> {
    let (columns, rows) = text.split_once('x')?;
    Some((columns.parse().ok()?, rows.parse().ok()?))
}

/// A client that does not know its terminal's size says 0.
fn bounded((columns, rows): (u32, u32)) -> (usize, usize) {
    let side = |side: u32, usual: usize, max: u32| match side {
        0 => usual,
        side => usize::try_from(side.min(max)).unwrap_or(usual),
    };
    (
        side(columns, USUAL_SIZE.0, COLUMNS_MAX),
        side(rows, USUAL_SIZE.1, ROWS_MAX),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A recording of one output after another.
    fn recorded(outputs: &[&str]) -> Vec<u8> {
        let (mut encoder, mut lines) = (Encoder::default(), Vec::new());
        for (at, output) in (1..).zip(outputs) {
            encoder.output(Duration::from_secs(at), output.as_bytes(), &mut lines);
        }
        lines
    }

    fn canvas(size: (u32, u32), lines: &[u8]) -> Canvas {
        let mut canvas = Canvas::new(size, true).unwrap();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            canvas.push(line, || false).unwrap();
        }
        canvas
    }

    fn shown(canvas: &Canvas) -> Vec<String> {
        let lines = canvas.terminal.screen().visible_lines();
        lines.map(|line| line.text().trim_end().to_owned()).collect()
    }

    #[test]
    fn a_fresh_terminal_shows_the_same_after_a_keyframe_and_goes_on_the_same() {
        let vim = [
            "$ vim file\r\n",
            "\u{1b}[?1049h\u{1b}[?1h\u{1b}[2;4r\u{1b}[2J\u{1b}[1;1Hone\u{1b}[2;1H\u{1b}[31mtwo\u{1b}[m",
            "\u{1b}[4;3Hx\u{1b}[",
        ];
        let before = canvas((20, 5), &recorded(&vim));
        let keyframe = before.keyframe();
        assert!(keyframe.is_full_screen && keyframe.text.contains("\u{1b}[?1049h"));
        let mut joined = canvas((20, 5), &keyframe.lines());
        assert_eq!(shown(&joined), ["one", "two", "", "  x", ""]);
        // The rest of the sequence that had begun, then the end of vim: what was there before is back.
        let mut went_on = before;
        for more in recorded(&["1;1Hwith colour", "\u{1b}[?1049l$ "]).split_inclusive(|byte| *byte == b'\n') {
            joined.push(more, || false).unwrap();
            went_on.push(more, || false).unwrap();
        }
        assert_eq!(shown(&joined), shown(&went_on));
        assert_eq!(shown(&joined)[..2], ["$ vim file", "$"]);
        assert_eq!(joined.keyframe().text, went_on.keyframe().text);
    }

    #[test]
    fn the_size_of_a_keyframe_is_that_of_the_last_resize_within_bounds() {
        let mut lines = recorded(&["a"]);
        Encoder::default().resize(Duration::from_secs(2), 132, 43, &mut lines);
        assert_eq!(canvas((80, 24), &lines).keyframe().size, (132, 43));
        Encoder::default().resize(Duration::from_secs(3), u32::MAX, 0, &mut lines);
        assert_eq!(canvas((80, 24), &lines).keyframe().size, (COLUMNS_MAX, 24));
    }

    #[test]
    fn what_prints_for_ever_is_given_up() {
        let looks = std::cell::Cell::new(0);
        let is_due = || {
            looks.set(looks.get() + 1);
            looks.get() > 3
        };
        let mut canvas = Canvas::new((80, 24), true).unwrap();
        let endless = recorded(&[&"x\u{1b}[65535b".repeat(1000)]);
        assert_eq!(canvas.push(&endless, is_due), Err(TooLong));
    }

    #[test]
    fn nothing_is_said_by_how_often_it_is_repeated() {
        for (dumped, spelt) in [
            ("a", "a"),
            ("a\u{1b}[3b", "aaaa"),
            ("a\u{1b}[3bb\u{1b}[1mb", "aaaab\u{1b}[1mb"),
            ("\u{1b}[31mab\u{1b}[", "\u{1b}[31mab\u{1b}["),
            ("日\u{1b}[1b\r\n", "日日\r\n"),
        ] {
            assert_eq!(spelt_out(dumped), spelt);
        }
        let keyframe = canvas((20, 2), &recorded(&["aaaaaaaaaaaa"])).keyframe();
        assert!(keyframe.text.contains("aaaaaaaaaaaa"), "{keyframe:?}");
    }

    #[test]
    fn without_a_terminal_lines_begin_at_the_left() {
        let mut canvas = Canvas::new((10, 3), false).unwrap();
        canvas.push(&recorded(&["ab\ncd\n"]), || false).unwrap();
        assert_eq!(shown(&canvas), ["ab", "cd", ""]);
    }

    #[test]
    fn no_line_of_a_keyframe_is_longer_than_a_reader_takes() {
        let wide = "\u{1b}[1m\u{1}€".repeat(30_000);
        let keyframe = Keyframe {
            size: (80, 24),
            at: Duration::from_secs(1),
            text: wide.clone(),
            is_full_screen: false,
        };
        let lines = keyframe.lines();
        let entries = lines.split_inclusive(|byte| *byte == b'\n');
        let text: String = entries.map(|line| Entry::parse(line).unwrap().text).collect();
        assert_eq!(text, wide);
    }
}
