//! The time the agent acts on: the system's, but never earlier than what the auth server has signed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

/// How far the system's clock may lie behind the newest signed time before it is overruled, and how far the two may
/// lie apart before people are told. Certificates begin as long before they are issued.
const APART_SECONDS_MAX: i64 = 60;
/// A beat that arrived within this time shows that the feed is alive, whatever its age seems to be.
const FEED_ALIVE: Duration = Duration::from_secs(60);

/// A clock that a set-back system clock cannot fool: certificates and locks that had expired stay expired.
pub struct TrustedClock {
    system: Box<dyn Fn() -> OffsetDateTime + Send + Sync>,
    newest_signed_unix_ms: AtomicI64,
    newest: Mutex<Option<Witnessed>>,
    heard: Mutex<Option<Heard>>,
}

/// A signed time, and when it was seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Witnessed {
    signed: OffsetDateTime,
    seen: Instant,
}

/// The last beat that came over the feed itself.
#[derive(Debug, Clone, Copy)]
struct Heard {
    beat: OffsetDateTime,
    standing: Standing,
    offset: time::Duration,
    at: Instant,
}

/// How this host's clock stands to the auth server's, by the beat heard last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// They agree, within a minute.
    Agrees,
    /// This host's is ahead: certificates look expired here before they are, and the feed looks old.
    Ahead,
    /// This host's is behind, and overruled by what the auth server signs.
    Behind,
    /// The auth server signs times earlier than those it signed before: its own clock was set back.
    AuthServerWentBack,
}

impl Standing {
    /// What it means and what to do, in a sentence; nothing while the clocks agree.
    #[must_use]
    pub fn text(self) -> Option<&'static str> {
        match self {
            Self::Agrees => None,
            Self::Ahead => Some(
                "this host's clock is ahead of the auth server's: certificates look expired and the feed looks old; \
                 set the one that is wrong (timedatectl shows whether it is synchronised)",
            ),
            Self::Behind => Some(
                "this host's clock is behind the auth server's, which is used instead; \
                 set the one that is wrong (timedatectl shows whether it is synchronised)",
            ),
            Self::AuthServerWentBack => Some(
                "the auth server signs times earlier than before, so the feed grows old here: its clock was set back; \
                 set the auth server's clock",
            ),
        }
    }
}

impl Witnessed {
    /// A signed time seen just now.
    pub(crate) fn now(signed: OffsetDateTime) -> Self {
        Self {
            signed,
            seen: Instant::now(),
        }
    }

    /// Whether it is the later one.
    pub(crate) fn is_after(self, other: OffsetDateTime) -> bool {
        self.signed > other
    }

    /// How old it is at `now`: the larger of two measures, by the signed time, which survives a restart, and by
    /// the monotonic clock, which a set-back system clock does not touch.
    pub(crate) fn age(self, now: OffsetDateTime) -> Duration {
        let by_signed_time = Duration::try_from(now - self.signed).unwrap_or(Duration::ZERO);
        by_signed_time.max(self.seen.elapsed())
    }
}

impl Default for TrustedClock {
    fn default() -> Self {
        Self::new(OffsetDateTime::now_utc)
    }
}

impl std::fmt::Debug for TrustedClock {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("TrustedClock")
            .field("newest", &self.newest)
            .field("heard", &self.heard)
            .finish_non_exhaustive()
    }
}

/// Servers' certificates are judged by the same time.
impl TimeProvider for TrustedClock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now().unix_timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

impl TrustedClock {
    /// A clock that starts from `system`, without any signed time yet.
    #[must_use]
    pub fn new(system: impl Fn() -> OffsetDateTime + Send + Sync + 'static) -> Self {
        Self {
            system: Box::new(system),
            newest_signed_unix_ms: AtomicI64::new(i64::MIN),
            newest: Mutex::new(None),
            heard: Mutex::new(None),
        }
    }

