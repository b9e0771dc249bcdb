//! The one place that writes to the terminal: results to stdout, talk to stderr.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::table::drives_terminal;

/// Begins the text of the error that says stdout's reader went away.
pub(crate) const STDOUT_CLOSED: &str = "stdout was closed";

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON value.
    Json,
}

/// Writes results and talk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Printer {
    color: bool,
    verbosity: u8,
}

impl Printer {
    /// A printer; colour only if asked for and stderr is a terminal.
    pub fn new(color: bool, verbosity: u8) -> Self {
        Self {
            color: color && io::stderr().is_terminal(),
            verbosity,
        }
    }

    /// Prints text to stdout and ends the line if it has not ended.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn result(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let ending = if text.ends_with('\n') || text.is_empty() {
            ""
        } else {
            "\n"
        };
        out.write_all(text.as_bytes())
            .and_then(|()| out.write_all(ending.as_bytes()))
            .and_then(|()| out.flush())
            .map_err(|error| io::Error::new(error.kind(), format!("{STDOUT_CLOSED}: {error}")))
    }

    /// Prints one JSON value to stdout, indented.
    ///
    /// # Errors
    /// When stdout cannot be written or the value has no JSON form.
    pub fn json(&self, value: &impl Serialize) -> io::Result<()> {
        self.result(&json_text(value)?)
    }

    /// A line of talk on stderr. A stderr that is gone is nobody's to tell.
    pub fn talk(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// A line of talk that only `-v` shows.
    pub fn verbose(&self, text: &str) {
        if self.verbosity > 0 {
            self.talk(&format!("{} {text}", self.paint("2", "-")));
        }
    }

    /// A warning on stderr.
    pub fn warn(&self, text: &str) {
        self.talk(&format!("{} {text}", self.paint("33;1", "warning:")));
    }

    /// The first line of an error on stderr.
    pub fn problem(&self, label: &str, text: &str) {
        self.talk(&format!("{} {text}", self.paint("31;1", &format!("{label}:"))));
    }

    /// A further line under an error.
    pub fn detail_line(&self, label: &str, text: &str) {
        let below = " ".repeat("  : ".len() + label.len());
        let text = text.trim_end().replace('\n', &format!("\n{below}"));
        self.talk(&format!("  {} {text}", self.paint("1", &format!("{label}:"))));
    }

    /// Makes a word stand out on stderr.
    pub fn strong(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// As JSON may be written too: what a terminal acts on stands in it as `\u….`, and reads the same.
fn json_text(value: &impl Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string_pretty(value)?;
    // What stands outside of strings is neither, but for line breaks.
    if !text.chars().any(is_escaped) {
        return Ok(text);
    }
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match is_escaped(character) {
            true => escaped.push_str(&format!("\\u{:04x}", u32::from(character))),
            false => escaped.push(character),
        }
    }
    Ok(escaped)
}

fn is_escaped(character: char) -> bool {
    character != '\n' && drives_terminal(character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_drives_no_terminal_and_reads_the_same() {
        let value = serde_json::json!({ "reason": "a\u{9b}31m\u{7f}\u{202e}\u{1b}[2Jé\n" });
        let text = json_text(&value).unwrap_or_default();
        assert!(!text.chars().any(is_escaped), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).ok(), Some(value));
    }

    #[test]
    fn without_colour_text_is_left_alone() {
        assert_eq!(
            Printer {
                color: false,
                verbosity: 0
            }
            .strong("x"),
            "x"
        );
        assert_eq!(
            Printer {
                color: true,
                verbosity: 0
            }
            .strong("x"),
            "\u{1b}[1mx\u{1b}[0m"
        );
    }
}
