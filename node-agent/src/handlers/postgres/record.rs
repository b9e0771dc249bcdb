//! Statements on record: in order, behind the session's back, and never far behind it.
//!
//! A statement is recorded when its answer has gone by, together with those that ended shortly before or after: one record
//! tells of all of them. It waits in memory for that and until the spool has synced it, with up to [`BEHIND_BYTES_MAX`]
//! others; beyond that the client is not read on. A session's end is recorded behind the last of its statements.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use iap_audit::{Event, PAYLOAD_BYTES_MAX};
use iap_postgres::Statement;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::told::Told;
use crate::journal::Journal;
use crate::session::Live;
use crate::session::scribe::beside_object;

/// Statements that wait to be on record, by their texts, before a client is read on.
const BEHIND_BYTES_MAX: usize = 4 << 20;
/// What a statement without a text counts for.
const STATEMENT_BYTES: usize = 256;
/// A session that is busy has a record so often, however much it does; all of them at the same moments, so that they share
/// a sync and an upload.
const RECORD_EVERY: Duration = Duration::from_millis(100);
static MOMENTS: LazyLock<Instant> = LazyLock::new(Instant::now);
/// But not later than when as much waits, by the statements' texts.
const AT_ONCE_BYTES: usize = 1 << 20;
/// A record tells of no more once its payload is so long: whoever reads it has all of it in memory.
const PAYLOAD_BYTES: usize = 64 * 1024;

/// Where a session's statements go.
#[derive(Debug)]
pub(super) struct Statements {
    waiting: Arc<Waiting>,
    journal: Journal,
}

/// What waits to be on record.
#[derive(Debug, Default)]
struct Waiting {
    queue: Mutex<Queue>,
    /// Told when there is something, when there is much, and when nothing will be added.
    writer: Notify,
    client: AtomicWaker,
}

#[derive(Debug, Default)]
struct Queue {
    ended: VecDeque<Ended>,
    /// Of these.
    bytes: usize,
    /// Of these, and of those that are being written.
    unwritten: usize,
    is_closed: bool,
}

/// A statement, and when it was over.
#[derive(Debug)]
struct Ended {
    at: OffsetDateTime,
    statement: Statement,
}

/// Writes a session's statements; over once all are on record and nobody can add to them.
pub(crate) type Writing = JoinHandle<()>;

/// Begins to write the statements of a session; `base` is what is the same for each.
pub(super) fn begin(journal: Journal, base: Event, live: Arc<Live>, required: bool) -> (Statements, Writing) {
    let waiting = Arc::new(Waiting::default());
    let writer = Writer {
        journal: journal.clone(),
        base,
        live,
        required,
        waiting: Arc::clone(&waiting),
    };
    let writing = tokio::spawn(writer.run());
    (Statements { waiting, journal }, writing)
}

impl Statements {
    pub(super) fn write(&self, statements: Vec<Statement>) {
        self.waiting.add(statements, self.journal.now());
    }

    /// Ready once not too much waits.
    pub(super) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let has_room = || self.waiting.queue().unwritten <= BEHIND_BYTES_MAX;
        if has_room() {
            return Poll::Ready(());
        }
        self.waiting.client.register(context.waker());
        match has_room() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Drop for Statements {
    fn drop(&mut self) {
        self.waiting.queue().is_closed = true;
        self.waiting.writer.notify_one();
    }
}

impl Waiting {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, statements: Vec<Statement>, at: OffsetDateTime) {
        let bytes: usize = statements.iter().map(weight).sum();
        let mut queue = self.queue();
        let before = queue.bytes;
        queue.bytes += bytes;
        queue.unwritten += bytes;
        let ended = statements.into_iter().map(|statement| Ended { at, statement });
        queue.ended.extend(ended);
        // It is not woken for each: that would cost more than the rest.
        let is_much = before < AT_ONCE_BYTES && queue.bytes >= AT_ONCE_BYTES;
        drop(queue);
        if before == 0 || is_much {
            self.writer.notify_one();
        }
    }

    async fn until(&self, is_so: impl Fn(&Queue) -> bool) {
        while !is_so(&self.queue()) {
            self.writer.notified().await;
        }
    }

