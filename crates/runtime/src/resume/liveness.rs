//! Whether the other end is still there: who says nothing is asked, and who does not answer is gone.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// How long silence is borne.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until the other end is asked, while it has something to acknowledge, or something came a moment ago.
    pub outstanding: Duration,
    /// The longest time until it is asked otherwise: each answer that brings nothing else doubles it.
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
    /// How long silence is borne now, with nothing to be acknowledged.
    quiet: Duration,
    asked: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Liveness {
    pub(super) fn new(patience: Patience, now: Instant) -> Self {
        Self {
            patience,
            heard: now,
            quiet: patience.outstanding,
            asked: None,
            timer: None,
        }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
        match self.asked.take() {
            Some(_) => self.quiet = (self.quiet * 2).min(self.patience.idle),
            // Whoever only receives must find out, too, that no more comes.
            None if self.quiet > self.patience.outstanding => {
                self.quiet = self.patience.outstanding;
                self.outstanding(now);
            }
            None => {}
        }
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
            None => self.heard + self.quiet,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_borne_longer_the_longer_it_was_and_briefly_once_something_comes() {
        let seconds = Duration::from_secs;
        let mut now = Instant::now();
        let mut liveness = Liveness::new(Patience::default(), now);
        for borne in [3, 6, 12, 24, 48, 60, 60] {
            assert_eq!(liveness.due(false), now + seconds(borne));
            assert_eq!(liveness.due(true), now + seconds(3));
            now += seconds(borne);
            liveness.asked = Some(now);
            assert_eq!(liveness.due(false), now + seconds(5));
            now += seconds(1);
            liveness.heard(now);
        }
        now += seconds(1);
        liveness.heard(now);
        assert_eq!(liveness.due(false), now + seconds(3));
    }
}
