//! How a target takes its input apart, and the stream it reads it from.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// The first byte as a choice below `choices`, and the rest. Nothing when there is no byte.
pub(crate) fn choice(bytes: &[u8], choices: u8) -> Option<(u8, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    Some((first % choices, rest))
}

/// Cuts `bytes` into pieces of `1..=256` bytes, as `size` says; 0 means one piece.
pub(crate) fn pieces(bytes: &[u8], size: u8) -> impl Iterator<Item = &[u8]> {
    let length = match size {
        0 => bytes.len().max(1),
        size => usize::from(size),
    };
    bytes.chunks(length)
}

/// A peer that sends these bytes, at most `piece` at a time, and then closes.
pub(crate) struct Wire<'a> {
    rest: &'a [u8],
    piece: usize,
}

impl<'a> Wire<'a> {
    /// All of `bytes`, `size` at a time; 0 means as many as are asked for.
    pub(crate) fn new(bytes: &'a [u8], size: u8) -> Self {
        let piece = match size {
            0 => usize::MAX,
            size => usize::from(size),
        };
        Self { rest: bytes, piece }
    }

    /// What was not read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl AsyncRead for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.rest.len().min(self.piece).min(buffer.remaining());
        let (now, later) = self.rest.split_at(length);
        buffer.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}

/// Runs a future that never waits for anything but its own bytes.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}
