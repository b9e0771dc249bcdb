//! What has arrived and is not processed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

use super::BUFFERS;
use crate::buffers::Buffer;

/// Bytes that wait to be processed: in a buffer from the pool while they are worked on, in one of their own size while
/// the rest of their record is waited for.
#[derive(Debug)]
pub(super) struct Received {
    bytes: Bytes,
    start: usize,
    end: usize,
}

#[derive(Debug)]
enum Bytes {
    Pooled(Buffer),
    Own(Vec<u8>),
}

impl Default for Received {
    fn default() -> Self {
        Self {
            bytes: Bytes::Own(Vec::new()),
            start: 0,
            end: 0,
        }
    }
}

impl Received {
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn filled(&mut self) -> &mut [u8] {
        let bytes = match &mut self.bytes {
            Bytes::Pooled(buffer) => &mut **buffer,
            Bytes::Own(bytes) => bytes.as_mut_slice(),
        };
        bytes.get_mut(self.start..self.end).unwrap_or_default()
    }

    /// The first `count` bytes are done with.
    pub(super) fn discard(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Reads more. Returns how many bytes came; none at the end of the stream.
    pub(super) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        io: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let (mut buffer, kept) = self.move_to_front();
        let Some(space) = buffer.get_mut(kept..).filter(|space| !space.is_empty()) else {
            let what = "a TLS message is longer than any may be";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
        };
        let mut space = ReadBuf::new(space);
        let polled = Pin::new(io).poll_read(context, &mut space);
        let came = space.filled().len();
        if came == 0 {
            let own = buffer.get(..kept).unwrap_or_default().to_vec();
            *self = Self {
                bytes: Bytes::Own(own),
                start: 0,
                end: kept,
            };
        } else {
            *self = Self {
                bytes: Bytes::Pooled(buffer),
                start: 0,
                end: kept + came,
            };
        }
        polled.map_ok(|()| came)
    }

    /// A buffer from the pool with what is here at its front, and how much that is.
    fn move_to_front(&mut self) -> (Buffer, usize) {
        let Self { bytes, start, end } = std::mem::take(self);
        let kept = end - start;
        match bytes {
            Bytes::Pooled(mut buffer) => {
                buffer.copy_within(start..end, 0);
                (buffer, kept)
            }
            Bytes::Own(own) => {
                let mut buffer = BUFFERS.take();
                let waiting = own.get(start..end).unwrap_or_default();
                if let Some(front) = buffer.get_mut(..kept) {
                    front.copy_from_slice(waiting);
                }
                (buffer, kept)
            }
        }
    }
}
