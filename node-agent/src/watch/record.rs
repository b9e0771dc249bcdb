//! Who watches which session, on record before the first byte is shown, and when they stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use iap_audit::{DecisionRecord, Effect, Event, EventKind};
use iap_identity::{ConnectionId, ProxyId};
use iap_proto::AuditMode;
use iap_runtime::spool::Room;

use super::Left;
use crate::decide::MayWatch;
use crate::journal::{Journal, JournalError};
use crate::session::{Caller, Live};

/// Who watches what, from where, and by what right.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    pub(crate) live: Arc<Live>,
    pub(crate) watcher: Caller,
    pub(crate) client: SocketAddr,
    pub(crate) asserted_by: ProxyId,
    pub(crate) connection_id: ConnectionId,
    pub(crate) may: MayWatch,
}

/// How much a watcher was shown, and how much not. Only a [`Watching`] has one. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Tally(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    shown: AtomicU64,
    missed: AtomicU64,
}

impl Tally {
    pub(super) fn shown(&self, bytes: u64) {
        self.0.shown.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn missed(&self, bytes: u64) {
        self.0.missed.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Proof that the record says who watches. Only [`begin`] makes one, and nothing is shown without it; its end is recorded
/// whatever becomes of the watcher.
#[derive(Debug)]
pub(crate) struct Watching {
    watch: Watch,
    journal: Journal,
    began: Instant,
    tally: Tally,
    is_over: bool,
}

/// Records that somebody begins to watch.
///
/// # Errors
/// When nobody may watch without that being on record, and it is not.
pub(crate) async fn begin(
    watch: Watch,
    journal: &Journal,
    mode: AuditMode,
) -> Result<Watching, JournalError> {
    let event = watch.event(EventKind::SessionWatch, journal);
    let watching = Watching {
        watch,
        journal: journal.clone(),
        began: Instant::now(),
        tally: Tally(Arc::default()),
        is_over: false,
    };
    match journal.before_showing(event, mode).await {
        Ok(()) => Ok(watching),
        Err(error) => {
            let was_written = matches!(error, JournalError::NotAcknowledged(_) | JournalError::Hangs);
            watching.not_begun(was_written);
            Err(error)
        }
    }
}

impl Watching {
    /// How much is shown.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Records that it is over, and why; returns once that is durable.
    pub(crate) async fn end(mut self, left: &Left) {
        self.is_over = true;
        let event = self.end_event(left.code(), left.detail());
        self.journal.end(event, Room::Reserve).await;
    }

    fn not_begun(mut self, was_written: bool) {
        self.is_over = true;
        if was_written {
            let event = self.end_event("audit_unavailable", None);
            self.journal.end_later(event, Room::Reserve);
        }
    }

    fn end_event(&self, code: &'static str, detail: Option<String>) -> Event {
        let lasted = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let event = self
            .watch
            .event(EventKind::SessionWatchEnd, &self.journal)
            .field("ended", code)
            .field("duration_ms", lasted)
            .field("shown_bytes", count(&self.tally.0.shown))
            .field("missed_bytes", count(&self.tally.0.missed));
        match detail {
            Some(detail) => event.reason(&detail),
            None => event,
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if !self.is_over {
            let event = self.end_event(
                "internal_error",
                Some("the watcher's task ended early".to_owned()),
            );
            self.journal.end_later(event, Room::Reserve);
        }
    }
}

impl Watch {
    fn event(&self, kind: EventKind, journal: &Journal) -> Event {
        let (now, id) = journal.stamp();
        let (facts, permit) = (&self.live.facts, self.live.permit());
        let decision = DecisionRecord {
            effect: Effect::Allow,
            rule: None,
            policy_version: self.may.policy_version,
        };
        let event = Event::new(kind, now, id)
            .session(&facts.session_id)
            .connection(&self.connection_id)
            .user(&self.watcher.record())
            .serial(self.watcher.peer().serial())
            .service(&facts.service)
            .protocol(facts.protocol.as_str())
            .agent(&facts.agent)
            .client_address(self.client)
            .field("client_asserted_by", self.asserted_by.to_string())
            .decision(&decision)
            .login(permit.grant().login())
            .field("watched_user", self.live.caller().record().name)
            .field("basis", self.may.basis.as_str());
        match self.watcher.login_id() {
            Some(login) => event.login_id(&login),
            None => event,
        }
    }
}
