//! Places for those who have proven nothing yet. There is a fixed number of them, and a full room does not turn
//! newcomers away: whoever has waited longest gives way, because an honest client is through in a moment and one
//! that holds a connection half open is not. Sources known to be good are favoured.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Nobody gives way to one of the same standing before having waited this long, so that a crowd of honest clients is served in
/// turn, and not each sent away by the next.
pub const UNDISTURBED: Duration = Duration::from_millis(250);
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

/// What is known of a newcomer's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Somebody from there was good lately.
    Favoured,
    /// Nothing is known.
    Stranger,
}

/// The room. Clones share it.
#[derive(Debug, Clone)]
pub struct WaitingRoom {
    room: Arc<Mutex<Room>>,
}

#[derive(Debug, Default)]
struct Room {
    places_max: usize,
    places_per_source_max: usize,
    entered: u64,
    /// In the order in which they came, as `entered` numbers them.
    strangers: BTreeMap<u64, Seat>,
    favoured: BTreeMap<u64, Seat>,
    by_source: HashMap<Source, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Seat {
    since: Instant,
    /// `None` while only a balancer is known.
    source: Option<Source>,
    gave_way: CancellationToken,
}

/// A place in the room. Dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    room: WaitingRoom,
    number: u64,
    gave_way: CancellationToken,
}

/// There is no place, and nobody who would give way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every place is taken by somebody who came just now or is known to be good")]
pub struct NoPlace;

impl WaitingRoom {
    /// An empty room.
    pub fn new(places_max: usize, places_per_source_max: usize) -> Self {
        let room = Room {
            places_max,
            places_per_source_max,
            ..Room::default()
        };
        Self {
            room: Arc::new(Mutex::new(room)),
        }
    }

    /// From now on the room has so many places. Nobody inside gives way for that alone.
    pub fn resize(&self, places_max: usize, places_per_source_max: usize) {
        let mut room = self.room();
        room.places_max = places_max;
        room.places_per_source_max = places_per_source_max;
    }

    /// A place for a newcomer, whose source may not be known yet.
    ///
    /// # Errors
    /// When nobody gives way.
    pub fn enter(&self, source: Option<Source>, standing: Standing, now: Instant) -> Result<Place, NoPlace> {
        let places_max = self.room().places_max;
        self.enter_within(places_max, source, standing, now)
    }

    /// The same as if the room had `places_max` places, of which more may be taken: for rooms that share a limit.
    ///
    /// # Errors
    /// When nobody gives way.
    pub fn enter_within(
        &self,
        places_max: usize,
        source: Option<Source>,
        standing: Standing,
        now: Instant,
    ) -> Result<Place, NoPlace> {
        self.enter_as(places_max, source, standing, now, CancellationToken::new())
    }

    fn enter_as(
        &self,
        places_max: usize,
        source: Option<Source>,
        standing: Standing,
        now: Instant,
        gave_way: CancellationToken,
    ) -> Result<Place, NoPlace> {
        let mut room = self.room();
        let from_there = source
            .and_then(|source| room.by_source.get(&source))
            .map_or(0, BTreeSet::len);
        let places_per_source_max = room.places_per_source_max;
        let leaving = if from_there >= places_per_source_max {
            source.and_then(|source| room.oldest_of(source, now))
        } else if room.len() >= places_max {
            room.oldest(standing, now)
        } else {
            None
        };
        match leaving {
            Some(number) => room.send_away(number),
            None if from_there >= places_per_source_max || room.len() >= places_max => {
                return Err(NoPlace);
            }
            None => {}
        }
        let number = room.seat(source, standing, now, gave_way.clone());
        Ok(Place {
            room: self.clone(),
            number,
            gave_way,
        })
    }

    /// Has whoever has waited longest give way, strangers first, however short that was.
    pub fn dismiss_oldest(&self) {
        let mut room = self.room();
        let oldest = room.strangers.first_key_value();
        let oldest = oldest.or_else(|| room.favoured.first_key_value());
        if let Some(number) = oldest.map(|(number, _)| *number) {
            room.send_away(number);
        }
    }

    /// How many places are taken.
    pub fn taken(&self) -> usize {
        self.room().len()
    }

    /// Seats hold no invariant that a panic elsewhere could break.
    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn len(&self) -> usize {
        self.strangers.len() + self.favoured.len()
    }

    fn seat(
        &mut self,
        source: Option<Source>,
        standing: Standing,
        now: Instant,
        gave_way: CancellationToken,
    ) -> u64 {
        self.entered += 1;
        let number = self.entered;
        let seat = Seat {
            since: now,
            source,
            gave_way,
        };
        match standing {
            Standing::Favoured => self.favoured.insert(number, seat),
            Standing::Stranger => self.strangers.insert(number, seat),
        };
        if let Some(source) = source {
            self.by_source.entry(source).or_default().insert(number);
        }
        number
    }

