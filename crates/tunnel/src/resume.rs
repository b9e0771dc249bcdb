//! `iap-resume/1`: a session's bytes in frames, numbered by their position, so that the session outlives the connections it
//! runs over (docs/protocol.md).
//!
//! Each end is an [`Endpoint`]. It keeps what it has sent until the other end has passed it on, and starts again from there
//! on the next connection. It neither reads a clock nor touches a socket: who drives it says when a connection is there.

mod endpoint;
mod frame;
mod incoming;
mod outgoing;
mod standing;
#[cfg(test)]
mod tests;
mod ticket;

pub use endpoint::{Endpoint, Repeat, Transmit};
pub use frame::{CLOSE_BYTES_MAX, Close, DATA_FRAME_BYTES_MAX, HEADER_BYTES};
pub use standing::{Impossible, KEPT_BEYOND_WINDOW_BYTES_MAX, Receives, Sends, Standing};
pub use ticket::{ResumeOffer, ResumeRequest, Ticket};

use thiserror::Error;

/// The least a window may be: whatever else is short, a session goes on with this much.
pub const WINDOW_BYTES_MIN: usize = 64 * 1024;
/// The most that is repeated before it is known where the other end stands.
pub const REPEAT_BYTES_MAX: usize = 16 * 1024;
/// The most a window may be.
pub const WINDOW_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The other end does not keep to the protocol. The session cannot go on: nobody knows any more what has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Violation {
    /// A frame of no known kind.
    #[error("a frame of unknown kind {kind}")]
    UnknownKind {
        /// Its kind.
        kind: u8,
    },
    /// A frame longer than its kind may be, or of another length than its kind has.
    #[error("a frame of kind {kind} with {bytes} bytes")]
    WrongLength {
        /// Its kind.
        kind: u8,
        /// Its length.
        bytes: usize,
    },
    /// A close whose content cannot be read.
    #[error("a close frame that cannot be read")]
    MalformedClose,
    /// It says that it has what was never sent.
    #[error("position {position} was never sent, only {sent}")]
    AheadOfSent {
        /// What it says it has.
        position: u64,
        /// What was sent.
        sent: u64,
    },
    /// It says that it lacks what it had.
    #[error("position {position} lies before {acknowledged}, which was acknowledged")]
    BehindAcknowledged {
        /// What it says it has.
        position: u64,
        /// What it had.
        acknowledged: u64,
    },
    /// More than the window, unacknowledged.
    #[error("{bytes} bytes are not acknowledged yet, the window is {window}")]
    BeyondWindow {
        /// How many there would be.
        bytes: u64,
        /// How many may be.
        window: usize,
    },
    /// A repeat that is not the first frame of a connection on which a session goes on.
    #[error("a repeat that is not the first frame on the way back")]
    LateRepeat,
    /// A repeat from behind where this end stands, or from further back than anything that may be unacknowledged.
    #[error("a repeat from position {position}, at {taken}")]
    RepeatFromElsewhere {
        /// From where.
        position: u64,
        /// Where this end stands.
        taken: u64,
    },
    /// Anything after the end.
    #[error("something came after the end of its bytes")]
    AfterEnd,
}
