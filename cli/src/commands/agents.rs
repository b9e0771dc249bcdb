//! `iapctl agents ls`.

use clap::Subcommand;
use iap_proto::v1;

use super::records;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::exit::ExitStatus;

/// `agents`.
#[derive(Debug, Subcommand)]
pub enum AgentsCommand {
    /// List the enrolled agents
    #[command(visible_alias = "list")]
    Ls {
        /// How results are printed
        #[command(flatten)]
        output: Output,
    },
}

const COLUMNS: [(&str, &str); 6] = [
    ("AGENT", "agent_id"),
    ("HOST", "host"),
    ("SERVICES", "services"),
    ("CONNECTED", "connected"),
    ("SESSIONS", "live_sessions"),
    ("VERSION", "version"),
];

pub(super) async fn run(command: AgentsCommand, context: &Context) -> anyhow::Result<ExitStatus> {
    let AgentsCommand::Ls { output } = command;
    let reply = api::ask(context, async |auth| auth.admin().agents_list(v1::Empty {}).await).await?;
    let agents = records::parse(&reply.json)?;
    records::show_list(
        context,
        output,
        &agents,
        &COLUMNS,
        "No agent has joined. Next: iapctl tokens create agent --service NAME",
    )
}
