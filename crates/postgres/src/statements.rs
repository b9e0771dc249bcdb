//! Which statements a client runs, and what becomes of each.
//!
//! Both directions of a session go by here. What a client sends is queued, and given its meaning when the backend answers:
//! a prepared statement is one once the backend has said so, and what an `Execute` runs is known when it has run. Each text
//! that a client sends comes out as a [`Statement`], also where the backend fails it, skips it or never answers; only its
//! outcome depends on the backend's words.

mod prepared;
mod queue;
mod statement;

use std::collections::VecDeque;
use std::time::Duration;

use thiserror::Error;

use crate::backend::ErrorFields;
use crate::capture::{Captured, captured_text};
use crate::messages::{Malformed, Message, Messages};
use prepared::{Portal, Prepared, Registered};
use queue::{Body, Pending, read};

pub use prepared::Parameters;
pub use statement::{Copied, Direction, Outcome, Statement, Transaction};

/// Messages that may wait for their answers before a client is read on. A backend holds back answers of 8 KiB at most,
/// each of at least 5 bytes, so that it is never waited for in vain.
const PENDING_MAX: usize = 16 * 1024;
/// Text kept of messages that wait; beyond it of each no more than [`SPARE_BYTES_MAX`].
const PENDING_BYTES_MAX: usize = 8 << 20;
/// What is kept of a text where much is kept already.
const SPARE_BYTES_MAX: usize = 1024;
/// A name of a statement or portal; longer ones could be taken for one another.
const NAME_BYTES_MAX: usize = 1024;
/// What an `ErrorResponse` is looked into for.
const ERROR_BYTES_MAX: usize = 4096;
const TAG_BYTES_MAX: usize = 256;
/// Completions noted of one simple query.
const TAGS_MAX: usize = 16;

/// How much of what a client sends is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureLimits {
    /// Of one statement's text, and of one statement's parameters, in bytes.
    pub bytes_max: usize,
    /// Whether parameters' values are kept at all.
    pub parameters: bool,
}

/// Why a session cannot be followed any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TooMuch {
    /// Not the protocol.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A message without what it must have.
    #[error("a PostgreSQL message lacks what its type must have")]
    Lacks,
    /// A name that cannot be told from others.
    #[error("a prepared statement or portal has a name of more than {NAME_BYTES_MAX} bytes")]
    Name,
    /// Whether they run cannot be told.
    #[error("messages were sent behind a COPY before the backend had asked for its data")]
    BehindCopy,
}

/// Follows one session.
#[derive(Debug)]
pub struct Tracker {
    limits: CaptureLimits,
    from_client: Messages,
    from_backend: Messages,
    state: State,
}

#[derive(Debug)]
struct State {
    limits: CaptureLimits,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    registered: Registered,
    transaction: Transaction,
    /// The backend passes over everything up to the next Sync, which has not been sent yet.
    skipping: bool,
    /// COPY data is expected from the client, who has not said that it ends.
    copying_in: bool,
    /// Something has run since the backend was last ready, which the next Sync may have to commit.
    has_run: bool,
    ended: Vec<Statement>,
    now: Duration,
}

impl Tracker {
    /// A session whose backend is ready.
    #[must_use]
    pub fn new(limits: CaptureLimits) -> Self {
        Self {
            limits,
            from_client: Messages::new(),
            from_backend: Messages::new(),
            state: State {
                limits,
                pending: VecDeque::new(),
                pending_bytes: 0,
                registered: Registered::default(),
                transaction: Transaction::Idle,
                skipping: false,
                copying_in: false,
                has_run: false,
                ended: Vec::new(),
                now: Duration::ZERO,
            },
        }
    }

    /// Takes what the client sends, at `now` since the session began.
    ///
    /// # Errors
    /// When the session can no longer be followed: it must not go on.
    pub fn client_sent(&mut self, bytes: &[u8], now: Duration) -> Result<(), TooMuch> {
        self.state.now = now;
        let (limits, state) = (self.limits, &mut self.state);
        let spare = state.pending_bytes >= PENDING_BYTES_MAX;
        let text_max = if spare { SPARE_BYTES_MAX } else { limits.bytes_max };
        let wanted = |kind, _| match kind {
            b'Q' => text_max,
            // Beside its text it has its name and the types of its parameters.
            b'P' => text_max + 2 * NAME_BYTES_MAX,
            b'B' if limits.parameters => text_max + 4 * NAME_BYTES_MAX,
            b'B' => 4 * NAME_BYTES_MAX,
            b'E' | b'D' | b'C' => NAME_BYTES_MAX + 8,
            b'F' => 4,
            _ => 0,
        };
        self.from_client
            .push(bytes, wanted, |message| state.client_message(message, text_max))
    }

