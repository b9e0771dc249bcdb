//! Ending a session from outside, with the reason that goes into its record.

use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

/// An order to end, given at most once. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<Order>);

#[derive(Debug, Default)]
struct Order {
    reason: OnceLock<Arc<str>>,
    given: Notify,
}

impl Cancellation {
    /// No order yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Orders the end. The first reason is kept.
    pub fn cancel(&self, reason: &str) {
        let _ = self.0.reason.set(Arc::from(reason));
        self.0.given.notify_waiters();
    }

    /// The reason, once ordered.
    pub fn reason(&self) -> Option<Arc<str>> {
        self.0.reason.get().cloned()
    }

    /// Returns the reason as soon as the end is ordered.
    pub async fn cancelled(&self) -> Arc<str> {
        // Before the look: an order that is given in between is heard.
        let given = self.0.given.notified();
        if let Some(reason) = self.reason() {
            return reason;
        }
        given.await;
        self.reason().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_hears_of_the_order_and_whoever_comes_later_too() {
        let order = Cancellation::new();
        let (mut early, shared) = (Box::pin(order.cancelled()), order.clone());
        assert_eq!((&mut early).now_or_never(), None);
        let never_looked = order.cancelled();
        shared.cancel("first");
        shared.cancel("second");
        for told in [early.await, never_looked.await, order.cancelled().await] {
            assert_eq!(&*told, "first");
        }
    }
}
