//! What is written down about a session while it runs.

use std::sync::Arc;

use iap_audit::{Event, EventKind, Payload, SALT_BYTES};
use iap_runtime::pump::Counters;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::SessionFacts;
use crate::decide::Permit;
use crate::journal::Journal;

/// Writes records of one session. Clones write of the same.
#[derive(Debug, Clone)]
pub(crate) struct Scribe {
    pub(super) facts: Arc<SessionFacts>,
    pub(super) permit: Permit,
    pub(super) journal: Journal,
    pub(super) counters: Counters,
}

impl Scribe {
    /// What is settled about the session.
    pub(crate) fn facts(&self) -> &SessionFacts {
        &self.facts
    }

    /// What it carries.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The time that records carry.
    pub(crate) fn now(&self) -> OffsetDateTime {
        self.journal.stamp().0
    }

    /// An event of the session, with its usual fields.
    pub(crate) fn event(&self, kind: EventKind) -> Event {
        let (now, id) = self.journal.stamp();
        self.facts.event_now(self.permit.grant(), kind, now, id)
    }

    /// Writes it; returns once it is durable, or part of a gap.
    pub(crate) async fn record(&self, event: Event) {
        self.journal.record(event).await;
    }
}

/// The event with what somebody wrote, which lies beside the record and can be erased. Nothing written is no payload.
pub(crate) fn beside(event: Event, written: &Map<String, Value>) -> Event {
    match written.is_empty() {
        true => event,
        // Of strings and numbers, for which this cannot fail.
        false => beside_object(event, serde_json::to_vec(written).unwrap_or_default()),
    }
}

/// The same with a JSON object that is written already.
pub(crate) fn beside_object(event: Event, object: Vec<u8>) -> Event {
    let mut salt = [0; SALT_BYTES];
    if aws_lc_rs::rand::fill(&mut salt).is_err() {
        return event.field("payload_missing", "there was no randomness to salt it with");
    }
    match Payload::from_parts(&salt, object) {
        Ok(payload) => event.payload(payload),
        Err(error) => event.field("payload_missing", error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    fn event() -> Event {
        Event::new(EventKind::SessionCommand, OffsetDateTime::UNIX_EPOCH, Uuid::nil())
    }

    #[test]
    fn what_was_written_is_beside_the_record_and_not_in_it() {
        let written = json!({ "command": "psql postgres://a:secret@db" });
        let body = beside(event(), written.as_object().unwrap()).into_body();
        assert!(!body.fields().contains_key("command"));
        assert_eq!(body.payload().unwrap().bytes(), written.to_string().as_bytes());
        assert_eq!(
            body.fields().get("payload_sha256").unwrap(),
            &body.payload().unwrap().hash_hex()
        );
        assert!(beside(event(), &Map::new()).into_body().payload().is_none());
    }

    #[test]
    fn each_salt_is_another() {
        let written = json!({ "command": "uname" });
        let hash = || {
            beside(event(), written.as_object().unwrap())
                .into_body()
                .payload()
                .unwrap()
                .hash_hex()
        };
        assert_ne!(hash(), hash());
    }
}
