//! Where a session's bytes go by: each direction is looked at as it passes, and neither is held.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use iap_audit::CloseReason;
use iap_postgres::{CaptureLimits, TooMuch, Tracker};

use super::cancel::CancelKey;
use super::record::Statements;
use crate::session::{Ending, Live};

/// Looks at what passes, and hands on what it has seen. Dropped, it tells of what was never answered.
#[derive(Debug)]
pub(crate) struct Tap {
    tracker: Tracker,
    statements: Statements,
    began: Instant,
    live: Arc<Live>,
    /// A client that waits because too much of what it sent is unanswered.
    waiting: Option<Waker>,
    /// While it lives, the client's own key ends statements.
    _key: Option<CancelKey>,
}

impl Tap {
    pub(super) fn new(
        limits: CaptureLimits,
        statements: Statements,
        live: Arc<Live>,
        key: Option<CancelKey>,
    ) -> Self {
        Self {
            tracker: Tracker::new(limits),
            statements,
            began: Instant::now(),
            live,
            waiting: None,
            _key: key,
        }
    }

    /// Ready once more may be read of the client.
    pub(crate) fn poll_takes_more(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.tracker.is_full() {
            self.waiting = Some(context.waker().clone());
            return Poll::Pending;
        }
        self.statements.poll_room(context)
    }

    /// What the client has sent, before it goes to the backend.
    ///
    /// # Errors
    /// When it must not go there: the session is over.
    pub(crate) fn client_sent(&mut self, bytes: &[u8]) -> io::Result<()> {
        let followed = self.tracker.client_sent(bytes, self.began.elapsed());
        self.hand_on();
        self.check(followed)
    }

    /// What the client was given by the backend.
    pub(crate) fn backend_sent(&mut self, bytes: &[u8]) {
        let followed = self.tracker.backend_sent(bytes, self.began.elapsed());
        self.hand_on();
        // The client has it already; the session ends with the order to.
        let _ = self.check(followed);
        if !self.tracker.is_full()
            && let Some(waiting) = self.waiting.take()
        {
            waiting.wake();
        }
    }

    fn check(&self, followed: Result<(), TooMuch>) -> io::Result<()> {
        followed.map_err(|error| {
            self.live
                .cut(Ending::because(CloseReason::Protocol, error.to_string()));
            io::Error::other(error)
        })
    }

    fn hand_on(&mut self) {
        let ended = self.tracker.ended();
        if !ended.is_empty() {
            self.statements.write(ended);
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let unanswered = self.tracker.finish();
        if !unanswered.is_empty() {
            self.statements.write(unanswered);
        }
    }
}
