//! One channel between a client and sshd: what travels each way, and who waits for an answer.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::mailbox::Mailbox;

/// One channel.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// From the client to sshd.
    pub(super) up: Mailbox,
    /// From sshd to the client.
    pub(super) down: Mailbox,
    /// The client has closed it: nothing reaches it any more.
    pub(super) client_closed: CancellationToken,
    /// Requests that sshd has yet to answer, in order (RFC 4254 §5.4).
    answers: Mutex<VecDeque<oneshot::Sender<bool>>>,
}

impl Line {
    /// The answer to the request that is sent next.
    pub(super) fn answer(&self) -> oneshot::Receiver<bool> {
        let (sender, receiver) = oneshot::channel();
        self.answers().push_back(sender);
        receiver
    }

    /// sshd has answered.
    pub(super) fn answered(&self, yes: bool) {
        if let Some(asked) = self.answers().pop_front() {
            let _ = asked.send(yes);
        }
    }

    /// sshd answers nothing more.
    pub(super) fn no_more_answers(&self) {
        self.answers().clear();
    }

    fn answers(&self) -> std::sync::MutexGuard<'_, VecDeque<oneshot::Sender<bool>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
