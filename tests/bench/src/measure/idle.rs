//! What a session costs in memory that is open and does nothing, at each hop.

use std::time::Duration;

use anyhow::ensure;

use crate::load::Held;
use crate::report::Results;
use crate::stats::count_of;
use crate::system::{PATH, System};

/// The slope between these: what a program holds from its start on, and keeps for bursts, is in neither.
const FEW: usize = 3_000;
const MANY: usize = 9_000;
/// Two sockets of each session are this process's, and two are each hop's.
const DESCRIPTORS: u64 = 2 * 9_000 + 500;
/// Until the programs have put aside what opening took.
const SETTLING: Duration = Duration::from_secs(3);

/// `idle_kib_*`, of a system that was started for this alone.
///
/// # Errors
/// When there are too few descriptors, or a session fails.
pub(crate) fn measure(system: &System, results: &mut Results) -> anyhow::Result<()> {
    let allowed = iap_runtime::descriptors::raise_limit();
    ensure!(
        allowed >= DESCRIPTORS,
        "{DESCRIPTORS} descriptors are needed, {allowed} are allowed"
    );
    let held = Held::default();
    let mut readings = Vec::new();
    for sessions in [FEW, MANY] {
        held.open(system.port, sessions)?;
        std::thread::sleep(SETTLING);
        readings.push(system.memory()?);
    }
    let [few, many] = readings.as_slice() else {
        return Ok(());
    };
    let more = many.since(few);
    for role in PATH {
        if let Some(kib) = more.of(role) {
            let each = kib / count_of(MANY - FEW);
            results.add(&format!("idle_kib_{}", role.word()), system.name, each, "KiB");
        }
    }
    Ok(())
}
