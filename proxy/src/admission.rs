//! Who may take a place: bounds on waiting and routed connections, in all and by source, and the throttle
//! that agents' verdicts feed. A blind proxy cannot tell good callers from bad ones; it can count them, and favour
//! sources from which somebody was good lately: they are never throttled, and never give way to strangers in the
//! waiting room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iap_runtime::config::InForce;
pub use iap_runtime::waiting_room::Source;
use iap_runtime::waiting_room::{NoPlace, Place, Standing, WaitingRoom};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::config::Limits;
use crate::metrics::Refusal;

const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// How long one good session excuses its source's bad ones.
const PROVEN_FOR: Duration = Duration::from_secs(600);
/// Between two searches for sources that may be forgotten: each looks at all of them.
const FORGETTING_INTERVAL: Duration = Duration::from_secs(1);

/// The proxy's places.
#[derive(Debug, Clone)]
pub struct Admission {
    limits: InForce<Limits>,
    waiting: WaitingRoom,
    places: Arc<Mutex<Places>>,
}

#[derive(Debug, Default)]
struct Places {
    routed: usize,
    forgot_at: Option<Instant>,
    by_source: HashMap<Source, Record>,
}

#[derive(Debug, Default)]
struct Record {
    routed: usize,
    failures: u32,
    window_began: Option<Instant>,
    proven_at: Option<Instant>,
}

/// A place among those that have not yet said where they want to go. Dropping it gives it back.
#[derive(Debug)]
pub struct WaitingPlace {
    admission: Admission,
    place: Place,
}

/// A place among the routed. Dropping it gives it back.
#[derive(Debug)]
pub struct RoutedPlace {
    admission: Admission,
    source: Source,
}

impl Admission {
    /// Empty, within these limits.
    pub fn new(limits: InForce<Limits>) -> Self {
        let now = limits.now();
        let waiting = WaitingRoom::new(
            now.waiting_connections_max,
            now.waiting_connections_per_source_max,
        );
        Self {
            limits,
            waiting,
            places: Arc::default(),
        }
    }

    /// The limits have changed. Nobody who has a place loses it.
    pub(crate) fn resize(&self) {
        let limits = self.limits.now();
        self.waiting.resize(
            limits.waiting_connections_max,
            limits.waiting_connections_per_source_max,
        );
    }

