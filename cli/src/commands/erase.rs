//! `iapctl audit erase`: takes away what lies beside records, and recordings. The records stay, and the act is one of them.

use std::io::{BufRead as _, Write as _};

use clap::{ArgGroup, Args, ValueEnum};
use iap_proto::v1;
use serde_json::json;
use uuid::Uuid;

use super::sessions;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::duration;
use crate::exit::ExitStatus;
use crate::failure::Failure;

/// The answer that erases.
const YES: &str = "yes";

/// `audit erase`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true).multiple(false))]
#[command(
    after_help = "Examples:\n  iapctl audit erase --session 01991c1e-… --dry-run\n  \
    iapctl audit erase --record 01991c1f-… --reason 'a customer asked for it'\n\n\
    The records themselves stay, and each shows when and by whom its content was erased."
)]
pub struct EraseArguments {
    /// Statements, parameters, command lines, paths and recordings of these sessions, as far as they have arrived
    #[arg(long, group = "target", value_name = "SESSION")]
    session: Vec<String>,
    /// The content of these records, by the `id` that `audit search -o json` shows
    #[arg(long, group = "target", value_name = "ID")]
    record: Vec<String>,
    /// Of sessions, only what records hold beside them, or only recordings
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with = "record")]
    only: Option<Only>,
    /// Why; it goes on record
    #[arg(long, default_value = "")]
    reason: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Only say how much it would be
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

/// Part of what there is of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    /// Statements, parameters, command lines, paths.
    Payloads,
    /// Recordings of terminals and commands.
    Recordings,
}

impl Only {
    fn as_str(self) -> &'static str {
        match self {
            Self::Payloads => "payloads",
            Self::Recordings => "recordings",
        }
    }
}

/// How much one call names at most.
const RECORDS_PER_CALL: usize = 100;

/// What was erased, or would be.
#[derive(Debug, Default)]
struct Erased {
    payloads: u64,
    payload_bytes: u64,
    recordings: u64,
    recording_bytes: u64,
    live: Vec<String>,
}

impl Erased {
    fn add(&mut self, session: Option<&str>, reply: &v1::AuditEraseReply) {
        self.payloads += reply.payloads;
        self.payload_bytes += reply.payload_bytes;
        self.recordings += reply.recordings;
        self.recording_bytes += reply.recording_bytes;
        if let Some(session) = session.filter(|_| reply.is_live) {
            self.live.push(session.to_owned());
        }
    }

    fn is_nothing(&self) -> bool {
        self.payloads == 0 && self.recordings == 0
    }

    /// `3 payloads (1.2 kB) and 1 recording (34 MB)`.
    fn amount(&self) -> String {
        let of = |count: u64, what: &str, bytes: u64| {
            let plural = if count == 1 { "" } else { "s" };
            (count > 0).then(|| format!("{count} {what}{plural} ({})", duration::size(bytes)))
        };
        let parts = [
            of(self.payloads, "payload", self.payload_bytes),
            of(self.recordings, "recording", self.recording_bytes),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
    }
}

pub(super) async fn run(arguments: EraseArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let requests = requests(&arguments)?;
    let there = ask_all(&requests, true, context).await?;
    if arguments.dry_run {
        return show(&there, &arguments, context);
    }
    if !there.is_nothing() && !arguments.yes && !confirmed(&there, context)? {
        return Err(Failure::failed("nothing was erased").into());
    }
    let erased = ask_all(&requests, false, context).await?;
    show(&erased, &arguments, context)
}

/// What to ask for, each with the session it is about.
fn requests(arguments: &EraseArguments) -> Result<Vec<(Option<String>, v1::AuditEraseRequest)>, Failure> {
    let request = || v1::AuditEraseRequest {
        reason: arguments.reason.clone(),
        only: arguments.only.map(Only::as_str).unwrap_or_default().to_owned(),
        ..v1::AuditEraseRequest::default()
    };
    let mut requests = Vec::new();
    for session in &arguments.session {
        let session_id = sessions::session_id(session)?.as_bytes().to_vec();
        requests.push((
            Some(session.clone()),
            v1::AuditEraseRequest {
                session_id,
                ..request()
            },
        ));
    }
    let ids = arguments.record.iter().map(|text| record_id(text));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    for ids in ids.chunks(RECORDS_PER_CALL) {
        let record_ids = ids.to_vec();
        requests.push((
            None,
            v1::AuditEraseRequest {
                record_ids,
                ..request()
            },
        ));
    }
    Ok(requests)
}

fn record_id(text: &str) -> Result<Vec<u8>, Failure> {
    let id = Uuid::parse_str(text).map_err(|error| {
        Failure::usage(format!("'{text}' is not a record's id"))
            .because(error.to_string())
            .next("iapctl audit search EXPR -o json")
    })?;
    Ok(id.as_bytes().to_vec())
}

/// Puts each request until nothing is left of it.
async fn ask_all(
    requests: &[(Option<String>, v1::AuditEraseRequest)],
    dry_run: bool,
    context: &Context,
) -> anyhow::Result<Erased> {
    let mut erased = Erased::default();
    for (session, request) in requests {
        let request = v1::AuditEraseRequest {
            dry_run,
            ..request.clone()
        };
        loop {
            let reply = api::ask(context, async |auth| {
                auth.admin().audit_erase(request.clone()).await
            })
            .await?;
            let is_all = reply.payloads_left == 0 && reply.recordings_left == 0;
            let is_nothing = reply.payloads == 0 && reply.recordings == 0;
            let is_last = dry_run || is_all || is_nothing;
            erased.add(session.as_deref().filter(|_| is_last), &reply);
            if is_last {
                break;
            }
        }
    }
    Ok(erased)
}

fn confirmed(there: &Erased, context: &Context) -> Result<bool, Failure> {
    if !context.interactive {
        return Err(
            Failure::usage("erasing cannot be undone, and there is nobody to ask")
                .next("the same command with --yes, or with --dry-run first"),
        );
    }
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "Erase {} for good? Type {YES}: ", there.amount());
    let _ = err.flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::failed("cannot read the answer").because(error.to_string()))?;
    Ok(answer.trim() == YES)
}

fn show(erased: &Erased, arguments: &EraseArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    for session in &erased.live {
        context.printer.warn(&format!(
            "session {session} goes on, or its agent has not been heard of: what arrives later is not erased"
        ));
    }
    if arguments.output.is_json() {
        context.printer.json(&json!({
            "dry_run": arguments.dry_run,
            "payloads": erased.payloads,
            "payload_bytes": erased.payload_bytes,
            "recordings": erased.recordings,
            "recording_bytes": erased.recording_bytes,
            "live_sessions": erased.live,
        }))?;
        return Ok(ExitStatus::Done);
    }
    let text = match (erased.is_nothing(), arguments.dry_run) {
        (true, _) => "There is nothing to erase.".to_owned(),
        (false, true) => format!("Would erase {}.", erased.amount()),
        (false, false) => format!("Erased {}.", erased.amount()),
    };
    context.printer.result(&text)?;
    Ok(ExitStatus::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_to_go_is_said_in_words() {
        let mut erased = Erased {
            payloads: 3,
            payload_bytes: 1_200,
            ..Erased::default()
        };
        assert_eq!(erased.amount(), "3 payloads (1.2 kB)");
        (erased.recordings, erased.recording_bytes) = (1, 34_000_000);
        assert_eq!(erased.amount(), "3 payloads (1.2 kB) and 1 recording (34 MB)");
        assert!(!erased.is_nothing() && Erased::default().is_nothing());
    }
}
