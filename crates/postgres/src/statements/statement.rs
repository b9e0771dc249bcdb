//! What is known of a statement once it has ended.

use std::time::Duration;

use super::prepared::Parameters;
use crate::capture::Captured;

/// Something a client had the backend do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Its text; nothing where it names a prepared statement that was not seen being prepared.
    pub text: Option<Captured>,
    /// The name of the prepared statement, where it has one.
    pub name: Option<String>,
    /// What was bound to it.
    pub parameters: Option<Parameters>,
    /// What became of it.
    pub outcome: Outcome,
    /// The backend's own words on each part that it completed (`CommandComplete`), the first 16.
    pub tags: Vec<String>,
    /// Rows that were sent or changed, as far as the backend said.
    pub rows: u64,
    /// Data that went by in COPY.
    pub copy: Option<Copied>,
    /// How the transaction stood when the backend was last ready.
    pub transaction: Transaction,
    /// From the client's message to the backend's answer.
    pub took: Duration,
}

/// What became of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It gave as many rows as were asked for, and may be asked for more.
    Suspended,
    /// It failed with that SQLSTATE.
    Failed(String),
    /// The backend passed over it, because something before it had failed.
    Skipped,
    /// The session ended first.
    Unanswered,
}

impl Outcome {
    /// Whether the backend refused it.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

/// Data that went by in COPY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Which way.
    pub direction: Direction,
    /// Without the protocol's own.
    pub bytes: u64,
}

/// Which way COPY goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    In,
    /// To the client.
    Out,
    /// Both at once: replication.
    Both,
}

/// How a transaction stands (`ReadyForQuery`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transaction {
    /// There is none.
    #[default]
    Idle,
    /// It is open.
    Open,
    /// It has failed, and waits for its end.
    Failed,
}
