//! Many agents on one proxy and one auth server: what one costs them, what they cost at rest, and how soon all are back
//! after the proxy was killed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::Add;
use crate::joined::Joined;
use crate::light_agent::{Agent, Counts, Ear, Heard, POOL, What};
use crate::plane::Plane;
use crate::process::{cpu_seconds, resident_kib};
use crate::stats::{count_of, quantile};

const SERVICE: &str = "fleet";
const JOINING_AT_ONCE: usize = 8;
const PATIENCE: Duration = Duration::from_secs(300);
/// Until the programs have put aside what they used for arrivals alone.
const SETTLING: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(60);

/// The lightweight agents, all connected.
pub(super) struct Fleet {
    count: usize,
    counts: watch::Receiver<Counts>,
    heard: mpsc::UnboundedReceiver<Heard>,
}

/// How a version spread.
pub(super) struct Spread {
    /// When it was with each agent: sorted.
    at: Vec<Instant>,
    /// What was signed.
    pub(super) bytes: usize,
}

impl Fleet {
    /// Joins `count` agents and connects them in stages: the feed, the control connection, the pool.
    ///
    /// `agents_join_s`, `agent_proxy_kib*`, `agent_auth_kib`, `agents_idle_cpu_percent_*`.
    pub(super) fn gather(
        plane: &Plane,
        runtime: &Runtime,
        count: usize,
        add: &mut Add<'_>,
    ) -> anyhow::Result<Self> {
        let admin = plane.log_in("admin")?;
        let record =
            format!("[[service]]\nname = \"{SERVICE}\"\nprotocol = \"tcp\"\nlabels = {{ env = \"dev\" }}\n");
        plane.apply_services(&admin, &record)?;
        let token = plane.agent_token(&admin, count, &[SERVICE])?;
        let mut memory = Memory::read(plane)?;
        let begun = Instant::now();
        let agents = runtime.block_on(join(plane, &token, count))?;
        add("agents_join_s", begun.elapsed().as_secs_f64(), "s");

        let (ear, watched, hearing) = Ear::new();
        let mut fleet = Self {
            count,
            counts: watched,
            heard: hearing,
        };
        let first = memory;
        for agent in &agents {
            runtime.spawn(Arc::clone(agent).listen(ear.clone()));
        }
        runtime.block_on(fleet.until(|counts| counts.fed >= count))?;
        memory = memory.grown(plane, "feed", count, add)?;
        for agent in &agents {
            runtime.spawn(Arc::clone(agent).stay(ear.clone()));
        }
        runtime.block_on(fleet.until(|counts| counts.routed >= count))?;
        memory = memory.grown(plane, "control", count, add)?;
        ear.pooling.send_replace(true);
        runtime.block_on(fleet.until(|counts| counts.pooled >= count * POOL))?;
        memory.grown(plane, "pool", count, add)?;
        let all = Memory::read(plane)?;
        add(
            "agent_proxy_kib",
            (all.proxy - first.proxy) / count_of(count),
            "KiB",
        );
        add("agent_auth_kib", (all.auth - first.auth) / count_of(count), "KiB");
        add("agents_proxy_mib", all.proxy / 1024.0, "MiB");
        add("agents_auth_mib", all.auth / 1024.0, "MiB");
        idle(plane, add)?;
        Ok(fleet)
    }

    /// `agents_back_s`: after `kill -9` of the proxy, until all have their feed, route and pool again.
    pub(super) fn survive(
        &mut self,
        plane: &Plane,
        runtime: &Runtime,
        add: &mut Add<'_>,
    ) -> anyhow::Result<()> {
        let count = self.count;
        let lost = self.counts.borrow().routes_lost + count;
        plane.kill("proxy")?;
        let killed = Instant::now();
        runtime.block_on(async {
            self.until(|counts| counts.routes_lost >= lost).await?;
            self.until(|counts| counts.routed >= count).await
        })?;
        add("agents_routed_again_s", killed.elapsed().as_secs_f64(), "s");
        runtime.block_on(self.until(|counts| counts.fed >= count && counts.pooled >= count * POOL))?;
        add("agents_back_s", killed.elapsed().as_secs_f64(), "s");
        Ok(())
    }

