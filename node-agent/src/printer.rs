//! The one place that writes to the terminal; everything else logs.

use std::io::Write;

/// A result, on standard output.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A failure, on standard error.
pub fn error(text: &str) {
    let _ = writeln!(std::io::stderr(), "error: {text}");
}
