//! The part of a configuration that may change while the program runs.

use std::sync::Arc;

use arc_swap::ArcSwap;

/// What is in force now: an immutable value with one writer, which whoever needs it reads at each use. Clones share
/// it.
#[derive(Debug)]
pub struct InForce<T>(Arc<ArcSwap<T>>);

impl<T> InForce<T> {
    /// In force until it is replaced.
    pub fn new(value: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(value)))
    }

    /// What is in force now.
    pub fn now(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// From now on this is.
    pub fn replace(&self, value: T) {
        self.0.store(Arc::new(value));
    }
}

impl<T> Clone for InForce<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_see_what_replaced_it_and_readers_keep_what_they_read() {
        let limit = InForce::new(1);
        let (clone, read) = (limit.clone(), limit.now());
        limit.replace(2);
        assert_eq!((*clone.now(), *read), (2, 1));
    }
}
