//! Statements on record: in order, behind the session's back, and never far behind it.
//!
//! A statement is recorded when its answer has gone by. Its record waits in memory until the spool has synced it, with up
//! to [`BEHIND_BYTES_MAX`] others; beyond that the client is not read on. A session's end is recorded behind the last of
//! its statements.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use iap_audit::{Event, Payload, SALT_BYTES};
use iap_postgres::{Captured, Copied, Direction, Outcome, Parameters, Statement, Transaction};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::journal::Journal;
use crate::session::Live;

/// Statements that wait to be on record, by their texts, before a client is read on.
const BEHIND_BYTES_MAX: usize = 4 << 20;
/// What a statement without a text counts for.
const STATEMENT_BYTES: usize = 256;
/// Records handed to the spool at once.
const RECORDS_AT_ONCE_MAX: usize = 256;
/// A text that JSON makes too long for a payload is cut to this.
const SHORT_TEXT_BYTES: usize = 16 * 1024;

/// Where a session's statements go.
#[derive(Debug)]
pub(super) struct Statements {
    queue: mpsc::UnboundedSender<Statement>,
    behind: Arc<Behind>,
}

/// How much waits to be on record.
#[derive(Debug, Default)]
struct Behind {
    bytes: AtomicUsize,
    client: AtomicWaker,
}

/// Writes a session's statements; over once all are on record and nobody can add to them.
pub(crate) type Writing = JoinHandle<()>;

/// Begins to write the statements of a session; `base` is what is the same for each.
pub(super) fn begin(journal: Journal, base: Event, live: Arc<Live>, required: bool) -> (Statements, Writing) {
    let (queue, waiting) = mpsc::unbounded_channel();
    let behind = Arc::new(Behind::default());
    let writer = Writer {
        journal,
        base,
        live,
        required,
        behind: Arc::clone(&behind),
    };
    let writing = tokio::spawn(writer.run(waiting));
    (Statements { queue, behind }, writing)
}

impl Statements {
    pub(super) fn write(&self, statements: Vec<Statement>) {
        for statement in statements {
            self.behind.bytes.fetch_add(weight(&statement), Ordering::Relaxed);
            // Without a writer the program is going down.
            let _ = self.queue.send(statement);
        }
    }

    /// Ready once not too much waits.
    pub(super) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.behind.has_room() {
            return Poll::Ready(());
        }
        self.behind.client.register(context.waker());
        match self.behind.has_room() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Behind {
    fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Acquire) <= BEHIND_BYTES_MAX
    }

    fn written(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Release);
        self.client.wake();
    }
}

fn weight(statement: &Statement) -> usize {
    let text = statement.text.as_ref().map_or(0, |text| text.text.len());
    let values = statement
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.values.as_ref());
    let values = values.into_iter().flatten().flatten().map(String::len);
    STATEMENT_BYTES + text + values.sum::<usize>()
}

struct Writer {
    journal: Journal,
    base: Event,
    live: Arc<Live>,
    required: bool,
    behind: Arc<Behind>,
}

impl Writer {
    async fn run(self, mut waiting: mpsc::UnboundedReceiver<Statement>) {
        let mut statements = Vec::with_capacity(RECORDS_AT_ONCE_MAX);
        while waiting.recv_many(&mut statements, RECORDS_AT_ONCE_MAX).await > 0 {
            let bytes = statements.iter().map(weight).sum();
            let events = statements.drain(..).map(|statement| self.event(&statement));
            let over = || self.live.cut_because().is_some();
            self.journal
                .write_all(events.collect(), self.required, over)
                .await;
            self.behind.written(bytes);
        }
    }

    fn event(&self, statement: &Statement) -> Event {
        let (now, id) = self.journal.stamp();
        let event = envelope(self.base.again(now, id), statement);
        let mut salt = [0; SALT_BYTES];
        if aws_lc_rs::rand::fill(&mut salt).is_err() {
            return event.field("payload_missing", "there was no randomness to salt it with");
        }
        match payload(statement, salt) {
            Some(payload) => event.payload(payload),
            None => event,
        }
    }
}

/// What the chained record says itself: nothing that the client wrote.
fn envelope(event: Event, statement: &Statement) -> Event {
    let duration = u64::try_from(statement.took.as_micros()).unwrap_or(u64::MAX);
    let (outcome, sqlstate) = outcome(&statement.outcome);
    let mut event = event
        .field("outcome", outcome)
        .field("rows", statement.rows)
        .field("duration_us", duration)
        .field("transaction", transaction(statement.transaction));
    if let Some(sqlstate) = sqlstate {
        event = event.field("sqlstate", sqlstate);
    }
    match statement.tags.as_slice() {
        [] => {}
        [tag] => event = event.field("command", tag.as_str()),
        tags => event = event.field("command", tags),
    }
    if let Some(Copied { direction, bytes }) = statement.copy {
        event = event.field("copy", json!({ "direction": way(direction), "bytes": bytes }));
    }
    if let Some(count) = statement
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.count)
    {
        event = event.field("parameter_count", count);
    }
    match &statement.text {
        Some(Captured { bytes, truncated, .. }) => {
            let event = event.field("statement_bytes", *bytes);
            if *truncated {
                event.field("statement_truncated", true)
            } else {
                event
            }
        }
        None => event.field("statement_unknown", true),
    }
}

