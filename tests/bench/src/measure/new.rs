//! New sessions: how many a second, what each costs, and how soon its first byte comes.

use std::time::Duration;

use super::{Sizes, in_turn};
use crate::load;
use crate::part::Part;
use crate::report::Results;
use crate::stats::{Samples, quantile, sorted};
use crate::system::{Role, System};

const PARALLEL: [usize; 2] = [1, 16];

/// `new_per_s_*`, `new_cpu_us_*`, `auth_new_cpu_us_*`, `first_byte_ms_p50_*`, `first_byte_ms_p99_*`.
pub(crate) fn measure(systems: &[System], sizes: Sizes, results: &mut Results) {
    for parallel in PARALLEL {
        let load = (Part::New, &*format!("{parallel} at once"));
        let duration = Duration::from_millis(sizes.milliseconds);
        in_turn(load, systems, sizes.rounds, results, |system, samples| {
            sample(system, parallel, duration, samples)
        });
    }
}

fn sample(system: &System, parallel: usize, duration: Duration, samples: &mut Samples) -> anyhow::Result<()> {
    let before = system.cpu()?;
    let opened = load::sessions(system.port, parallel, duration)?;
    let used = system.cpu()?.since(&before);
    let rate = opened.count() / opened.seconds;
    samples.add(&format!("new_per_s_{parallel}"), system.name, rate, "1/s");
    let of = [
        ("new_cpu_us", used.path()),
        ("auth_new_cpu_us", used.of(Role::Auth)),
    ];
    for (figure, cpu) in of {
        if let Some(cpu) = cpu {
            let each = cpu * 1e6 / opened.count();
            samples.add(&format!("{figure}_{parallel}"), system.name, each, "µs");
        }
    }
    let first = sorted(opened.first_byte);
    for (word, share) in [("p50", 0.5), ("p99", 0.99)] {
        let figure = format!("first_byte_ms_{word}_{parallel}");
        samples.add(&figure, system.name, quantile(&first, share) * 1e3, "ms");
    }
    Ok(())
}
