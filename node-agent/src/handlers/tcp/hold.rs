//! Holding a session still while its records cannot be written.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use iap_audit::CloseReason;
use iap_runtime::config::InForce;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::limits::Limits;
use crate::session::{Ending, Live};

/// Whether a session's bytes stand still. Clones share it.
#[derive(Debug, Clone, Default)]
pub(in crate::handlers) struct Hold(Arc<State>);

#[derive(Debug, Default)]
struct State {
    holds: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Hold {
    /// Holds the session for as long as the spool is full; after `limits.spool_full_pause_seconds_max` of that, cuts
    /// it. Never returns: who moves its bytes sees the cut, and tells the client.
    pub(in crate::handlers) async fn while_full(
        &self,
        full: Option<watch::Receiver<bool>>,
        limits: &InForce<Limits>,
        live: &Live,
    ) -> Infallible {
        let Some(mut full) = full else {
            return std::future::pending().await;
        };
        loop {
            if full.wait_for(|full| *full).await.is_err() {
                return std::future::pending().await;
            }
            self.set(true);
            let patience = limits.now().spool_full_pause();
            // Boxed, so that every other session does not hold its size.
            let room = Box::pin(tokio::time::timeout(patience, full.wait_for(|full| !*full)));
            if room.await.is_err() {
                live.cut(Ending::because(
                    CloseReason::AuditUnavailable,
                    "the audit spool is full",
                ));
                return std::future::pending().await;
            }
            self.set(false);
        }
    }

    fn set(&self, holds: bool) {
        self.0.holds.store(holds, Ordering::Release);
        if !holds {
            self.0.reader.wake();
            self.0.writer.wake();
        }
    }

    /// Registers before it looks, so that a release in between is not missed.
    fn poll_free(&self, waker: &AtomicWaker, context: &Context<'_>) -> Poll<()> {
        if !self.0.holds.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        waker.register(context.waker());
        if self.0.holds.load(Ordering::Acquire) {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

/// A stream that neither gives nor takes while its session is held. On the backend's side this stops both
/// directions.
#[derive(Debug)]
pub(in crate::handlers) struct Held<S> {
    stream: S,
    hold: Hold,
}

impl<S> Held<S> {
    pub(in crate::handlers) fn new(stream: S, hold: Hold) -> Self {
        Self { stream, hold }
    }

    /// The stream below.
    pub(super) fn inner(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        std::task::ready!(this.hold.poll_free(&this.hold.0.reader, context));
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        std::task::ready!(this.hold.poll_free(&this.hold.0.writer, context));
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
