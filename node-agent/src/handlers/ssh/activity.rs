//! When a session last carried something, for its limit on rest. Keepalives are no activity.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Poll, ready};

use iap_runtime::pump::{IdleLimit, LiveLimits as _};
use tokio::time::{Instant, Sleep, sleep_until};

/// When something last moved.
#[derive(Debug)]
pub(super) struct Activity(Mutex<Instant>);

impl Activity {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    /// Something moves.
    pub(super) fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once the limit that then holds has passed without anything.
    pub(super) async fn ran_out(&self, limit: &IdleLimit) {
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|context| {
            loop {
                // Before the look: a change in between is heard.
                limit.wake_when_changed(context.waker());
                let Some(idle) = limit.now().idle else {
                    timer = None;
                    return Poll::Pending;
                };
                let deadline = self.last() + idle;
                if deadline <= Instant::now() {
                    return Poll::Ready(());
                }
                let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                if timer.deadline() != deadline {
                    timer.as_mut().reset(deadline);
                }
                ready!(timer.as_mut().poll(context));
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::time::Duration;

    #[tokio::test]
    async fn a_session_without_a_limit_rests_until_it_has_one() {
        let (activity, limit) = (Activity::new(), IdleLimit::new(None));
        let mut resting = Box::pin(activity.ran_out(&limit));
        assert_eq!((&mut resting).now_or_never(), None);
        limit.set(Some(Duration::from_secs(3600)));
        assert_eq!((&mut resting).now_or_never(), None);
        limit.set(Some(Duration::from_millis(1)));
        resting.await;
    }

    #[tokio::test]
    async fn what_moves_puts_the_end_off() {
        let (activity, limit) = (Activity::new(), IdleLimit::new(Some(Duration::from_millis(1))));
        activity.ran_out(&limit).await;
        let before = activity.last();
        activity.note();
        assert!(activity.last() > before);
    }
}