    /// Strangers give way first. When none is left, those that are favoured do, to their like alone.
    fn oldest(&self, for_whom: Standing, now: Instant) -> Option<u64> {
        match (self.strangers.first_key_value(), for_whom) {
            (Some((number, _)), Standing::Favoured) => Some(*number),
            (Some((number, seat)), Standing::Stranger) => seat.has_waited(now).then_some(*number),
            (None, Standing::Favoured) => {
                let (number, seat) = self.favoured.first_key_value()?;
                seat.has_waited(now).then_some(*number)
            }
            (None, Standing::Stranger) => None,
        }
    }

    /// Among those of one source, whatever their standing: they share its fate.
    fn oldest_of(&self, source: Source, now: Instant) -> Option<u64> {
        let number = *self.by_source.get(&source)?.first()?;
        let seat = self
            .strangers
            .get(&number)
            .or_else(|| self.favoured.get(&number))?;
        seat.has_waited(now).then_some(number)
    }

    fn send_away(&mut self, number: u64) {
        if let Some(seat) = self.leave(number) {
            seat.gave_way.cancel();
        }
    }

    fn leave(&mut self, number: u64) -> Option<Seat> {
        let seat = self
            .strangers
            .remove(&number)
            .or_else(|| self.favoured.remove(&number))?;
        if let Some(source) = seat.source {
            self.forget(source, number);
        }
        Some(seat)
    }

    fn forget(&mut self, source: Source, number: u64) {
        if let Some(numbers) = self.by_source.get_mut(&source) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_source.remove(&source);
            }
        }
    }
}

impl Seat {
    fn has_waited(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= UNDISTURBED
    }
}

impl Place {
    /// The client behind a balancer is known now: counted by its source from here on. Every
    /// [`Place::gave_way`] made before stays good.
    ///
    /// # Errors
    /// When nobody from there gives way.
    pub fn attribute(&mut self, source: Source, standing: Standing, now: Instant) -> Result<(), NoPlace> {
        let before = self.room.room().leave(self.number);
        if before.is_none() {
            // It gave way meanwhile; whoever holds it hears so.
            return Err(NoPlace);
        }
        let gave_way = self.gave_way.clone();
        let places_max = self.room.room().places_max;
        let place = self
            .room
            .enter_as(places_max, Some(source), standing, now, gave_way)?;
        // Dropped instead of this one, the old place finds its seat gone.
        *self = place;
        Ok(())
    }

    /// Completes when the place was given to somebody else; never once it was given back.
    pub fn gave_way(&self) -> WaitForCancellationFutureOwned {
        self.gave_way.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.room().leave(self.number);
    }
}

/// Sources that were good lately: a bounded memory, for those who keep no other.
#[derive(Debug)]
pub struct GoodSources {
    sources_max: usize,
    remembered_for: Duration,
    seen: Mutex<HashMap<Source, Instant>>,
}

impl GoodSources {
    /// An empty memory.
    pub fn new(sources_max: usize, remembered_for: Duration) -> Self {
        Self {
            sources_max,
            remembered_for,
            seen: Mutex::default(),
        }
    }

