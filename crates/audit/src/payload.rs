//! What a record is about and does not hold itself: statements, parameters, whatever must be erasable.
//!
//! The record, which is chained, carries SHA-256(32-byte salt ‖ payload) and the payload's length. Salt and payload travel
//! and lie beside it. Once both are erased nothing about them can be found out from the record, by guessing either, and the
//! chain still verifies.

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::record::{RECORD_BYTES_MAX, RecordView};

/// The field with the hash, lower-case hex.
pub const PAYLOAD_HASH_FIELD: &str = "payload_sha256";
/// The field with the payload's length.
pub const PAYLOAD_LENGTH_FIELD: &str = "payload_bytes";
/// The field of a payload that lists what happened one after the other, each a row of its own to whoever reads.
pub const PAYLOAD_LIST_FIELD: &str = "statements";
/// What such a row has beside the record's and its own fields: its place in the list, from 1.
pub const PAYLOAD_PLACE_FIELD: &str = "statement_number";
/// Bytes of a salt.
pub const SALT_BYTES: usize = 32;
/// The most one payload may take, so that it fits where a record fits.
pub const PAYLOAD_BYTES_MAX: usize = RECORD_BYTES_MAX - 1 - SALT_BYTES;
/// How much the rows of one record may take together, as far as they repeat it: far more than a record that was made in good faith does.
const ROWS_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Where a list lies in the one row of a record whose list is too long for rows of its own.
const LONG_LIST_FIELD: &str = "statements_list";
/// First byte of a payload where records begin with `{`.
const MARK: u8 = 1;

/// A JSON object and the salt it is hashed with.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    salt: [u8; SALT_BYTES],
    bytes: Vec<u8>,
}

/// Why these bytes are no payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PayloadError {
    /// Too long, or of no length.
    #[error("a payload has 1 to {PAYLOAD_BYTES_MAX} bytes, not {bytes}")]
    Length {
        /// Its length.
        bytes: usize,
    },
    /// A salt of another length.
    #[error("a payload's salt has {SALT_BYTES} bytes")]
    Salt,
    /// Not what the record says it is.
    #[error("a payload is not the one its record was made with")]
    OtherContent,
}

impl Payload {
    /// These fields, salted.
    ///
    /// # Errors
    /// When they are too long.
    pub fn of(fields: &Map<String, Value>, salt: [u8; SALT_BYTES]) -> Result<Self, PayloadError> {
        // Strings, numbers and lists of them, for which this cannot fail.
        let bytes = serde_json::to_vec(fields).unwrap_or_default();
        Self::from_parts(&salt, bytes)
    }

    /// A payload as it lies beside its record.
    ///
    /// # Errors
    /// When these cannot be its parts.
    pub fn from_parts(salt: &[u8], bytes: Vec<u8>) -> Result<Self, PayloadError> {
        let salt = salt.try_into().map_err(|_| PayloadError::Salt)?;
        match bytes.len() {
            1..=PAYLOAD_BYTES_MAX => Ok(Self { salt, bytes }),
            bytes => Err(PayloadError::Length { bytes }),
        }
    }

    /// The salt.
    #[must_use]
    pub fn salt(&self) -> &[u8; SALT_BYTES] {
        &self.salt
    }

    /// The JSON object.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What its record carries: SHA-256(salt ‖ payload), lower-case hex.
    #[must_use]
    pub fn hash_hex(&self) -> String {
        let mut context = Context::new(&SHA256);
        context.update(&self.salt);
        context.update(&self.bytes);
        iap_identity::hex(context.finish().as_ref())
    }

