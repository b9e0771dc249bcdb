//! What is encrypted and has not left.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::unbuffered::{EncodeError, EncryptError};
use tokio::io::AsyncWrite;

use super::BUFFERS;
use crate::buffers::Buffer;

/// Records in the order in which they were encrypted: a buffer of the caller's bytes, and behind it what the protocol
/// itself has to say.
#[derive(Debug, Default)]
pub(super) struct Sending {
    bytes: Option<Buffer>,
    start: usize,
    end: usize,
    messages: Vec<u8>,
    messages_sent: usize,
}

impl Sending {
    /// Puts the protocol's next message behind all others. `encode` says how long it is before it is given room.
    pub(super) fn push(&mut self, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
        let had = self.messages.len();
        if let Err(EncodeError::InsufficientSize(needed)) = encode(&mut []) {
            self.messages.resize(had + needed.required_size, 0);
            let space = self.messages.get_mut(had..).unwrap_or_default();
            let encoded = encode(space).unwrap_or_default();
            self.messages.truncate(had + encoded);
        }
    }

    /// Puts what is encrypted already behind all others.
    pub(super) fn append(&mut self, record: &[u8]) {
        self.messages.extend_from_slice(record);
    }

    /// Lets `encrypt` fill a buffer. Nothing else may wait: records leave in the order of their encryption.
    pub(super) fn fill(
        &mut self,
        encrypt: impl FnOnce(&mut [u8]) -> Result<usize, EncryptError>,
    ) -> io::Result<()> {
        debug_assert!(self.bytes.is_none() && self.messages.is_empty());
        let mut buffer = BUFFERS.take();
        self.end = encrypt(&mut buffer).map_err(io::Error::other)?;
        self.start = 0;
        self.bytes = Some(buffer);
        Ok(())
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
        (self.messages, self.messages_sent) = (Vec::new(), 0);
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
