//! The audit trail as values: the event vocabulary, the chain that links a source's records by their hashes,
//! and the format of the spool in which they wait.
//!
//! Nothing here reads a clock, draws a random number or touches a file: time, ids and bytes are arguments.

pub mod answer;
pub mod asciicast;
pub mod chain;
pub mod event;
pub mod kind;
pub mod payload;
pub mod record;
pub mod spool;

pub use answer::carried;
pub use chain::{Chain, ChainHead, LinkError, SealError, SourceId, verify_link};
pub use event::{CloseReason, DecisionRecord, Effect, Event, Observed, RecordBody, UserRecord};
pub use kind::EventKind;
pub use payload::{
    PAYLOAD_BYTES_MAX, PAYLOAD_LIST_FIELD, PAYLOAD_PLACE_FIELD, Payload, PayloadError, SALT_BYTES,
};
pub use record::{
    GENESIS_HASH_HEX, RECORD_BYTES_MAX, Record, RecordError, RecordView, format_time, hash_hex,
};
pub use spool::{Scan, SpoolFrameError, SpoolReader};