    /// Takes what the backend sends, at `now` since the session began.
    ///
    /// # Errors
    /// When the session can no longer be followed: it must not go on.
    pub fn backend_sent(&mut self, bytes: &[u8], now: Duration) -> Result<(), TooMuch> {
        self.state.now = now;
        let state = &mut self.state;
        let wanted = |kind, _| match kind {
            b'E' => ERROR_BYTES_MAX,
            b'C' => TAG_BYTES_MAX,
            b't' => 2 * NAME_BYTES_MAX,
            b'Z' => 1,
            _ => 0,
        };
        self.from_backend
            .push(bytes, wanted, |message| state.backend_message(message))
    }

    /// Whether the client must wait: as much is unanswered as may be.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.state.pending.len() >= PENDING_MAX
    }

    /// Whether a message of ours may be put before the backend's next one.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.from_backend.is_between()
    }

    /// What has ended since this was last asked.
    pub fn ended(&mut self) -> Vec<Statement> {
        std::mem::take(&mut self.state.ended)
    }

    /// The session is over: what was never answered, or by a backend that said why it closes and nothing more.
    pub fn finish(&mut self) -> Vec<Statement> {
        while let Some(pending) = self.state.pop() {
            let failed = pending.progress.failed.clone();
            let outcome = failed.map_or(Outcome::Unanswered, Outcome::Failed);
            self.state.drop_pending(pending, outcome);
        }
        self.ended()
    }
}

impl State {
    fn client_message(&mut self, message: Message<'_>, text_max: usize) -> Result<(), TooMuch> {
        match message.kind {
            b'd' => self.copied(Direction::In, message.length),
            b'c' | b'f' => self.copying_in = false,
            // A client that says nothing but that it leaves, or that wants what there is by now.
            b'X' | b'H' => {}
            b'S' => {
                if self.copying_in {
                    return Err(TooMuch::BehindCopy);
                }
                self.skipping = false;
                self.queue(Body::Sync);
            }
            b'Q' => {
                let text = text(message.body, message.length.saturating_sub(1), text_max);
                self.queue_unless_skipped(Body::query(text))?;
            }
            b'P' => self.queue_unless_skipped(read::parse(message, text_max)?)?,
            b'B' => {
                let values_max = self.limits.parameters.then_some(text_max);
                self.queue_unless_skipped(read::bind(message, values_max)?)?;
            }
            b'E' => self.queue_unless_skipped(read::execute(message)?)?,
            b'D' => self.queue_unless_skipped(read::describe(message)?)?,
            b'C' => self.queue_unless_skipped(read::close(message)?)?,
            b'F' => self.queue_unless_skipped(read::function(message)?)?,
            // Not a message of a client in a session: the backend will say so.
            _ => {}
        }
        Ok(())
    }

    /// Whether or not the backend passes over it, its text is on record.
    fn queue_unless_skipped(&mut self, body: Body) -> Result<(), TooMuch> {
        if self.copying_in {
            return Err(TooMuch::BehindCopy);
        }
        match self.skipping {
            true => self.drop_pending(Pending::new(body, self.now), Outcome::Skipped),
            false => self.queue(body),
        }
        Ok(())
    }

    fn queue(&mut self, body: Body) {
        self.pending_bytes += body.kept_bytes();
        self.pending.push_back(Pending::new(body, self.now));
    }

    fn pop(&mut self) -> Option<Pending> {
        let pending = self.pending.pop_front()?;
        self.pending_bytes = self.pending_bytes.saturating_sub(pending.body.kept_bytes());
        Some(pending)
    }

    fn backend_message(&mut self, message: Message<'_>) -> Result<(), TooMuch> {
        match message.kind {
            b'D' => {
                if let Some(front) = self.front() {
                    front.progress.rows_seen += 1;
                }
            }
            b'd' => self.copied(Direction::Out, message.length),
            b'1' | b'2' | b'3' => self.acknowledged(message.kind),
            b'T' | b'n' => self.described(),
            b't' => self.parameter_types(message.body),
            b'C' => self.completed(message.body),
            b'I' => self.completed(b""),
            b's' => self.suspended(),
            b'E' => self.failed(message.body),
            b'G' => self.copy_begins(Direction::In)?,
            b'H' => self.copy_begins(Direction::Out)?,
            b'W' => self.copy_begins(Direction::Both)?,
            b'Z' => self.ready(message.body),
            // Notices, notifications, parameters, results of function calls.
            _ => {}
        }
        Ok(())
    }

