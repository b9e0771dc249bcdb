//! Notices when nothing moves.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::{CloseReason, LiveLimits, PumpLimits, Side, reason_of};

/// A limit that has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RanOut {
    /// On any session.
    Idle,
    /// On one that a side has closed its half of: it has ended as that side would have it, and nobody's rule is to blame.
    HalfClosed,
}

impl RanOut {
    /// How a session ends with it, the first side to close being that.
    pub(super) fn reason(self, first_closed: Option<Side>) -> CloseReason {
        match self {
            Self::Idle => CloseReason::Idle,
            Self::HalfClosed => reason_of(first_closed, None),
        }
    }
}

/// When bytes last moved, and whether one side has closed.
pub(super) struct Activity {
    last: Instant,
    is_half_closed: bool,
    /// There while there is a limit, and never set for later than that. In a box: most sessions have none.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Activity {
    /// Nothing has moved for `rested` already.
    pub(super) fn start(rested: Duration) -> Self {
        let now = Instant::now();
        Self {
            last: now.checked_sub(rested).unwrap_or(now),
            is_half_closed: false,
            timer: None,
        }
    }

    pub(super) fn note(&mut self) {
        self.last = Instant::now();
    }

    pub(super) fn half_closed(&mut self) {
        self.note();
        self.is_half_closed = true;
    }

    /// One side had closed before this began.
    pub(super) fn is_half_closed(&mut self) {
        self.is_half_closed = true;
    }

    /// For how long nothing has moved.
    pub(super) fn rested(&self) -> Duration {
        self.last.elapsed()
    }

    /// Ready when the limit that now holds has passed without a byte; with which one that is.
    pub(super) fn poll_ran_out(
        &mut self,
        context: &mut Context<'_>,
        limits: &impl LiveLimits,
    ) -> Poll<RanOut> {
        // Before the look: a change in between is heard.
        limits.wake_when_changed(context.waker());
        let Some((limit, ran_out)) = limit_for(self.is_half_closed, &limits.now()) else {
            self.timer = None;
            return Poll::Pending;
        };
        let deadline = self.last + limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        // What moves does not touch the timer: where it comes early, it is set again.
        while deadline > Instant::now() {
            ready!(timer.as_mut().poll(context));
            timer.as_mut().reset(deadline);
        }
        Poll::Ready(ran_out)
    }
}

fn limit_for(is_half_closed: bool, limits: &PumpLimits) -> Option<(Duration, RanOut)> {
    let idle = limits.idle.map(|idle| (idle, RanOut::Idle));
    let half = limits.half_closed_idle.filter(|_| is_half_closed);
    match (idle, half) {
        (Some((idle, _)), Some(half)) if half < idle => Some((half, RanOut::HalfClosed)),
        (None, Some(half)) => Some((half, RanOut::HalfClosed)),
        (idle, _) => idle,
    }
}