    /// A place for a connection that was just accepted. `source` is `None` for a balancer, whose header will
    /// tell. When all are taken, the stranger who has waited longest gives way.
    pub fn admit(&self, source: Option<Source>, now: Instant) -> Result<WaitingPlace, Refusal> {
        let standing = source.map_or(Standing::Stranger, |source| self.standing(source, now));
        let place = self
            .waiting
            .enter(source, standing, now)
            .map_err(too_many_waiting)?;
        Ok(WaitingPlace {
            admission: self.clone(),
            place,
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
        (self.waiting.taken(), self.places().routed)
    }

    /// Whether this source's clients keep failing, and none of them was good lately. Asked before an agent is
    /// bothered; logging in and agents' own connections are not held up.
    pub fn is_throttled(&self, source: Source, now: Instant) -> bool {
        let places = self.places();
        let failures_max = self.limits.now().failures_per_source_per_minute_max;
        places
            .by_source
            .get(&source)
            .is_some_and(|record| record.is_throttled(failures_max, now))
    }

    fn standing(&self, source: Source, now: Instant) -> Standing {
        let places = self.places();
        match places.by_source.get(&source) {
            Some(record) if record.is_proven(now) => Standing::Favoured,
            Some(_) | None => Standing::Stranger,
        }
    }

    fn route(&self, source: Source, now: Instant) -> Result<RoutedPlace, Refusal> {
        let limits = self.limits.now();
        let mut places = self.places();
        if places.routed >= limits.connections_max {
            return Err(Refusal::TooManyConnections);
        }
        places.make_room_for(source, limits.sources_max, now)?;
        let record = places.by_source.entry(source).or_default();
        if record.routed >= limits.connections_per_source_max {
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

impl Places {
    fn make_room_for(&mut self, source: Source, sources_max: usize, now: Instant) -> Result<(), Refusal> {
        if self.by_source.len() < sources_max || self.by_source.contains_key(&source) {
            return Ok(());
        }
        let just_looked = self
            .forgot_at
            .is_some_and(|at| now.saturating_duration_since(at) < FORGETTING_INTERVAL);
        if !just_looked {
            self.forgot_at = Some(now);
            self.by_source.retain(|_, record| !record.is_forgettable(now));
        }
        match self.by_source.len() < sources_max {
            true => Ok(()),
            false => Err(Refusal::TooManyConnections),
        }
    }
}

fn too_many_waiting(_: NoPlace) -> Refusal {
    Refusal::TooManyWaiting
}

impl Record {
    fn is_proven(&self, now: Instant) -> bool {
        self.proven_at
            .is_some_and(|at| now.duration_since(at) < PROVEN_FOR)
    }

    fn is_throttled(&self, failures_max: u32, now: Instant) -> bool {
        let recent = |since: Option<Instant>, span| since.is_some_and(|at| now.duration_since(at) < span);
        self.failures >= failures_max && recent(self.window_began, FAILURE_WINDOW) && !self.is_proven(now)
    }

    fn is_forgettable(&self, now: Instant) -> bool {
        let over = |since: Option<Instant>, span| since.is_none_or(|at| now.duration_since(at) >= span);
        self.routed == 0 && over(self.window_began, FAILURE_WINDOW) && over(self.proven_at, PROVEN_FOR)
    }
}

impl WaitingPlace {
    /// The client behind a balancer is known now.
    pub fn attribute(&mut self, source: Source, now: Instant) -> Result<(), Refusal> {
        let standing = self.admission.standing(source, now);
        self.place
            .attribute(source, standing, now)
            .map_err(too_many_waiting)
    }

    /// Completes when the place was given to somebody else.
    pub fn gave_way(&self) -> WaitForCancellationFutureOwned {
        self.place.gave_way()
    }

    /// Trades the place for one among the routed.
    pub fn route(self, source: Source, now: Instant) -> Result<RoutedPlace, Refusal> {
        self.admission.route(source, now)
    }
}

impl RoutedPlace {
    /// Whose place it is.
    pub fn source(&self) -> Source {
        self.source
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

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use std::net::IpAddr;

    use super::*;

    fn admission(change: impl FnOnce(&mut Limits)) -> Admission {
        let mut limits = Limits::default();
        change(&mut limits);
        Admission::new(InForce::new(limits))
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
                .route(source(last), now)
        };
        let first = route(1).unwrap();
        assert_eq!(route(1).err(), Some(Refusal::TooManyConnections));
        let _second = route(2).unwrap();
        assert_eq!(route(3).err(), Some(Refusal::TooManyConnections));
        drop(first);
        assert!(route(3).is_ok());
        assert_eq!(admission.taken(), (0, 1));
    }

    fn routed(admission: &Admission, last: u8, now: Instant) -> RoutedPlace {
        let place = admission.admit(Some(source(last)), now).unwrap();
        place.route(source(last), now).unwrap()
    }

    #[test]
    fn a_source_that_keeps_failing_is_turned_away_for_a_minute() {
        let admission = admission(|limits| limits.failures_per_source_per_minute_max = 2);
        let now = Instant::now();
        let _place = routed(&admission, 1, now);
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
        let _place = routed(&admission, 1, now);
        admission.judged(source(1), true, now);
        admission.judged(source(1), false, now);
        assert!(!admission.is_throttled(source(1), now));
        admission.judged(source(1), false, now + PROVEN_FOR);
        assert!(admission.is_throttled(source(1), now + PROVEN_FOR));
    }

    #[test]
    fn a_source_with_a_good_session_gets_a_waiting_place_when_strangers_hold_all() {
        let admission = admission(|limits| limits.waiting_connections_max = 2);
        let now = Instant::now();
        let _session = routed(&admission, 1, now);
        admission.judged(source(1), true, now);
        let strangers = [2, 3].map(|last| admission.admit(Some(source(last)), now).unwrap());
        assert_eq!(
            admission.admit(Some(source(4)), now).err(),
            Some(Refusal::TooManyWaiting)
        );
        let good = admission.admit(Some(source(1)), now);
        assert!(good.is_ok());
        assert_eq!(admission.taken(), (2, 1));
        drop(strangers);
        assert_eq!(admission.taken(), (1, 1), "one of them had given its place away");
    }

    #[test]
    fn a_balancers_place_is_counted_for_the_client_behind_it() {
        let admission = admission(|limits| limits.waiting_connections_per_source_max = 1);
        let now = Instant::now();
        let mut first = admission.admit(None, now).unwrap();
        let mut second = admission.admit(None, now).unwrap();
        first.attribute(source(1), now).unwrap();
        assert_eq!(second.attribute(source(1), now), Err(Refusal::TooManyWaiting));
        let mut third = admission.admit(None, now).unwrap();
        assert_eq!(third.attribute(source(2), now), Ok(()));
        assert_eq!(admission.taken(), (2, 0), "who was refused has no place any more");
    }

    #[test]
    fn remembered_sources_are_bounded_and_idle_ones_are_forgotten() {
        let admission = admission(|limits| limits.sources_max = 16);
        let now = Instant::now();
        let held: Vec<_> = (0..16).map(|last| routed(&admission, last, now)).collect();
        let another = |now| {
            admission
                .admit(Some(source(99)), now)
                .unwrap()
                .route(source(99), now)
        };
        assert_eq!(another(now).err(), Some(Refusal::TooManyConnections));
        drop(held);
        assert_eq!(
            another(now).err(),
            Some(Refusal::TooManyConnections),
            "they were looked at just now"
        );
        assert!(another(now + FORGETTING_INTERVAL).is_ok());
    }
}
