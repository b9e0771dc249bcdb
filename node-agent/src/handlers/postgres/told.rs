//! A statement as records tell of it.

use iap_audit::format_time;
use iap_postgres::{Copied, Direction, Outcome, Statement, Transaction};
use serde::Serialize;
use time::OffsetDateTime;

/// A text that JSON makes too long is cut to this.
const SHORT_TEXT_BYTES: usize = 16 * 1024;

/// What is told of one statement; docs/events.md has the fields' meanings.
#[derive(Debug, Serialize)]
pub(super) struct Told<'a> {
    ended: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    statement: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statement_bytes: Option<usize>,
    #[serde(skip_serializing_if = "is_not")]
    statement_truncated: bool,
    #[serde(skip_serializing_if = "is_not")]
    statement_unknown: bool,
    #[serde(skip_serializing_if = "is_not")]
    statement_shortened: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    prepared_statement: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameter_count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'a [Option<String>]>,
    #[serde(skip_serializing_if = "is_not")]
    parameters_truncated: bool,
    #[serde(skip_serializing_if = "is_not")]
    parameters_left_out: bool,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sqlstate: Option<&'a str>,
    #[serde(skip_serializing_if = "Command::is_none")]
    command: Command<'a>,
    rows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    copy: Option<Copy>,
    duration_us: u64,
    transaction: &'static str,
}

/// The backend's own words on what it completed.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Command<'a> {
    None,
    One(&'a str),
    Several(&'a [String]),
}

#[derive(Debug, Serialize)]
struct Copy {
    direction: &'static str,
    bytes: u64,
}

impl<'a> Told<'a> {
    /// What is to be told of it; it was over at `ended`.
    pub(super) fn of(statement: &'a Statement, ended: OffsetDateTime) -> Self {
        let text = statement.text.as_ref();
        let parameters = statement.parameters.as_ref();
        let (outcome, sqlstate) = outcome(&statement.outcome);
        Self {
            ended: format_time(ended),
            statement: text.map(|text| text.text.as_ref()),
            statement_bytes: text.map(|text| text.bytes),
            statement_truncated: text.is_some_and(|text| text.truncated),
            statement_unknown: text.is_none(),
            statement_shortened: false,
            prepared_statement: statement.name.as_deref(),
            parameter_count: parameters.and_then(|parameters| parameters.count),
            parameters: parameters.and_then(|parameters| parameters.values.as_deref()),
            parameters_truncated: parameters.is_some_and(|parameters| parameters.truncated),
            parameters_left_out: false,
            outcome,
            sqlstate,
            command: match statement.tags.as_slice() {
                [] => Command::None,
                [tag] => Command::One(tag),
                tags => Command::Several(tags),
            },
            rows: statement.rows,
            copy: statement.copy.map(|Copied { direction, bytes }| Copy {
                direction: way(direction),
                bytes,
            }),
            duration_us: u64::try_from(statement.took.as_micros()).unwrap_or(u64::MAX),
            transaction: transaction(statement.transaction),
        }
    }

    /// Writes it in place of what is in `entry`, as JSON of at most `bytes_max` bytes: without its parameters and with a
    /// shortened text where it would be longer.
    pub(super) fn write_into(mut self, entry: &mut Vec<u8>, bytes_max: usize) {
        entry.clear();
        // Of strings and numbers, into memory, for which this cannot fail.
        let _ = serde_json::to_writer(&mut *entry, &self);
        if entry.len() <= bytes_max {
            return;
        }
        self.parameters_left_out = self.parameters.take().is_some();
        self.statement_shortened = true;
        self.statement = self
            .statement
            .and_then(|text| text.get(..text.floor_char_boundary(SHORT_TEXT_BYTES)));
        entry.clear();
        let _ = serde_json::to_writer(entry, &self);
    }
}

impl Command<'_> {
    fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

fn is_not(flag: &bool) -> bool {
    !flag
}

fn outcome(outcome: &Outcome) -> (&'static str, Option<&str>) {
    match outcome {
        Outcome::Done => ("done", None),
        Outcome::Suspended => ("suspended", None),
        Outcome::Failed(sqlstate) => ("failed", Some(sqlstate)),
        Outcome::Skipped => ("skipped", None),
        Outcome::Unanswered => ("unanswered", None),
    }
}

fn transaction(transaction: Transaction) -> &'static str {
    match transaction {
        Transaction::Idle => "idle",
        Transaction::Open => "open",
        Transaction::Failed => "failed",
    }
}

fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "in",
        Direction::Out => "out",
        Direction::Both => "both",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use iap_postgres::{Captured, Parameters};
    use serde_json::{Value, json};

    use super::*;

    fn statement(text: &str) -> Statement {
        Statement {
            text: Some(Captured {
                text: text.into(),
                bytes: text.len(),
                truncated: false,
            }),
            name: None,
            parameters: Some(Parameters {
                count: Some(2),
                values: Some([Some("7".to_owned()), None].into()),
                truncated: false,
            }),
            outcome: Outcome::Failed("23505".to_owned()),
            tags: vec!["INSERT 0 1".to_owned()],
            rows: 1,
            copy: Some(Copied {
                direction: Direction::In,
                bytes: 9,
            }),
            transaction: Transaction::Open,
            took: Duration::from_micros(1500),
        }
    }

    fn told(statement: &Statement, bytes_max: usize) -> Value {
        let mut entry = b"what was before".to_vec();
        Told::of(statement, OffsetDateTime::UNIX_EPOCH).write_into(&mut entry, bytes_max);
        serde_json::from_slice(&entry).unwrap()
    }

    #[test]
    fn all_that_is_known_is_told() {
        let expected = json!({
            "ended": "1970-01-01T00:00:00.000Z", "statement": "INSERT INTO t VALUES ($1, $2)", "statement_bytes": 29,
            "parameter_count": 2, "parameters": ["7", null], "outcome": "failed", "sqlstate": "23505", "command": "INSERT 0 1",
            "rows": 1, "copy": {"direction": "in", "bytes": 9}, "duration_us": 1500, "transaction": "open",
        });
        assert_eq!(
            told(&statement("INSERT INTO t VALUES ($1, $2)"), 1 << 20),
            expected
        );
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let statement = Statement {
            text: None,
            name: Some("s".to_owned()),
            parameters: None,
            outcome: Outcome::Unanswered,
            tags: Vec::new(),
            rows: 0,
            copy: None,
            transaction: Transaction::Idle,
            took: Duration::ZERO,
        };
        let expected = json!({
            "ended": "1970-01-01T00:00:00.000Z", "statement_unknown": true, "prepared_statement": "s", "outcome": "unanswered",
            "rows": 0, "duration_us": 0, "transaction": "idle",
        });
        assert_eq!(told(&statement, 1 << 20), expected);
    }

    #[test]
    fn a_text_that_json_makes_too_long_is_shortened_and_says_so() {
        let fields = told(&statement(&"\u{1}".repeat(64 * 1024)), 256 * 1024);
        assert_eq!(fields.get("statement_shortened"), Some(&true.into()));
        let text = fields.get("statement").and_then(Value::as_str).unwrap();
        assert_eq!(text.len(), SHORT_TEXT_BYTES);
        assert_eq!(fields.get("parameters_left_out"), Some(&true.into()));
    }
}
