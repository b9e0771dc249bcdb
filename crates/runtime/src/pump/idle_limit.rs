//! How long a session may rest, which may change while it lives.

use std::sync::{Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;

use super::{LiveLimits, PumpLimits};

/// A limit on rest; `None` is no limit. One pump at most follows it.
#[derive(Debug, Default)]
pub struct IdleLimit {
    limit: Mutex<Option<Duration>>,
    pump: AtomicWaker,
}

impl IdleLimit {
    /// The limit as of now.
    pub fn new(limit: Option<Duration>) -> Self {
        Self {
            limit: Mutex::new(limit),
            pump: AtomicWaker::new(),
        }
    }

    /// Changes it, also for a session that has rested for a while already.
    pub fn set(&self, limit: Option<Duration>) {
        let before = std::mem::replace(
            &mut *self.limit.lock().unwrap_or_else(PoisonError::into_inner),
            limit,
        );
        if before != limit {
            self.pump.wake();
        }
    }
}

/// Beside it stands what holds by default.
impl LiveLimits for IdleLimit {
    fn now(&self) -> PumpLimits {
        PumpLimits {
            idle: *self.limit.lock().unwrap_or_else(PoisonError::into_inner),
            ..PumpLimits::default()
        }
    }

    fn wake_when_changed(&self, waker: &Waker) {
        self.pump.register(waker);
    }
}
