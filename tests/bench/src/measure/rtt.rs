//! Small messages there and back, on one session and on many.

use std::time::Duration;

use super::{Sizes, in_turn};
use crate::load::Echoes;
use crate::part::Part;
use crate::report::Results;
use crate::stats::{Samples, count_of, quantile, sorted};
use crate::system::{Reading, Role, System};

/// What messages of so many bytes are called.
const MESSAGES: [(usize, &str); 2] = [(64, "64b"), (1024, "1k")];
const SESSIONS: [usize; 2] = [1, 64];

/// `rtt_p50_us_*`, `rtt_p99_us_*`, `rtt_cpu_us_*`, `auth_rtt_cpu_us_*`.
pub(crate) fn measure(systems: &[System], sizes: Sizes, results: &mut Results) {
    for (bytes, word) in MESSAGES {
        for sessions in SESSIONS {
            let load = Load {
                bytes,
                sessions,
                duration: Duration::from_millis(sizes.milliseconds),
                name: format!("{word}_{sessions}"),
            };
            let what = (Part::Rtt, load.name.as_str());
            in_turn(what, systems, sizes.rounds, results, |system, samples| {
                load.sample(system, samples)
            });
        }
    }
}

struct Load {
    bytes: usize,
    sessions: usize,
    duration: Duration,
    /// At the end of the figures' names.
    name: String,
}

impl Load {
    fn sample(&self, system: &System, samples: &mut Samples) -> anyhow::Result<()> {
        let mut echoes = Echoes::open(system.port, self.sessions, self.bytes)?;
        let before = system.cpu()?;
        let trips = sorted(echoes.run(self.duration)?);
        let used = system.cpu()?.since(&before);
        for (word, share) in [("p50", 0.5), ("p99", 0.99)] {
            let figure = format!("rtt_{word}_us_{}", self.name);
            samples.add(&figure, system.name, quantile(&trips, share) * 1e6, "µs");
        }
        // One session leaves the cores idle in between: its CPU is mostly what waking up costs on this machine.
        if self.sessions > 1 {
            self.add_cpu(system, &used, count_of(trips.len()), samples);
        }
        Ok(())
    }

    fn add_cpu(&self, system: &System, used: &Reading, trips: f64, samples: &mut Samples) {
        for (figure, cpu) in [
            ("rtt_cpu_us", used.path()),
            ("auth_rtt_cpu_us", used.of(Role::Auth)),
        ] {
            if let Some(cpu) = cpu {
                let figure = format!("{figure}_{}", self.name);
                samples.add(&figure, system.name, cpu * 1e6 / trips, "µs");
            }
        }
    }
}