    /// Forgets what was heard so far.
    pub(super) fn forget(&mut self) {
        while self.heard.try_recv().is_ok() {}
    }

    /// Waits until every agent has the same version, one that nobody had before the last [`forget`](Self::forget).
    pub(super) async fn everywhere(&mut self, what: What) -> anyhow::Result<Spread> {
        let mut by_version: BTreeMap<u64, Vec<Instant>> = BTreeMap::new();
        let all = async {
            while let Some(heard) = self.heard.recv().await {
                if heard.what != what {
                    continue;
                }
                let at = by_version.entry(heard.version).or_default();
                at.push(heard.at);
                if at.len() >= self.count {
                    return Some(heard);
                }
            }
            None
        };
        let last = tokio::time::timeout(PATIENCE, all)
            .await
            .context("not every agent was told")?
            .context("the agents are gone")?;
        let mut at = by_version.remove(&last.version).unwrap_or_default();
        at.sort();
        Ok(Spread {
            at,
            bytes: last.bytes,
        })
    }

    async fn until(&mut self, reached: impl Fn(&Counts) -> bool) -> anyhow::Result<()> {
        let waiting = self.counts.wait_for(|counts| reached(counts));
        if let Ok(reached) = tokio::time::timeout(PATIENCE, waiting).await {
            reached?;
            return Ok(());
        }
        anyhow::bail!("of {} agents: {:?}", self.count, *self.counts.borrow());
    }
}

impl Spread {
    /// Seconds from `begun` until `share` of the agents had it.
    pub(super) fn seconds(&self, begun: Instant, share: f64) -> f64 {
        let seconds: Vec<_> = self
            .at
            .iter()
            .map(|at| at.saturating_duration_since(begun).as_secs_f64())
            .collect();
        quantile(&seconds, share)
    }
}

async fn join(plane: &Plane, token: &str, count: usize) -> anyhow::Result<Vec<Arc<Agent>>> {
    let joining = (0..count as u64).map(|number| async move {
        Agent::join(Joined::with(plane, token).await?, SERVICE, number)
            .await
            .map(Arc::new)
    });
    let joined: Vec<_> = futures_util::stream::iter(joining)
        .buffer_unordered(JOINING_AT_ONCE)
        .collect()
        .await;
    joined.into_iter().collect()
}

/// KiB resident.
#[derive(Clone, Copy)]
struct Memory {
    proxy: f64,
    auth: f64,
}

impl Memory {
    fn read(plane: &Plane) -> anyhow::Result<Self> {
        std::thread::sleep(SETTLING);
        Ok(Self {
            proxy: resident_kib(plane.pid("proxy")?)?,
            auth: resident_kib(plane.pid("auth")?)?,
        })
    }

    /// What a stage cost the proxy.
    fn grown(self, plane: &Plane, stage: &str, count: usize, add: &mut Add<'_>) -> anyhow::Result<Self> {
        let now = Self::read(plane)?;
        let each = (now.proxy - self.proxy) / count_of(count);
        add(&format!("agent_proxy_kib_{stage}"), each, "KiB");
        Ok(now)
    }
}

/// What a fleet costs that does nothing.
fn idle(plane: &Plane, add: &mut Add<'_>) -> anyhow::Result<()> {
    let mut before = Vec::new();
    for name in ["proxy", "auth"] {
        let pid = plane.pid(name)?;
        before.push((name, pid, cpu_seconds(pid)?));
    }
    std::thread::sleep(IDLE);
    for (name, pid, before) in before {
        let percent = 100.0 * (cpu_seconds(pid)? - before) / IDLE.as_secs_f64();
        add(&format!("agents_idle_cpu_percent_{name}"), percent, "% of a core");
    }
    Ok(())
}
