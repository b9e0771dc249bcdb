//! The log events that docs/logging.md names are written, at their level.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeSet;

/// Level and message of every `tracing::LEVEL!(…, "message")` and `say_seldom!` in the programs.
fn written() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for folder in [
        "auth-server/src",
        "proxy/src",
        "node-agent/src",
        "crates/runtime/src",
        "cli/src",
    ] {
        for (_, text) in iap_tidy::files(folder, ".rs").unwrap() {
            let at_any_rate = text
                .split("tracing::")
                .skip(1)
                .filter_map(|call| call.split_once("!("));
            // `say_seldom!(when, LEVEL, …, "message")`
            let seldom = text.split("say_seldom!(").skip(1).filter_map(|call| {
                let (_, rest) = call.split_once(',')?;
                rest.trim_start().split_once(',')
            });
            for (level, rest) in at_any_rate.chain(seldom) {
                let arguments = rest.split(");").next().unwrap();
                // The message is the last literal; line breaks within the call do not matter.
                if let Some(message) = arguments.rsplit('"').nth(1) {
                    found.insert((level.to_owned(), message.to_owned()));
                }
            }
        }
    }
    found
}

#[test]
fn every_log_event_of_the_reference_is_written_at_its_level() {
    let page = std::fs::read_to_string(iap_tidy::root().join("docs/logging.md")).unwrap();
    let (_, section) = page.split_once("\n## Events worth a rule\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let written = written();
    assert!(written.len() > 50, "the sources were read");
    let mut rows = 0;
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = row.split('`').skip(1).step_by(2);
        let (level, message) = (cells.next().unwrap(), cells.next().unwrap());
        rows += 1;
        assert!(
            written.contains(&(level.to_owned(), message.to_owned())),
            "docs/logging.md names {level} {message:?}, which nothing writes"
        );
    }
    assert!(rows > 15, "the table was read");
}

#[test]
fn levels_are_those_of_the_reference() {
    let page = std::fs::read_to_string(iap_tidy::root().join("docs/logging.md")).unwrap();
    for (level, _) in written() {
        let is_level = ["error", "warn", "info", "debug"].contains(&level.as_str());
        assert!(
            is_level && page.contains(&format!("| `{level}` |")),
            "{level} has no meaning in docs/logging.md"
        );
    }
}
