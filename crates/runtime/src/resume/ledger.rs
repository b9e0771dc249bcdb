//! What the two sides of whoever moves a session's bytes tell each other of how far those have come.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// Positions of a session whose process may be killed: what it has taken and not passed on is lost with it, and what the
/// other end has not acknowledged must not be. Positions count bytes; the end counts as one.
#[derive(Debug, Default)]
pub struct Ledger {
    passed_on: AtomicU64,
    acknowledged: AtomicU64,
    /// Who waits for an acknowledgement.
    waits: AtomicWaker,
}

impl Ledger {
    /// A session that stands there.
    #[must_use]
    pub fn at(passed_on: u64, acknowledged: u64) -> Self {
        Self {
            passed_on: passed_on.into(),
            acknowledged: acknowledged.into(),
            waits: AtomicWaker::new(),
        }
    }

    /// Everything before was passed on.
    pub fn pass(&self, position: u64) {
        self.passed_on.store(position, Ordering::Release);
    }

    /// Everything before was passed on.
    #[must_use]
    pub fn passed_on(&self) -> u64 {
        self.passed_on.load(Ordering::Acquire)
    }

    /// The other end has passed on everything before.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Ready once the other end has passed on everything before `position`.
    pub fn poll_acknowledged(&self, context: &Context<'_>, position: u64) -> Poll<()> {
        if self.acknowledged() >= position {
            return Poll::Ready(());
        }
        self.waits.register(context.waker());
        match self.acknowledged() >= position {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    pub(crate) fn acknowledge(&self, position: u64) {
        if self.acknowledged.swap(position, Ordering::AcqRel) != position {
            self.waits.wake();
        }
    }
}
