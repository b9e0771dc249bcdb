//! Counts what a source may do only so often.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most sources remembered at a time; beyond it the one whose window began first is forgotten.
const SOURCES_MAX: usize = 65_536;
/// IPv6 sources are counted a second time by the site they belong to, so that whoever has a /48 cannot be 65 536
/// strangers: as many /64s of it as this may be at their limit.
const NETWORKS_PER_SITE: u32 = 16;
const SITE_BITS: u32 = 48;

/// Tries by source, each source's counted from its first one for the length of a window.
#[derive(Debug)]
pub(crate) struct Tries {
    tries_max: u32,
    window: Duration,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    sources: HashMap<Counted, Count>,
    /// The same in the order in which their windows began, so that forgetting costs no search.
    by_age: BTreeMap<u64, Counted>,
    begun: u64,
}

/// Whose tries are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Counted {
    Source(IpAddr),
    /// The first 48 bits of IPv6 addresses.
    Site(u128),
}

#[derive(Clone, Copy, Debug)]
struct Count {
    since: Instant,
    number: u64,
    tries: u32,
}

/// No try is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Tries {
    pub(crate) fn new(tries_max: u32, window: Duration) -> Self {
        Self {
            tries_max,
            window,
            counts: Mutex::default(),
        }
    }

    /// Whether the source has a try left.
    ///
    /// # Errors
    /// When it has none.
    pub(crate) fn check(&self, source: IpAddr, now: Instant) -> Result<(), Exhausted> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let has_left = |(counted, tries_max)| counts.tries(counted, now, self.window) < tries_max;
        match self.counted(source).all(has_left) {
            true => Ok(()),
            false => Err(Exhausted),
        }
    }

    /// Uses up one of the source's tries.
    ///
    /// # Errors
    /// When it had none.
    pub(crate) fn count(&self, source: IpAddr, now: Instant) -> Result<(), Exhausted> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counted = Ok(());
        for (who, tries_max) in self.counted(source) {
            if counts.add(who, now, self.window) > tries_max {
                counted = Err(Exhausted);
            }
        }
        counted
    }

    /// Under which names a source is counted, each with its limit.
    fn counted(&self, source: IpAddr) -> impl Iterator<Item = (Counted, u32)> + use<> {
        let site = match source {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(Counted::Site(address.to_bits() >> (128 - SITE_BITS))),
        };
        let site = site.map(|site| (site, self.tries_max.saturating_mul(NETWORKS_PER_SITE)));
        std::iter::once((Counted::Source(source), self.tries_max)).chain(site)
    }
}

impl Counts {
    fn tries(&self, who: Counted, now: Instant, window: Duration) -> u32 {
        self.sources
            .get(&who)
            .filter(|count| count.is_current(now, window))
            .map_or(0, |count| count.tries)
    }

    fn add(&mut self, who: Counted, now: Instant, window: Duration) -> u32 {
        if let Some(count) = self.sources.get_mut(&who)
            && count.is_current(now, window)
        {
            count.tries = count.tries.saturating_add(1);
            return count.tries;
        }
        self.begin(who, now);
        1
    }

    fn begin(&mut self, who: Counted, now: Instant) {
        if !self.sources.contains_key(&who)
            && self.sources.len() >= SOURCES_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.sources.remove(&oldest);
        }
        self.begun += 1;
        let count = Count {
            since: now,
            number: self.begun,
            tries: 1,
        };
        self.by_age.insert(self.begun, who);
        if let Some(before) = self.sources.insert(who, count) {
            self.by_age.remove(&before.number);
        }
    }
}

impl Count {
    fn is_current(&self, now: Instant, window: Duration) -> bool {
        now.saturating_duration_since(self.since) < window
    }
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
    use std::net::Ipv4Addr;

    const WINDOW: Duration = Duration::from_secs(300);

    #[test]
    fn a_source_has_so_many_tries_in_a_window() {
        let tries = Tries::new(2, WINDOW);
        let (source, start) = (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), Instant::now());
        assert_eq!(tries.check(source, start), Ok(()));
        assert_eq!(tries.count(source, start), Ok(()));
        assert_eq!(tries.count(source, start), Ok(()));
        assert_eq!(tries.check(source, start), Err(Exhausted));
        assert_eq!(tries.count(source, start), Err(Exhausted));
        assert_eq!(
            tries.check(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), start),
            Ok(())
        );
        assert_eq!(tries.check(source, start + WINDOW), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_a_flood_of_sources_shuts_nobody_out() {
        let tries = Tries::new(1, WINDOW);
        let start = Instant::now();
        for index in 0..SOURCES_MAX {
            let source = IpAddr::V4(Ipv4Addr::from(u32::try_from(index).unwrap()));
            assert_eq!(tries.count(source, start), Ok(()));
        }
        let newcomer = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(tries.check(newcomer, start), Ok(()));
        assert_eq!(tries.count(newcomer, start), Ok(()));
        assert_eq!(tries.count(newcomer, start), Err(Exhausted));
        let counts = tries.counts.lock().unwrap();
        assert_eq!(
            (counts.sources.len(), counts.by_age.len()),
            (SOURCES_MAX, SOURCES_MAX)
        );
    }

    #[test]
    fn a_site_has_no_more_tries_than_some_of_its_networks() {
        let tries = Tries::new(2, WINDOW);
        let start = Instant::now();
        let network =
            |site: u128, network: u128| IpAddr::V6((0x2001_0db8 << 96 | site << 80 | network << 64).into());
        let granted = (0..100).filter(|index| tries.count(network(1, *index), start).is_ok());
        assert_eq!(granted.count(), 32);
        assert_eq!(tries.check(network(1, 200), start), Err(Exhausted));
        assert_eq!(tries.check(network(2, 0), start), Ok(()));
        assert_eq!(tries.check(network(1, 200), start + WINDOW), Ok(()));
    }
}
