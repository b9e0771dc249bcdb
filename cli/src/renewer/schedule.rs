//! When to renew: at half a certificate's life, a little earlier or later for each, and after failures with
//! growing pauses that leave time before its end.

use iap_identity::{CLOCK_SKEW, UserPeer};
use time::{Duration, OffsetDateTime};

/// The longest pause after a failure.
pub(super) const PAUSE_MAX: Duration = Duration::minutes(5);
const PAUSE_FIRST: Duration = Duration::seconds(2);
const DOUBLINGS_MAX: u32 = 8;
/// Renewals are spread over a fifth of a certificate's life, around its half.
const SPREAD_DIVISOR: i32 = 5;
/// However near the end is.
const PAUSE_MIN: Duration = Duration::seconds(1);

/// When the certificate is to be renewed; none if a renewal could not make it last longer.
pub(super) fn due(peer: &UserPeer) -> Option<OffsetDateTime> {
    if peer.not_after >= peer.login_deadline {
        return None;
    }
    // The start is set back by the clocks' allowed difference.
    let issued = peer.not_before + CLOCK_SKEW;
    let life = peer.not_after - issued;
    let spread = life / SPREAD_DIVISOR;
    Some(issued + life / 2 - spread / 2 + spread * drawn(&peer.serial))
}

/// Between 0 and 1, the same for the same certificate however often it is asked.
fn drawn(serial: &str) -> f64 {
    let hash = crate::api::sha256(serial.as_bytes());
    let [first, second, ..] = hash;
    f64::from(u16::from_be_bytes([first, second])) / f64::from(u16::MAX)
}

/// The pause after the so-manieth failure in a row, with `left` until the certificate ends.
pub(super) fn pause(failures_before: u32, left: Duration) -> Duration {
    let doubled = PAUSE_FIRST * 2_i32.pow(failures_before.min(DOUBLINGS_MAX));
    doubled.min(PAUSE_MAX).min(left / 4).max(PAUSE_MIN)
}

/// The time from now until then, at least a moment.
pub(super) fn wait(now: OffsetDateTime, then: OffsetDateTime) -> std::time::Duration {
    let left = (then - now).max(Duration::milliseconds(10));
    left.try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;

    #[test]
    fn pauses_grow_to_five_minutes_and_leave_time_before_the_end() {
        let hour = Duration::HOUR;
        let pauses: Vec<_> = (0..10)
            .map(|failures| pause(failures, hour).whole_seconds())
            .collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(pause(9, Duration::seconds(40)), Duration::seconds(10));
        assert_eq!(pause(9, Duration::ZERO), PAUSE_MIN);
        assert_eq!(pause(u32::MAX, hour), PAUSE_MAX);
    }

    #[test]
    fn what_is_drawn_is_evenly_between_nothing_and_one_and_the_same_each_time() {
        let all: Vec<_> = (0..1000).map(|serial| drawn(&format!("{serial:x}"))).collect();
        assert!(all.iter().all(|drawn| (0.0..=1.0).contains(drawn)));
        let mean = all.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
        assert_eq!(drawn("0a").to_bits(), drawn("0a").to_bits());
    }

    #[test]
    fn a_wait_is_never_negative_whatever_the_clock_did() {
        let now = OffsetDateTime::UNIX_EPOCH;
        assert_eq!(wait(now, now - Duration::DAY).as_millis(), 10);
        assert_eq!(wait(now, now + Duration::MINUTE).as_secs(), 60);
    }
}
