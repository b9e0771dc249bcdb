//! `iapctl services apply|ls|rm`.

use std::path::PathBuf;

use clap::Subcommand;
use iap_identity::AgentId;
use iap_proto::v1;
use serde_json::{Value, json};

use super::records;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::failure::{self, Failure};

/// `services`.
#[derive(Debug, Subcommand)]
pub enum ServicesCommand {
    /// Create or change the services of a file; others stay as they are
    Apply {
        /// TOML with [[service]] tables; - is stdin
        file: PathBuf,
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
    /// List every service
    #[command(visible_alias = "list")]
    Ls {
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
    /// Remove services
    #[command(visible_alias = "remove")]
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
}

const COLUMNS: [(&str, &str); 5] = [
    ("NAME", "name"),
    ("PROTOCOL", "protocol"),
    ("LABELS", "labels_text"),
    ("AGENTS", "agents"),
    ("DESCRIPTION", "description"),
];

pub(super) async fn run(command: ServicesCommand, context: &Context) -> anyhow::Result<ExitStatus> {
    match command {
        ServicesCommand::Apply { file, output } => apply(&file, output, context).await,
        ServicesCommand::Ls { output } => list(output, context).await,
        ServicesCommand::Rm { names, output } => remove(&names, output, context).await,
    }
}

async fn apply(file: &std::path::Path, output: Output, context: &Context) -> anyhow::Result<ExitStatus> {
    let services_toml = api::read_document(file)?;
    let request = v1::ServicesApplyRequest { services_toml };
    let reply = api::ask(context, async |auth| {
        auth.admin().services_apply(request.clone()).await
    })
    .await
    .map_err(|error| in_file(error, file))?;
    if output.is_json() {
        context.printer.json(&json!({
            "created": reply.created, "updated": reply.updated, "unchanged": reply.unchanged,
        }))?;
        return Ok(ExitStatus::Done);
    }
    for (what, names) in [
        ("created", reply.created),
        ("updated", reply.updated),
        ("unchanged", reply.unchanged),
    ] {
        if !names.is_empty() {
            context.printer.result(&format!("{what}: {}", names.join(", ")))?;
        }
    }
    Ok(ExitStatus::Done)
}

/// What is wrong with a document, with the document's name.
fn in_file(error: anyhow::Error, file: &std::path::Path) -> anyhow::Error {
    if failure::status_of(&error) != ExitStatus::Usage {
        return error;
    }
    Failure::usage(format!("{} is refused", file.display()))
        .because(format!("{error:#}"))
        .into()
}

async fn list(output: Output, context: &Context) -> anyhow::Result<ExitStatus> {
    let reply = api::ask(context, async |auth| {
        auth.admin().services_list(v1::Empty {}).await
    })
    .await?;
    let mut services: Vec<Value> = reply.services.into_iter().map(record).collect();
    if !output.is_json() {
        services.iter_mut().for_each(add_labels_text);
    }
    let empty = "No service is recorded. Next: iapctl services apply FILE";
    records::show_list(context, output, &Value::Array(services), &COLUMNS, empty)
}

async fn remove(names: &[String], output: Output, context: &Context) -> anyhow::Result<ExitStatus> {
    for name in names {
        let request = v1::NameRequest {
            name: api::service_name(name)?.as_str().to_owned(),
        };
        api::ask(context, async |auth| {
            auth.admin().services_remove(request.clone()).await
        })
        .await?;
        context.printer.talk(&format!("removed {name}"));
    }
    if output.is_json() {
        context.printer.json(&json!({"removed": names}))?;
    }
    Ok(ExitStatus::Done)
}

fn record(service: v1::Service) -> Value {
    let agents: Vec<String> = service
        .agents
        .iter()
        .filter_map(|id| AgentId::from_bytes(id).ok())
        .map(|id| id.as_uuid().to_string())
        .collect();
    let labels: std::collections::BTreeMap<String, String> = service.labels.into_iter().collect();
    let default_login = (!service.default_login.is_empty()).then_some(service.default_login);
    let strictness = service.strictness.unwrap_or_default();
    json!({
        "name": service.name,
        "protocol": service.protocol,
        "inspect": service.inspect,
        "labels": labels,
        "description": service.description,
        "contact": service.contact,
        "agents": agents,
        "default_login": default_login,
        "audit": service.audit,
        "recording": service.recording,
        "lock_feed_seconds": strictness.lock_feed_seconds,
        "snapshot_seconds": strictness.snapshot_seconds,
        "grace_seconds": strictness.grace_seconds,
    })
}

fn add_labels_text(service: &mut Value) {
    let labels = records::flatten(service.get("labels").unwrap_or(&Value::Null));
    let text = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(" ");
    if let Some(object) = service.as_object_mut() {
        object.insert("labels_text".to_owned(), text.into());
    }
}
