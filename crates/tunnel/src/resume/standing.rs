//! Where one end of a session stands between two connections, for whoever goes on with it in another process.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::incoming::Incoming;
use super::outgoing::Outgoing;
use super::{Endpoint, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN};

/// No session gets this far, and what does not can be counted on with.
const POSITION_MAX: u64 = 1 << 62;
/// A process that was killed may leave so much more than the window, of which it is not known whether the other end has it.
pub const KEPT_BEYOND_WINDOW_BYTES_MAX: usize = 1024 * 1024;

/// Where one end stands without a connection. The bytes that it keeps for the other end go beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Neither end has more bytes than this on the way that the other has not acknowledged.
    pub window: u64,
    /// What this end sends.
    pub outgoing: Sends,
    /// What this end receives.
    pub incoming: Receives,
}

/// How far sending has come. Positions count bytes; the end counts as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sends {
    /// The other end has passed on every byte before this; the kept bytes begin here.
    pub base: u64,
    /// Every byte before was given to a connection.
    pub sent: u64,
    /// There are no bytes behind those that are kept.
    pub is_finished: bool,
    /// That was given to a connection.
    pub finish_sent: bool,
    /// The other end knows it.
    pub finish_acknowledged: bool,
}

/// How far receiving has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receives {
    /// Every byte before was read.
    pub taken: u64,
    /// What the other end was told of that, the end counting as one.
    pub acknowledged: u64,
    /// There are no more bytes.
    pub is_finished: bool,
}

/// Numbers that no end can stand at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no session can stand there: {0}")]
pub struct Impossible(&'static str);

impl Endpoint {
    /// Where this end stands, and the bytes it keeps, which may lie in two places. Nothing once either end has closed: then
    /// there is nothing to go on with.
    ///
    /// Whatever has arrived and was not read is not part of it, and comes again: as for [`detach`](Self::detach).
    #[must_use]
    pub fn standing(&self) -> Option<(Standing, [&[u8]; 2])> {
        if self.peer_closed.is_some() {
            return None;
        }
        let (outgoing, kept) = self.outgoing.standing()?;
        let standing = Standing {
            window: self.outgoing.window() as u64,
            outgoing,
            incoming: self.incoming.standing(),
        };
        Some((standing, kept))
    }

    /// An end that stands there, without a connection.
    ///
    /// # Errors
    /// When none can.
    pub fn restore(standing: &Standing, kept: Vec<u8>) -> Result<Self, Impossible> {
        let window = usize::try_from(standing.window).unwrap_or(usize::MAX);
        if !(WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX).contains(&window) {
            return Err(Impossible("the window is out of bounds"));
        }
        if kept.len() > window + KEPT_BEYOND_WINDOW_BYTES_MAX {
            return Err(Impossible("more is kept than any session keeps"));
        }
        standing.outgoing.check(kept.len() as u64)?;
        standing.incoming.check()?;
        Ok(Self {
            outgoing: Outgoing::restore(window, &standing.outgoing, kept),
            incoming: Incoming::restore(window, &standing.incoming),
            peer_closed: None,
            is_answered: true,
        })
    }
}

impl Sends {
    fn check(&self, kept: u64) -> Result<(), Impossible> {
        let end = self.base.checked_add(kept).filter(|end| *end <= POSITION_MAX);
        let Some(end) = end else {
            return Err(Impossible("more was sent than can be counted"));
        };
        if self.sent < self.base || self.sent > end {
            return Err(Impossible("more or less was sent than there is"));
        }
        if self.finish_sent && !(self.is_finished && self.sent == end) {
            return Err(Impossible("the end was sent before what comes before it"));
        }
        if self.finish_acknowledged && !(self.finish_sent && kept == 0) {
            return Err(Impossible("the end was acknowledged before what comes before it"));
        }
        Ok(())
    }
}

impl Receives {
    fn check(&self) -> Result<(), Impossible> {
        if self.taken > POSITION_MAX {
            return Err(Impossible("more was read than can be counted"));
        }
        match self.acknowledged <= self.taken + u64::from(self.is_finished) {
            true => Ok(()),
            false => Err(Impossible("more was acknowledged than read")),
        }
    }
}
