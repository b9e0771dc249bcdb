//! Places for connections whose client has proven nothing yet, shared among the proxies. Where a client comes from
//! is its proxy's word, so a proxy that lies takes places from its own clients and not from those of the others.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use iap_identity::ProxyId;
use iap_runtime::waiting_room::{GoodSources, NoPlace, Place, Source, WaitingRoom};

/// Sources remembered of each proxy for having sent somebody good.
const GOOD_SOURCES_MAX: usize = 1024;
/// And for how long.
const GOOD_FOR: Duration = Duration::from_secs(600);

/// The places of all proxies.
#[derive(Debug)]
pub(super) struct Shares {
    proxies_max: usize,
    shares: Mutex<BTreeMap<ProxyId, Share>>,
}

/// What one proxy has of them.
#[derive(Debug)]
struct Share {
    room: WaitingRoom,
    good_sources: GoodSources,
}

impl Shares {
    /// For as many proxies as have connections; of at most `proxies_max` that have none, good sources are
    /// remembered.
    pub(super) fn new(proxies_max: usize) -> Self {
        Self {
            proxies_max,
            shares: Mutex::default(),
        }
    }

    /// A place, of `places_max`, for a client that `proxy` says comes from `source`. Once all are taken, a proxy
    /// that has its share or more has its own oldest give way, and for one that has less the proxy with the most.
    ///
    /// # Errors
    /// When nobody gives way.
    pub(super) fn place(
        &self,
        proxy: ProxyId,
        source: Source,
        places_max: usize,
        now: Instant,
    ) -> Result<Place, NoPlace> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if shares.len() > self.proxies_max {
            shares.retain(|_, share| share.room.taken() > 0);
        }
        let own = shares.entry(proxy).or_insert_with(|| Share {
            // Its bound comes with each newcomer, and the proxy has bounded each source already.
            room: WaitingRoom::new(usize::MAX, usize::MAX),
            good_sources: GoodSources::new(GOOD_SOURCES_MAX, GOOD_FOR),
        });
        let (room, standing) = (own.room.clone(), own.good_sources.standing(source, now));
        let taken = || shares.values().map(|share| share.room.taken());
        if taken().sum::<usize>() < places_max {
            return room.enter(Some(source), standing, now);
        }
        let sharing = shares
            .iter()
            .filter(|(id, share)| **id == proxy || share.room.taken() > 0);
        let share = (places_max / sharing.count()).max(1);
        if room.taken() < share
            && let Some(greediest) = shares.values().max_by_key(|share| share.room.taken())
        {
            greediest.room.dismiss_oldest();
            return room.enter(Some(source), standing, now);
        }
        // No more than it has: its oldest goes, or the newcomer does not come.
        room.enter_within(room.taken(), Some(source), standing, now)
    }

    /// Somebody from there has proven who they are.
    pub(super) fn remember(&self, proxy: ProxyId, source: Source, now: Instant) {
        let shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&proxy) {
            share.good_sources.remember(source, now);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::IpAddr;

    use iap_runtime::waiting_room::UNDISTURBED;
    use uuid::Uuid;

    use super::*;

    fn proxy(number: u128) -> ProxyId {
        ProxyId::from_uuid(Uuid::from_u128(number))
    }

    fn source(last: u8) -> Source {
        Source::of(IpAddr::from([203, 0, 113, last]))
    }

    fn gave_way(places: &[Place]) -> usize {
        let gone = places.iter().filter(|place| {
            let mut waiting = Box::pin(place.gave_way());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            waiting.as_mut().poll(&mut context).is_ready()
        });
        gone.count()
    }

    #[test]
    fn a_proxy_that_takes_every_place_gives_others_their_share_at_once() {
        let shares = Shares::new(4);
        let now = Instant::now();
        let enter = |from, last, now| shares.place(proxy(from), source(last), 8, now);
        let hostile: Vec<_> = (0..8).map(|last| enter(1, last, now).unwrap()).collect();
        let honest: Vec<_> = (0..4).map(|_| enter(2, 1, now).unwrap()).collect();
        assert_eq!(gave_way(&hostile), 4);
        let later = now + UNDISTURBED;
        let mut more = Vec::new();
        for _ in 0..100 {
            more.extend(enter(1, 9, later).ok());
        }
        assert_eq!(gave_way(&honest), 0, "its newcomers take only its own places");
        assert_eq!(gave_way(&hostile), 8);
        // Beyond its share a proxy's own oldest goes, once it has had its moment.
        assert!(enter(2, 1, later).is_ok());
        assert_eq!(gave_way(&honest), 1);
    }

    #[test]
    fn what_one_proxy_says_of_a_source_favours_nobody_at_another() {
        let shares = Shares::new(4);
        let now = Instant::now();
        let first = shares.place(proxy(1), source(1), 2, now).unwrap();
        shares.remember(proxy(1), source(7), now);
        let second = shares.place(proxy(2), source(1), 2, now).unwrap();
        assert!(shares.place(proxy(2), source(7), 2, now).is_err());
        assert!(
            shares.place(proxy(1), source(7), 2, now).is_ok(),
            "here it is favoured"
        );
        assert_eq!(gave_way(&[first, second]), 1);
    }

    #[test]
    fn a_proxy_alone_has_all_places_and_the_forgotten_are_bounded() {
        let shares = Shares::new(2);
        let now = Instant::now();
        let alone: Vec<_> = (0..4)
            .map(|last| shares.place(proxy(1), source(last), 4, now).unwrap())
            .collect();
        assert_eq!(gave_way(&alone), 0);
        drop(alone);
        for number in 0..100 {
            drop(shares.place(proxy(number), source(1), 4, now).unwrap());
        }
        assert!(shares.shares.lock().unwrap().len() <= 4);
    }
}