    /// What the backend speaks of. A Sync in front was swallowed by a COPY: nothing but `ReadyForQuery` answers one.
    fn front(&mut self) -> Option<&mut Pending> {
        while self
            .pending
            .front()
            .is_some_and(|front| matches!(front.body, Body::Sync))
        {
            self.pop();
        }
        self.pending.front_mut()
    }

    fn acknowledged(&mut self, kind: u8) {
        let is_front = self
            .front()
            .is_some_and(|front| front.body.answer() == Some(kind));
        let Some(pending) = (if is_front { self.pop() } else { None }) else {
            return;
        };
        match pending.body {
            Body::Parse { name, text, types } => self.registered.prepare(name, Prepared { text, types }),
            Body::Bind {
                portal,
                statement,
                values,
            } => self.registered.bind(portal, statement, &values),
            Body::Close { is_portal, name } => self.registered.close(is_portal, &name),
            Body::Query { .. }
            | Body::Execute { .. }
            | Body::Describe { .. }
            | Body::Function { .. }
            | Body::Sync => {}
        }
    }

    fn described(&mut self) {
        if self
            .front()
            .is_some_and(|front| matches!(front.body, Body::Describe { .. }))
        {
            self.pop();
        }
    }

    fn parameter_types(&mut self, body: &[u8]) {
        let described = match self.front().map(|front| &front.body) {
            Some(Body::Describe {
                statement: Some(name),
            }) => name.clone(),
            Some(_) | None => return,
        };
        self.registered.describe(&described, read::types(body));
    }