    /// What waits, and what it counts for; not all of much. Short messages can end thousands of statements at once that share
    /// a long text, and have one each in their records.
    fn take(&self) -> (Vec<Ended>, usize) {
        let mut queue = self.queue();
        let (mut count, mut bytes) = (0, 0);
        for ended in &queue.ended {
            if bytes >= AT_ONCE_BYTES {
                break;
            }
            count += 1;
            bytes += weight(&ended.statement);
        }
        queue.bytes -= bytes;
        (queue.ended.drain(..count).collect(), bytes)
    }

    fn written(&self, bytes: usize) {
        self.queue().unwritten -= bytes;
        self.client.wake();
    }
}

fn weight(statement: &Statement) -> usize {
    let text = statement.text.as_ref().map_or(0, |text| text.text.len());
    let values = statement
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.values.as_deref());
    let values = values.into_iter().flatten().flatten().map(String::len);
    STATEMENT_BYTES + text + values.sum::<usize>()
}

struct Writer {
    journal: Journal,
    base: Event,
    live: Arc<Live>,
    required: bool,
    waiting: Arc<Waiting>,
}

impl Writer {
    async fn run(self) {
        let mut next = Instant::now();
        loop {
            self.waiting
                .until(|queue| queue.bytes > 0 || queue.is_closed)
                .await;
            let is_urgent = |queue: &Queue| queue.bytes >= AT_ONCE_BYTES || queue.is_closed;
            // Passed already where the session was idle.
            let _ = tokio::time::timeout_at(next, self.waiting.until(is_urgent)).await;
            let (ended, bytes) = self.waiting.take();
            if ended.is_empty() {
                return;
            }
            next = next_moment(Instant::now());
            self.write(ended).await;
            self.waiting.written(bytes);
        }
    }

    async fn write(&self, ended: Vec<Ended>) {
        let events = batches(&ended)
            .into_iter()
            .map(|batch| self.event(batch))
            .collect();
        drop(ended);
        let over = || self.live.cut_because().is_some();
        self.journal.write_all(events, self.required, over).await;
    }

    fn event(&self, batch: Batch) -> Event {
        let (now, id) = self.journal.stamp();
        beside_object(batch.described(self.base.again(now, id)), batch.finish())
    }
}

/// The next after `now`.
fn next_moment(now: Instant) -> Instant {
    let since_last = now.duration_since(*MOMENTS).as_nanos() % RECORD_EVERY.as_nanos();
    now + RECORD_EVERY - Duration::from_nanos(u64::try_from(since_last).unwrap_or(0))
}

/// What one record tells of, with its payload as far as it is written.
#[derive(Debug)]
struct Batch {
    count: u64,
    failed: u64,
    rows: u64,
    payload: Vec<u8>,
}

const OPENING: &[u8] = br#"{"statements":["#;
const CLOSING: &[u8] = b"]}";
/// The most one statement may take within it.
const ENTRY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - OPENING.len() - CLOSING.len();

impl Batch {
    fn new() -> Self {
        Self {
            count: 0,
            failed: 0,
            rows: 0,
            payload: OPENING.to_vec(),
        }
    }

    fn add(&mut self, statement: &Statement, entry: &[u8]) {
        if self.count > 0 {
            self.payload.push(b',');
        }
        self.payload.extend_from_slice(entry);
        self.count += 1;
        self.failed += u64::from(statement.outcome.is_failure());
        self.rows = self.rows.saturating_add(statement.rows);
    }

    fn has_room_for(&self, entry: &[u8]) -> bool {
        self.count == 0 || self.payload.len() + entry.len() < PAYLOAD_BYTES
    }

    /// What the chained record says itself: nothing that the client wrote.
    fn described(&self, event: Event) -> Event {
        event
            .field("statements", self.count)
            .field("statements_failed", self.failed)
            .field("rows_total", self.rows)
    }

    fn finish(mut self) -> Vec<u8> {
        self.payload.extend_from_slice(CLOSING);
        self.payload
    }
}

