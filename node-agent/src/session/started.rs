//! A session whose start is recorded: the permission to dial, and the duty to record the end.

use std::sync::Arc;

use iap_audit::CloseReason;
use iap_identity::SessionId;
use iap_policy::Grant;
use iap_runtime::pump::Counters;
use iap_runtime::spool::Room;

use super::{Ending, Scribe, SessionFacts};
use crate::decide::Permit;
use crate::journal::{Journal, JournalError};

/// Proof that a session was granted and that its start record is durable (or, for a service with
/// `audit = "best_effort"`, that its gap is counted). Only [`Journal::start`] makes one, and
/// [`backend::dial`](crate::backend::dial) takes nothing else. Dropping it unended records a failure of the
/// agent, so that no way out of a session leaves it without an end.
#[derive(Debug)]
pub struct Started {
    facts: Arc<SessionFacts>,
    permit: Permit,
    counters: Counters,
    journal: Journal,
    /// What its end may take: a session whose start is on record may use the reserve.
    end_room: Room,
    ended: bool,
}

impl Started {
    pub(crate) fn new(facts: Arc<SessionFacts>, permit: Permit, journal: Journal, end_room: Room) -> Self {
        Self {
            facts,
            permit,
            counters: Counters::new(),
            journal,
            end_room,
            ended: false,
        }
    }

    /// A session whose start a predecessor has recorded.
    pub(crate) fn taken_over(
        facts: Arc<SessionFacts>,
        permit: Permit,
        journal: Journal,
        counters: Counters,
    ) -> Self {
        let mut started = Self::new(facts, permit, journal, Room::Reserve);
        started.counters = counters;
        started
    }

    /// Whether its start is on record, which is what a successor knows it by.
    pub(crate) fn is_on_record(&self) -> bool {
        self.end_room == Room::Reserve
    }

    /// It is the successor's: the end is recorded there.
    pub(crate) fn handed_over(mut self) {
        self.ended = true;
    }

    /// The session's id.
    #[must_use]
    pub fn session_id(&self) -> SessionId {
        self.facts.session_id
    }

    /// What is settled about it.
    #[must_use]
    pub fn facts(&self) -> &SessionFacts {
        &self.facts
    }

    /// What it was granted by.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        self.permit.grant()
    }

    /// What it has carried.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Writes what else there is to say about it.
    pub(crate) fn scribe(&self) -> Scribe {
        Scribe {
            facts: Arc::clone(&self.facts),
            permit: self.permit.clone(),
            journal: self.journal.clone(),
            counters: self.counters.clone(),
        }
    }

    /// Records that the backend could not be reached.
    pub fn connect_failed(&self, text: &str) {
        let (now, id) = self.journal.stamp();
        self.journal
            .note(self.facts.connect_failed_event(self.grant(), now, id, text));
    }

    /// Where its records go.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Records the login and database that it turns out to be about, by the permit that they were decided with; returns once
    /// that is durable.
    pub(crate) async fn record_login(&self, permit: &Permit) -> Result<(), JournalError> {
        let (now, id) = self.journal.stamp();
        let event = self.facts.login_event(permit.grant(), now, id);
        self.journal.before_effect(event, permit.service().audit).await
    }

    /// Records the end; returns once that is durable, or known to be impossible.
    pub async fn end(mut self, ending: Ending) {
        self.ended = true;
        let event = self.end_event(&ending);
        self.journal.end(event, self.end_room).await;
    }

    fn end_event(&self, ending: &Ending) -> iap_audit::Event {
        let (now, id) = self.journal.stamp();
        let bytes = (self.counters.bytes_in(), self.counters.bytes_out());
        self.facts.end_event(self.grant(), now, id, bytes, ending)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.ended {
            let ending = Ending::because(CloseReason::InternalError, "the session's task ended early");
            self.journal.end_later(self.end_event(&ending), self.end_room);
        }
    }
}
