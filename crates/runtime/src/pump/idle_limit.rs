//! How long a session may rest, which may change while it lives.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// A limit on rest; `None` is no limit. Clones share it. One session at most waits for its changes.
#[derive(Debug, Clone, Default)]
pub struct IdleLimit(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    limit: Mutex<Option<Duration>>,
    changed: Notify,
}

impl IdleLimit {
    /// The limit as of now.
    pub fn new(limit: Option<Duration>) -> Self {
        let new = Self::default();
        new.set(limit);
        new
    }

    /// Changes it, also for a session that has rested for a while already.
    pub fn set(&self, limit: Option<Duration>) {
        let mut held = self.0.limit.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *held, limit) != limit {
            self.0.changed.notify_one();
        }
    }

    pub(super) fn limit(&self) -> Option<Duration> {
        *self.0.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }
}
