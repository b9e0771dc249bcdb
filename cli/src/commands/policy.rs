//! `iapctl policy apply|get|diff|test|explain`.

mod explain;
mod local;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use iap_proto::v1;
use serde_json::json;

use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::diff;
use crate::duration;
use crate::exit::ExitStatus;
use crate::identity;

/// `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Check a document, run its tests, and put it in force
    Apply(ApplyArguments),
    /// Print the document in force
    Get {
        /// An earlier version
        #[arg(
            long = "policy-version",
            alias = "version",
            value_name = "NUMBER",
            default_value_t = 0
        )]
        version: u64,
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
    /// Show how a document differs from the one in force
    Diff {
        /// The document; - is stdin
        file: PathBuf,
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
    /// Check a document and run its tests, without a cluster
    Test {
        /// The document; - is stdin
        file: PathBuf,
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
    /// Say which rule decides, and what each condition's value is
    Explain(explain::ExplainArguments),
}

/// `policy apply`.
#[derive(Debug, Args)]
pub struct ApplyArguments {
    /// The document; - is stdin
    file: PathBuf,
    /// Apply it even if it takes your own right to change policy away
    #[arg(long)]
    force: bool,
    /// Check it at the auth server, but do not put it in force
    #[arg(long)]
    dry_run: bool,
    /// Only if this version is in force now
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    expected_version: u64,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(command: PolicyCommand, context: &Context) -> anyhow::Result<ExitStatus> {
    match command {
        PolicyCommand::Apply(arguments) => apply(arguments, context).await,
        PolicyCommand::Get { version, output } => get(version, output, context).await,
        PolicyCommand::Diff { file, output } => difference(&file, output, context).await,
        PolicyCommand::Test { file, output } => test(&file, output, context).await,
        PolicyCommand::Explain(arguments) => explain::run(arguments, context).await,
    }
}

async fn apply(arguments: ApplyArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let policy_toml = api::read_document(&arguments.file)?;
    local::check(&arguments.file, &policy_toml).await?;
    let request = v1::PolicyApplyRequest {
        policy_toml,
        force: arguments.force,
        dry_run: arguments.dry_run,
        expected_version: arguments.expected_version,
    };
    let reply = api::ask(context, async |auth| {
        auth.admin().policy_apply(request.clone()).await
    })
    .await?;
    for warning in &reply.warnings {
        context.printer.warn(warning);
    }
    if arguments.output.is_json() {
        context.printer.json(&json!({
            "version": reply.version, "changed": reply.changed, "warnings": reply.warnings,
            "dry_run": arguments.dry_run,
        }))?;
        return Ok(ExitStatus::Done);
    }
    let version = reply.version;
    context
        .printer
        .result(&match (arguments.dry_run, reply.changed) {
            (true, true) => {
                format!("the document is valid and would change the policy (version {version} is in force)")
            }
            (true, false) => format!("the document is the one in force (version {version})"),
            (false, true) => format!("policy version {version} is in force"),
            (false, false) => format!("unchanged: policy version {version} is in force"),
        })?;
    Ok(ExitStatus::Done)
}

async fn get(version: u64, output: Output, context: &Context) -> anyhow::Result<ExitStatus> {
    let reply = fetch(version, context).await?;
    if output.is_json() {
        context.printer.json(&json!({
            "version": reply.version,
            "policy_toml": reply.policy_toml,
            "applied_by": reply.applied_by,
            "applied": duration::rfc3339(duration::from_unix_ms(reply.applied_unix_ms)),
        }))?;
        return Ok(ExitStatus::Done);
    }
    context.printer.verbose(&format!(
        "version {}, applied by {}",
        reply.version, reply.applied_by
    ));
    context.printer.result(&reply.policy_toml)?;
    Ok(ExitStatus::Done)
}

async fn difference(file: &Path, output: Output, context: &Context) -> anyhow::Result<ExitStatus> {
    let document = api::read_document(file)?;
    let applied = fetch(0, context).await?;
    let name = format!("policy version {}", applied.version);
    let text = diff::unified(
        &applied.policy_toml,
        &document,
        &name,
        &file.display().to_string(),
    );
    if output.is_json() {
        context
            .printer
            .json(&json!({"version": applied.version, "changed": !text.is_empty(), "diff": text}))?;
    } else if text.is_empty() {
        context.printer.talk(&format!("no difference from {name}"));
    } else {
        context.printer.result(&text)?;
    }
    Ok(ExitStatus::Done)
}

async fn test(file: &Path, output: Output, context: &Context) -> anyhow::Result<ExitStatus> {
    let document = api::read_document(file)?;
    let passed = local::check(file, &document).await?;
    if output.is_json() {
        context
            .printer
            .json(&json!({"valid": true, "tests_passed": passed}))?;
    } else {
        let tests = match passed {
            0 => "it has no tests".to_owned(),
            1 => "its test passes".to_owned(),
            count => format!("its {count} tests pass"),
        };
        context
            .printer
            .result(&format!("{} is valid; {tests}", file.display()))?;
    }
    Ok(ExitStatus::Done)
}

/// The name of somebody else; empty for oneself, about whom everybody may ask.
pub(super) async fn other_than_self(context: &Context, user: &str) -> anyhow::Result<String> {
    let identity = identity::require(context).await?;
    let own = [identity.peer.name.as_str(), identity.peer.id.as_str()];
    Ok(if own.contains(&user) {
        String::new()
    } else {
        user.to_owned()
    })
}

async fn fetch(version: u64, context: &Context) -> anyhow::Result<v1::PolicyGetReply> {
    let request = v1::PolicyGetRequest { version };
    api::ask(context, async |auth| auth.admin().policy_get(request).await).await
}
