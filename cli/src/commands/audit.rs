//! `iapctl audit search EXPR`, and how a record reads on one line.

use clap::{Args, Subcommand};
use iap_proto::v1;
use serde_json::Value;

use super::erase::{self, EraseArguments};
use super::records;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::duration;
use crate::exit::ExitStatus;
use crate::table::printable;

/// `audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Find records: words match any text; otherwise CEL over the record's fields
    #[command(after_help = "Examples:\n  iapctl audit search db-prod\n  \
        iapctl audit search 'event == \"session.denied\" && user.name == \"bob@example.com\"'")]
    Search(SearchArguments),
    /// Erase what records hold beside them (statements, command lines, paths), and recordings. Needs audit.erase
    Erase(EraseArguments),
}

/// `audit search`.
#[derive(Debug, Args)]
pub struct SearchArguments {
    /// What to find; without it, everything
    #[arg(value_name = "EXPR", num_args = 0..)]
    expression: Vec<String>,
    /// Only the last, such as 24h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_seconds)]
    since: Option<u64>,
    /// Only up to so long ago
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_seconds)]
    until: Option<u64>,
    /// At most so many
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(command: AuditCommand, context: &Context) -> anyhow::Result<ExitStatus> {
    match command {
        AuditCommand::Search(arguments) => search(arguments, context).await,
        AuditCommand::Erase(arguments) => erase::run(arguments, context).await,
    }
}

async fn search(arguments: SearchArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let request = v1::AuditSearchRequest {
        expression: expression(&arguments.expression),
        limit: arguments.limit,
        since_unix_ms: arguments.since.map(api::unix_ms_before_now).unwrap_or(0),
        until_unix_ms: arguments.until.map(api::unix_ms_before_now).unwrap_or(0),
    };
    let mut stream = api::ask(context, async |auth| {
        auth.admin().audit_search(request.clone()).await
    })
    .await?;
    let (mut found, mut more) = (Vec::new(), false);
    while let Some(reply) = stream.message().await.map_err(api::failure)? {
        more |= reply.more;
        let record = records::parse(&reply.json)?;
        if arguments.output.is_json() {
            found.push(record);
        } else {
            context.printer.result(&line(&record))?;
        }
    }
    if arguments.output.is_json() {
        context.printer.json(&found)?;
    }
    if more {
        context.printer.warn(
            "these are the newest that match, and there are older ones: --limit shows more, --until those before a time",
        );
    }
    Ok(ExitStatus::Done)
}

/// The words as one expression; without any, one that every record fulfils.
fn expression(words: &[String]) -> String {
    if words.is_empty() {
        return "time != \"\"".to_owned();
    }
    words.join(" ")
}

/// A statement may be longer than anybody reads on one line; `-o json` has all of it.
const SHOWN_CHARACTERS_MAX: usize = 200;

/// One record on one line.
pub(super) fn line(record: &Value) -> String {
    let shown = [
        "service",
        "session_id",
        "decision.rule",
        "close_reason",
        "reason",
        "payloads",
        "recordings",
        "operation",
        "path",
        "target",
        "forward",
        "sqlstate",
        "command",
        "statement",
    ];
    let mut parts = vec![
        records::time(record, "time"),
        format!("{:<6}", records::text(record, "code")),
        records::text(record, "event"),
        records::user(record),
    ];
    for path in shown {
        let value = match records::text(record, path) {
            object if object.starts_with('{') => records::text(record, &format!("{path}.name")),
            text => text,
        };
        let short = path.rsplit('.').next().unwrap_or(path);
        let value = match value.char_indices().nth(SHOWN_CHARACTERS_MAX) {
            Some((end, _)) => format!("{}…", value.get(..end).unwrap_or_default()),
            None => value,
        };
        if value.contains(' ') {
            parts.push(format!("{short}={value:?}"));
        } else if !value.is_empty() {
            parts.push(format!("{short}={value}"));
        }
    }
    parts.push(erased(record));
    parts.retain(|part| !part.is_empty());
    printable(&parts.join(" "))
}

/// That what the record was about is there no more, and why.
fn erased(record: &Value) -> String {
    let by = records::text(record, "payload_erased.by");
    if by.is_empty() {
        return by;
    }
    let time = records::time(record, "payload_erased.time");
    match records::text(record, "payload_erased.reason") {
        reason if reason.is_empty() => format!("(content erased at {time} by {by})"),
        reason => format!("(content erased at {time} by {by}: {reason})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_statement_is_shown_on_its_line_without_what_moves_a_terminal() {
        let long = format!("select '\u{1b}[31m'\n{}", "x".repeat(300));
        let record =
            json!({ "code": "S1021I", "event": "session.statement", "sqlstate": "42601", "statement": long });
        let line = line(&record);
        assert!(
            line.starts_with("S1021I session.statement sqlstate=42601 statement=\"select '"),
            "{line}"
        );
        assert!(
            line.ends_with("x…\"") && !line.contains('\u{1b}') && !line.contains('\n'),
            "{line}"
        );
    }

    #[test]
    fn what_was_run_and_which_file_was_moved_is_shown() {
        let record = json!({ "code": "S1030I", "event": "session.command", "command": "uname -sm" });
        assert_eq!(line(&record), "S1030I session.command command=\"uname -sm\"");
        let record = json!({ "code": "S1031I", "event": "session.file", "operation": "rename", "path": "/a", "target": "/b" });
        assert_eq!(
            line(&record),
            "S1031I session.file operation=rename path=/a target=/b"
        );
    }

    #[test]
    fn a_record_whose_content_was_erased_says_so() {
        let mut record = json!({ "code": "S1021I", "event": "session.statement", "payload_erased":
            { "time": "2026-11-22T14:03:07.123Z", "by": "admin@example.com", "reason": "asked\nfor" } });
        let expected = "S1021I session.statement (content erased at 2026-11-22 14:03:07 by admin@example.com";
        assert_eq!(line(&record), format!("{expected}: asked\\nfor)"));
        record["payload_erased"]["reason"] = "".into();
        assert_eq!(line(&record), format!("{expected})"));
    }

    #[test]
    fn a_record_is_one_line_with_its_key_facts() {
        let record = json!({
            "time": "2026-11-22T14:03:07.123Z", "code": "S1002W", "event": "session.denied",
            "user": {"name": "bob@example.com", "id": "u-1"}, "service": {"name": "db-prod"},
            "decision": {"effect": "deny", "rule": null}, "reason": "no rule\nallows it",
        });
        assert_eq!(
            line(&record),
            "2026-11-22 14:03:07 S1002W session.denied bob@example.com service=db-prod reason=\"no rule\\nallows it\""
        );
    }
}
