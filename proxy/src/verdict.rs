//! What its agent says of a session's client, and how long a session may linger that has no good word yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iap_runtime::pump::{LiveLimits, PumpLimits};
use tokio::sync::Notify;

/// How long a connection lasts without a byte once one side has closed it, while nobody has said that its client
/// proved who it is: whoever leads it to its end closes it within moments, and a stranger that stays holds a place.
pub const UNPROVEN_HALF_CLOSED: Duration = Duration::from_secs(5);
/// What an agent that has given a client up may still tell it.
pub const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Limits of connections of whose clients nothing will be known here, as those to the auth server.
#[derive(Debug, Clone, Copy)]
pub struct Unproven;

impl LiveLimits for Unproven {
    fn now(&self) -> PumpLimits {
        PumpLimits {
            half_closed_idle: Some(UNPROVEN_HALF_CLOSED),
            ..PumpLimits::default()
        }
    }
}

/// The verdict on one session's client. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Verdict(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_good: AtomicBool,
    failed: Notify,
}

impl Verdict {
    /// The agent has judged.
    pub fn give(&self, authenticated: bool) {
        if authenticated {
            self.0.is_good.store(true, Ordering::Relaxed);
        } else {
            self.0.failed.notify_one();
        }
    }

    /// Returns when the client has failed and what its agent had to tell it has had time to arrive; never for
    /// another. One may wait.
    pub async fn failed(&self) {
        self.0.failed.notified().await;
        tokio::time::sleep(FAREWELL_TIMEOUT).await;
    }
}

impl LiveLimits for Verdict {
    fn now(&self) -> PumpLimits {
        match self.0.is_good.load(Ordering::Relaxed) {
            true => PumpLimits::default(),
            false => Unproven.now(),
        }
    }
}
