//! `iapctl agents ls`.

use clap::Subcommand;
use iap_proto::v1;
use serde_json::Value;

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

const COLUMNS: [(&str, &str); 7] = [
    ("AGENT", "agent_id"),
    ("HOST", "host"),
    ("SERVICES", "services"),
    ("CONNECTED", "connected"),
    ("PROXIES", "proxies"),
    ("SESSIONS", "live_sessions"),
    ("VERSION", "version"),
];

pub(super) async fn run(command: AgentsCommand, context: &Context) -> anyhow::Result<ExitStatus> {
    let AgentsCommand::Ls { output } = command;
    let reply = api::ask(context, async |auth| auth.admin().agents_list(v1::Empty {}).await).await?;
    let mut agents = records::parse(&reply.json)?;
    if !output.is_json() {
        in_words(&mut agents);
    }
    records::show_list(
        context,
        output,
        &agents,
        &COLUMNS,
        "No agent has joined. Next: iapctl tokens create agent --service NAME",
    )
}

/// For the table: each proxy's address, then what control and sessions run over.
fn in_words(agents: &mut Value) {
    let agents = agents.as_array_mut().into_iter().flatten();
    for proxies in agents.filter_map(|agent| agent.get_mut("proxies")) {
        let proxies = proxies.as_array_mut().into_iter().flatten();
        for proxy in proxies {
            let part = |key: &str| records::text(proxy, key);
            *proxy = format!("{} ({} + {})", part("address"), part("control"), part("data")).into();
        }
    }
}
