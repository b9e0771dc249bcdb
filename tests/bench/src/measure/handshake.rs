//! What our key exchange costs beside the one that the peers' TLS library may be confined to.
//!
//! `iapctl` offers X25519MLKEM768 first, always. Here the harness is the client, offers one group alone, and goes
//! straight to the proxy; everything else of a session is as always.

use rustix::time::{ClockId, clock_gettime};
use rustls::NamedGroup;

use super::{Sizes, in_turn};
use crate::part::Part;
use crate::person::Client;
use crate::plane::Plane;
use crate::report::Results;
use crate::stats::{Samples, count_of};
use crate::system::{OURS, System};

const GROUPS: [(NamedGroup, &str); 2] = [
    (NamedGroup::X25519MLKEM768, "x25519mlkem768"),
    (NamedGroup::X25519, "x25519"),
];
/// Opened one after another in each round.
const SESSIONS: usize = 500;

/// `handshake_cpu_us_*`: CPU of client, proxy and agent for a new session, by key exchange.
pub(crate) fn measure(systems: &[System], sizes: Sizes, results: &mut Results) {
    in_turn(
        (Part::Handshake, "one after another"),
        systems,
        sizes.rounds,
        results,
        |system, samples| match &system.plane {
            Some(plane) if system.name == OURS => sample(system, plane, samples),
            Some(_) | None => Ok(()),
        },
    );
}

fn sample(system: &System, plane: &Plane, samples: &mut Samples) -> anyhow::Result<()> {
    let home = plane.home_of("alice");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for (group, word) in GROUPS {
        let client = Client::of_home(plane, &home)?.exchanging(group);
        let before = (system.cpu()?, own_seconds());
        for _ in 0..SESSIONS {
            runtime.block_on(client.open("bulk"))?;
        }
        let used = system.cpu()?.since(&before.0);
        // The connector is idle: its place is this thread's.
        let cpu = used.path().unwrap_or_default() + own_seconds() - before.1;
        let figure = format!("handshake_cpu_us_{word}");
        samples.add(&figure, system.name, cpu * 1e6 / count_of(SESSIONS), "µs");
    }
    Ok(())
}

/// CPU seconds of this thread.
fn own_seconds() -> f64 {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    #[allow(clippy::cast_precision_loss, reason = "hours at most, and below a second")]
    let (seconds, nanoseconds) = (used.tv_sec as f64, used.tv_nsec as f64);
    seconds + nanoseconds / 1e9
}
