//! Who may take a place: bounds on waiting and routed connections, in all and by source, and the throttle
//! that agents' verdicts feed. A blind proxy cannot tell good callers from bad ones; it can count them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Limits;
use crate::metrics::Refusal;

const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// How long one good session excuses its source's bad ones.
const PROVEN_FOR: Duration = Duration::from_secs(600);
const IPV6_SITE_BITS: u32 = 64;

/// Where connections come from, as far as limits tell sources apart: an IPv4 address, or an IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source(IpAddr);

impl Source {
    /// The source of an address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.into()),
            IpAddr::V6(address) => {
                Self(Ipv6Addr::from_bits(address.to_bits() >> IPV6_SITE_BITS << IPV6_SITE_BITS).into())
            }
        }
    }
}

/// The proxy's places.
#[derive(Debug, Clone)]
pub struct Admission {
    limits: Arc<Limits>,
    places: Arc<Mutex<Places>>,
}

#[derive(Debug, Default)]
struct Places {
    waiting: usize,
    routed: usize,
    by_source: HashMap<Source, Record>,
}

#[derive(Debug, Default)]
struct Record {
    waiting: usize,
    routed: usize,
    failures: u32,
    window_began: Option<Instant>,
    proven_at: Option<Instant>,
}

/// A place among those that have not yet said where they want to go. Dropping it gives it back.
#[derive(Debug)]
pub struct WaitingPlace {
    admission: Admission,
    /// `None` while only a balancer is known.
    source: Option<Source>,
}

/// A place among the routed. Dropping it gives it back.
#[derive(Debug)]
pub struct RoutedPlace {
    admission: Admission,
    source: Source,
}

impl Admission {
    /// Empty, within these limits.
    pub fn new(limits: Arc<Limits>) -> Self {
        Self {
            limits,
            places: Arc::default(),
        }
    }

    /// A place for a connection that was just accepted. `source` is `None` for a balancer, whose header will
    /// tell.
    pub fn admit(&self, source: Option<Source>, now: Instant) -> Result<WaitingPlace, Refusal> {
        let mut places = self.places();
        if places.waiting >= self.limits.waiting_connections_max {
            return Err(Refusal::TooManyWaiting);
        }
        if let Some(source) = source {
            self.attribute(&mut places, source, now)?;
        }
        places.waiting += 1;
        Ok(WaitingPlace {
            admission: self.clone(),
            source,
        })
    }

    /// An agent judged a client from this source.
    pub fn judged(&self, source: Source, authenticated: bool, now: Instant) {
        let mut places = self.places();
        let Some(record) = places.by_source.get_mut(&source) else {
            return;
        };
        if authenticated {
            record.proven_at = Some(now);
            record.failures = 0;
            return;
        }
        if record
            .window_began
            .is_none_or(|began| now.duration_since(began) >= FAILURE_WINDOW)
        {
            record.window_began = Some(now);
            record.failures = 0;
        }
        record.failures = record.failures.saturating_add(1);
    }

    /// How many are waiting and how many are routed.
    pub fn taken(&self) -> (usize, usize) {
        let places = self.places();
        (places.waiting, places.routed)
    }

    fn attribute(&self, places: &mut Places, source: Source, now: Instant) -> Result<(), Refusal> {
        if !places.by_source.contains_key(&source) && places.by_source.len() >= self.limits.sources_max {
            places.by_source.retain(|_, record| !record.is_forgettable(now));
            if places.by_source.len() >= self.limits.sources_max {
                return Err(Refusal::TooManyWaiting);
            }
        }
        let record = places.by_source.entry(source).or_default();
        if record.waiting >= self.limits.waiting_connections_per_source_max {
            return Err(Refusal::TooManyWaiting);
        }
        record.waiting += 1;
        Ok(())
    }

    /// Whether this source's clients keep failing, and none of them was good lately. Asked before an agent is
    /// bothered; logging in and agents' own connections are not held up.
    pub fn is_throttled(&self, source: Source, now: Instant) -> bool {
        let places = self.places();
        let failures_max = self.limits.failures_per_source_per_minute_max;
        places
            .by_source
            .get(&source)
            .is_some_and(|record| record.is_throttled(failures_max, now))
    }

    fn route(&self, source: Source) -> Result<RoutedPlace, Refusal> {
        let mut places = self.places();
        if places.routed >= self.limits.connections_max {
            return Err(Refusal::TooManyConnections);
        }
        let record = places.by_source.entry(source).or_default();
        if record.routed >= self.limits.connections_per_source_max {
            return Err(Refusal::TooManyConnections);
        }
        record.routed += 1;
        places.routed += 1;
        Ok(RoutedPlace {
            admission: self.clone(),
            source,
        })
    }

    /// Counts hold no invariant that a panic elsewhere could break.
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn is_throttled(&self, failures_max: u32, now: Instant) -> bool {
        let recent = |since: Option<Instant>, span| since.is_some_and(|at| now.duration_since(at) < span);
        self.failures >= failures_max
            && recent(self.window_began, FAILURE_WINDOW)
            && !recent(self.proven_at, PROVEN_FOR)
    }

    fn is_forgettable(&self, now: Instant) -> bool {
        let over = |since: Option<Instant>, span| since.is_none_or(|at| now.duration_since(at) >= span);
        self.waiting == 0
            && self.routed == 0
            && over(self.window_began, FAILURE_WINDOW)
            && over(self.proven_at, PROVEN_FOR)
    }
}

