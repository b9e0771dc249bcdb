//! What is sealed and has not left.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::Error;
use rustls::unbuffered::EncodeError;
use tokio::io::AsyncWrite;

use super::BUFFERS;
use crate::buffers::Buffer;

/// Records in the order in which they were sealed: a buffer of the caller's bytes, and behind it what the protocol itself
/// has to say.
#[derive(Debug, Default)]
pub(super) struct Sending {
    bytes: Option<Buffer>,
    start: usize,
    end: usize,
    messages: Vec<u8>,
    messages_sent: usize,
}

impl Sending {
    /// Puts the handshake's next message behind all others. `encode` says how long it is before it is given room.
    pub(super) fn push(&mut self, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
        let had = self.messages.len();
        if let Err(EncodeError::InsufficientSize(needed)) = encode(&mut []) {
            self.messages.resize(had + needed.required_size, 0);
            let space = self.messages.get_mut(had..).unwrap_or_default();
            let encoded = encode(space).unwrap_or_default();
            self.messages.truncate(had + encoded);
        }
    }

    /// Messages of the protocol, to which others may be added.
    pub(super) fn messages(&mut self) -> &mut Vec<u8> {
        &mut self.messages
    }

    /// Lets `seal` fill a buffer with records of `wanted` bytes of content, as far as it goes; returns how many there are in it.
    /// Nothing else may wait: records leave in the order in which they were sealed.
    pub(super) fn fill(
        &mut self,
        wanted: usize,
        seal: impl FnOnce(&mut [u8]) -> Result<(usize, usize), Error>,
    ) -> Result<usize, Error> {
        debug_assert!(self.bytes.is_none() && self.messages.is_empty());
        let mut buffer = BUFFERS.take(wanted >= BUFFERS.small_bytes());
        let (taken, filled) = seal(&mut buffer)?;
        (self.start, self.end) = (0, filled);
        self.bytes = Some(buffer);
        Ok(taken)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_none() && self.messages.is_empty()
    }

    /// Writes until nothing is left.
    pub(super) fn poll_drain<S: AsyncWrite + Unpin>(
        &mut self,
        io: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some(buffer) = &self.bytes {
            let rest = buffer.get(self.start..self.end).unwrap_or_default();
            if rest.is_empty() {
                self.bytes = None;
            } else {
                self.start += ready!(poll_some(io, context, rest))?;
            }
        }
        while let Some(rest) = self
            .messages
            .get(self.messages_sent..)
            .filter(|rest| !rest.is_empty())
        {
            self.messages_sent += ready!(poll_some(io, context, rest))?;
        }
        if self.messages.capacity() > 0 {
            (self.messages, self.messages_sent) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

fn poll_some<S: AsyncWrite + Unpin>(
    io: &mut S,
    context: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(io).poll_write(context, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}
