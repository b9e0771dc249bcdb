//! What has arrived and was not given on.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

use super::BUFFERS;
use crate::buffers::Buffer;

/// Bytes that wait to be opened: in a buffer from the pool while they are worked on, in one of their own size while the
/// rest of their record is waited for. Before them may lie content that was opened in its place.
#[derive(Debug)]
pub(super) struct Received {
    bytes: Bytes,
    content: Range<usize>,
    start: usize,
    end: usize,
    /// Whether the last read brought as much as there was room for.
    is_busy: bool,
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
            content: 0..0,
            start: 0,
            end: 0,
            is_busy: false,
        }
    }
}

impl Received {
    /// What is to be opened.
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
        self.give_back();
    }

    /// The first `count` bytes are a record that was opened, its content in `place`.
    pub(super) fn opened(&mut self, count: usize, place: Range<usize>) {
        self.content = self.start + place.start..self.start + place.end;
        self.start = (self.start + count).min(self.end);
    }

    /// What is to be opened does not count any more.
    pub(super) fn forget(&mut self) {
        self.start = self.end;
        self.give_back();
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end && self.content.is_empty()
    }

    /// Gives what was opened, as far as that goes.
    pub(super) fn give(&mut self, target: &mut ReadBuf<'_>) {
        if self.content.is_empty() {
            return;
        }
        let count = self.content.len().min(target.remaining());
        let place = self.content.start..self.content.start + count;
        let bytes = match &self.bytes {
            Bytes::Pooled(buffer) => &**buffer,
            Bytes::Own(bytes) => bytes.as_slice(),
        };
        target.put_slice(bytes.get(place).unwrap_or_default());
        self.content.start += count;
        self.give_back();
    }

    fn give_back(&mut self) {
        if self.start == self.end && self.content.is_empty() {
            *self = Self {
                is_busy: self.is_busy,
                ..Self::default()
            };
        }
    }

    /// Reads more, once all that was opened is given. Returns how many bytes came; none at the end of the stream.
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
        self.is_busy = came > 0 && (space.remaining() == 0 || came >= BUFFERS.small_bytes());
        self.end = kept + came;
        self.bytes = match came {
            0 => Bytes::Own(buffer.get(..kept).unwrap_or_default().to_vec()),
            _ => Bytes::Pooled(buffer),
        };
        polled.map_ok(|()| came)
    }

    /// A buffer from the pool with what is here at its front, and how much that is.
    fn move_to_front(&mut self) -> (Buffer, usize) {
        let (start, end) = (std::mem::take(&mut self.start), std::mem::take(&mut self.end));
        self.content = 0..0;
        let kept = end - start;
        match std::mem::replace(&mut self.bytes, Bytes::Own(Vec::new())) {
            Bytes::Pooled(mut buffer) if buffer.len() > BUFFERS.small_bytes() || !self.is_busy => {
                buffer.copy_within(start..end, 0);
                (buffer, kept)
            }
            bytes => {
                let waiting = match &bytes {
                    Bytes::Pooled(buffer) => &**buffer,
                    Bytes::Own(own) => own.as_slice(),
                };
                let waiting = waiting.get(start..end).unwrap_or_default();
                let mut buffer = BUFFERS.take(self.is_busy);
                if let Some(front) = buffer.get_mut(..kept) {
                    front.copy_from_slice(waiting);
                }
                (buffer, kept)
            }
        }
    }
}
