//! One span, and what is said about it.

use std::time::{Instant, SystemTime};

use iap_identity::{Anchor, SpanId, TraceId};

/// A text longer than this is cut: nothing here should be one.
const TEXT_CHARACTERS_MAX: usize = 128;

/// Which side of a call a span is (OTLP's SpanKind).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A step of one program.
    Internal,
    /// The side that answers.
    Server,
    /// The side that asks.
    Client,
}

/// What an attribute says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A word or an id.
    Text(String),
    /// A count.
    Number(u64),
    /// Yes or no.
    Truth(bool),
}

/// What a span says beside its times. No secret, no statement, nothing a person is called belongs here: a collector is
/// read by more people than the audit log.
#[derive(Debug, Default)]
pub struct Details {
    pub(super) attributes: Vec<(&'static str, Value)>,
    pub(super) links: Vec<(TraceId, SpanId)>,
    pub(super) failure: Option<String>,
}

impl Details {
    /// A word or an id.
    pub fn text(&mut self, name: &'static str, value: impl ToString) {
        self.attributes
            .push((name, Value::Text(shortened(&value.to_string()))));
    }

    /// A count.
    pub fn number(&mut self, name: &'static str, value: u64) {
        self.attributes.push((name, Value::Number(value)));
    }

    /// Yes or no.
    pub fn truth(&mut self, name: &'static str, value: bool) {
        self.attributes.push((name, Value::Truth(value)));
    }

    /// It did not come to what it was for; `why` is a word from a closed list.
    pub fn failed(&mut self, why: &str) {
        self.failure = Some(shortened(why));
    }

    /// A span of another trace, or of the same that is no parent.
    pub fn link(&mut self, trace: TraceId, anchor: Anchor) {
        self.links.push((trace, trace.span(anchor)));
    }
}

/// A step that is noted and not yet a span.
#[derive(Debug)]
pub(super) struct Phase {
    pub(super) name: &'static str,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) details: Details,
}

/// A span as it is sent.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) trace: TraceId,
    pub(super) id: SpanId,
    pub(super) parent: Option<SpanId>,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) began: SystemTime,
    pub(super) ended: SystemTime,
    pub(super) details: Details,
}

/// A span id that nobody refers to. Without randomness spans would share one, and still be told apart by their times.
pub(super) fn drawn() -> SpanId {
    let mut bytes = [0; 8];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    SpanId::from_bytes(bytes).unwrap_or_else(drawn_otherwise)
}

fn drawn_otherwise() -> SpanId {
    let (_, low) = uuid::Uuid::now_v7().as_u64_pair();
    SpanId::from_bytes(low.to_be_bytes()).unwrap_or_else(drawn_otherwise)
}

fn shortened(text: &str) -> String {
    text.chars().take(TEXT_CHARACTERS_MAX).collect()
}
