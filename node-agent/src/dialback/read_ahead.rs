//! Reads from the socket in large pieces on behalf of TLS, which asks for 4 KiB at a time.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Four TLS records of the largest size, with their headers.
const BUFFER_BYTES: usize = 66 * 1024;
/// More than this many unused buffers are given back to the allocator.
const UNUSED_MAX: usize = 64;

static UNUSED: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// A stream that is read in large pieces. The buffer is there only while it holds bytes, so a session at rest
/// has none.
#[derive(Debug)]
pub struct ReadAhead<S> {
    inner: S,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<S> ReadAhead<S> {
    /// Reads ahead from `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner, held: None }
    }
}

impl Held {
    fn copy_into(&mut self, target: &mut ReadBuf<'_>) {
        let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
        let taken = rest.len().min(target.remaining());
        target.put_slice(rest.get(..taken).unwrap_or_default());
        self.start += taken;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.held.is_none() {
            this.held = ready!(poll_fill(&mut this.inner, context))?;
        }
        if let Some(mut held) = this.held.take() {
            held.copy_into(target);
            if held.start < held.end {
                this.held = Some(held);
            } else {
                give_back(held.buffer);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The next piece; none at the end of the stream.
fn poll_fill<S: AsyncRead + Unpin>(
    inner: &mut S,
    context: &mut Context<'_>,
) -> Poll<io::Result<Option<Held>>> {
    let mut buffer = take();
    let mut space = ReadBuf::new(&mut buffer);
    let polled = Pin::new(inner).poll_read(context, &mut space);
    let end = space.filled().len();
    match polled {
        Poll::Ready(Ok(())) if end > 0 => Poll::Ready(Ok(Some(Held {
            buffer,
            start: 0,
            end,
        }))),
        other => {
            give_back(buffer);
            other.map(|result| result.map(|()| None))
        }
    }
}

fn take() -> Box<[u8]> {
    let pooled = UNUSED.lock().unwrap_or_else(PoisonError::into_inner).pop();
    pooled.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
}

fn give_back(buffer: Box<[u8]>) {
    let mut unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner);
    if unused.len() < UNUSED_MAX {
        unused.push(buffer);
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
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
    async fn every_byte_arrives_once_and_in_order_whatever_the_sizes() {
        let (mut far, near) = tokio::io::duplex(100_000);
        let sent: Vec<u8> = (0..300_000_u32).map(|index| (index % 251) as u8).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            for piece in sent.chunks(70_001) {
                far.write_all(piece).await.unwrap();
            }
        });
        let mut ahead = ReadAhead::new(near);
        let mut got = Vec::new();
        let mut small = [0; 4096];
        loop {
            match ahead.read(&mut small).await.unwrap() {
                0 => break,
                count => got.extend_from_slice(small.get(..count).unwrap()),
            }
        }
        writing.await.unwrap();
        assert!(got == expected);
        assert!(ahead.held.is_none(), "no buffer is kept at rest");
    }
}
