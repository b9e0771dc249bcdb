//! Whether the other end is still there: who says nothing is asked, and who does not answer is gone.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// How long silence is borne.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until the other end is asked, while it has something to acknowledge.
    pub outstanding: Duration,
    /// The same while it has not.
    pub idle: Duration,
    /// For the answer.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            outstanding: Duration::from_secs(3),
            idle: Duration::from_secs(60),
            answer: Duration::from_secs(5),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ask,
    Dead,
}

#[derive(Debug)]
pub(super) struct Liveness {
    patience: Patience,
    heard: Instant,
    asked: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Liveness {
    pub(super) fn new(patience: Patience, now: Instant) -> Self {
        Self {
            patience,
            heard: now,
            asked: None,
            timer: None,
        }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.asked = None;
    }

    /// Something is to be acknowledged: silence is borne for less time from now on.
    pub(super) fn outstanding(&mut self, now: Instant) {
        let due = now + self.patience.outstanding;
        if let Some(timer) = &mut self.timer
            && timer.deadline() > due
        {
            timer.as_mut().reset(due);
        }
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>, is_outstanding: bool) -> Poll<Verdict> {
        loop {
            let due = self.due(is_outstanding);
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            ready!(timer.as_mut().poll(context));
            let now = Instant::now();
            if now < due {
                timer.as_mut().reset(due);
                continue;
            }
            if self.asked.is_some() {
                self.asked = None;
                self.timer = None;
                return Poll::Ready(Verdict::Dead);
            }
            self.asked = Some(now);
            timer.as_mut().reset(now + self.patience.answer);
            return Poll::Ready(Verdict::Ask);
        }
    }

    /// When silence has lasted too long.
    fn due(&self, is_outstanding: bool) -> Instant {
        match self.asked {
            Some(asked) => asked + self.patience.answer,
            None if is_outstanding => self.heard + self.patience.outstanding,
            None => self.heard + self.patience.idle,
        }
    }
}
