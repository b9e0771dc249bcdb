//! What is measured, a file for each.

mod agents;
mod bulk;
pub(crate) mod half_open;
mod handshake;
mod idle;
mod new;
mod policy;
mod postgres;
mod rtt;
mod snapshot;
mod wan;

use std::collections::BTreeSet;

use crate::part::Part;
use crate::report::Results;
use crate::stats::Samples;
use crate::system::System;

pub(crate) use agents::measure as agents;
pub(crate) use bulk::measure as bulk;
pub(crate) use handshake::measure as handshake;
pub(crate) use idle::measure as idle;
pub(crate) use new::measure as new;
pub(crate) use policy::microseconds_per_decision;
pub(crate) use postgres::measure as postgres;
pub(crate) use rtt::measure as rtt;
pub(crate) use snapshot::seconds_to_agents;
pub(crate) use wan::measure as wan;

/// How much is measured.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Sizes {
    /// Rounds of which the median is taken.
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// MiB of each bulk measurement.
    #[arg(long, default_value_t = 1024)]
    pub(crate) mib: u64,
    /// Milliseconds of each measurement of round trips and of new sessions.
    #[arg(long, default_value_t = 1200)]
    pub(crate) milliseconds: u64,
}

/// Takes samples of the systems in turn, so that whatever else the machine does falls on all of them, and reports the
/// medians. A system that fails is out of this, and the report says why; the others go on.
fn in_turn(
    (part, load): (Part, &str),
    systems: &[System],
    rounds: usize,
    results: &mut Results,
    mut sample: impl FnMut(&System, &mut Samples) -> anyhow::Result<()>,
) {
    let mut samples = Samples::default();
    let mut failed = BTreeSet::new();
    for round in 1..=rounds {
        eprintln!("{}, {load}, round {round}", part.word());
        for system in systems {
            if failed.contains(system.name) {
                continue;
            }
            if let Err(error) = sample(system, &mut samples) {
                results.failed(system.name, part, &error.context(load.to_owned()));
                samples.forget(system.name);
                failed.insert(system.name);
            }
        }
    }
    samples.conclude(results);
}
