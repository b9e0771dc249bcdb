//! CPU and throughput of many bytes.

use super::{Sizes, in_turn};
use crate::load;
use crate::part::Part;
use crate::report::Results;
use crate::stats::Samples;
use crate::system::{Role, System};

const STREAMS: [u64; 2] = [1, 8];
const MIB: u64 = 1024 * 1024;

/// `path_cpu_s_per_gib_*`, `proxy_cpu_s_per_gib_*`, `auth_cpu_s_per_gib_*`, `throughput_gbit_*`.
pub(crate) fn measure(systems: &[System], sizes: Sizes, results: &mut Results) {
    for streams in STREAMS {
        let load = (Part::Bulk, &*format!("{streams} streams"));
        in_turn(load, systems, sizes.rounds, results, |system, samples| {
            sample(system, streams, sizes.mib, samples)
        });
    }
}

fn sample(system: &System, streams: u64, mib: u64, samples: &mut Samples) -> anyhow::Result<()> {
    let before = system.cpu()?;
    let seconds = load::bulk(system.port, streams, mib * MIB)?;
    let used = system.cpu()?.since(&before);
    #[allow(clippy::cast_precision_loss, reason = "a few thousand")]
    let gib = mib as f64 / 1024.0;
    for (part, cpu) in [
        ("path", used.path()),
        ("proxy", used.of(Role::Proxy)),
        ("auth", used.of(Role::Auth)),
    ] {
        if let Some(cpu) = cpu {
            let figure = format!("{part}_cpu_s_per_gib_{streams}");
            samples.add(&figure, system.name, cpu / gib, "CPU-s/GiB");
        }
    }
    let gigabits = gib * 8.0 * 1024.0_f64.powi(3) / 1e9;
    let figure = format!("throughput_gbit_{streams}");
    samples.add(&figure, system.name, gigabits / seconds, "Gbit/s");
    Ok(())
}
