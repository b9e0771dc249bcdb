//! Telling whoever sits at a terminal who watches: by a line, when it does no harm.
//!
//! A line in the middle of a full-screen program, of an escape sequence or of a character would spoil what is shown. So it
//! waits until the terminal is on its usual screen and between two of these.

use std::sync::Arc;

use tokio::sync::watch;

/// Names in one line.
const NAMES_MAX: usize = 5;
/// Digits and parameters of a sequence that is looked into.
const PARAMETERS_BYTES_MAX: usize = 32;

/// What one terminal is told.
#[derive(Debug)]
pub(super) struct Notice {
    names: watch::Receiver<Vec<Arc<str>>>,
    told: Vec<Arc<str>>,
    place: Place,
}

impl Notice {
    pub(super) fn new(names: watch::Receiver<Vec<Arc<str>>>) -> Self {
        Self {
            names,
            told: Vec::new(),
            place: Place::default(),
        }
    }

    /// The terminal is shown this.
    pub(super) fn shown(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.place.pass(*byte));
    }

    /// Returns once others watch than before.
    pub(super) async fn changed(&mut self) {
        if self.names.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The line to be shown now, if there is one.
    pub(super) fn line(&mut self) -> Option<String> {
        if !self.place.takes_a_line() {
            return None;
        }
        let names = self.names.borrow_and_update().clone();
        if names == self.told {
            return None;
        }
        let line = say(&names);
        self.told = names;
        Some(line)
    }
}

fn say(names: &[Arc<str>]) -> String {
    let named: Vec<&str> = names.iter().take(NAMES_MAX).map(AsRef::as_ref).collect();
    let more = match names.len().saturating_sub(NAMES_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let text = match names {
        [] => "Nobody watches this session now.".to_owned(),
        [one] => format!("{one} watches this session."),
        _ => format!("{}{more} watch this session.", named.join(", ")),
    };
    format!("\r\n[{}]\r\n", iap_audit::asciicast::neutralised(&text))
}

/// Where in its language a terminal stands (ECMA-48 §5.4, xterm's private modes 47, 1047 and 1049).
#[derive(Debug, Default)]
struct Place {
    is_full_screen: bool,
    /// Bytes of a character that are yet to come.
    rest_of_character: u8,
    within: Within,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Within {
    #[default]
    Text,
    Escape,
    /// Between the introducer and the last byte.
    Control(Vec<u8>),
    /// A string that `BEL` or `ESC \` ends: a title, for one.
    String,
    StringEscape,
}

impl Place {
    fn takes_a_line(&self) -> bool {
        !self.is_full_screen && self.rest_of_character == 0 && self.within == Within::Text
    }

    fn pass(&mut self, byte: u8) {
        let next = match std::mem::take(&mut self.within) {
            Within::Text => self.text(byte),
            Within::Escape => match byte {
                b'[' => Within::Control(Vec::new()),
                b']' | b'P' | b'X' | b'^' | b'_' => Within::String,
                // Intermediate bytes: a character set, for one.
                0x1b | 0x20..=0x2f => Within::Escape,
                b'c' => {
                    self.is_full_screen = false;
                    Within::Text
                }
                _ => Within::Text,
            },
            Within::Control(parameters) => self.control(parameters, byte),
            Within::String => match byte {
                0x07 | 0x18 | 0x1a => Within::Text,
                0x1b => Within::StringEscape,
                _ => Within::String,
            },
            Within::StringEscape => match byte {
                b'\\' => Within::Text,
                0x1b => Within::StringEscape,
                _ => Within::String,
            },
        };
        self.within = next;
    }

    fn text(&mut self, byte: u8) -> Within {
        self.rest_of_character = match byte {
            0x80..=0xbf => self.rest_of_character.saturating_sub(1),
            0xc2..=0xdf => 1,
            0xe0..=0xef => 2,
            0xf0..=0xf4 => 3,
            _ => 0,
        };
        match byte {
            0x1b => Within::Escape,
            _ => Within::Text,
        }
    }

    fn control(&mut self, mut parameters: Vec<u8>, byte: u8) -> Within {
        match byte {
            0x20..=0x3f => {
                if parameters.len() < PARAMETERS_BYTES_MAX {
                    parameters.push(byte);
                }
                Within::Control(parameters)
            }
            b'h' | b'l' => {
                let modes = parameters.strip_prefix(b"?").unwrap_or_default();
                let is_screen = |mode: &[u8]| matches!(mode, b"47" | b"1047" | b"1049");
                if modes.split(|byte| *byte == b';').any(is_screen) {
                    self.is_full_screen = byte == b'h';
                }
                Within::Text
            }
            0x1b => Within::Escape,
            // Others are obeyed within a sequence, and it goes on.
            0x00..=0x17 | 0x19 | 0x1c..=0x1f => Within::Control(parameters),
            _ => Within::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn takes_a_line_after(shown: &[u8]) -> bool {
        let mut place = Place::default();
        shown.iter().for_each(|byte| place.pass(*byte));
        place.takes_a_line()
    }

    #[test]
    fn a_line_waits_for_the_end_of_what_it_would_spoil() {
        for (shown, takes) in [
            (&b"$ "[..], true),
            (b"\x1b", false),
            (b"\x1b[", false),
            (b"\x1b[1;3", false),
            (b"\x1b[1;31m", true),
            (b"\x1b]0;title", false),
            (b"\x1b]0;title\x07", true),
            (b"\x1b]0;title\x1b\\", true),
            (b"\x1bP1$r", false),
            (b"\x1b(", false),
            (b"\x1b(B", true),
            ("ö".as_bytes().get(..1).unwrap(), false),
            ("ö€".as_bytes(), true),
            (b"\xff\xfe", true),
        ] {
            assert_eq!(takes_a_line_after(shown), takes, "{shown:?}");
        }
    }

    #[test]
    fn a_full_screen_program_is_left_alone_until_it_ends() {
        for (shown, takes) in [
            (&b"\x1b[?1049h"[..], false),
            (b"\x1b[?1049h\x1b[2Jtext", false),
            (b"\x1b[?1049h\x1b[?1049l", true),
            (b"\x1b[?25;1047h", false),
            (b"\x1b[?47h\x1bc", true),
            (b"\x1b[1049h", true),
            (b"\x1b[?25l", true),
        ] {
            assert_eq!(takes_a_line_after(shown), takes, "{shown:?}");
        }
    }

    #[test]
    fn who_watches_is_said_once_and_again_when_it_changes() {
        let names = watch::Sender::new(Vec::new());
        let mut notice = Notice::new(names.subscribe());
        assert_eq!(notice.line(), None);
        names.send_replace(vec![Arc::from("auditor@example.com")]);
        notice.shown(b"\x1b[?1049h");
        assert_eq!(notice.line(), None);
        notice.shown(b"\x1b[?1049l");
        let said = "\r\n[auditor@example.com watches this session.]\r\n";
        assert_eq!(notice.line().unwrap(), said);
        assert_eq!(notice.line(), None);
        names.send_replace((0..7).map(|number| Arc::from(format!("w{number}"))).collect());
        assert_eq!(
            notice.line().unwrap(),
            "\r\n[w0, w1, w2, w3, w4 and 2 more watch this session.]\r\n"
        );
        names.send_replace(Vec::new());
        assert!(notice.line().unwrap().contains("Nobody watches"));
    }

    #[test]
    fn a_name_drives_nobodys_terminal() {
        assert!(!say(&[Arc::from("a\x1b[2J")]).contains('\x1b'));
    }
}
