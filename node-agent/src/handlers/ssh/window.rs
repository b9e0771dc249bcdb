//! How much each side may send ahead (RFC 4254 §5.2), steered by what the other side has not taken yet.
//!
//! russh grants a peer its whole window anew as soon as half of it has *arrived*. Passing bytes on between two SSH
//! connections needs more: a peer may be granted only what the other side takes, and the task that reads must never
//! wait for the other side, because it also brings that side's grants. What russh does ask is how large the next window
//! is to be; so while much waits, the next window is as good as nothing, and each of its tiny grants is given late.

use std::time::Duration;

/// What a peer may send ahead on one channel.
pub(super) const WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// With more than this waiting, no further window is granted.
const WAITING_BYTES_MAX: usize = WINDOW_BYTES as usize / 2;
/// Whoever minds its window gets no further in days, and russh itself does not hold anybody to it.
const IGNORED_BYTES: usize = 32 * WINDOW_BYTES as usize;
/// The smallest window that russh grants again once it is used up. Nothing smaller can ever grow again.
const TRICKLE_BYTES: u32 = 2;
/// How long whoever sends a trickle is kept waiting for the next.
pub(super) const TRICKLE_EVERY: Duration = Duration::from_millis(20);

/// The size of the next window, with so much waiting.
pub(super) fn next(waiting_bytes: usize) -> u32 {
    if is_full(waiting_bytes) {
        TRICKLE_BYTES
    } else {
        WINDOW_BYTES
    }
}

/// Whether so much waits that whoever sent it pays no heed to its window.
pub(super) fn is_ignored(waiting_bytes: usize) -> bool {
    waiting_bytes > IGNORED_BYTES
}

/// What that ends a connection with.
pub(super) fn ignored() -> russh::Error {
    std::io::Error::other("more was sent than the window allows").into()
}

/// Whether more waits than is to be added to.
pub(super) fn is_full(waiting_bytes: usize) -> bool {
    waiting_bytes > WAITING_BYTES_MAX
}
