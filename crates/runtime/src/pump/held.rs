//! Bytes that were read and wait for the other end to take them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::buffers::Buffer;

/// They lie in `buffer` from `start` to `end`, which is behind it.
pub(super) struct Held {
    pub(super) buffer: Buffer,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Writes until nothing is held, and says how much went at each step.
pub(super) fn poll_deliver<W: AsyncWrite + Unpin>(
    held: &mut Option<Held>,
    context: &mut Context<'_>,
    to: &mut W,
    mut delivered: impl FnMut(usize),
) -> Poll<io::Result<()>> {
    while let Some(rest) = held {
        let bytes = rest.buffer.get(rest.start..rest.end).unwrap_or_default();
        let written = ready!(Pin::new(&mut *to).poll_write(context, bytes))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        rest.start += written;
        if rest.start >= rest.end {
            *held = None;
        }
        delivered(written);
    }
    Poll::Ready(Ok(()))
}
