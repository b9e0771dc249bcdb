//! The first byte where the hops are far from each other.

use crate::load;
use crate::report::Results;
use crate::stats::{quantile, sorted};
use crate::system::System;

/// Opened one after another.
const SESSIONS: usize = 15;

/// `first_byte_ms_wan`: the median time from connecting until the backend's first byte, over a system started on slow
/// links.
///
/// # Errors
/// When a session fails.
pub(crate) fn measure(system: &System, results: &mut Results) -> anyhow::Result<()> {
    load::first_byte(system.port)?;
    let seconds = (0..SESSIONS).map(|_| load::first_byte(system.port));
    let seconds = sorted(seconds.collect::<anyhow::Result<_>>()?);
    results.add(
        "first_byte_ms_wan",
        system.name,
        quantile(&seconds, 0.5) * 1e3,
        "ms",
    );
    Ok(())
}
