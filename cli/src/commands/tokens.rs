//! `iapctl tokens create agent|proxy, ls, rm`.

use clap::{Args, Subcommand};
use iap_proto::v1;
use serde_json::json;

use super::records;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::duration;
use crate::exit::ExitStatus;

/// `tokens`.
#[derive(Debug, Subcommand)]
pub enum TokensCommand {
    /// Make a token and print the one command to run where it is used
    #[command(subcommand)]
    Create(CreateCommand),
    /// List the tokens not used up yet; their secrets are not kept
    #[command(visible_alias = "list")]
    Ls {
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
    /// Remove tokens
    #[command(visible_alias = "remove")]
    Rm {
        /// Their ids
        #[arg(required = true, value_name = "TOKEN")]
        ids: Vec<String>,
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
}

/// `tokens create`.
#[derive(Debug, Subcommand)]
pub enum CreateCommand {
    /// For an agent that serves the services named
    Agent {
        /// A service the agent is granted
        #[arg(short, long = "service", value_name = "NAME", value_delimiter = ',')]
        services: Vec<String>,
        /// How long and how often it is good
        #[command(flatten)]
        terms: Terms,
    },
    /// For a proxy
    Proxy {
        /// How long and how often it is good
        #[command(flatten)]
        terms: Terms,
    },
}

/// How long and how often a token is good.
#[derive(Debug, Args)]
pub struct Terms {
    /// How many may join with it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    uses: u32,
    /// How long it is good
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = duration::parse_seconds)]
    ttl: u64,
    #[command(flatten)]
    output: Output,
}

const COLUMNS: [(&str, &str); 5] = [
    ("TOKEN", "token_id"),
    ("KIND", "kind"),
    ("SERVICES", "services"),
    ("USES LEFT", "uses_left"),
    ("EXPIRES", "expires"),
];

pub(super) async fn run(command: TokensCommand, context: &Context) -> anyhow::Result<ExitStatus> {
    match command {
        TokensCommand::Create(CreateCommand::Agent { services, terms }) => {
            create("agent", services, terms, context).await
        }
        TokensCommand::Create(CreateCommand::Proxy { terms }) => {
            create("proxy", Vec::new(), terms, context).await
        }
        TokensCommand::Ls { output } => list(output, context).await,
        TokensCommand::Rm { ids, output } => remove(&ids, output, context).await,
    }
}

async fn create(
    kind: &str,
    services: Vec<String>,
    terms: Terms,
    context: &Context,
) -> anyhow::Result<ExitStatus> {
    for service in &services {
        api::service_name(service)?;
    }
    let ttl_seconds = u32::try_from(terms.ttl).unwrap_or(u32::MAX);
    let request = v1::TokenCreateRequest {
        kind: kind.to_owned(),
        services,
        uses: terms.uses,
        ttl_seconds,
    };
    let reply = api::ask(context, async |auth| {
        auth.admin().token_create(request.clone()).await
    })
    .await?;
    let command = join_command(kind, context)?;
    let expires = duration::from_unix_ms(reply.expires_unix_ms);
    if terms.output.is_json() {
        context.printer.json(&json!({
            "token_id": reply.token_id,
            "token": reply.token,
            "kind": kind,
            "expires": duration::rfc3339(expires),
            "command": command,
        }))?;
        return Ok(ExitStatus::Done);
    }
    context.printer.result(&reply.token)?;
    let life = duration::rough(expires - time::OffsetDateTime::now_utc());
    context.printer.talk(&format!(
        "\nGood for {life}. On the {kind}'s host, put it in a file that only the {kind} may read, then run:\n\n  {command}\n"
    ));
    Ok(ExitStatus::Done)
}

/// What to run on the host. The proxy dials the auth server directly, at an address only its operator knows.
fn join_command(kind: &str, context: &Context) -> anyhow::Result<String> {
    if kind == "proxy" {
        return Ok(
            "iap-proxy join --config /etc/iap/proxy.toml --auth AUTH_HOST:7443 --token-file FILE".to_owned(),
        );
    }
    let record = context.cluster_home()?.record()?;
    let address = record.and_then(|record| record.addresses.into_iter().next());
    let address = address.unwrap_or_else(|| "PROXY_HOST:443".to_owned());
    Ok(format!(
        "iap-agent join --config /etc/iap/agent.toml --proxy {address} --token-file FILE"
    ))
}

async fn list(output: Output, context: &Context) -> anyhow::Result<ExitStatus> {
    let reply = api::ask(context, async |auth| auth.admin().tokens_list(v1::Empty {}).await).await?;
    let empty = "No token is open. Next: iapctl tokens create agent --service NAME";
    records::show_list(context, output, &records::parse(&reply.json)?, &COLUMNS, empty)
}

async fn remove(ids: &[String], output: Output, context: &Context) -> anyhow::Result<ExitStatus> {
    for id in ids {
        let request = v1::NameRequest { name: id.clone() };
        api::ask(context, async |auth| {
            auth.admin().token_remove(request.clone()).await
        })
        .await?;
        context.printer.talk(&format!("removed {id}"));
    }
    if output.is_json() {
        context.printer.json(&json!({"removed": ids}))?;
    }
    Ok(ExitStatus::Done)
}
