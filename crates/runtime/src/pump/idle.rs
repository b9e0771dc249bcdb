//! Notices when nothing moves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{LiveLimits, PumpLimits};

/// When bytes last moved, and whether one side has closed.
pub(super) struct Activity {
    started: Instant,
    last_millis: AtomicU64,
    half_closed: AtomicBool,
    changed: Notify,
}

impl Activity {
    /// Nothing has moved for `rested` already.
    pub(super) fn start(rested: Duration) -> Self {
        let now = Instant::now();
        Self {
            started: now.checked_sub(rested).unwrap_or(now),
            last_millis: AtomicU64::new(0),
            half_closed: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    pub(super) fn note(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(millis, Ordering::Relaxed);
    }

    pub(super) fn half_closed(&self) {
        self.note();
        self.half_closed.store(true, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// One side had closed before this began.
    pub(super) fn is_half_closed(&self) {
        self.half_closed.store(true, Ordering::Relaxed);
    }

    /// Returns when the limit that now holds has passed without a byte.
    pub(super) async fn ran_out(&self, limits: &impl LiveLimits) {
        loop {
            let half_closed = self.half_closed.load(Ordering::Relaxed);
            let current = limits.now();
            let deadline = limit_for(half_closed, &current).map(|limit| self.last() + limit);
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return;
            }
            tokio::select! {
                () = reached(deadline) => {}
                () = self.changed.notified() => {}
                () = current.idle.changed() => {}
            }
        }
    }

    /// For how long nothing has moved.
    pub(super) fn rested(&self) -> Duration {
        self.last().elapsed()
    }

    fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.last_millis.load(Ordering::Relaxed))
    }
}

async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn limit_for(half_closed: bool, limits: &PumpLimits) -> Option<Duration> {
    match (half_closed, limits.idle.limit(), limits.half_closed_idle) {
        (true, Some(idle), Some(half)) => Some(idle.min(half)),
        (true, None, half) => half,
        (false, idle, _) | (true, idle, None) => idle,
    }
}
