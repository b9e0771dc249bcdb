//! Who follows the feed at the moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

/// Open streams, counted by the id of whoever opened them. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Watchers {
    open: Arc<Mutex<BTreeMap<Uuid, usize>>>,
}

/// One open stream; dropping it ends the count.
#[derive(Debug)]
pub struct Watching {
    watchers: Watchers,
    id: Uuid,
}

impl Watchers {
    /// Counts a stream until the returned value is dropped.
    pub fn enter(&self, id: Uuid) -> Watching {
        *self.open().entry(id).or_insert(0) += 1;
        Watching {
            watchers: self.clone(),
            id,
        }
    }

    /// Whether it has a stream open.
    pub fn contains(&self, id: Uuid) -> bool {
        self.open().contains_key(&id)
    }

    /// How many streams are open.
    pub fn len(&self) -> usize {
        self.open().values().sum()
    }

    /// Whether nobody follows.
    pub fn is_empty(&self) -> bool {
        self.open().is_empty()
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<Uuid, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut open = self.watchers.open();
        match open.get_mut(&self.id) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => drop(open.remove(&self.id)),
        }
    }
}