    /// Whether it is the one that record was made with.
    ///
    /// # Errors
    /// When it is not.
    pub fn belongs_to(&self, record: &RecordView) -> Result<(), PayloadError> {
        let hash = record.fields.get(PAYLOAD_HASH_FIELD).and_then(Value::as_str);
        let bytes = record.fields.get(PAYLOAD_LENGTH_FIELD).and_then(Value::as_u64);
        let is_as_long = bytes == u64::try_from(self.bytes.len()).ok();
        match is_as_long && hash == Some(self.hash_hex().as_str()) {
            true => Ok(()),
            false => Err(PayloadError::OtherContent),
        }
    }

    /// As it lies behind its record in a spool.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&[MARK][..], &self.salt, &self.bytes].concat()
    }

    /// Whether the content of a spool's frame is a payload; anything else is a record.
    #[must_use]
    pub fn is_payload(frame: &[u8]) -> bool {
        frame.first() == Some(&MARK)
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// When it is no payload.
    pub fn decode(frame: &[u8]) -> Result<Self, PayloadError> {
        let content = frame.strip_prefix(&[MARK]).ok_or(PayloadError::Salt)?;
        let (salt, bytes) = content
            .split_first_chunk::<SALT_BYTES>()
            .ok_or(PayloadError::Salt)?;
        Self::from_parts(salt, bytes.to_vec())
    }

    /// How a record reads with what lies beside it: the payload's fields among the record's, once for each entry of its
    /// [list](PAYLOAD_LIST_FIELD) where it has one with entries. The record's own count where both have one. `record_bytes`
    /// is the record's length, of which each row has a copy: where they would be too many there is one row, with the list.
    #[must_use]
    pub fn rows(
        payload: Option<&[u8]>,
        record: Map<String, Value>,
        record_bytes: usize,
    ) -> Vec<Map<String, Value>> {
        let fields = payload.and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(bytes).ok());
        let Some(mut fields) = fields else {
            return vec![record];
        };
        let Some(Value::Array(list)) = fields.remove(PAYLOAD_LIST_FIELD) else {
            return vec![merged(record, fields)];
        };
        if list.is_empty() {
            return vec![merged(record, fields)];
        }
        if list.len().saturating_mul(record_bytes) > ROWS_BYTES_MAX {
            fields.insert(LONG_LIST_FIELD.to_owned(), Value::Array(list));
            return vec![merged(record, fields)];
        }
        let record = merged(record, fields);
        let row = |(place, entry): (usize, Value)| {
            let mut row = record.clone();
            row.insert(PAYLOAD_PLACE_FIELD.to_owned(), (place + 1).into());
            match entry {
                Value::Object(fields) => merged(row, fields),
                other => merged(row, Map::from_iter([("entry".to_owned(), other)])),
            }
        };
        list.into_iter().enumerate().map(row).collect()
    }
}

