//! Many agents on one proxy: what one costs it, and how soon all are back after it was killed.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::agent::Agent;
use crate::ours::Plane;
use crate::process::resident_kib;
use crate::snapshot::Joined;

const SERVICE: &str = "fleet";
/// What the proxy holds before the first agent is not counted: the slope is.
const FIRST: usize = 100;
const JOINING_AT_ONCE: usize = 8;
const PATIENCE: Duration = Duration::from_secs(300);

/// `agent_proxy_kib`, `agents_back_s`.
pub(super) fn measure(
    plane: &Plane,
    runtime: &Runtime,
    count: usize,
    add: &mut impl FnMut(&str, f64, &str),
) -> anyhow::Result<()> {
    let admin = plane.log_in("admin")?;
    let file = plane.dir.join("config/fleet.toml");
    let record =
        format!("[[service]]\nname = \"{SERVICE}\"\nprotocol = \"tcp\"\nlabels = {{ env = \"dev\" }}\n");
    std::fs::write(&file, record)?;
    plane.iapctl(&admin, &["services", "apply", &file.display().to_string()])?;
    let token = plane.agent_token(&admin, count, &[SERVICE])?;
    let begun = Instant::now();
    let mut agents = runtime.block_on(async {
        let joining = (0..count as u64).map(|number| {
            let token = token.clone();
            async move { Agent::join(Joined::with(plane, &token).await?, SERVICE, number).await }
        });
        let joined: Vec<_> = futures_util::stream::iter(joining)
            .buffer_unordered(JOINING_AT_ONCE)
            .collect()
            .await;
        joined.into_iter().collect::<anyhow::Result<Vec<_>>>()
    })?;
    add("agents_join_s", begun.elapsed().as_secs_f64(), "s");

    let (served, mut watched) = watch::channel(0);
    let rest = agents.split_off(FIRST.min(agents.len()));
    start(runtime, agents, &served);
    runtime.block_on(reached(&mut watched, FIRST))?;
    let few = resident_kib(plane.pid("proxy")?)?;
    start(runtime, rest, &served);
    runtime.block_on(reached(&mut watched, count))?;
    let many = resident_kib(plane.pid("proxy")?)?;
    #[allow(clippy::cast_precision_loss, reason = "a thousand")]
    let each = (many - few) / (count - FIRST) as f64;
    add("agent_proxy_kib", each, "KiB");

    plane.kill("proxy")?;
    let killed = Instant::now();
    runtime.block_on(async {
        fell(&mut watched).await?;
        reached(&mut watched, count).await
    })?;
    add("agents_back_s", killed.elapsed().as_secs_f64(), "s");
    Ok(())
}

fn start(runtime: &Runtime, agents: Vec<Agent>, served: &watch::Sender<usize>) {
    for agent in agents {
        runtime.spawn(agent.stay(served.clone()));
    }
}

async fn reached(served: &mut watch::Receiver<usize>, count: usize) -> anyhow::Result<()> {
    let all = served.wait_for(|now| *now >= count);
    tokio::time::timeout(PATIENCE, all)
        .await
        .context("not all agents are connected")??;
    Ok(())
}

/// The killed proxy has taken the connections with it.
async fn fell(served: &mut watch::Receiver<usize>) -> anyhow::Result<()> {
    tokio::time::timeout(PATIENCE, served.wait_for(|now| *now == 0))
        .await
        .context("the proxy lives")??;
    Ok(())
}
