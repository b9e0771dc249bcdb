//! The pump's buffers.

use crate::buffers::{self, Pool};

/// Size of each buffer. Buffers of 8 and 16 KiB cost bulk streams 1.6 and 1.3 times the processor time.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// More than this many unused ones are given back to the allocator.
const UNUSED_MAX: usize = 128;

static BUFFERS: Pool = Pool::new(BUFFER_BYTES, UNUSED_MAX);

/// A buffer for bytes on their way.
pub(super) fn take() -> buffers::Buffer {
    BUFFERS.take()
}

/// One that holds these bytes and no more.
pub(super) fn of(bytes: Vec<u8>) -> buffers::Buffer {
    BUFFERS.holding(bytes)
}
