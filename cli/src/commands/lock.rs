//! `iapctl lock add|ls|rm`.

use clap::{ArgGroup, Args, Subcommand};
use iap_proto::v1;
use serde_json::{Value, json};

use super::records;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::duration;
use crate::exit::ExitStatus;

/// `lock`.
#[derive(Debug, Subcommand)]
pub enum LockCommand {
    /// Cut off a user, a login, a session, an agent, a proxy, a device or a certificate, at once
    Add(AddArguments),
    /// List the locks in force
    #[command(visible_alias = "list")]
    Ls {
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
    /// Lift locks
    #[command(visible_alias = "remove")]
    Rm {
        /// Their ids
        #[arg(required = true, value_name = "LOCK")]
        ids: Vec<String>,
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
}

/// `lock add`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true).multiple(false))]
pub struct AddArguments {
    /// A user, by name or id
    #[arg(long, group = "target", value_name = "NAME")]
    user: Option<String>,
    /// One login and every certificate that came of it
    #[arg(long, group = "target", value_name = "ID")]
    login_id: Option<String>,
    /// One live session
    #[arg(long, group = "target", value_name = "ID")]
    session: Option<String>,
    /// An agent
    #[arg(long, group = "target", value_name = "ID")]
    agent: Option<String>,
    /// A proxy: it gets no feed, agents leave it, and nobody is sent to it
    #[arg(long, group = "target", value_name = "ID")]
    proxy: Option<String>,
    /// A device
    #[arg(long, group = "target", value_name = "ID")]
    device: Option<String>,
    /// A certificate, by serial number in hexadecimal
    #[arg(long, group = "target", value_name = "HEX")]
    serial: Option<String>,
    /// Why; the record and the person cut off see it
    #[arg(long, default_value = "")]
    reason: String,
    /// For how long, such as 8h [default: until it is lifted]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_seconds)]
    ttl: Option<u64>,
    #[command(flatten)]
    output: Output,
}

const COLUMNS: [(&str, &str); 6] = [
    ("LOCK", "lock_id"),
    ("KIND", "kind"),
    ("TARGET", "target"),
    ("REASON", "reason"),
    ("BY", "created_by"),
    ("UNTIL", "expires"),
];

pub(super) async fn run(command: LockCommand, context: &Context) -> anyhow::Result<ExitStatus> {
    match command {
        LockCommand::Add(arguments) => add(arguments, context).await,
        LockCommand::Ls { output } => list(output, context).await,
        LockCommand::Rm { ids, output } => remove(&ids, output, context).await,
    }
}

async fn add(arguments: AddArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let output = arguments.output;
    let ttl_seconds = arguments.ttl.unwrap_or(0);
    let reason = arguments.reason.clone();
    let (kind, target) = target(arguments);
    let request = v1::LockAddRequest {
        kind: kind.to_owned(),
        target,
        reason,
        ttl_seconds,
    };
    let lock = api::ask(context, async |auth| auth.admin().lock_add(request.clone()).await).await?;
    print_added(context, output, lock)
}

/// Prints a lock that was just added.
pub(super) fn print_added(context: &Context, output: Output, lock: v1::Lock) -> anyhow::Result<ExitStatus> {
    if output.is_json() {
        context.printer.json(&record(lock))?;
    } else {
        context.printer.talk(&format!(
            "locked {} {}; lift it with: iapctl lock rm {}",
            lock.kind, lock.target, lock.lock_id
        ));
        context.printer.result(&lock.lock_id)?;
    }
    Ok(ExitStatus::Done)
}

async fn list(output: Output, context: &Context) -> anyhow::Result<ExitStatus> {
    let reply = api::ask(context, async |auth| auth.admin().locks_list(v1::Empty {}).await).await?;
    let locks = Value::Array(reply.locks.into_iter().map(record).collect());
    records::show_list(context, output, &locks, &COLUMNS, "No lock is in force.")
}

async fn remove(ids: &[String], output: Output, context: &Context) -> anyhow::Result<ExitStatus> {
    for id in ids {
        let request = v1::NameRequest { name: id.clone() };
        api::ask(context, async |auth| {
            auth.admin().lock_remove(request.clone()).await
        })
        .await?;
        context.printer.talk(&format!("lifted {id}"));
    }
    if output.is_json() {
        context.printer.json(&json!({"removed": ids}))?;
    }
    Ok(ExitStatus::Done)
}

/// The one target given; clap holds that there is exactly one.
fn target(arguments: AddArguments) -> (&'static str, String) {
    let given = [
        ("user", arguments.user),
        ("login", arguments.login_id),
        ("session", arguments.session),
        ("agent", arguments.agent),
        ("proxy", arguments.proxy),
        ("device", arguments.device),
        ("serial", arguments.serial),
    ];
    given
        .into_iter()
        .find_map(|(kind, target)| target.map(|target| (kind, target)))
        .unwrap_or_default()
}

fn record(lock: v1::Lock) -> Value {
    let time = |milliseconds: i64| {
        (milliseconds != 0).then(|| duration::rfc3339(duration::from_unix_ms(milliseconds)))
    };
    json!({
        "lock_id": lock.lock_id,
        "kind": lock.kind,
        "target": lock.target,
        "reason": lock.reason,
        "created_by": lock.created_by,
        "created": time(lock.created_unix_ms),
        "expires": time(lock.expires_unix_ms),
    })
}
