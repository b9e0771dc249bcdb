//! A proxy drains: sessions whose clients can come back leave it, as soon as there is another to come back by.

use std::sync::Arc;
use std::time::Duration;

use iap_identity::ProxyId;
use iap_runtime::backoff::jittered;
use tokio::time::Instant;

use super::Connected;
use crate::dialback::Entrance;
use crate::session::Resumption;

/// All leave within so long, at least: so do those of other agents, and they are not to arrive as one. Shorter than a
/// proxy waits for the next to leave.
const SPREAD_MIN: Duration = Duration::from_millis(750);
/// For each of many.
const SPREAD_EACH: Duration = Duration::from_millis(1);
/// How soon those are looked for that have begun meanwhile.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Sends clients away from `proxy`, which closes what is left at the `deadline`, for as long as it is polled.
pub(super) async fn leave(
    connected: Arc<Connected>,
    entrance: Arc<Entrance>,
    proxy: ProxyId,
    deadline: Duration,
) {
    loop {
        connected.other_than(proxy).await;
        let leaving = spread(entrance.resumable_through(proxy), deadline);
        let begun = Instant::now();
        for (after, session) in leaving {
            tokio::time::sleep_until(begun + after).await;
            if !connected.has_other_than(proxy) {
                break;
            }
            session.send_away(proxy);
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Each at a moment of its own, the first first.
fn spread(sessions: Vec<Arc<Resumption>>, deadline: Duration) -> Vec<(Duration, Arc<Resumption>)> {
    let all = within(sessions.len(), deadline);
    let moment = |session| (jittered(all / 2, 100), session);
    let mut leaving: Vec<_> = sessions.into_iter().map(moment).collect();
    leaving.sort_unstable_by_key(|(after, _)| *after);
    leaving
}

/// How long it takes until as many have left.
fn within(sessions: usize, deadline: Duration) -> Duration {
    let count = u32::try_from(sessions).unwrap_or(u32::MAX);
    let wanted = SPREAD_EACH.saturating_mul(count).max(SPREAD_MIN);
    wanted.min(deadline / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_take_longer_than_few_and_all_have_left_well_before_the_deadline() {
        let deadline = Duration::from_secs(20);
        let seconds = [0, 1, 1000, 9000, 1_000_000].map(|count| within(count, deadline).as_secs_f64());
        assert_eq!(seconds, [0.75, 0.75, 1.0, 9.0, 10.0]);
        assert_eq!(within(usize::MAX, Duration::ZERO), Duration::ZERO);
    }
}
