//! Who may take a place: bounds on waiting and routed connections, in all and by source, and the throttle
//! that agents' verdicts feed. A blind proxy cannot tell good callers from bad ones; it can count them, and favour
//! sources from which somebody was good lately: they are never throttled, never give way to strangers in the
//! waiting room, and have routed places that no stranger gets.

use std::collections::{BTreeMap, HashMap};
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
    by_source: HashMap<Source, Record>,
    /// Sources with nothing routed, in the order in which they came to rest.
    resting: BTreeMap<u64, Source>,
    /// The same of those that were proven then.
    resting_proven: BTreeMap<u64, Source>,
    rested: u64,
}

#[derive(Debug, Default)]
struct Record {
    routed: usize,
    failures: u32,
    window_began: Option<Instant>,
    proven_at: Option<Instant>,
    /// Its number among the resting.
    resting: Option<u64>,
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

/// There is no place among the routed.
#[derive(Debug)]
pub struct NotRouted {
    /// Why.
    pub reason: Refusal,
    /// The place held so far.
    pub place: WaitingPlace,
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
        let places = &mut *places;
        let Some(record) = places.by_source.get_mut(&source) else {
            return;
        };
        if authenticated {
            record.proven_at = Some(now);
            record.failures = 0;
            if let Some(number) = record.resting {
                places.resting.remove(&number);
                places.resting_proven.insert(number, source);
            }
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
        let places = &mut *places;
        let record = places.by_source.get(&source);
        let bounds = Bounds::of(&limits, record.is_some_and(|record| record.is_proven(now)));
        let from_there = record.map_or(0, |record| record.routed);
        if places.routed >= bounds.in_all || from_there >= bounds.from_one_source {
            return Err(Refusal::TooManyConnections);
        }
        places.make_room_for(source, limits.sources_max, now)?;
        places.occupy(source);
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

/// How many may be routed for one more of a source to be.
struct Bounds {
    in_all: usize,
    from_one_source: usize,
}

impl Bounds {
    fn of(limits: &Limits, is_proven: bool) -> Self {
        if is_proven {
            return Self {
                in_all: limits.connections_max,
                from_one_source: limits.connections_per_source_max,
            };
        }
        let percent = usize::from(limits.connections_reserved_percent);
        Self {
            in_all: limits.connections_max - limits.connections_max / 100 * percent.min(100),
            from_one_source: limits
                .connections_per_source_max
                .min(limits.stranger_connections_per_source_max),
        }
    }
}

impl Places {
    /// Of those that rest, whoever came to rest first is forgotten for a newcomer, proven ones last: a crowd of sources
    /// that come once must not keep others out.
    fn make_room_for(&mut self, source: Source, sources_max: usize, now: Instant) -> Result<(), Refusal> {
        if self.by_source.len() < sources_max || self.by_source.contains_key(&source) {
            return Ok(());
        }
        let faded = |source: &Source| {
            let record = self.by_source.get(source);
            record.is_none_or(|record| !record.is_proven(now))
        };
        let fades_first = self.resting_proven.first_key_value();
        let forgotten = match fades_first.filter(|(_, source)| faded(source)) {
            Some((number, source)) => Some((*number, *source)),
            None => self
                .resting
                .first_key_value()
                .or(fades_first)
                .map(|(number, source)| (*number, *source)),
        };
        let (number, source) = forgotten.ok_or(Refusal::TooManyConnections)?;
        self.resting.remove(&number);
        self.resting_proven.remove(&number);
        self.by_source.remove(&source);
        Ok(())
    }

    fn occupy(&mut self, source: Source) {
        let record = self.by_source.entry(source).or_default();
        record.routed += 1;
        self.routed += 1;
        if let Some(number) = record.resting.take() {
            self.resting.remove(&number);
            self.resting_proven.remove(&number);
        }
    }

    fn vacate(&mut self, source: Source, now: Instant) {
        self.routed = self.routed.saturating_sub(1);
        let Some(record) = self.by_source.get_mut(&source) else {
            return;
        };
        record.routed = record.routed.saturating_sub(1);
        if record.routed == 0 {
            self.rested += 1;
            record.resting = Some(self.rested);
            match record.is_proven(now) {
                true => self.resting_proven.insert(self.rested, source),
                false => self.resting.insert(self.rested, source),
            };
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

    /// Does something while the place is held; nothing comes of it once the place was given to somebody else.
    pub async fn hold_for<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.gave_way() => None,
        }
    }

    /// Trades the place for one among the routed.
    ///
    /// # Errors
    /// When there is none: whoever is told so still holds this one.
    pub fn route(self, source: Source, now: Instant) -> Result<RoutedPlace, NotRouted> {
        match self.admission.route(source, now) {
            Ok(routed) => Ok(routed),
            Err(reason) => Err(NotRouted { reason, place: self }),
        }
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
        self.admission.places().vacate(self.source, Instant::now());
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
                .map_err(|refused| refused.reason)
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
        let mut held: Vec<_> = (0..16).map(|last| routed(&admission, last, now)).collect();
        let another = |last| {
            let place = admission.admit(Some(source(last)), now).unwrap();
            place.route(source(last), now).map_err(|refused| refused.reason)
        };
        assert_eq!(another(99).err(), Some(Refusal::TooManyConnections));
        admission.judged(source(3), false, now);
        drop(held.remove(3));
        assert!(another(99).is_ok(), "one that only failed keeps nobody out");
        assert!(another(98).is_ok());
        let places = admission.places();
        assert_eq!(places.by_source.len(), 16);
        assert!(!places.by_source.contains_key(&source(3)) && !places.by_source.contains_key(&source(99)));
    }

    #[test]
    fn those_that_rest_longest_are_forgotten_first_and_proven_ones_last() {
        let admission = admission(|limits| limits.sources_max = 16);
        let now = Instant::now();
        let held: Vec<_> = (0..16).map(|last| routed(&admission, last, now)).collect();
        admission.judged(source(0), true, now);
        drop(held);
        admission.judged(source(1), true, now);
        let knows = |last| admission.places().by_source.contains_key(&source(last));
        drop(routed(&admission, 20, now));
        assert!(knows(0) && knows(1) && !knows(2) && knows(3));
        for last in 21..40 {
            drop(routed(&admission, last, now));
        }
        assert!(knows(0) && knows(1) && knows(39));
        drop(routed(&admission, 40, now + PROVEN_FOR));
        assert!(!knows(0) && knows(1), "a proof that is over keeps nothing");
        // Where all are proven, forgetting one costs a favour and refusing would cost more.
        let all = (100..116)
            .map(|last| routed(&admission, last, now))
            .collect::<Vec<_>>();
        (100..116).for_each(|last| admission.judged(source(last), true, now));
        drop(all);
        drop(routed(&admission, 41, now));
        assert!(knows(41) && !knows(100) && knows(101));
        assert_eq!(admission.places().by_source.len(), 16);
    }

    #[test]
    fn strangers_cannot_take_every_routed_place() {
        let admission = admission(|limits| {
            limits.connections_max = 400;
            limits.connections_reserved_percent = 25;
            limits.stranger_connections_per_source_max = 100;
        });
        let now = Instant::now();
        let first = routed(&admission, 9, now);
        admission.judged(source(9), true, now);
        let mut held = vec![first];
        let route = |last| {
            let place = admission.admit(Some(source(last)), now).unwrap();
            place.route(source(last), now).map_err(|refused| refused.reason)
        };
        for last in 1..=3 {
            held.extend((0..100).map_while(|_| route(last).ok()));
        }
        assert_eq!(held.len(), 300);
        assert_eq!(route(4).err(), Some(Refusal::TooManyConnections));
        held.push(route(9).unwrap());
        // A source that was good may take more than a stranger.
        held.extend((0..99).map(|_| route(9).unwrap()));
        assert_eq!(route(9).err(), Some(Refusal::TooManyConnections));
        assert_eq!(admission.taken().1, 400);
    }

    #[test]
    fn one_stranger_gets_fewer_places_than_a_source_that_was_good() {
        let admission = admission(|limits| {
            limits.connections_per_source_max = 3;
            limits.stranger_connections_per_source_max = 2;
        });
        let now = Instant::now();
        let route = |last| {
            let place = admission.admit(Some(source(last)), now).unwrap();
            place.route(source(last), now).map_err(|refused| refused.reason)
        };
        let _held = (route(1).unwrap(), route(1).unwrap());
        assert_eq!(route(1).err(), Some(Refusal::TooManyConnections));
        admission.judged(source(1), true, now);
        let _third = route(1).unwrap();
        assert_eq!(route(1).err(), Some(Refusal::TooManyConnections));
    }

    #[tokio::test]
    async fn whoever_is_turned_away_holds_a_place_and_gives_way() {
        let admission = admission(|limits| {
            limits.connections_max = 1;
            limits.waiting_connections_max = 1;
        });
        let now = Instant::now();
        let _routed = routed(&admission, 1, now);
        let refused = admission.admit(Some(source(2)), now).unwrap();
        let refused = refused.route(source(2), now).unwrap_err();
        assert_eq!(refused.reason, Refusal::TooManyConnections);
        assert_eq!(admission.taken(), (1, 1));
        assert_eq!(refused.place.hold_for(async { "told" }).await, Some("told"));
        let later = now + iap_runtime::waiting_room::UNDISTURBED;
        let _newcomer = admission.admit(Some(source(3)), later).unwrap();
        let farewell = std::future::pending::<()>();
        assert_eq!(refused.place.hold_for(farewell).await, None);
        drop(refused);
        assert_eq!(admission.taken(), (1, 1), "its place is the newcomer's");
    }
}