fn merged(mut record: Map<String, Value>, fields: Map<String, Value>) -> Map<String, Value> {
    for (name, value) in fields {
        record.entry(name).or_insert(value);
    }
    record
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Payload")
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::{Chain, Event, EventKind, SourceId};
    use proptest::prelude::*;
    use serde_json::json;
    use time::OffsetDateTime;
    use uuid::Uuid;

    fn payload(text: &str, salt: u8) -> Payload {
        let fields = json!({ "statement": text });
        Payload::of(fields.as_object().unwrap(), [salt; SALT_BYTES]).unwrap()
    }

    fn record_with(payload: Payload) -> RecordView {
        let event =
            Event::new(EventKind::AgentStart, OffsetDateTime::UNIX_EPOCH, Uuid::nil()).payload(payload);
        let record = Chain::new(SourceId::from_uuid(Uuid::nil())).seal(event).unwrap();
        RecordView::parse(&record.bytes).unwrap()
    }

    #[test]
    fn a_record_names_its_payload_and_holds_nothing_of_it() {
        let payload = payload("SELECT 1", 7);
        let record = record_with(payload.clone());
        assert_eq!(payload.belongs_to(&record), Ok(()));
        assert_eq!(record.fields["payload_bytes"], payload.bytes().len());
        assert!(!record.fields.contains_key("statement"));
    }

    #[test]
    fn another_text_or_salt_does_not_belong_to_the_record() {
        let record = record_with(payload("SELECT 1", 7));
        for other in [payload("SELECT 2", 7), payload("SELECT 1", 8)] {
            assert_eq!(other.belongs_to(&record), Err(PayloadError::OtherContent));
        }
    }

    fn rows(payload: &str, record: Value) -> Value {
        let record = record.as_object().unwrap().clone();
        Payload::rows(Some(payload.as_bytes()), record, 1)
            .into_iter()
            .map(Value::Object)
            .collect()
    }

    #[test]
    fn a_payload_cannot_take_the_place_of_what_the_record_says() {
        let read = rows(
            r#"{"user": "bob", "statement": "x"}"#,
            json!({"user": "alice", "event": "e"}),
        );
        assert_eq!(read, json!([{"user": "alice", "event": "e", "statement": "x"}]));
        let read = rows(
            r#"{"statements": [{"user": "bob", "statement_number": 7}]}"#,
            json!({"user": "alice"}),
        );
        assert_eq!(read, json!([{"user": "alice", "statement_number": 1}]));
    }

    #[test]
    fn each_entry_of_a_list_is_a_row_and_nothing_is_one_too() {
        let read = rows(
            r#"{"statements": [{"statement": "x"}, {"statement": "y"}, 3]}"#,
            json!({"id": 1, "statements": 3}),
        );
        let expected = json!([
            {"id": 1, "statements": 3, "statement_number": 1, "statement": "x"},
            {"id": 1, "statements": 3, "statement_number": 2, "statement": "y"},
            {"id": 1, "statements": 3, "statement_number": 3, "entry": 3},
        ]);
        assert_eq!(read, expected);
        let record = json!({"id": 1}).as_object().unwrap().clone();
        for payload in [None, Some(&b"no JSON"[..])] {
            assert_eq!(Payload::rows(payload, record.clone(), 1), vec![record.clone()]);
        }
        let read = rows(r#"{"statements": [], "a": 2}"#, json!({"id": 1}));
        assert_eq!(read, json!([{"id": 1, "a": 2}]));
    }

    #[test]
    fn a_list_that_would_repeat_a_long_record_too_often_stays_one_row() {
        let payload = json!({ "statements": vec![json!({}); 80_000] }).to_string();
        let record = json!({"id": 1}).as_object().unwrap().clone();
        let read = |record_bytes| Payload::rows(Some(payload.as_bytes()), record.clone(), record_bytes);
        assert_eq!(read(400).len(), 80_000);
        let one = read(RECORD_BYTES_MAX);
        assert_eq!(one.len(), 1);
        assert_eq!(one[0][LONG_LIST_FIELD].as_array().map(Vec::len), Some(80_000));
    }

    #[test]
    fn payloads_of_no_length_or_too_long_are_refused() {
        assert_eq!(
            Payload::from_parts(&[0; 32], Vec::new()),
            Err(PayloadError::Length { bytes: 0 })
        );
        assert!(Payload::from_parts(&[0; 32], vec![b'x'; PAYLOAD_BYTES_MAX + 1]).is_err());
        assert_eq!(Payload::from_parts(&[0; 31], vec![1]), Err(PayloadError::Salt));
        let longest = Payload::from_parts(&[0; 32], vec![b'x'; PAYLOAD_BYTES_MAX]).unwrap();
        assert!(crate::spool::encode_frame(&longest.encode()).is_ok());
    }

    proptest! {
        #[test]
        fn a_payload_reads_as_it_was_written(text: String, salt: [u8; 32]) {
            let fields = json!({ "statement": text });
            let payload = Payload::of(fields.as_object().unwrap(), salt).unwrap();
            prop_assert!(Payload::is_payload(&payload.encode()));
            prop_assert_eq!(Payload::decode(&payload.encode()), Ok(payload));
        }
    }
}
