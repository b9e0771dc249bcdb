//! The time the agent acts on: the system's, but never earlier than what the auth server has signed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// How far the system's clock may lie behind the newest signed time before it is overruled.
const BEHIND_SIGNED_SECONDS_MAX: i64 = 60;

/// A clock that a set-back system clock cannot fool: certificates and locks that had expired stay expired.
#[derive(Debug)]
pub struct TrustedClock {
    system: fn() -> OffsetDateTime,
    newest_signed_unix_ms: AtomicI64,
    newest: Mutex<Option<Witnessed>>,
}

#[derive(Debug, Clone, Copy)]
struct Witnessed {
    signed: OffsetDateTime,
    seen: Instant,
}

impl Default for TrustedClock {
    fn default() -> Self {
        Self::new(OffsetDateTime::now_utc)
    }
}

impl TrustedClock {
    /// A clock that starts from `system`, without any signed time yet.
    #[must_use]
    pub fn new(system: fn() -> OffsetDateTime) -> Self {
        Self {
            system,
            newest_signed_unix_ms: AtomicI64::new(i64::MIN),
            newest: Mutex::new(None),
        }
    }

    /// The time to decide with.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        let system = (self.system)();
        let signed = self.newest_signed_unix_ms.load(Ordering::Acquire);
        match from_unix_ms(signed) {
            Some(signed) => system.max(signed - time::Duration::seconds(BEHIND_SIGNED_SECONDS_MAX)),
            None => system,
        }
    }

    /// Takes note of a time the auth server has signed: a beat's, a snapshot's, a lock list's. Each proves
    /// that the feed was alive then.
    pub fn witness(&self, signed: OffsetDateTime) {
        self.newest_signed_unix_ms
            .fetch_max(unix_ms(signed), Ordering::AcqRel);
        let mut newest = self
            .newest
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if newest.is_none_or(|held| held.signed < signed) {
            *newest = Some(Witnessed {
                signed,
                seen: Instant::now(),
            });
        }
    }

    /// How long ago the feed was last known to be alive; `None` when it has never been heard.
    ///
    /// The larger of two measures: by the signed time, which survives a restart, and by the monotonic
    /// clock, which a set-back system clock does not touch.
    #[must_use]
    pub fn feed_age(&self) -> Option<Duration> {
        let newest = *self
            .newest
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        newest.map(|newest| {
            let by_signed_time = Duration::try_from(self.now() - newest.signed).unwrap_or(Duration::ZERO);
            by_signed_time.max(newest.seen.elapsed())
        })
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// The time of `ms` milliseconds since the Unix epoch, when it is one.
pub(crate) fn from_unix_ms(ms: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noon() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000)
    }

    #[test]
    fn a_system_clock_behind_the_signed_time_is_overruled() {
        let clock = TrustedClock::new(noon);
        assert_eq!(clock.now(), noon());
        clock.witness(noon() + time::Duration::seconds(30));
        assert_eq!(
            clock.now(),
            noon(),
            "within the allowance the system clock is kept"
        );
        clock.witness(noon() + time::Duration::hours(2));
        assert_eq!(
            clock.now(),
            noon() + time::Duration::hours(2) - time::Duration::seconds(60)
        );
        clock.witness(noon());
        assert_eq!(
            clock.now(),
            noon() + time::Duration::hours(2) - time::Duration::seconds(60),
            "an older signed time takes nothing back"
        );
    }

    #[test]
    fn the_age_of_the_feed_counts_from_the_newest_signed_time() {
        let clock = TrustedClock::new(noon);
        assert_eq!(clock.feed_age(), None);
        clock.witness(noon() - time::Duration::hours(5));
        assert!(clock.feed_age() >= Some(Duration::from_secs(5 * 3600)));
        clock.witness(noon());
        assert!(clock.feed_age() < Some(Duration::from_secs(60)));
    }
}
