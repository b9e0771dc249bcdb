//! A record: the exact bytes of one JSON object on one line, and the hash that names them.

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value};
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::chain::{ChainHead, SourceId};
use crate::kind::EventKind;

/// The most one record may take.
pub const RECORD_BYTES_MAX: usize = 256 * 1024;

/// `agent_prev` of a source's first record.
pub const GENESIS_HASH_HEX: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The field that names a record's source.
pub const SOURCE_FIELD: &str = "agent_id";
/// The field that counts a source's records, from 1.
pub const SEQUENCE_FIELD: &str = "agent_seq";
/// The field that carries the hash of the record before.
pub const PREVIOUS_FIELD: &str = "agent_prev";

/// A sealed record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// One-line JSON without the newline. These bytes are the record; nothing may reformat them.
    pub bytes: Vec<u8>,
    /// Its number at its source.
    pub seq: u64,
    /// SHA-256 of the bytes, lower-case hex.
    pub hash_hex: String,
}

/// SHA-256 in lower-case hex.
pub fn hash_hex(bytes: &[u8]) -> String {
    iap_identity::hex(digest(&SHA256, bytes).as_ref())
}

/// RFC 3339 in UTC with milliseconds.
pub fn format_time(time: OffsetDateTime) -> String {
    let time = time.to_offset(time::UtcOffset::UTC);
    let date = time.date();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond()
    )
}

/// A record as a receiver reads it: what every record must say, and all fields for the search.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordView {
    /// The source.
    pub agent_id: SourceId,
    /// Its number at its source, from 1.
    pub agent_seq: u64,
    /// The hash of the record before it; 64 zeros for the first.
    pub agent_prev: String,
    /// The event's name; may be one that this build does not know.
    pub event: String,
    /// The event's own id.
    pub id: Uuid,
    /// When it happened, as its source says.
    pub time: OffsetDateTime,
    /// The session it belongs to.
    pub session_id: Option<Uuid>,
    /// Everything it says.
    pub fields: Map<String, Value>,
    /// SHA-256 of its exact bytes, lower-case hex.
    pub hash_hex: String,
}

impl RecordView {
    /// Reads exact bytes as they were sealed.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(RecordError::TooLong { bytes: bytes.len() });
        }
        if bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            return Err(RecordError::NotOneLine);
        }
        let fields: Map<String, Value> = serde_json::from_slice(bytes).map_err(RecordError::Json)?;
        let agent_seq = fields
            .get(SEQUENCE_FIELD)
            .and_then(Value::as_u64)
            .filter(|seq| *seq > 0);
        Ok(Self {
            agent_id: SourceId::from_uuid(id(&fields, SOURCE_FIELD)?),
            agent_seq: agent_seq.ok_or(RecordError::Field { name: SEQUENCE_FIELD })?,
            agent_prev: hash(&fields, PREVIOUS_FIELD)?.to_owned(),
            event: text(&fields, "event")?.to_owned(),
            id: id(&fields, "id")?,
            time: time(&fields, "time")?,
            session_id: fields
                .get("session_id")
                .map(|_| id(&fields, "session_id"))
                .transpose()?,
            hash_hex: hash_hex(bytes),
            fields,
        })
    }

    /// The event, when this build knows it.
    pub fn kind(&self) -> Option<EventKind> {
        EventKind::parse(&self.event)
    }

    /// Where the chain stands after this record.
    pub fn head(&self) -> ChainHead {
        ChainHead {
            source: self.agent_id,
            seq: self.agent_seq,
            hash_hex: self.hash_hex.clone(),
        }
    }
}

fn text<'a>(fields: &'a Map<String, Value>, name: &'static str) -> Result<&'a str, RecordError> {
    fields
        .get(name)
        .and_then(Value::as_str)
        .ok_or(RecordError::Field { name })
}

fn id(fields: &Map<String, Value>, name: &'static str) -> Result<Uuid, RecordError> {
    Uuid::parse_str(text(fields, name)?).map_err(|_| RecordError::Field { name })
}

fn hash<'a>(fields: &'a Map<String, Value>, name: &'static str) -> Result<&'a str, RecordError> {
    let hex = text(fields, name)?;
    let well_formed = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    well_formed.then_some(hex).ok_or(RecordError::Field { name })
}

