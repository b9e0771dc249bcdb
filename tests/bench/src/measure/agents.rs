//! Ten thousand agents on one proxy: what each costs it in memory, and how soon all are back after it was killed.
//!
//! The agents are lightweight ones in this process, with certificates that the harness issued. Each holds a control
//! connection by QUIC, with its service announced and routed. Feed and pool are left to `make scale`: they take six
//! descriptors at the proxy for each agent, and processes may be kept to 20,000.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use iap_identity::ServiceName;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::joined::{Authority, Joined};
use crate::light_agent::{Agent, Counts, Ear};
use crate::plane::Plane;
use crate::process::resident_kib;
use crate::report::Results;
use crate::stats::count_of;
use crate::system::OURS;

const AGENTS: usize = 10_000;
const SERVICE: &str = "fleet";
/// Connecting at once, the first time: memory is to be that of connections, not of a crowd at the door, and their first
/// datagrams are to fit into the proxy's receive buffer.
const ARRIVING: usize = 25;
const PATIENCE: Duration = Duration::from_secs(120);
/// Until the proxy has put aside what it used for arrivals alone.
const SETTLING: Duration = Duration::from_secs(5);
/// Beyond the defaults: the number of agents, and how many may be at the door from one address, as all are here.
const SETTINGS: [(&str, &str); 2] = [
    ("IAP_PROXY__LIMITS__AGENTS_MAX", "12000"),
    ("IAP_PROXY__LIMITS__WAITING_CONNECTIONS_PER_SOURCE_MAX", "8192"),
];

/// `agent_kib_at_proxy_10k`, `agents_back_s_10k`.
///
/// # Errors
/// When the plane does not start, or an agent does not connect.
pub(crate) fn measure(bin: &Path, folder: &Path, backend: u16, results: &mut Results) -> anyhow::Result<()> {
    iap_runtime::descriptors::raise_limit();
    let plane = Plane::start_with(bin, &folder.join("agents"), backend, &SETTINGS)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let agents = issue(&plane, &runtime)?;
    let (ear, mut counts, _heard) = Ear::new();
    let before = settled_kib(&plane)?;
    let begun = Instant::now();
    for some in agents.chunks(ARRIVING) {
        let wanted = counts.borrow().routed + some.len();
        for agent in some {
            runtime.spawn(Arc::clone(agent).stay(ear.clone()));
        }
        runtime.block_on(until(&mut counts, |counts| counts.routed >= wanted))?;
    }
    eprintln!("{AGENTS} agents came in {:.1} s", begun.elapsed().as_secs_f64());
    let each = (settled_kib(&plane)? - before) / count_of(AGENTS);
    results.add("agent_kib_at_proxy_10k", OURS, each, "KiB");
    let back = runtime.block_on(back(&plane, &mut counts))?;
    results.add("agents_back_s_10k", OURS, back, "s");
    runtime.shutdown_background();
    Ok(())
}

/// The first joins as agents do, and brings what all trust.
fn issue(plane: &Plane, runtime: &Runtime) -> anyhow::Result<Vec<Arc<Agent>>> {
    let admin = plane.log_in("admin")?;
    let record =
        format!("[[service]]\nname = \"{SERVICE}\"\nprotocol = \"tcp\"\nlabels = {{ env = \"dev\" }}\n");
    plane.apply_services(&admin, &record)?;
    let token = plane.agent_token(&admin, 1, &[SERVICE])?;
    let authority = Authority::of(plane, &runtime.block_on(Joined::with(plane, &token))?)?;
    let service = ServiceName::parse(SERVICE)?;
    let numbers = 0..u64::try_from(AGENTS)?;
    let agents = numbers.map(|number| authority.agent(&service, number).map(Arc::new));
    agents.collect()
}

/// Seconds from `kill -9` of the proxy until every agent has its route again.
async fn back(plane: &Plane, counts: &mut watch::Receiver<Counts>) -> anyhow::Result<f64> {
    let lost = counts.borrow().routes_lost + AGENTS;
    plane.kill("proxy")?;
    let killed = Instant::now();
    until(counts, |counts| counts.routes_lost >= lost).await?;
    until(counts, |counts| counts.routed >= AGENTS).await?;
    Ok(killed.elapsed().as_secs_f64())
}

async fn until(
    counts: &mut watch::Receiver<Counts>,
    reached: impl Fn(&Counts) -> bool,
) -> anyhow::Result<()> {
    let waiting = tokio::time::timeout(PATIENCE, counts.wait_for(|counts| reached(counts)));
    let in_time = waiting.await.map(|counted| counted.map(drop));
    if let Ok(counted) = in_time {
        return counted.context("the agents are gone");
    }
    anyhow::bail!("of {AGENTS} agents: {:?}", *counts.borrow());
}

fn settled_kib(plane: &Plane) -> anyhow::Result<f64> {
    std::thread::sleep(SETTLING);
    resident_kib(plane.pid("proxy")?)
}