fn batches(ended: &[Ended]) -> Vec<Batch> {
    let mut batches = Vec::new();
    let (mut batch, mut entry) = (Batch::new(), Vec::new());
    for Ended { at, statement } in ended {
        Told::of(statement, *at).write_into(&mut entry, ENTRY_BYTES_MAX);
        if !batch.has_room_for(&entry) {
            batches.push(std::mem::replace(&mut batch, Batch::new()));
        }
        batch.add(statement, &entry);
    }
    batches.push(batch);
    batches
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use futures_util::FutureExt as _;
    use iap_audit::{EventKind, Payload, SALT_BYTES};
    use iap_postgres::{Captured, Outcome, Transaction};
    use serde_json::{Map, Value};
    use uuid::Uuid;

    use super::*;

    fn ended(text: &str) -> Ended {
        let statement = Statement {
            text: Some(Captured {
                text: text.into(),
                bytes: text.len(),
                truncated: false,
            }),
            name: None,
            parameters: None,
            outcome: Outcome::Failed("23505".to_owned()),
            tags: Vec::new(),
            rows: 1,
            copy: None,
            transaction: Transaction::Open,
            took: Duration::from_micros(1500),
        };
        Ended {
            at: OffsetDateTime::UNIX_EPOCH,
            statement,
        }
    }

    fn texts(batch: Batch) -> Vec<Value> {
        let rows = Payload::rows(Some(&batch.finish()), Map::new(), 1);
        rows.into_iter().map(|row| row["statement"].clone()).collect()
    }

    #[test]
    fn the_record_counts_and_the_payload_tells() {
        let [batch] = batches(&[ended("INSERT 1"), ended("INSERT 2")])
            .try_into()
            .unwrap();
        let base = Event::new(
            EventKind::SessionStatement,
            OffsetDateTime::UNIX_EPOCH,
            Uuid::nil(),
        );
        let body = batch.described(base).into_body();
        assert_eq!(body.fields()["statements"], 2);
        assert_eq!(body.fields()["statements_failed"], 2);
        assert_eq!(body.fields()["rows_total"], 2);
        assert!(
            !Value::Object(body.fields().clone())
                .to_string()
                .contains("INSERT")
        );
        assert_eq!(texts(batch), ["INSERT 1", "INSERT 2"]);
    }

    #[test]
    fn no_payload_is_too_long_and_none_of_many_is_long() {
        let long = "\u{1}".repeat(64 * 1024);
        let many: Vec<_> = (0..1000).map(|n| ended(&format!("SELECT {n}"))).collect();
        let mut all = many;
        all.insert(500, ended(&long));
        let batches = batches(&all);
        assert!(batches.len() < 10);
        let mut seen = 0;
        for batch in batches {
            let alone = batch.count == 1;
            let payload = Payload::from_parts(&[0; SALT_BYTES], batch.finish()).unwrap();
            assert!(alone || payload.bytes().len() <= PAYLOAD_BYTES + CLOSING.len());
            seen += Payload::rows(Some(payload.bytes()), Map::new(), 1).len();
        }
        assert_eq!(seen, all.len());
    }

    #[test]
    fn the_moments_of_all_sessions_are_the_same() {
        let after = |milliseconds| next_moment(*MOMENTS + Duration::from_millis(milliseconds));
        assert_eq!(after(0), *MOMENTS + RECORD_EVERY);
        assert_eq!(after(99), after(0));
        assert_eq!(after(100), after(199));
        assert_eq!(after(100), *MOMENTS + 2 * RECORD_EVERY);
    }

    #[test]
    fn of_much_that_ends_at_once_little_is_written_at_once() {
        let waiting = Waiting::default();
        let one = ended(&"x".repeat(64 * 1024)).statement;
        waiting.add(vec![one; 1000], OffsetDateTime::UNIX_EPOCH);
        let (mut taken, mut waits) = (0, waiting.queue().bytes);
        while waits > 0 {
            let (ended, bytes) = waiting.take();
            assert!(bytes < AT_ONCE_BYTES + 65 * 1024 + STATEMENT_BYTES, "{bytes}");
            taken += ended.len();
            waits -= bytes;
            assert_eq!(waiting.queue().bytes, waits);
        }
        assert_eq!(taken, 1000);
        assert!(waiting.take().0.is_empty());
    }

    #[test]
    fn the_writer_is_told_of_the_first_of_much_and_of_the_end() {
        let waiting = Waiting::default();
        let is_told = || waiting.writer.notified().now_or_never().is_some();
        let add = |text: &str| waiting.add(vec![ended(text).statement], OffsetDateTime::UNIX_EPOCH);
        add("first");
        assert!(is_told());
        add("second");
        assert!(!is_told());
        add(&"x".repeat(AT_ONCE_BYTES));
        assert!(is_told());
        let (taken, bytes) = waiting.take();
        assert_eq!(taken.len(), 3);
        assert_eq!(bytes, waiting.queue().unwritten);
        assert!(waiting.queue().unwritten > AT_ONCE_BYTES, "until it is written");
        add("first again");
        assert!(is_told());
    }
}
