//! The pump's buffers.

use crate::buffers::{self, Pool};

/// Size of each buffer: what four TLS records hold, less what `iap-resume/1` has to say beside it, so that what was read at
/// once is sent at once. Buffers of 8 and 16 KiB cost bulk streams 1.6 and 1.3 times the processor time.
pub(super) const BUFFER_BYTES: usize = 4 * 16 * 1024 - FRAME_HEADERS_BYTES;

/// Where much is moving: what sixteen hold.
const LARGE_BUFFER_BYTES: usize = 16 * 16 * 1024 - FRAME_HEADERS_BYTES;

/// A header, and an acknowledgement before it.
const FRAME_HEADERS_BYTES: usize = 32;

/// So many of those there are at once.
const LARGE_MAX: usize = 64;

/// More than this many unused ones are given back to the allocator.
const UNUSED_MAX: usize = 128;

static BUFFERS: Pool = Pool::new(BUFFER_BYTES, UNUSED_MAX, LARGE_BUFFER_BYTES, LARGE_MAX);

/// A buffer for bytes on their way.
pub(super) fn take(is_busy: bool) -> buffers::Buffer {
    BUFFERS.take(is_busy)
}
