//! Which sessions live, kept across the deletion of acknowledged records.
//!
//! The file is the state after all acknowledged records: the sessions among them with a start and no end.
//! It is written before the spool may delete those records. After a restart the records still in the spool
//! are replayed over it; since an end follows its start, replaying a record twice changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use iap_audit::{EventKind, RecordView};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::session::facts::carried;
use crate::state::{StateDir, StateError, names};

/// Sessions with a start and no end.
#[derive(Debug, Clone, Default)]
pub struct LiveSet {
    /// The part of each start record that its end record repeats.
    open: BTreeMap<Uuid, Map<String, Value>>,
    /// What the file holds.
    stored: BTreeSet<Uuid>,
}

impl LiveSet {
    /// What the file says.
    ///
    /// # Errors
    /// When the file exists and cannot be read. A damaged file counts as empty: the records are with the
    /// auth server, which ends such sessions itself after a day.
    pub fn load(state: &StateDir) -> Result<Self, StateError> {
        let Some(bytes) = state.read(names::LIVE)? else {
            return Ok(Self::default());
        };
        let open: BTreeMap<Uuid, Map<String, Value>> = match serde_json::from_slice(&bytes) {
            Ok(open) => open,
            Err(error) => {
                tracing::error!(%error, file = names::LIVE, "the list of live sessions is damaged");
                BTreeMap::new()
            }
        };
        let stored = open.keys().copied().collect();
        Ok(Self { open, stored })
    }

    /// Takes the next record into account.
    pub fn replay(&mut self, record: &RecordView) {
        let Some(session) = record.session_id else { return };
        match record.kind() {
            Some(EventKind::SessionStart) => drop(self.open.insert(session, carried(&record.fields))),
            Some(EventKind::SessionEnd) => drop(self.open.remove(&session)),
            Some(_) | None => {}
        }
    }

    /// Every session that lives, as of the records seen.
    pub fn open(&self) -> impl Iterator<Item = &Map<String, Value>> {
        self.open.values()
    }

    /// The file's new content, when it differs from what is stored.
    #[must_use]
    pub fn unsaved(&self) -> Option<Vec<u8>> {
        let same =
            self.open.len() == self.stored.len() && self.open.keys().all(|id| self.stored.contains(id));
        // Maps of JSON values with UUID keys always serialise.
        if same {
            None
        } else {
            serde_json::to_vec(&self.open).ok()
        }
    }

    /// The file holds what [`unsaved`](Self::unsaved) returned.
    pub fn saved(&mut self) {
        self.stored = self.open.keys().copied().collect();
    }
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
