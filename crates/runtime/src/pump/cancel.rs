//! Ending a session from outside, with the reason that goes into its record.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// An order to end, given at most once. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<Order>);

#[derive(Debug, Default)]
struct Order {
    token: CancellationToken,
    reason: OnceLock<Arc<str>>,
}

impl Cancellation {
    /// No order yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Orders the end. The first reason is kept.
    pub fn cancel(&self, reason: &str) {
        let _ = self.0.reason.set(Arc::from(reason));
        self.0.token.cancel();
    }

    /// The reason, once ordered.
    pub fn reason(&self) -> Option<Arc<str>> {
        self.0.reason.get().cloned()
    }

    /// Returns the reason as soon as the end is ordered.
    pub async fn cancelled(&self) -> Arc<str> {
        self.0.token.cancelled().await;
        self.reason().unwrap_or_default()
    }
}
