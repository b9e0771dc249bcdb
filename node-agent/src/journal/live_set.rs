//! Which sessions live, kept across the deletion of acknowledged records.
//!
//! The file is the state after all acknowledged records: the sessions among them with a start and no end.
//! It is written before the spool may delete those records. After a restart the records still in the spool
//! are replayed over it; since an end follows its start, replaying a record twice changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use iap_audit::{EventKind, RecordView, carried};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::state::{StateDir, StateError, names};

/// Sessions with a start and no end.
#[derive(Debug, Default)]
pub struct LiveSet {
    /// The part of each start record that its end record repeats, as JSON: thousands of these are held.
    open: BTreeMap<Uuid, Box<str>>,
    /// Sessions in which this differs from the file.
    differs: BTreeSet<Uuid>,
}

impl LiveSet {
    /// What the file says: one JSON object per line.
    ///
    /// # Errors
    /// When the file exists and cannot be read. A damaged line is only reported: the record is with the auth
    /// server, which ends such sessions itself after a day.
    pub fn load(state: &StateDir) -> Result<Self, StateError> {
        let mut set = Self::default();
        let bytes = state.read(names::LIVE)?.unwrap_or_default();
        for line in String::from_utf8_lossy(&bytes).lines() {
            match session_of(line) {
                Some(session) => drop(set.open.insert(session, line.into())),
                None => tracing::error!(
                    file = names::LIVE,
                    "a line of the list of live sessions is damaged"
                ),
            }
        }
        Ok(set)
    }

    /// Takes the next record into account.
    pub fn replay(&mut self, record: &RecordView) {
        let Some(session) = record.session_id else { return };
        let changed = match record.kind() {
            Some(EventKind::SessionStart) => {
                let line = Value::Object(carried(&record.fields)).to_string();
                self.open.insert(session, line.into_boxed_str()).is_none()
            }
            Some(EventKind::SessionEnd) => self.open.remove(&session).is_some(),
            Some(_) | None => false,
        };
        if changed && !self.differs.remove(&session) {
            self.differs.insert(session);
        }
    }

    /// What is carried of every session that lives, as of the records seen.
    pub fn open(&self) -> impl Iterator<Item = Map<String, Value>> {
        self.open
            .values()
            .filter_map(|line| serde_json::from_str(line).ok())
    }

    /// The file's new content, when it differs from what is stored.
    #[must_use]
    pub fn unsaved(&self) -> Option<Vec<u8>> {
        if self.differs.is_empty() {
            return None;
        }
        let lines = self.open.values().flat_map(|line| [line.as_bytes(), b"\n"]);
        Some(lines.collect::<Vec<_>>().concat())
    }

    /// The file holds what [`unsaved`](Self::unsaved) returned.
    pub fn saved(&mut self) {
        self.differs.clear();
    }
}

fn session_of(line: &str) -> Option<Uuid> {
    let fields: Map<String, Value> = serde_json::from_str(line).ok()?;
    Uuid::parse_str(fields.get("session_id")?.as_str()?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use iap_audit::{Chain, CloseReason, Event};
    use iap_identity::{AgentId, SessionId};
    use time::OffsetDateTime;

    use super::*;

    fn records(events: impl IntoIterator<Item = (EventKind, u128)>) -> Vec<RecordView> {
        let mut chain = Chain::new(AgentId::from_uuid(Uuid::from_u128(1)));
        let seal = |(kind, session): (EventKind, u128)| {
            let event = Event::new(kind, OffsetDateTime::UNIX_EPOCH, Uuid::from_u128(9))
                .session(&SessionId::from_uuid(Uuid::from_u128(session)));
            let event = if kind == EventKind::SessionEnd {
                event.close(CloseReason::Lock, None)
            } else {
                event
            };
            RecordView::parse(&chain.seal(event).unwrap().bytes).unwrap()
        };
        events.into_iter().map(seal).collect()
    }

    fn open_after(file: &[RecordView], spool: &[RecordView]) -> Vec<Uuid> {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let mut acknowledged = LiveSet::default();
        file.iter().for_each(|record| acknowledged.replay(record));
        if let Some(bytes) = acknowledged.unsaved() {
            state.write(names::LIVE, &bytes).unwrap();
        }
        let mut set = LiveSet::load(&state).unwrap();
        spool.iter().for_each(|record| set.replay(record));
        set.open.into_keys().collect()
    }

    #[test]
    fn what_is_live_does_not_depend_on_where_acknowledgement_and_deletion_cut_the_records() {
        use EventKind::{SessionEnd, SessionStart};
        let records = records([
            (SessionStart, 1),
            (SessionStart, 2),
            (SessionEnd, 1),
            (SessionStart, 3),
            (SessionEnd, 3),
        ]);
        for acknowledged in 0..=records.len() {
            for deleted in 0..=acknowledged {
                let open = open_after(
                    records.get(..acknowledged).unwrap(),
                    records.get(deleted..).unwrap(),
                );
                assert_eq!(
                    open,
                    [Uuid::from_u128(2)],
                    "acknowledged {acknowledged}, deleted {deleted}"
                );
            }
        }
    }
}