    /// The time to decide with.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        let system = (self.system)();
        let signed = self.newest_signed_unix_ms.load(Ordering::Acquire);
        match from_unix_ms(signed) {
            Some(signed) => system.max(signed - time::Duration::seconds(APART_SECONDS_MAX)),
            None => system,
        }
    }

    /// Takes note of a time the auth server has signed: a beat's, a snapshot's, a lock list's. Each proves
    /// that the feed was alive then.
    pub fn witness(&self, signed: OffsetDateTime) {
        self.newest_signed_unix_ms
            .fetch_max(unix_ms(signed), Ordering::AcqRel);
        let mut newest = locked(&self.newest);
        if newest.is_none_or(|held| held.signed < signed) {
            *newest = Some(Witnessed::now(signed));
        }
    }

    /// Takes note of a beat that has just arrived over the feed, and of how this host's clock stands to it.
    /// Returns the standing when it is another than before.
    ///
    /// Nothing is decided from it: a proxy that holds beats back could make any clock look ahead.
    pub fn hear(&self, beat: OffsetDateTime) -> Option<Standing> {
        let apart = time::Duration::seconds(APART_SECONDS_MAX);
        let newest = from_unix_ms(self.newest_signed_unix_ms.load(Ordering::Acquire));
        let offset = (self.system)() - beat;
        self.witness(beat);
        let standing = match newest {
            Some(newest) if beat + apart < newest => Standing::AuthServerWentBack,
            Some(_) | None if offset > apart => Standing::Ahead,
            Some(_) | None if offset < -apart => Standing::Behind,
            Some(_) | None => Standing::Agrees,
        };
        let at = Instant::now();
        let before = locked(&self.heard).replace(Heard {
            beat,
            standing,
            offset,
            at,
        });
        let before = before.map_or(Standing::Agrees, |before| before.standing);
        (before != standing).then_some(standing)
    }

    /// Whether any beat has come over the feed itself.
    pub(crate) fn has_heard(&self) -> bool {
        locked(&self.heard).is_some()
    }

    /// How the clocks stand by the beat heard last.
    #[must_use]
    pub fn standing(&self) -> Standing {
        locked(&self.heard).map_or(Standing::Agrees, |heard| heard.standing)
    }

    /// This host's clock minus the auth server's, at the beat heard last; the time that beat took is part of it.
    #[must_use]
    pub fn offset(&self) -> time::Duration {
        locked(&self.heard).map_or(time::Duration::ZERO, |heard| heard.offset)
    }

    /// Whether beats arrive that this host's clock makes look old, also when it jumped since the last one.
    #[must_use]
    pub fn is_ahead_of_a_live_feed(&self) -> bool {
        let system = (self.system)();
        locked(&self.heard).is_some_and(|heard| {
            let passed = heard.at.elapsed();
            passed < FEED_ALIVE && system - heard.beat > time::Duration::seconds(APART_SECONDS_MAX) + passed
        })
    }

    /// How long ago the feed was last known to be alive; `None` when it has never been heard.
    #[must_use]
    pub fn feed_age(&self) -> Option<Duration> {
        let newest = *locked(&self.newest);
        newest.map(|newest| newest.age(self.now()))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
    #![allow(clippy::unwrap_used)]
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

    #[test]
    fn beats_tell_how_the_clocks_stand_once_each_time_it_changes() {
        let clock = TrustedClock::new(noon);
        let beat = |seconds| clock.hear(noon() + time::Duration::seconds(seconds));
        assert_eq!(beat(-30), None, "half a minute is the network's");
        assert_eq!(beat(-20), None);
        assert_eq!(clock.standing(), Standing::Agrees);
        let clock = TrustedClock::new(noon);
        let beat = |seconds| clock.hear(noon() + time::Duration::seconds(seconds));
        assert_eq!(beat(-7200), Some(Standing::Ahead));
        assert_eq!(beat(-7190), None);
        assert!(clock.is_ahead_of_a_live_feed());
        assert_eq!(clock.offset(), time::Duration::seconds(7190));
        assert_eq!(beat(-20), Some(Standing::Agrees), "somebody set the clock");
        assert_eq!(beat(7200), Some(Standing::Behind));
        assert!(clock.now() >= noon() + time::Duration::seconds(7140));
        assert_eq!(beat(0), Some(Standing::AuthServerWentBack));
        assert!(
            clock
                .standing()
                .text()
                .unwrap()
                .contains("set the auth server's clock")
        );
    }

    #[test]
    fn a_clock_that_jumps_between_two_beats_is_ahead_at_once() {
        let ahead = std::sync::Arc::new(AtomicI64::new(0));
        let seconds = std::sync::Arc::clone(&ahead);
        let clock =
            TrustedClock::new(move || noon() + time::Duration::seconds(seconds.load(Ordering::Relaxed)));
        assert!(!clock.is_ahead_of_a_live_feed());
        clock.hear(noon());
        assert!(!clock.is_ahead_of_a_live_feed());
        ahead.store(5 * 3600, Ordering::Relaxed);
        assert!(clock.is_ahead_of_a_live_feed());
    }

    #[test]
    fn a_beat_held_back_makes_no_feed_younger() {
        let clock = TrustedClock::new(noon);
        clock.hear(noon() - time::Duration::hours(5));
        assert!(clock.feed_age() >= Some(Duration::from_secs(5 * 3600)));
    }
}
