//! A stream whose first bytes were already read by somebody who had to look at them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Yields `prefix`, then what the inner stream yields. Writes go straight through.
#[derive(Debug)]
pub struct Replay<S> {
    prefix: Vec<u8>,
    position: usize,
    inner: S,
}

impl<S> Replay<S> {
    /// `prefix` was read from `inner` before.
    pub fn new(prefix: Vec<u8>, inner: S) -> Self {
        Self {
            prefix,
            position: 0,
            inner,
        }
    }

    /// The stream below.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// What has not been read of the prefix, and the stream below.
    pub fn into_parts(mut self) -> (Vec<u8>, S) {
        self.prefix.drain(..self.position);
        (self.prefix, self.inner)
    }

    fn take_prefix(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let rest = self.prefix.get(self.position..).unwrap_or_default();
        let taken = rest.len().min(buffer.remaining());
        buffer.put_slice(rest.get(..taken).unwrap_or_default());
        self.position += taken;
        if self.position == self.prefix.len() {
            self.prefix = Vec::new();
            self.position = 0;
        }
        taken > 0
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.take_prefix(buffer) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_prefix_comes_first_and_only_once() {
        let (mut far, near) = tokio::io::duplex(64);
        far.write_all(b" and the rest").await.unwrap();
        far.shutdown().await.unwrap();
        let mut replay = Replay::new(b"the start".to_vec(), near);
        let mut two = [0; 2];
        replay.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"th");
        let mut rest = String::new();
        replay.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "e start and the rest");
    }

    #[tokio::test]
    async fn parts_keep_what_was_not_read() {
        let (_far, near) = tokio::io::duplex(64);
        let mut replay = Replay::new(b"abcdef".to_vec(), near);
        let mut two = [0; 2];
        replay.read_exact(&mut two).await.unwrap();
        assert_eq!(replay.into_parts().0, b"cdef");
    }
}
