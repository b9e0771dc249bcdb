//! `iapctl sessions ls|show|play|watch|kill`.

use clap::{Args, Subcommand};
use iap_identity::SessionId;
use iap_proto::v1;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::play::PlayArguments;
use super::watch::WatchArguments;
use super::{audit, lock, records};
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::duration;
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::table::{Listing, printable};

/// `sessions`.
#[derive(Debug, Subcommand)]
pub enum SessionsCommand {
    /// List sessions, the newest first: your own, or everybody's with audit.read
    #[command(visible_alias = "list")]
    Ls(LsArguments),
    /// Show one session's record
    Show {
        /// Its id
        #[arg(value_name = "SESSION")]
        id: String,
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
    /// Replay what a terminal showed: in one's own sessions, or in anybody's with recording.read
    Play(PlayArguments),
    /// Watch what a terminal shows while it does: in one's own sessions, or in anybody's with recording.read
    Watch(WatchArguments),
    /// End a live session
    Kill {
        /// Its id
        #[arg(value_name = "SESSION")]
        id: String,
        /// Why; the record and the person see it
        #[arg(long, default_value = "")]
        reason: String,
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
}

/// `sessions ls`.
#[derive(Debug, Args)]
pub struct LsArguments {
    /// Only of this service
    #[arg(long, default_value = "", value_name = "NAME")]
    service: String,
    /// Only of this user
    #[arg(long, default_value = "", value_name = "NAME")]
    user: String,
    /// Only those that go on now
    #[arg(long)]
    live: bool,
    /// Only those of the last, such as 24h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_seconds)]
    since: Option<u64>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(command: SessionsCommand, context: &Context) -> anyhow::Result<ExitStatus> {
    match command {
        SessionsCommand::Ls(arguments) => list(arguments, context).await,
        SessionsCommand::Show { id, output } => show(&id, output, context).await,
        SessionsCommand::Play(arguments) => super::play::run(arguments, context).await,
        SessionsCommand::Watch(arguments) => super::watch::run(arguments, context).await,
        SessionsCommand::Kill { id, reason, output } => kill(&id, reason, output, context).await,
    }
}

async fn list(arguments: LsArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let request = v1::SessionsRequest {
        service: arguments.service,
        user: arguments.user,
        live_only: arguments.live,
        limit: arguments.limit,
        since_unix_ms: arguments.since.map(api::unix_ms_before_now).unwrap_or(0),
    };
    let reply = api::ask(context, async |auth| auth.user().sessions(request.clone()).await).await?;
    let sessions = records::parse(&reply.json)?;
    if arguments.output.is_json() {
        context.printer.json(&sessions)?;
        return Ok(ExitStatus::Done);
    }
    let mut listing = Listing::new(&[
        "START", "USER", "SERVICE", "LASTED", "CLOSED", "IN", "OUT", "SESSION",
    ]);
    for session in sessions.as_array().map(Vec::as_slice).unwrap_or_default() {
        listing.row([
            records::time(session, "start")
                .get(5..16)
                .unwrap_or_default()
                .to_owned(),
            records::user(session),
            records::text(session, "service"),
            lasted(session),
            records::text(session, "close_reason"),
            records::size(session, "bytes_in"),
            records::size(session, "bytes_out"),
            records::text(session, "session_id"),
        ]);
    }
    records::show_table(context, &listing, "No session is recorded.")
}

async fn show(id: &str, output: Output, context: &Context) -> anyhow::Result<ExitStatus> {
    let request = v1::SessionRequest {
        session_id: session_id(id)?.as_bytes().to_vec(),
    };
    let reply = api::ask(context, async |auth| auth.user().session(request.clone()).await).await?;
    let session = merged(records::parse(&reply.json)?);
    if output.is_json() {
        context.printer.json(&session)?;
    } else {
        context.printer.result(&readable(&session))?;
    }
    Ok(ExitStatus::Done)
}

async fn kill(id: &str, reason: String, output: Output, context: &Context) -> anyhow::Result<ExitStatus> {
    let request = v1::SessionKillRequest {
        session_id: session_id(id)?.as_bytes().to_vec(),
        reason,
    };
    let added = api::ask(context, async |auth| {
        auth.admin().session_kill(request.clone()).await
    })
    .await?;
    lock::print_added(context, output, added)
}

pub(super) fn session_id(text: &str) -> Result<SessionId, Failure> {
    SessionId::parse(text).map_err(|error| {
        Failure::usage(format!("'{text}' is not a session id"))
            .because(error.to_string())
            .next("iapctl sessions ls")
    })
}

/// How long it lasted, or that it goes on.
fn lasted(session: &Value) -> String {
    let time = |path: &str| OffsetDateTime::parse(&records::text(session, path), &Rfc3339);
    match (time("start"), time("end")) {
        (Ok(start), Ok(end)) => duration::rough(end - start),
        (_, Err(_)) => "live".to_owned(),
        (Err(_), Ok(_)) => String::new(),
    }
}

/// The reply's summary and records as one object: the summary's fields beside `records`.
fn merged(reply: Value) -> Value {
    let Value::Object(mut reply) = reply else {
        return reply;
    };
    if let Some(Value::Object(summary)) = reply.remove("session") {
        reply.extend(summary);
    }
    Value::Object(reply)
}

/// The facts an auditor asks for first, then a line for each record.
fn readable(session: &Value) -> String {
    let records = session
        .get("records")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let fact = |path: &str| {
        let summary = records::text(session, path);
        let of_records = || {
            records
                .iter()
                .map(|record| records::text(record, path))
                .find(|text| !text.is_empty())
        };
        if summary.is_empty() {
            of_records().unwrap_or_default()
        } else {
            summary
        }
    };
    let lines = [
        ("Session", fact("session_id")),
        ("User", records::user(session)),
        ("Service", fact("service")),
        ("Login", joined(&fact("login"), "on database", &fact("database"))),
        (
            "From",
            joined(
                &fact("client_address"),
                "as told by proxy",
                &fact("client_asserted_by"),
            ),
        ),
        ("Agent", fact("agent")),
        ("Start", records::time(session, "start")),
        (
            "End",
            Some(records::time(session, "end"))
                .filter(|end| !end.is_empty())
                .unwrap_or("live".to_owned()),
        ),
        (
            "Closed",
            joined(&fact("close_reason"), "because of", &fact("close_detail")),
        ),
        ("Moved", moved(session)),
        ("Decision", decision(session)),
        ("Observed", fact("observed")),
    ];
    let mut text = String::new();
    for (label, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("{label:<10} {}\n", printable(value)));
    }
    for record in records {
        text.push_str(&format!("\n{}", audit::line(record)));
    }
    if let Some(left_out @ 1..) = records::number(session, "left_out") {
        let id = fact("session_id");
        text.push_str(&format!(
            "\n… and {left_out} more: iapctl audit search 'session_id == \"{id}\"'"
        ));
    }
    text
}

fn moved(session: &Value) -> String {
    match (
        records::size(session, "bytes_in"),
        records::size(session, "bytes_out"),
    ) {
        (inwards, outwards) if inwards.is_empty() && outwards.is_empty() => String::new(),
        (inwards, outwards) => format!("{inwards} to the service, {outwards} back"),
    }
}

fn decision(session: &Value) -> String {
    let rule = records::text(session, "decision.rule");
    let rule = if rule.is_empty() {
        rule
    } else {
        format!("'{rule}'")
    };
    let decided = joined(&records::text(session, "decision.effect"), "by rule", &rule);
    joined(
        &decided,
        "of policy version",
        &records::text(session, "decision.policy_version"),
    )
}

/// Two texts with a word between them, as far as they are there.
fn joined(first: &str, word: &str, second: &str) -> String {
    match (first.is_empty(), second.is_empty()) {
        (true, _) => second.to_owned(),
        (false, true) => first.to_owned(),
        (false, false) => format!("{first} {word} {second}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_session_is_readable_and_a_live_one_says_so() {
        let text = readable(&json!({
            "session_id": "0198", "user": "alice@example.com", "service": "db-prod", "start": "2026-11-22T14:03:07.123Z",
            "end": null, "bytes_in": 1200, "bytes_out": 34_000_000,
            "decision": {"effect": "allow", "rule": "engineers", "policy_version": 3},
        }));
        assert!(text.contains("User       alice@example.com\n"), "{text}");
        assert!(text.contains("End        live\n"), "{text}");
        assert!(
            text.contains("Moved      1.2 kB to the service, 34 MB back\n"),
            "{text}"
        );
        assert!(
            text.contains("Decision   allow by rule 'engineers' of policy version 3\n"),
            "{text}"
        );
    }

    #[test]
    fn what_is_too_much_to_show_is_counted() {
        let text = readable(&json!({"session_id": "0198", "records": [], "left_out": 7}));
        let expected = "… and 7 more: iapctl audit search 'session_id == \"0198\"'";
        assert!(text.ends_with(expected), "{text}");
        assert!(!readable(&json!({"session_id": "0198", "left_out": 0})).contains("more"));
    }

    #[test]
    fn what_a_stranger_sent_cannot_drive_the_terminal() {
        assert!(!readable(&json!({"service": "\u{1b}[2J"})).contains('\u{1b}'));
    }

    #[test]
    fn the_summary_and_the_records_are_one_object() {
        let session = merged(json!({
            "session": {"session_id": "0198", "end": null},
            "records": [{"event": "session.start", "login": "app", "client_address": "192.0.2.1:7"}],
        }));
        assert_eq!(session.get("session_id"), Some(&json!("0198")));
        let text = readable(&session);
        assert!(
            text.contains("Login      app\n") && text.contains("From       192.0.2.1:7\n"),
            "{text}"
        );
        assert!(text.contains("session.start"), "{text}");
    }
}
