//! What is written down about a session while it runs.

use std::sync::Arc;

use iap_audit::{Event, EventKind};
use iap_runtime::pump::Counters;
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
