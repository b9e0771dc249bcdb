//! One follower's stream: the full state first, then every change, until its certificate ends, a lock
//! hits it, it goes away, or the server stops.

use std::sync::Arc;

use iap_identity::{Locks, VerifiedPeer};
use iap_runtime::shutdown::Shutdown;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::frame::{Frame, Frames};
use super::{Feed, PublishedLocks, PublishedSnapshot, Watching};
use crate::context::Clock;
use crate::rpc::{ErrorCode, RpcError};

/// Events written ahead of a follower's reading. Beyond that it gets the newest state when it reads on.
const EVENTS_AHEAD_MAX: usize = 4;

/// A follower: who it is and what it was told already.
struct Follower {
    feed: Feed,
    clock: Clock,
    peer: Arc<VerifiedPeer>,
    snapshot: watch::Receiver<Arc<PublishedSnapshot>>,
    locks: watch::Receiver<Arc<PublishedLocks>>,
    beat: watch::Receiver<Frame>,
    events: mpsc::Sender<Result<Frame, Status>>,
}

/// The follower is gone, or must go.
struct Over;

/// Starts a stream for a verified agent or proxy; `watching` is dropped when it ends.
pub fn follow(
    feed: &Feed,
    clock: Clock,
    peer: Arc<VerifiedPeer>,
    watching: Watching,
    shutdown: Shutdown,
) -> Frames {
    let (events, receiver) = mpsc::channel(EVENTS_AHEAD_MAX);
    let follower = Follower {
        feed: feed.clone(),
        clock,
        peer,
        snapshot: feed.shared.snapshot.subscribe(),
        locks: feed.shared.locks.subscribe(),
        beat: feed.shared.beat.subscribe(),
        events,
    };
    tokio::spawn(async move {
        let _ = follower.run(shutdown).await;
        drop(watching);
    });
    ReceiverStream::new(receiver)
}

impl Follower {
    async fn run(mut self, shutdown: Shutdown) -> Result<(), Over> {
        let expiry = tokio::time::sleep(self.time_left());
        tokio::pin!(expiry);
        let ended = tokio::select! {
            over = self.follow() => return over,
            () = shutdown.cancelled() => RpcError::stopping(),
            () = &mut expiry => {
                let text = "the certificate of this connection has expired: renew it and connect again";
                RpcError::new(ErrorCode::LoginRequired, text)
            }
        };
        self.end(ended)
    }

    /// Whoever does not read holds nothing of this up: the stream ends in the midst of an event, too.
    async fn follow(&mut self) -> Result<(), Over> {
        self.send(self.feed.shared.bundle_frame.clone()).await?;
        self.send_locks().await?;
        self.send_snapshot().await?;
        self.send_beat().await?;
        loop {
            // Locks before anything else: they cut.
            tokio::select! {
                biased;
                () = self.events.closed() => return Err(Over),
                changed = self.locks.changed() => {
                    changed.map_err(|_| Over)?;
                    self.send_locks().await?;
                }
                changed = self.snapshot.changed() => {
                    changed.map_err(|_| Over)?;
                    self.send_snapshot().await?;
                }
                changed = self.beat.changed() => {
                    changed.map_err(|_| Over)?;
                    self.send_beat().await?;
                }
            }
        }
    }

    async fn send_snapshot(&mut self) -> Result<(), Over> {
        let frame = self.snapshot.borrow_and_update().frame.clone();
        self.send(frame).await
    }

    /// A follower that is itself locked still gets the list that says so, and then the end.
    async fn send_locks(&mut self) -> Result<(), Over> {
        let published = self.locks.borrow_and_update().clone();
        self.send(published.frame.clone()).await?;
        match self.lock_on_us(&published.content.locks) {
            None => Ok(()),
            Some(reason) => self
                .end_in_turn(RpcError::denied(format!("locked: {reason}")))
                .await
                .and(Err(Over)),
        }
    }

    async fn send_beat(&mut self) -> Result<(), Over> {
        let frame = self.beat.borrow_and_update().clone();
        self.send(frame).await
    }

    fn lock_on_us(&self, locks: &Locks) -> Option<String> {
        locks
            .matching_peer(&self.peer, self.clock.now())
            .map(|lock| lock.reason.clone())
    }

    fn time_left(&self) -> std::time::Duration {
        let now: OffsetDateTime = self.clock.now();
        (self.peer.not_after() - now).try_into().unwrap_or_default()
    }

    async fn send(&self, frame: Frame) -> Result<(), Over> {
        self.events.send(Ok(frame)).await.map_err(|_| Over)
    }

    async fn end_in_turn(&self, error: RpcError) -> Result<(), Over> {
        self.events.send(Err(error.into())).await.map_err(|_| Over)
    }

    /// Says why, if there is room for it: the end of the stream comes either way.
    fn end(&self, error: RpcError) -> Result<(), Over> {
        self.events.try_send(Err(error.into())).map_err(|_| Over)
    }
}
