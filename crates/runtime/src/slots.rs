//! A bounded number of places, whose bound may change while some are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The places. Clones share them.
#[derive(Debug, Clone)]
pub struct Slots(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    taken: AtomicUsize,
    max: AtomicUsize,
}

/// One place. Dropping it gives it back.
#[derive(Debug)]
pub struct Slot(Arc<Counts>);

impl Slots {
    /// `max` places, none of them taken.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Counts {
            taken: AtomicUsize::new(0),
            max: AtomicUsize::new(max),
        }))
    }

    /// A place, if one is free.
    #[must_use]
    pub fn take(&self) -> Option<Slot> {
        let max = self.0.max.load(Ordering::Relaxed);
        let one_more = |taken: usize| (taken < max).then_some(taken.saturating_add(1));
        let took = self
            .0
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        took.is_ok().then(|| Slot(Arc::clone(&self.0)))
    }

    /// Whether one is free now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.0.taken.load(Ordering::Relaxed) < self.0.max.load(Ordering::Relaxed)
    }

    /// How many are taken now.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// Whether none is taken now.
    #[must_use]
    pub fn are_all_free(&self) -> bool {
        self.taken() == 0
    }

    /// From now on there are `max`. Places taken beyond it stay taken until they are given back.
    pub fn resize(&self, max: usize) {
        self.0.max.store(max, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let slots = Slots::new(1);
        let held = slots.take().unwrap();
        assert!(slots.take().is_none() && !slots.has_room());
        assert!(!slots.are_all_free());
        drop(held);
        assert!(slots.are_all_free() && slots.has_room() && slots.take().is_some());
    }

    #[test]
    fn a_lower_bound_takes_no_place_away_and_gives_no_new_one_before_enough_are_free() {
        let slots = Slots::new(3);
        let mut held: Vec<_> = (0..3).map(|_| slots.take().unwrap()).collect();
        slots.resize(2);
        held.pop();
        assert!(slots.take().is_none(), "two are taken, two there are");
        held.pop();
        assert!(slots.take().is_some());
        slots.resize(4);
        let more: Vec<_> = (0..4).filter_map(|_| slots.take()).collect();
        assert_eq!(more.len(), 3, "one was taken before");
    }
}
