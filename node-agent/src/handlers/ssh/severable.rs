//! A stream that can be ended from outside, whoever holds it: russh keeps its streams in tasks of its own.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Ends a [`Severable`], at the latest when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Scissors(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_cut: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

/// The stream: once cut it is at its end, and takes nothing.
#[derive(Debug)]
pub(super) struct Severable<S> {
    stream: S,
    state: Arc<State>,
}

impl Scissors {
    /// A stream that these end.
    pub(super) fn around<S>(&self, stream: S) -> Severable<S> {
        Severable {
            stream,
            state: Arc::clone(&self.0),
        }
    }
}

impl Drop for Scissors {
    fn drop(&mut self) {
        self.0.is_cut.store(true, Ordering::Release);
        self.0.reader.wake();
        self.0.writer.wake();
    }
}

impl State {
    /// Registers before it looks, so that a cut in between is not missed.
    fn is_cut(&self, waker: &AtomicWaker, context: &Context<'_>) -> bool {
        waker.register(context.waker());
        self.is_cut.load(Ordering::Acquire)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Severable<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.state.is_cut(&this.state.reader, context) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Severable<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.state.is_cut(&this.state.writer, context) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.state.is_cut(&this.state.writer, context) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.state.is_cut(&this.state.writer, context) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn whoever_waits_for_bytes_sees_the_end_once_it_is_cut() {
        let scissors = Scissors::default();
        let (near, _far) = tokio::io::duplex(16);
        let mut stream = scissors.around(near);
        let reading = tokio::spawn(async move {
            let mut rest = Vec::new();
            let read = stream.read_to_end(&mut rest).await;
            (read, stream.write_all(b"x").await)
        });
        tokio::task::yield_now().await;
        drop(scissors);
        let (read, written) = reading.await.unwrap();
        assert_eq!(read.unwrap(), 0);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