fn outcome(outcome: &Outcome) -> (&'static str, Option<&str>) {
    match outcome {
        Outcome::Done => ("done", None),
        Outcome::Suspended => ("suspended", None),
        Outcome::Failed(sqlstate) => ("failed", Some(sqlstate)),
        Outcome::Skipped => ("skipped", None),
        Outcome::Unanswered => ("unanswered", None),
    }
}

fn transaction(transaction: Transaction) -> &'static str {
    match transaction {
        Transaction::Idle => "idle",
        Transaction::Open => "open",
        Transaction::Failed => "failed",
    }
}

fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "in",
        Direction::Out => "out",
        Direction::Both => "both",
    }
}

/// What the client wrote.
fn payload(statement: &Statement, salt: [u8; SALT_BYTES]) -> Option<Payload> {
    let text = statement.text.as_ref().map(|text| text.text.as_ref());
    let whole = Payload::of(&written(statement, text, true), salt);
    let payload = whole.or_else(|_| {
        let short = text.and_then(|text| text.get(..text.floor_char_boundary(SHORT_TEXT_BYTES)));
        Payload::of(&written(statement, short, false), salt)
    });
    // Nothing to be said has no payload.
    payload.ok().filter(|payload| payload.bytes() != b"{}")
}

fn written(statement: &Statement, text: Option<&str>, is_whole: bool) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut say = |name: &str, value: Value| {
        fields.insert(name.to_owned(), value);
    };
    if let Some(text) = text {
        say("statement", text.into());
    }
    if let Some(name) = &statement.name {
        say("prepared_statement", name.as_str().into());
    }
    if let Some(Parameters {
        values: Some(values),
        truncated,
        ..
    }) = &statement.parameters
    {
        match is_whole {
            true => say("parameters", json!(values)),
            false => say("parameters_left_out", true.into()),
        }
        if *truncated {
            say("parameters_truncated", true.into());
        }
    }
    if !is_whole {
        say("statement_shortened", true.into());
    }
    fields
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::time::Duration;

    use iap_audit::EventKind;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn statement(text: &str) -> Statement {
        Statement {
            text: Some(Captured {
                text: text.into(),
                bytes: text.len(),
                truncated: false,
            }),
            name: None,
            parameters: Some(Parameters {
                count: Some(2),
                values: Some(vec![Some("7".to_owned()), None]),
                truncated: false,
            }),
            outcome: Outcome::Failed("23505".to_owned()),
            tags: vec!["INSERT 0 1".to_owned()],
            rows: 1,
            copy: None,
            transaction: Transaction::Open,
            took: Duration::from_micros(1500),
        }
    }

    fn fields(payload: &Payload) -> Value {
        serde_json::from_slice(payload.bytes()).unwrap()
    }

    #[test]
    fn the_record_says_what_became_of_it_and_the_payload_what_it_was() {
        let base = Event::new(
            EventKind::SessionStatement,
            OffsetDateTime::UNIX_EPOCH,
            Uuid::nil(),
        );
        let statement = statement("INSERT INTO t VALUES ($1, $2)");
        let body = envelope(base, &statement).into_body();
        assert_eq!(body.fields()["sqlstate"], "23505");
        assert_eq!(body.fields()["command"], "INSERT 0 1");
        assert_eq!(body.fields()["duration_us"], 1500);
        assert!(
            !Value::Object(body.fields().clone())
                .to_string()
                .contains("INTO t")
        );
        let payload = payload(&statement, [1; SALT_BYTES]).unwrap();
        let expected = json!({"statement": "INSERT INTO t VALUES ($1, $2)", "parameters": ["7", null]});
        assert_eq!(fields(&payload), expected);
    }

    #[test]
    fn a_text_that_json_makes_too_long_is_shortened_and_says_so() {
        let payload = payload(&statement(&"\u{1}".repeat(64 * 1024)), [1; SALT_BYTES]).unwrap();
        let fields = fields(&payload);
        assert_eq!(fields["statement_shortened"], true);
        assert_eq!(fields["statement"].as_str().unwrap().len(), SHORT_TEXT_BYTES);
        assert_eq!(fields["parameters_left_out"], true);
    }
}
