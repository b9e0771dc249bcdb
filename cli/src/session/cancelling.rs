//! Some drivers ask PostgreSQL to cancel a statement over a connection that they close at once. The kernel does not say whose
//! that was, so it may do nothing else: the key of the statement's own session proves enough for that.

use std::sync::Mutex;
use std::time::Duration;

use iap_runtime::tls::Replay;
use iap_tunnel::{PreambleMachine, PreambleStep};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::Instant;

/// A request of the newest protocol has a key of 256 bytes at most.
const REQUEST_BYTES_MAX: u64 = 12 + 256;
/// All of it has been sent before.
const READ_SECONDS_MAX: u64 = 1;
/// Another user of this machine could ask on and on.
const EVERY: Duration = Duration::from_millis(200);

/// When such a connection was let in last.
#[derive(Debug, Default)]
pub(super) struct Cancelling(Mutex<Option<Instant>>);

impl Cancelling {
    /// The connection, if it has brought a request to cancel, and nothing more.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) async fn admit<L: AsyncRead + Unpin>(&self, mut closed: L) -> Result<Replay<L>, &'static str> {
        if !self.is_time(Instant::now()) {
            return Err("too many were closed before their owner could be told");
        }
        let mut said = Vec::new();
        let mut all = (&mut closed).take(REQUEST_BYTES_MAX + 1);
        let reading = all.read_to_end(&mut said);
        let read = tokio::time::timeout(Duration::from_secs(READ_SECONDS_MAX), reading).await;
        match (read, PreambleMachine::new().push(&said)) {
            (Ok(Ok(_)), Ok(PreambleStep::Cancel(_))) => Ok(Replay::new(said, closed)),
            _ => Err("it was closed before its owner could be told"),
        }
    }

    fn is_time(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let waits = last.is_some_and(|last| now.duration_since(last) < EVERY);
        if !waits {
            *last = Some(now);
        }
        !waits
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const REQUEST: &[u8] = b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07abcd";

    #[tokio::test]
    async fn a_request_to_cancel_is_let_in_as_it_was_sent() {
        let mut admitted = Cancelling::default().admit(REQUEST).await.unwrap();
        let mut said = Vec::new();
        admitted.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, REQUEST);
    }

    #[tokio::test]
    async fn nothing_else_is() {
        let startup = b"\0\0\0\x10\0\x03\0\0user\0a\0\0".as_slice();
        let cut_short = REQUEST.get(..12).unwrap();
        let more = [REQUEST, b"x"].concat();
        for other in [b"".as_slice(), startup, cut_short, &more] {
            assert!(Cancelling::default().admit(other).await.is_err(), "{other:?}");
        }
    }

    #[test]
    fn there_are_not_many_at_a_time() {
        let cancelling = Cancelling::default();
        let now = Instant::now();
        assert!(cancelling.is_time(now));
        assert!(!cancelling.is_time(now + EVERY / 2));
        assert!(cancelling.is_time(now + EVERY));
    }
}