fn time(fields: &Map<String, Value>, name: &'static str) -> Result<OffsetDateTime, RecordError> {
    let time =
        OffsetDateTime::parse(text(fields, name)?, &Rfc3339).map_err(|_| RecordError::Field { name })?;
    time.offset()
        .is_utc()
        .then_some(time)
        .ok_or(RecordError::Field { name })
}

/// Why bytes are no record.
#[derive(Debug, Error)]
pub enum RecordError {
    /// Beyond [`RECORD_BYTES_MAX`].
    #[error("a record of {bytes} bytes exceeds the limit of {RECORD_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A record is one line.
    #[error("a record holds a line break")]
    NotOneLine,
    /// Not a JSON object.
    #[error("a record is not a JSON object: {0}")]
    Json(#[source] serde_json::Error),
    /// A field that every record has is missing or malformed.
    #[error("the record's field {name} is missing or malformed")]
    Field {
        /// Which.
        name: &'static str,
    },
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use serde_json::json;

    fn record() -> Value {
        let id = "01980000-0000-7000-8000-000000000001";
        json!({
            "agent_id": id, "agent_seq": 1, "agent_prev": GENESIS_HASH_HEX, "event": "agent.start", "id": id,
            "time": "2026-01-02T03:04:05.678Z",
        })
    }

    fn without(name: &str) -> Value {
        let mut record = record();
        record.as_object_mut().unwrap().remove(name);
        record
    }

    fn with(name: &str, value: Value) -> Value {
        let mut record = record();
        record[name] = value;
        record
    }

    fn refused(record: &Value) -> &'static str {
        match RecordView::parse(record.to_string().as_bytes()) {
            Err(RecordError::Field { name }) => name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hashes_are_lower_case_sha_256() {
        assert_eq!(
            hash_hex(b""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn a_record_is_read_with_its_hash_over_the_exact_bytes() {
        let bytes = record().to_string();
        let view = RecordView::parse(bytes.as_bytes()).unwrap();
        assert_eq!(view.kind(), Some(EventKind::AgentStart));
        assert_eq!(view.hash_hex, hash_hex(bytes.as_bytes()));
        assert_eq!(view.time.unix_timestamp_nanos() % 1_000_000_000, 678_000_000);
        let spaced = bytes.replacen(':', ": ", 1);
        assert_ne!(
            RecordView::parse(spaced.as_bytes()).unwrap().hash_hex,
            view.hash_hex
        );
    }

    #[test]
    fn a_record_without_a_field_of_the_chain_is_refused_by_name() {
        for name in ["agent_id", "agent_seq", "agent_prev", "event", "id", "time"] {
            assert_eq!(refused(&without(name)), name);
        }
    }

    #[test]
    fn malformed_fields_are_refused_by_name() {
        assert_eq!(refused(&with("agent_seq", json!(0))), "agent_seq");
        assert_eq!(refused(&with("agent_seq", json!("1"))), "agent_seq");
        assert_eq!(refused(&with("agent_prev", json!("A".repeat(64)))), "agent_prev");
        assert_eq!(refused(&with("agent_prev", json!("0".repeat(63)))), "agent_prev");
        assert_eq!(refused(&with("time", json!("2026-01-02T03:04:05+02:00"))), "time");
        assert_eq!(refused(&with("session_id", json!("one"))), "session_id");
    }

    #[test]
    fn a_record_of_two_lines_or_none_is_refused() {
        let mut bytes = record().to_string().into_bytes();
        bytes.push(b'\n');
        assert!(matches!(RecordView::parse(&bytes), Err(RecordError::NotOneLine)));
        assert!(matches!(RecordView::parse(b"[]"), Err(RecordError::Json(_))));
        assert!(matches!(
            RecordView::parse(b"{\"a\": \xff}"),
            Err(RecordError::Json(_))
        ));
        let long = vec![b' '; RECORD_BYTES_MAX + 1];
        assert!(matches!(
            RecordView::parse(&long),
            Err(RecordError::TooLong { .. })
        ));
    }

    #[test]
    fn an_event_of_a_newer_source_is_kept_though_unknown() {
        let view =
            RecordView::parse(with("event", json!("session.teleported")).to_string().as_bytes()).unwrap();
        assert_eq!(view.kind(), None);
    }
}