    /// Somebody from there has proven who they are.
    pub fn remember(&self, source: Source, now: Instant) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= self.sources_max && !seen.contains_key(&source) {
            seen.retain(|_, at| now.saturating_duration_since(*at) < self.remembered_for);
            if seen.len() >= self.sources_max {
                // All are good: forgetting them costs a favour, keeping more would cost memory.
                seen.clear();
            }
        }
        seen.insert(source, now);
    }

    /// What is known of a source.
    pub fn standing(&self, source: Source, now: Instant) -> Standing {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get(&source) {
            Some(at) if now.saturating_duration_since(*at) < self.remembered_for => Standing::Favoured,
            Some(_) | None => Standing::Stranger,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::Future as _;
    use std::task::{Context, Waker};

    use super::*;

    fn source(last: u8) -> Source {
        Source::of(IpAddr::from([203, 0, 113, last]))
    }

    fn gave_way(place: &Place) -> bool {
        let mut waiting = Box::pin(place.gave_way());
        waiting
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    const STRANGER: Standing = Standing::Stranger;
    const FAVOURED: Standing = Standing::Favoured;

    #[test]
    fn in_a_full_room_whoever_waited_longest_gives_way_to_a_newcomer() {
        let room = WaitingRoom::new(2, 2);
        let now = Instant::now();
        let first = room.enter(Some(source(1)), STRANGER, now).unwrap();
        let second = room.enter(None, STRANGER, now).unwrap();
        assert_eq!(
            room.enter(Some(source(2)), STRANGER, now).err(),
            Some(NoPlace),
            "both came just now"
        );
        let later = now + UNDISTURBED;
        let third = room.enter(Some(source(2)), STRANGER, later).unwrap();
        assert!(gave_way(&first) && !gave_way(&second) && !gave_way(&third));
        assert_eq!(room.taken(), 2);
        drop(first);
        assert_eq!(room.taken(), 2, "its place is another's");
        drop((second, third));
        assert_eq!(room.taken(), 0);
        assert!(room.room().by_source.is_empty());
    }

    #[test]
    fn one_source_cannot_take_more_than_its_places_and_its_own_oldest_gives_way() {
        let room = WaitingRoom::new(10, 2);
        let now = Instant::now();
        let other = room.enter(Some(source(9)), STRANGER, now).unwrap();
        let first = room.enter(Some(source(1)), STRANGER, now).unwrap();
        let _second = room.enter(Some(source(1)), STRANGER, now).unwrap();
        assert!(room.enter(Some(source(1)), STRANGER, now).is_err());
        let _third = room.enter(Some(source(1)), STRANGER, now + UNDISTURBED).unwrap();
        assert!(gave_way(&first) && !gave_way(&other));
        assert_eq!(room.taken(), 3);
    }

    #[test]
    fn one_that_is_favoured_gets_a_place_at_once_and_never_gives_way_to_strangers() {
        let room = WaitingRoom::new(2, 2);
        let now = Instant::now();
        let stranger = room.enter(Some(source(1)), STRANGER, now).unwrap();
        let good = room.enter(Some(source(2)), FAVOURED, now).unwrap();
        let better = room.enter(Some(source(3)), FAVOURED, now).unwrap();
        assert!(
            gave_way(&stranger),
            "without the time that strangers leave each other"
        );
        let much_later = now + 100 * UNDISTURBED;
        assert!(room.enter(Some(source(4)), STRANGER, much_later).is_err());
        assert!(room.enter(Some(source(4)), FAVOURED, now).is_err());
        assert!(!gave_way(&good) && !gave_way(&better));
        let _best = room.enter(Some(source(4)), FAVOURED, much_later).unwrap();
        assert!(
            gave_way(&good) && !gave_way(&better),
            "to another that is favoured, after a while"
        );
    }

    #[test]
    fn a_balancers_place_is_counted_for_the_client_behind_it() {
        let room = WaitingRoom::new(10, 1);
        let now = Instant::now();
        let mut first = room.enter(None, STRANGER, now).unwrap();
        let mut second = room.enter(None, STRANGER, now).unwrap();
        first.attribute(source(1), STRANGER, now).unwrap();
        assert_eq!(second.attribute(source(1), STRANGER, now), Err(NoPlace));
        assert_eq!(room.taken(), 1, "the refused one holds nothing any more");
        let mut third = room.enter(None, STRANGER, now).unwrap();
        third.attribute(source(2), FAVOURED, now).unwrap();
        assert_eq!(room.taken(), 2);
    }

    #[test]
    fn a_smaller_room_sends_nobody_away_and_a_larger_one_has_places_at_once() {
        let room = WaitingRoom::new(2, 2);
        let now = Instant::now();
        let first = room.enter(Some(source(1)), STRANGER, now).unwrap();
        let second = room.enter(Some(source(2)), STRANGER, now).unwrap();
        room.resize(1, 1);
        assert!(!gave_way(&first) && !gave_way(&second));
        drop(first);
        assert!(
            room.enter(Some(source(3)), STRANGER, now).is_err(),
            "one is taken, one there is"
        );
        room.resize(3, 2);
        let _third = room.enter(Some(source(2)), STRANGER, now).unwrap();
        assert_eq!(room.taken(), 2);
    }

    #[test]
    fn whoever_waits_for_a_place_to_give_way_hears_so_after_its_client_became_known_too() {
        let room = WaitingRoom::new(1, 1);
        let now = Instant::now();
        let mut place = room.enter(None, STRANGER, now).unwrap();
        let mut waiting = Box::pin(place.gave_way());
        let mut poll = || waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        place.attribute(source(1), STRANGER, now).unwrap();
        assert!(poll().is_pending(), "it only moved");
        let _newcomer = room.enter(Some(source(2)), STRANGER, now + UNDISTURBED).unwrap();
        assert!(poll().is_ready());
    }

    #[test]
    fn good_sources_are_remembered_for_a_while_and_within_bounds() {
        let good = GoodSources::new(2, Duration::from_secs(600));
        let now = Instant::now();
        assert_eq!(good.standing(source(1), now), STRANGER);
        good.remember(source(1), now);
        assert_eq!(good.standing(source(1), now), FAVOURED);
        assert_eq!(good.standing(source(1), now + Duration::from_secs(600)), STRANGER);
        good.remember(source(2), now);
        good.remember(source(3), now);
        assert_eq!(good.standing(source(3), now), FAVOURED);
        assert!(good.seen.lock().unwrap().len() <= 2);
    }

    #[test]
    fn addresses_of_one_ipv6_site_are_one_source_and_mapped_ipv4_is_ipv4() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:203.0.113.1"), source(1));
    }
}
