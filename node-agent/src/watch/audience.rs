//! What there is to watch in one session, and who watches it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use iap_runtime::slots::{Slot, Slots};
use tokio::sync::watch;

use crate::recording::Recording;
use crate::session::Ending;

/// The recordings of a session that are being made, and those who watch.
#[derive(Debug)]
pub(crate) struct Audience {
    stage: watch::Sender<Stage>,
    names: watch::Sender<Vec<Arc<str>>>,
    seats: Slots,
}

/// What there is to see now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stage {
    /// By their number in the session.
    recordings: BTreeMap<u32, Weak<Recording>>,
    /// The session is over, and why where that is known.
    over: Option<Option<Ending>>,
}

/// A place among those who watch one session. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Seat {
    audience: Arc<Audience>,
    name: Arc<str>,
    _slots: (Slot, Slot),
}

impl Default for Audience {
    fn default() -> Self {
        Self {
            stage: watch::Sender::default(),
            names: watch::Sender::default(),
            seats: Slots::new(0),
        }
    }
}

impl Audience {
    /// A recording begins.
    pub(crate) fn begins(&self, number: u32, recording: &Arc<Recording>) {
        let recording = Arc::downgrade(recording);
        self.stage.send_modify(|stage| {
            stage.recordings.insert(number, recording);
        });
    }

    /// A recording is over.
    pub(crate) fn ends(&self, number: u32) {
        self.stage.send_modify(|stage| {
            stage.recordings.remove(&number);
        });
    }

    /// The session is over; what is said first about why counts.
    pub(crate) fn closes(&self, ending: Option<&Ending>) {
        self.stage.send_if_modified(|stage| {
            let is_first = stage.over.is_none();
            if is_first {
                stage.over = Some(ending.cloned());
            }
            is_first
        });
    }

    /// What there is to see, as it changes.
    pub(crate) fn stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// Who watches, as it changes.
    pub(crate) fn names(&self) -> watch::Receiver<Vec<Arc<str>>> {
        self.names.subscribe()
    }

    /// A place for one more, if fewer than `seats_max` watch this session and `all` has one too.
    pub(crate) fn enter(self: &Arc<Self>, name: &str, seats_max: usize, all: &Slots) -> Option<Seat> {
        self.seats.resize(seats_max);
        let slots = (self.seats.take()?, all.take()?);
        let name: Arc<str> = Arc::from(name);
        self.names.send_modify(|names| names.push(Arc::clone(&name)));
        Some(Seat {
            audience: Arc::clone(self),
            name,
            _slots: slots,
        })
    }
}

impl Stage {
    /// Why the session is over, once it is.
    pub(crate) fn over(&self) -> Option<Option<Ending>> {
        self.over.clone()
    }

    /// The numbers of all recordings that are being made.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.recordings.keys().copied().collect()
    }

    /// The one with that number; without a number the first of a terminal, or else the first.
    pub(crate) fn choose(&self, wanted: Option<u32>) -> Option<(u32, Arc<Recording>)> {
        let running = |(number, recording): (&u32, &Weak<Recording>)| Some((*number, recording.upgrade()?));
        if let Some(wanted) = wanted {
            return self.recordings.get_key_value(&wanted).and_then(running);
        }
        let running: Vec<_> = self.recordings.iter().filter_map(running).collect();
        let terminal = running.iter().find(|(_, recording)| recording.is_terminal());
        terminal.or(running.first()).cloned()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.audience.names.send_modify(|names| {
            if let Some(place) = names.iter().position(|name| Arc::ptr_eq(name, &self.name)) {
                names.remove(place);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use iap_audit::CloseReason;

    #[test]
    fn seats_are_bounded_for_the_session_and_for_all_and_names_come_and_go() {
        let (audience, all) = (Arc::new(Audience::default()), Slots::new(3));
        let first = audience.enter("a", 2, &all).unwrap();
        let second = audience.enter("a", 2, &all).unwrap();
        assert!(audience.enter("c", 2, &all).is_none(), "the session's are taken");
        let other = Arc::new(Audience::default());
        let third = other.enter("d", 2, &all).unwrap();
        assert!(other.enter("e", 2, &all).is_none(), "all are taken");
        assert_eq!(audience.names().borrow().len(), 2);
        drop(first);
        assert_eq!(audience.names().borrow().len(), 1);
        drop((second, third));
        assert!(all.are_all_free());
        assert!(audience.enter("a", 0, &all).is_none(), "none may watch");
    }

    #[test]
    fn the_first_word_on_why_it_is_over_counts() {
        let audience = Audience::default();
        assert!(audience.stage().borrow().over().is_none());
        audience.closes(Some(&Ending::plain(CloseReason::Lock)));
        audience.closes(None);
        let over = audience.stage().borrow().over().unwrap();
        assert_eq!(over, Some(Ending::plain(CloseReason::Lock)));
    }
}