impl WaitingPlace {
    /// The client behind a balancer is known now.
    pub fn attribute(&mut self, source: Source, now: Instant) -> Result<(), Refusal> {
        let admission = self.admission.clone();
        let mut places = admission.places();
        admission.attribute(&mut places, source, now)?;
        if let Some(before) = self.source.replace(source) {
            release_waiting(&mut places, before);
        }
        Ok(())
    }

    /// Trades the place for one among the routed.
    pub fn route(self, source: Source) -> Result<RoutedPlace, Refusal> {
        self.admission.route(source)
    }
}

impl RoutedPlace {
    /// Whose place it is.
    pub fn source(&self) -> Source {
        self.source
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        let mut places = self.admission.places();
        places.waiting = places.waiting.saturating_sub(1);
        if let Some(source) = self.source {
            release_waiting(&mut places, source);
        }
    }
}

impl Drop for RoutedPlace {
    fn drop(&mut self) {
        let mut places = self.admission.places();
        places.routed = places.routed.saturating_sub(1);
        if let Some(record) = places.by_source.get_mut(&self.source) {
            record.routed = record.routed.saturating_sub(1);
        }
    }
}

fn release_waiting(places: &mut Places, source: Source) {
    if let Some(record) = places.by_source.get_mut(&source) {
        record.waiting = record.waiting.saturating_sub(1);
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

    fn admission(change: impl FnOnce(&mut Limits)) -> Admission {
        let mut limits = Limits::default();
        change(&mut limits);
        Admission::new(Arc::new(limits))
    }

    fn source(last: u8) -> Source {
        Source::of(IpAddr::from([203, 0, 113, last]))
    }

    #[test]
    fn one_source_cannot_take_every_waiting_place() {
        let admission = admission(|limits| limits.waiting_connections_per_source_max = 2);
        let now = Instant::now();
        let held: Vec<_> = (0..2)
            .map(|_| admission.admit(Some(source(1)), now).unwrap())
            .collect();
        assert_eq!(
            admission.admit(Some(source(1)), now).err(),
            Some(Refusal::TooManyWaiting)
        );
        assert!(admission.admit(Some(source(2)), now).is_ok());
        drop(held);
        assert!(admission.admit(Some(source(1)), now).is_ok());
        assert_eq!(admission.taken(), (0, 0));
    }

    #[test]
    fn routed_places_are_bounded_in_all_and_by_source_and_given_back() {
        let admission = admission(|limits| {
            limits.connections_max = 2;
            limits.connections_per_source_max = 1;
        });
        let now = Instant::now();
        let route = |last| {
            admission
                .admit(Some(source(last)), now)
                .unwrap()
                .route(source(last))
        };
        let first = route(1).unwrap();
        assert_eq!(route(1).err(), Some(Refusal::TooManyConnections));
        let _second = route(2).unwrap();
        assert_eq!(route(3).err(), Some(Refusal::TooManyConnections));
        drop(first);
        assert!(route(3).is_ok());
        assert_eq!(admission.taken(), (0, 1));
    }

    #[test]
    fn a_source_that_keeps_failing_is_turned_away_for_a_minute() {
        let admission = admission(|limits| limits.failures_per_source_per_minute_max = 2);
        let now = Instant::now();
        let _place = admission.admit(Some(source(1)), now).unwrap();
        admission.judged(source(1), false, now);
        assert!(!admission.is_throttled(source(1), now));
        admission.judged(source(1), false, now);
        assert!(admission.is_throttled(source(1), now));
        assert!(!admission.is_throttled(source(2), now));
        assert!(!admission.is_throttled(source(1), now + FAILURE_WINDOW));
    }

    #[test]
    fn a_source_with_a_good_session_is_not_throttled() {
        let admission = admission(|limits| limits.failures_per_source_per_minute_max = 1);
        let now = Instant::now();
        let _place = admission.admit(Some(source(1)), now).unwrap();
        admission.judged(source(1), true, now);
        admission.judged(source(1), false, now);
        assert!(!admission.is_throttled(source(1), now));
        admission.judged(source(1), false, now + PROVEN_FOR);
        assert!(admission.is_throttled(source(1), now + PROVEN_FOR));
    }

    #[test]
    fn a_balancers_place_is_counted_for_the_client_behind_it() {
        let admission = admission(|limits| limits.waiting_connections_per_source_max = 1);
        let now = Instant::now();
        let mut first = admission.admit(None, now).unwrap();
        let mut second = admission.admit(None, now).unwrap();
        first.attribute(source(1), now).unwrap();
        assert_eq!(second.attribute(source(1), now), Err(Refusal::TooManyWaiting));
        assert_eq!(second.attribute(source(2), now), Ok(()));
    }

    #[test]
    fn remembered_sources_are_bounded_and_idle_ones_are_forgotten() {
        let admission = admission(|limits| limits.sources_max = 16);
        let now = Instant::now();
        let held: Vec<_> = (0..16)
            .map(|last| admission.admit(Some(source(last)), now).unwrap())
            .collect();
        assert_eq!(
            admission.admit(Some(source(99)), now).err(),
            Some(Refusal::TooManyWaiting)
        );
        drop(held);
        assert!(admission.admit(Some(source(99)), now).is_ok());
    }

    #[test]
    fn addresses_of_one_ipv6_site_are_one_source_and_mapped_ipv4_is_ipv4() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:203.0.113.1"), source(1));
    }
}