    fn completed(&mut self, tag: &[u8]) {
        let tag =
            String::from_utf8_lossy(tag.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
        self.registered.see_tag(&tag);
        let rows = tag
            .rsplit(' ')
            .next()
            .and_then(|count| count.parse().ok())
            .unwrap_or(0u64);
        let Some(front) = self.front() else { return };
        front.progress.rows = front.progress.rows.saturating_add(rows);
        front.progress.rows_seen = 0;
        if front.progress.tags.len() < TAGS_MAX && !tag.is_empty() {
            front.progress.tags.push(tag);
        }
        if matches!(front.body, Body::Execute { .. }) {
            self.has_run = true;
            self.end_front(Outcome::Done);
        }
    }

    fn suspended(&mut self) {
        if self.front().is_some() {
            self.has_run = true;
            self.end_front(Outcome::Suspended);
        }
    }

    fn failed(&mut self, body: &[u8]) {
        self.copying_in = false;
        let fields = ErrorFields::read(body);
        if self.is_at_sync() {
            self.sync_failed(fields.sqlstate);
            return;
        }
        let Some(front) = self.pending.front_mut() else {
            return;
        };
        match front.body {
            // Its `ReadyForQuery` comes yet.
            Body::Query { .. } | Body::Function { .. } => front.progress.failed = Some(fields.sqlstate),
            Body::Parse { .. }
            | Body::Bind { .. }
            | Body::Execute { .. }
            | Body::Describe { .. }
            | Body::Close { .. }
            | Body::Sync => {
                self.end_front(Outcome::Failed(fields.sqlstate));
                self.skip_to_sync();
            }
        }
    }

    fn is_at_sync(&self) -> bool {
        let front = self.pending.front();
        front.is_some_and(|front| matches!(front.body, Body::Sync))
    }

    /// A Sync commits what ran before it outside of a transaction's block, which may fail: by a deferred constraint, say.
    /// Nothing is passed over for that, and `ReadyForQuery` comes yet.
    fn sync_failed(&mut self, sqlstate: String) {
        let has_run = std::mem::take(&mut self.has_run);
        let Some(front) = self.pending.front().filter(|_| has_run) else {
            return;
        };
        let (text, took) = ("Sync", self.now.saturating_sub(front.since));
        self.ended.push(Statement {
            text: Some(captured_text(text.as_bytes(), text.len(), text.len())),
            name: None,
            parameters: None,
            outcome: Outcome::Failed(sqlstate),
            tags: Vec::new(),
            rows: 0,
            copy: None,
            transaction: self.transaction,
            took,
        });
    }

    fn skip_to_sync(&mut self) {
        while !self.pending.is_empty() {
            if self.is_at_sync() {
                return;
            }
            if let Some(skipped) = self.pop() {
                self.drop_pending(skipped, Outcome::Skipped);
            }
        }
        self.skipping = true;
    }

    /// The backend now takes everything for data. A Sync that came before is swallowed; whether anything else would be run
    /// depends on what the backend finds first.
    fn copy_begins(&mut self, direction: Direction) -> Result<(), TooMuch> {
        let Some(front) = self.front() else { return Ok(()) };
        // One query may hold several.
        let begins = Copied { direction, bytes: 0 };
        let copy = front.progress.copy.get_or_insert(begins);
        if copy.direction != direction {
            copy.direction = Direction::Both;
        }
        if direction == Direction::Out {
            return Ok(());
        }
        // A client may have sent its data ahead.
        let ahead = std::mem::take(&mut front.progress.copied_ahead);
        copy.bytes = copy.bytes.saturating_add(ahead);
        let is_query = matches!(front.body, Body::Query { .. });
        match (self.pending.len(), self.pending.back().map(|back| &back.body)) {
            (1, _) => {}
            (2, Some(Body::Sync)) if !is_query => {
                self.pending.pop_back();
            }
            _ => return Err(TooMuch::BehindCopy),
        }
        self.copying_in = true;
        Ok(())
    }

    fn copied(&mut self, direction: Direction, length: usize) {
        let bytes = u64::try_from(length).unwrap_or(u64::MAX);
        let Some(front) = self.pending.front_mut() else {
            return;
        };
        let progress = &mut front.progress;
        match (&mut progress.copy, direction) {
            (Some(copy), _) if copy.direction == direction || copy.direction == Direction::Both => {
                copy.bytes = copy.bytes.saturating_add(bytes);
            }
            (_, Direction::In) => progress.copied_ahead = progress.copied_ahead.saturating_add(bytes),
            (_, Direction::Out | Direction::Both) => {}
        }
    }

    /// The backend is ready: everything up to here is answered, whatever was thought of it.
    fn ready(&mut self, status: &[u8]) {
        self.transaction = match status.first() {
            Some(b'T') => Transaction::Open,
            Some(b'E') => Transaction::Failed,
            Some(_) | None => Transaction::Idle,
        };
        self.copying_in = false;
        self.skipping = false;
        self.has_run = false;
        while let Some(pending) = self.pop() {
            match pending.body {
                Body::Sync => break,
                Body::Query { .. } | Body::Function { .. } => {
                    let failed = pending.progress.failed.clone();
                    let outcome = failed.map_or(Outcome::Done, Outcome::Failed);
                    self.registered.drop_unnamed();
                    self.drop_pending(pending, outcome);
                    break;
                }
                Body::Parse { .. }
                | Body::Bind { .. }
                | Body::Execute { .. }
                | Body::Describe { .. }
                | Body::Close { .. } => self.drop_pending(pending, Outcome::Unanswered),
            }
        }
        self.registered.settle();
        if self.transaction == Transaction::Idle {
            self.registered.drop_portals();
        }
    }

    fn end_front(&mut self, outcome: Outcome) {
        if let Some(pending) = self.pop() {
            self.drop_pending(pending, outcome);
        }
    }

    /// What is to be said of something that is over.
    fn drop_pending(&mut self, pending: Pending, outcome: Outcome) {
        let progress = pending.progress;
        let (text, name, parameters) = match pending.body {
            Body::Query { text } => (Some(text), None, None),
            Body::Function { oid } => {
                let call = format!("function call {oid}");
                (
                    Some(captured_text(call.as_bytes(), call.len(), call.len())),
                    None,
                    None,
                )
            }
            // A preparation that went well is seen when it is run.
            Body::Parse { name, text, .. } => {
                self.registered.not_prepared(&name, &text, outcome.is_failure());
                (Some(text), named(name), None)
            }
            Body::Bind {
                portal,
                statement,
                values,
            } => self.registered.not_bound(portal, statement, &values).told(),
            Body::Execute { portal } => {
                let was_bound = !matches!(outcome, Outcome::Skipped | Outcome::Unanswered);
                self.registered
                    .portal(&portal, was_bound)
                    .map_or_else(|| (None, named(portal), None), Portal::told)
            }
            Body::Describe { .. } | Body::Close { .. } | Body::Sync => return,
        };
        self.ended.push(Statement {
            text,
            name,
            parameters,
            outcome,
            tags: progress.tags,
            rows: progress.rows.saturating_add(progress.rows_seen),
            copy: progress.copy,
            transaction: self.transaction,
            took: self.now.saturating_sub(pending.since),
        });
    }
}

fn named(name: String) -> Option<String> {
    (!name.is_empty()).then_some(name)
}

/// A text that ends with the message; its last byte is a zero.
fn text(body: &[u8], bytes: usize, text_max: usize) -> Captured {
    let seen = body.get(..bytes).unwrap_or(body);
    captured_text(seen, bytes, text_max)
}

#[cfg(test)]
mod tests;
