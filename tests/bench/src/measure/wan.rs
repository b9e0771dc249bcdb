//! The first byte where the hops are far from each other: of a session, and of one that goes on.

use crate::load;
use crate::report::Results;
use crate::stats::{quantile, sorted};
use crate::system::{OURS_RESUMABLE, System};

/// Opened one after another.
const SESSIONS: usize = 15;
const MESSAGE_BYTES: usize = 64;

/// `first_byte_ms_wan`: the median time from connecting until the backend's first byte, over a system started on slow
/// links. `resume_ms_wan`: the same from the moment a session's connection breaks until a message sent then is back.
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
    if system.name == OURS_RESUMABLE {
        let mut echo = load::Echoes::open(system.port, 1, MESSAGE_BYTES)?;
        let seconds = (0..SESSIONS).map(|_| {
            system.cut_clients();
            echo.longest_trip()
        });
        let seconds = sorted(seconds.collect::<anyhow::Result<_>>()?);
        results.add("resume_ms_wan", system.name, quantile(&seconds, 0.5) * 1e3, "ms");
    }
    Ok(())
}
