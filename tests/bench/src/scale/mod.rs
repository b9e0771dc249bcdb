//! `make scale`: many agents on one proxy, a large policy on one auth server, and how soon a lock cuts a session.

mod agent;
mod client;
mod fleet;
mod locks;
mod population;

use crate::Arguments;
use crate::load;
use crate::ours::Plane;
use crate::report::{Results, machine};

/// Agents on one proxy.
const AGENTS: usize = 1000;
/// Sessions cut by a lock each.
const LOCKS: usize = 250;

/// Measures, and puts the figures beside those of the last `make bench`.
///
/// # Errors
/// When a part of the plane fails, or an agent or a session is lost.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("iap-scale.").tempdir_in("/tmp")?;
    let backend = load::serve_backend()?;
    let plane = Plane::start(&arguments.bin, &folder.path().join("plane"), backend)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut results = Results::read(&arguments.results)?;
    results.machine.extend(machine());
    let mut add = |figure: &str, value: f64, unit: &str| {
        eprintln!("{figure}: {value:.2} {unit}");
        results.add(figure, "iap", value, unit);
    };
    fleet::measure(&plane, &runtime, AGENTS, &mut add)?;
    population::measure(&plane, &runtime, &mut add)?;
    locks::measure(&plane, &runtime, LOCKS, &mut add)?;
    results.write(&arguments.results, &arguments.report)
}

/// The value below which `share` of the sorted values lie.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a few hundred values"
    )]
    let index = (sorted.len().saturating_sub(1) as f64 * share).ceil() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}
