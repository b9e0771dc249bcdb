//! How much memory sessions may take together for bytes that may have to be sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that those who share it may keep. Clones share it.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    bytes_max: AtomicUsize,
    taken: AtomicUsize,
}

impl Budget {
    /// So many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Counts {
            bytes_max: AtomicUsize::new(bytes_max),
            taken: AtomicUsize::new(0),
        }))
    }

    /// From now on so many. Nobody gives back what is taken.
    pub fn resize(&self, bytes_max: usize) {
        self.0.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// How many sessions, or other clones, share it.
    #[must_use]
    pub fn shared_by(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    fn left(&self) -> usize {
        self.0
            .bytes_max
            .load(Ordering::Relaxed)
            .saturating_sub(self.taken())
    }

    fn change(&self, from: usize, to: usize) {
        match to.checked_sub(from) {
            Some(more) => self.0.taken.fetch_add(more, Ordering::Relaxed),
            None => self.0.taken.fetch_sub(from - to, Ordering::Relaxed),
        };
    }
}

/// One session's part in budgets. What is exhausted leaves it the least that a session needs (
/// [`iap_tunnel::resume::WINDOW_BYTES_MIN`]), so that all go on, if slowly.
#[derive(Debug, Default)]
pub struct Allowance {
    budgets: Vec<Budget>,
    taken: usize,
}

impl Allowance {
    /// Within all of these; within none of them, without a bound.
    #[must_use]
    pub fn within(budgets: Vec<Budget>) -> Self {
        Self { budgets, taken: 0 }
    }

    /// How many bytes the session may keep now.
    pub(super) fn window(&self) -> usize {
        let left = self.budgets.iter().map(Budget::left).min();
        left.map_or(usize::MAX, |left| self.taken.saturating_add(left))
    }

    /// It keeps so many.
    pub(super) fn settle(&mut self, kept: usize) {
        if kept != self.taken {
            for budget in &self.budgets {
                budget.change(self.taken, kept);
            }
            self.taken = kept;
        }
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.settle(0);
    }
}
