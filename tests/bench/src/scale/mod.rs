//! `make scale`: many agents on one proxy, a large policy on one auth server, and how soon a lock cuts a session.

mod fleet;
mod locks;
mod population;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::runtime::Runtime;

use crate::load;
use crate::person::Client;
use crate::plane::Plane;
use crate::process::Running;
use crate::report::Results;
use crate::stats::{quantile, sorted};
use fleet::Fleet;

/// Agents that are processes of their own and serve: the plane's, and these.
const MORE_REAL_AGENTS: usize = 4;
const READY: Duration = Duration::from_secs(30);

/// Takes a figure, its value and its unit.
type Add<'a> = dyn FnMut(&str, f64, &str) + 'a;

/// What is measured: a plane with its fleet.
struct World<'a> {
    plane: &'a Plane,
    /// Carries the lightweight agents.
    crowd: &'a Runtime,
    /// Carries the person whose sessions are cut, so that the crowd does not hold up the clock.
    person: &'a Runtime,
    fleet: Fleet,
    /// Each served by a real agent of its own.
    services: Vec<String>,
    real_agents: Vec<u32>,
}

/// Measures with so many agents on a plane below `folder`.
///
/// # Errors
/// When a part of the plane fails, or an agent or a session is lost.
pub(crate) fn measure(bin: &Path, folder: &Path, agents: usize, results: &mut Results) -> anyhow::Result<()> {
    let backend = load::serve_backend()?;
    let plane = Plane::start(bin, &folder.join("scale"), backend)?;
    let crowd = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let person = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut add = |figure: &str, value: f64, unit: &str| {
        eprintln!("{figure}: {value:.2} {unit}");
        results.add(figure, "iap", value, unit);
    };
    let (services, real) = real_agents(&plane, &person, backend)?;
    let light = agents.saturating_sub(services.len());
    let mut world = World {
        real_agents: std::iter::once(plane.pid("agent"))
            .chain(real.iter().map(|agent| Ok(agent.id())))
            .collect::<anyhow::Result<_>>()?,
        fleet: Fleet::gather(&plane, &crowd, light, &mut add)?,
        plane: &plane,
        crowd: &crowd,
        person: &person,
        services,
    };
    world.fleet.survive(&plane, &crowd, &mut add)?;
    population::measure(&mut world, &mut add)?;
    locks::measure(&mut world, &mut add)?;
    // Agents would come back to a plane that goes.
    crowd.shutdown_background();
    drop((real, plane));
    Ok(())
}

/// The plane's own agent and some more, each with a service that the demo policy grants; their processes.
fn real_agents(plane: &Plane, person: &Runtime, backend: u16) -> anyhow::Result<(Vec<String>, Vec<Running>)> {
    let admin = plane.log_in("admin")?;
    let mut services = vec!["bulk".to_owned()];
    let mut agents = Vec::new();
    for number in 1..=MORE_REAL_AGENTS {
        let service = format!("held-{number}");
        let record =
            format!("[[service]]\nname = \"{service}\"\nprotocol = \"tcp\"\nlabels = {{ env = \"dev\" }}\n");
        plane.apply_services(&admin, &record)?;
        agents.push(plane.agent(&admin, &format!("agent-{number}"), &service, backend)?);
        services.push(service);
    }
    let alice = Client::of_home(plane, &plane.log_in("alice")?)?;
    for service in &services {
        person.block_on(ready(&alice, service))?;
    }
    Ok((services, agents))
}

async fn ready(client: &Client, service: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    while let Err(error) = client.open(service).await {
        if begun.elapsed() > READY {
            return Err(error).with_context(|| format!("{service} is not reachable"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

impl World<'_> {
    fn log_in(&self, user: &str) -> anyhow::Result<(PathBuf, Client)> {
        let home = self.plane.log_in(user)?;
        let client = Client::of_home(self.plane, &home)?;
        Ok((home, client))
    }
}

/// Reports p50, p99 and the most of some values.
fn add_spread(add: &mut Add<'_>, figure: &str, values: Vec<f64>, unit: &str) {
    let values = sorted(values);
    for (suffix, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        add(&format!("{figure}_{suffix}"), quantile(&values, share), unit);
    }
}
