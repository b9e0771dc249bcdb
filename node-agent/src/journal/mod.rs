//! What is written down, and when it counts: the start of a session is durable before its backend is dialled,
//! its end follows whatever happens, denials are coalesced, and what could not be written is itself recorded.

pub mod denials;
pub mod live_set;
mod recover;
mod writing;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use iap_audit::{CloseReason, Event, EventKind};
use iap_identity::AgentId;
use iap_proto::AuditMode;
use iap_runtime::config::InForce;
use iap_runtime::spool::{Receipt, Room, Spool, SpoolError, SpoolLimits, SpoolOpenError};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::clock::TrustedClock;
use crate::decide::Permit;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::session::handover::handed::Handed;
use crate::session::{Ending, SessionFacts, Started};
use crate::state::{StateDir, StateError, names};
use denials::Denials;
pub use denials::{Denied, Mismatch};

const MINUTE: Duration = Duration::from_secs(60);
/// How often a full spool is tried again, and an end record that found no room.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// Records that may wait to be written without anybody waiting for them.
const WAITING_RECORDS_MAX: usize = 4096;
/// How long the start of a session waits for a disk that neither takes nor refuses it.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last records may take when the agent stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Why something is not written down.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The spool cannot be opened.
    #[error(transparent)]
    Open(#[from] SpoolOpenError),
    /// The spool does not take a record.
    #[error(transparent)]
    Append(#[from] SpoolError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The disk has neither taken nor refused the record in time.
    #[error("the audit spool's disk did not answer within {} s", START_TIMEOUT.as_secs())]
    Hangs,
    /// The auth server has not acknowledged the record in time, for a service that must not begin without that.
    #[error("the auth server did not acknowledge the session's record within {} s", .0.as_secs())]
    NotAcknowledged(Duration),
    /// A thread of the runtime is gone.
    #[error("the spool was not opened: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl JournalError {
    /// One sentence for the user.
    #[must_use]
    pub fn public_text(&self) -> &'static str {
        match self {
            Self::NotAcknowledged(_) => {
                "the auth server did not confirm the session's record in time, and the service requires that"
            }
            Self::Open(_) | Self::Append(_) | Self::Hangs | Self::State(_) | Self::Task(_) => {
                "the agent cannot write audit records now"
            }
        }
    }
}

/// The agent's audit records. Clones share them.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    agent_id: AgentId,
    spool: Spool,
    clock: Arc<TrustedClock>,
    metrics: Metrics,
    denials: Mutex<Denials>,
    full: watch::Sender<bool>,
    /// The newest record that the auth server has.
    acknowledged: watch::Sender<u64>,
    limits: InForce<Limits>,
    /// Records lost since the last that said so.
    gaps: AtomicU64,
    /// Whether every session of an earlier run has its end.
    recovered: watch::Sender<bool>,
    /// Whether the spool's thread is gone, so that nothing is ever written again.
    stopped: watch::Sender<bool>,
    /// Writes that nobody waits for.
    background: TaskTracker,
}

impl Journal {
    /// Opens the spool, and writes the end of every session that a killed predecessor left without one; those that
    /// find no room are written as soon as there is some (see [`recovered`](Self::recovered)).
    ///
    /// # Errors
    /// When the spool cannot be used.
    pub async fn open(
        agent_id: AgentId,
        state: &StateDir,
        limits: InForce<Limits>,
        clock: Arc<TrustedClock>,
        metrics: Metrics,
    ) -> Result<Self, JournalError> {
        Self::open_after(agent_id, state, limits, clock, metrics, &mut Handed::default()).await
    }

    /// The same, after a predecessor that has left sessions: those that are `handed` over, and that the record knows as
    /// begun and not over, get no end.
    ///
    /// # Errors
    /// When the spool cannot be used.
    pub(crate) async fn open_after(
        agent_id: AgentId,
        state: &StateDir,
        limits: InForce<Limits>,
        clock: Arc<TrustedClock>,
        metrics: Metrics,
        handed: &mut Handed,
    ) -> Result<Self, JournalError> {
        let (path, bounds) = (
            state.path(names::SPOOL),
            spool_limits(limits.now().spool_bytes_max),
        );
        let opening = tokio::task::spawn_blocking(move || Spool::open(&path, bounds, agent_id));
        let (spool, recovery) = opening.await??;
        if recovery.torn_bytes > 0 {
            tracing::warn!(
                bytes = recovery.torn_bytes,
                "a record that was never confirmed was cut off"
            );
        }
        warn_of_small_reserve(&bounds, limits.now().sessions_max);
        let journal = Self(Arc::new(Inner {
            agent_id,
            spool,
            clock,
            metrics,
            denials: Mutex::default(),
            full: watch::Sender::new(false),
            acknowledged: watch::Sender::new(recovery.acknowledged),
            limits,
            gaps: AtomicU64::new(0),
            recovered: watch::Sender::new(false),
            stopped: watch::Sender::new(false),
            background: TaskTracker::new(),
        }));
        let waiting = recover::end_lost_sessions(&journal, state, handed).await?;
        if waiting.is_empty() {
            journal.0.recovered.send_replace(true);
        } else {
            journal.in_background(recover::keep_writing(journal.clone(), waiting));
        }
        let (now, id) = journal.stamp();
        let start = Event::new(EventKind::AgentStart, now, id).agent(&agent_id);
        journal.note(start.field("version", env!("CARGO_PKG_VERSION")));
        Ok(journal)
    }

    /// Records that a session starts. Returns the permission to dial once the record is durable, and for a service
    /// with `audit = "remote"` at the auth server; for one that does not require its records, also when there is no
    /// room, which is then counted as a gap.
    ///
    /// # Errors
    /// When the session must not be without its record and there is none. A start that was recorded and not
    /// acknowledged has its end recorded too.
    pub async fn start(
        &self,
        facts: &Arc<SessionFacts>,
        permit: &Permit,
        mode: AuditMode,
    ) -> Result<Started, JournalError> {
        let (_, id) = self.stamp();
        let event = facts.start_event(permit.grant(), id);
        let started = |end_room| Started::new(Arc::clone(facts), permit.clone(), self.clone(), end_room);
        let journal = self.clone();
        let mut appending = Box::pin(async move { journal.append(event, Room::Free).await });
        let Ok(appended) = tokio::time::timeout(START_TIMEOUT, &mut appending).await else {
            return self.start_hangs(facts, permit, mode, appending);
        };
        match (appended, mode) {
            (Ok(_), AuditMode::Required | AuditMode::BestEffort) => Ok(started(Room::Reserve)),
            (Ok(receipt), AuditMode::Remote) => {
                self.acknowledged_in_time(started(Room::Reserve), receipt.seq)
                    .await
            }
            // The reserve is for the ends of those whose start is on record.
            (Err(_), AuditMode::BestEffort) => {
                self.gap();
                Ok(started(Room::Free))
            }
            (Err(error), AuditMode::Required | AuditMode::Remote) => Err(error.into()),
        }
    }

    /// The disk has neither taken nor refused the start, and may do either yet.
    fn start_hangs(
        &self,
        facts: &Arc<SessionFacts>,
        permit: &Permit,
        mode: AuditMode,
        appending: impl Future<Output = Result<Receipt, SpoolError>> + Send + 'static,
    ) -> Result<Started, JournalError> {
        self.set_full(true);
        let journal = self.clone();
        let (facts, permit) = (Arc::clone(facts), permit.clone());
        match mode {
            AuditMode::BestEffort => {
                self.in_background(async move {
                    if let Err(error) = appending.await {
                        journal.lost(&error);
                    }
                });
                Ok(Started::new(facts, permit, self.clone(), Room::Free))
            }
            AuditMode::Required | AuditMode::Remote => {
                self.in_background(async move {
                    // Written after all: it has its end then.
                    if appending.await.is_ok() {
                        let error = JournalError::Hangs.to_string();
                        let ending = Ending::because(CloseReason::AuditUnavailable, error);
                        let started = Started::new(facts, permit, journal, Room::Reserve);
                        started.end(ending).await;
                    }
                });
                Err(JournalError::Hangs)
            }
        }
    }

    async fn acknowledged_in_time(&self, started: Started, seq: u64) -> Result<Started, JournalError> {
        let Err(error) = self.acknowledges_in_time(seq).await else {
            return Ok(started);
        };
        let ending = Ending::because(CloseReason::AuditUnavailable, error.to_string());
        started.end(ending).await;
        Err(error)
    }

    /// Returns once the auth server has that record.
    async fn acknowledges_in_time(&self, seq: u64) -> Result<(), JournalError> {
        let mut acknowledged = self.0.acknowledged.subscribe();
        let patience = self.0.limits.now().remote_audit();
        let waiting = acknowledged.wait_for(|newest| *newest >= seq);
        let waited = tokio::time::timeout(patience, waiting).await;
        match waited.is_ok_and(|seen| seen.is_ok()) {
            true => Ok(()),
            false => Err(JournalError::NotAcknowledged(patience)),
        }
    }

    /// The auth server has every record up to `seq`: those who wait for that go on, and the spool may forget them.
    ///
    /// # Errors
    /// When that cannot be remembered.
    pub async fn acknowledge(&self, seq: u64) -> Result<(), SpoolError> {
        self.0.acknowledged.send_replace(seq);
        self.0.spool.acknowledge(seq).await
    }

    /// The newest record that the auth server has, as it changes.
    #[must_use]
    pub fn acknowledged(&self) -> watch::Receiver<u64> {
        self.0.acknowledged.subscribe()
    }

    /// Returns once every session of an earlier run has its end: nothing is to be announced before.
    pub async fn recovered(&self) {
        let mut recovered = self.0.recovered.subscribe();
        let _ = recovered.wait_for(|recovered| *recovered).await;
    }

    /// Records that a session is over. Returns once that is durable; when there is no room even in the
    /// reserve, keeps trying behind the caller's back. With [`Room::Free`], for a session whose start is part of a
    /// gap, the end becomes part of it too when there is no room.
    pub async fn end(&self, event: Event, room: Room) {
        match self.append(event.clone(), room).await {
            Ok(_) => {}
            Err(error @ SpoolError::Unrecordable(_)) => self.lost(&error),
            // Like its start.
            Err(error) if room == Room::Free => self.lost(&error),
            Err(error) => {
                tracing::error!(%error, "an end record waits for room");
                self.keep_ending(event);
            }
        }
    }

    /// The same, without waiting.
    pub fn end_later(&self, event: Event, room: Room) {
        match room {
            Room::Free => self.note(event),
            Room::Reserve => self.keep_ending(event),
        }
    }

    /// As many of these wait at most as there are starts in the spool: who has none on record has no such end.
    fn keep_ending(&self, event: Event) {
        let journal = self.clone();
        self.in_background(async move {
            loop {
                match journal.append(event.clone(), Room::Reserve).await {
                    // After the last: the next run finds what is missing.
                    Ok(_) | Err(SpoolError::Stopped) => return,
                    Err(error @ SpoolError::Unrecordable(_)) => return journal.lost(&error),
                    Err(SpoolError::Full | SpoolError::Disk(_) | SpoolError::File(_)) => {
                        tokio::time::sleep(RETRY_EVERY).await;
                    }
                }
            }
        });
    }

    /// Records something that nothing waits for. Without room, also among those that wait to be written, it
    /// becomes part of a gap.
    pub fn note(&self, event: Event) {
        if self.0.background.len() >= WAITING_RECORDS_MAX {
            self.gap();
            return;
        }
        let journal = self.clone();
        self.in_background(async move {
            if let Err(error) = journal.append(event, Room::Free).await {
                journal.lost(&error);
            }
        });
    }

    /// Records something that belongs before what follows. Returns once it is durable; without room it is part of a gap.
    pub async fn record(&self, event: Event) {
        if let Err(error) = self.append(event, Room::Free).await {
            self.lost(&error);
        }
    }

    /// Records or counts a refusal of somebody who proved who they are.
    pub fn denied(&self, denied: Denied) {
        let at = denied.at;
        let kinds_max = self.0.limits.now().denials_per_minute_max;
        let first = self.denials().take(denied, kinds_max);
        if let Some(denied) = first {
            self.note(denials::event(&denied, &self.0.agent_id, at));
        }
    }

    /// Records or counts a client that a proxy sent under another name than its own.
    pub fn mismatched(&self, mismatch: Mismatch) {
        let at = mismatch.at;
        let first = self.denials().take_mismatch(mismatch);
        if let Some(mismatch) = first {
            self.note(denials::mismatch_event(&mismatch, &self.0.agent_id, at));
        }
    }

    /// Whether the spool is full, as it changes.
    #[must_use]
    pub fn fullness(&self) -> watch::Receiver<bool> {
        self.0.full.subscribe()
    }

    /// Time and id for a new event.
    #[must_use]
    pub fn stamp(&self) -> (OffsetDateTime, Uuid) {
        (self.now(), Uuid::now_v7())
    }

    /// The time, as records have it.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        self.0.clock.now()
    }

    /// How many records the auth server has not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        let usage = self.0.spool.usage();
        usage.committed.saturating_sub(usage.acknowledged)
    }

    /// The spool, for the uploader.
    #[must_use]
    pub fn spool(&self) -> &Spool {
        &self.0.spool
    }

    /// Ends minutes of denials and tries a full spool again, until that has stopped.
    pub async fn run(self) {
        let mut stopped = self.0.stopped.subscribe();
        let mut minute = tokio::time::interval(MINUTE);
        minute.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = tokio::time::interval(RETRY_EVERY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = minute.tick() => self.end_minute(),
                _ = retry.tick() => self.close_gap().await,
                () = is_true(&mut stopped) => {
                    tracing::error!("the audit spool has stopped");
                    return;
                }
            }
        }
    }

    /// Writes what is still in memory.
    pub async fn stop(&self) {
        self.end_minute();
        if tokio::time::timeout(STOP_TIMEOUT, self.close_last_gap())
            .await
            .is_err()
        {
            tracing::error!("the audit spool's disk does not answer");
        }
        let (now, id) = self.stamp();
        self.note(Event::new(EventKind::AgentStop, now, id).agent(&self.0.agent_id));
        self.0.background.close();
        if tokio::time::timeout(STOP_TIMEOUT, self.0.background.wait())
            .await
            .is_err()
        {
            tracing::error!(
                records = self.0.background.len(),
                "records found no room before the end"
            );
        }
    }

    async fn append(&self, event: Event, room: Room) -> Result<Receipt, SpoolError> {
        let appended = self.0.spool.append(event, room).await;
        self.see(&appended);
        appended
    }

    /// What became of a record tells whether the spool takes any.
    fn see(&self, appended: &Result<Receipt, SpoolError>) {
        match appended {
            Ok(_) => {}
            Err(SpoolError::Full | SpoolError::Disk(_) | SpoolError::File(_)) => self.set_full(true),
            Err(SpoolError::Unrecordable(_)) => {}
            Err(SpoolError::Stopped) => {
                self.set_full(true);
                self.0.stopped.send_replace(true);
            }
        }
    }

    fn set_full(&self, full: bool) {
        let changed = self
            .0
            .full
            .send_if_modified(|held| std::mem::replace(held, full) != full);
        if changed && full {
            tracing::error!("the audit spool takes no more records: sessions that require them are refused");
        } else if changed {
            tracing::info!("the audit spool takes records again");
        }
    }

    fn lost(&self, error: &SpoolError) {
        tracing::error!(%error, "a record is lost");
        self.gap();
    }

    fn gap(&self) {
        self.0.gaps.fetch_add(1, Ordering::Relaxed);
        self.0.metrics.audit_gaps(1);
    }

    /// As soon as there is room again for what found none, a record says what is missing.
    async fn close_gap(&self) {
        let gaps = self.0.gaps.load(Ordering::Relaxed);
        if gaps == 0 && !*self.0.full.borrow() {
            return;
        }
        let appended = self.0.spool.append_after_refusals(self.gap_event(gaps)).await;
        self.see(&appended);
        if appended.is_ok() {
            self.0.gaps.fetch_sub(gaps, Ordering::Relaxed);
            self.set_full(false);
        }
    }

    /// The last chance to say what is missing, whatever else found no room.
    async fn close_last_gap(&self) {
        let gaps = self.0.gaps.load(Ordering::Relaxed);
        if gaps > 0 && self.append(self.gap_event(gaps), Room::Free).await.is_ok() {
            self.0.gaps.fetch_sub(gaps, Ordering::Relaxed);
        }
    }

    fn gap_event(&self, records_lost: u64) -> Event {
        let (now, id) = self.stamp();
        Event::new(EventKind::AgentGap, now, id)
            .agent(&self.0.agent_id)
            .field("records_lost", records_lost)
            .reason("the audit spool took no records for a while")
    }

    fn end_minute(&self) {
        let events = self.denials().end_minute(&self.0.agent_id, self.0.clock.now());
        for event in events {
            self.note(event);
        }
    }

    fn denials(&self) -> std::sync::MutexGuard<'_, Denials> {
        self.0.denials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_background(&self, writing: impl Future<Output = ()> + Send + 'static) {
        // Without a runtime the program is going down, and the next start finds what is missing.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.0.background.spawn_on(writing, &runtime);
        }
    }
}

async fn is_true(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|flag| *flag).await;
}

/// What a `session.end` takes, by experience.
const END_RECORD_BYTES: u64 = 1536;

/// A reserve too small costs nothing that is on record; it makes a restart wait for the auth server.
fn warn_of_small_reserve(bounds: &SpoolLimits, sessions_max: usize) {
    let wanted = u64::try_from(sessions_max)
        .unwrap_or(u64::MAX)
        .saturating_mul(END_RECORD_BYTES);
    if bounds.reserve_bytes < wanted {
        tracing::warn!(
            reserve_bytes = bounds.reserve_bytes,
            wanted_bytes = wanted,
            "limits.spool_bytes_max keeps less for the ends of sessions than limits.sessions_max of them may need"
        );
    }
}

/// A quarter at most is kept for end records, and files are small beside the whole, so that acknowledging frees room.
fn spool_limits(bytes_max: u64) -> SpoolLimits {
    let usual = SpoolLimits::default();
    SpoolLimits {
        bytes_max,
        reserve_bytes: usual.reserve_bytes.min(bytes_max / 4),
        segment_bytes: usual.segment_bytes.min(bytes_max / 16),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn an_end_that_no_spool_can_take_is_a_gap_and_not_tried_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let (agent_id, limits) = (AgentId::from_uuid(Uuid::from_u128(1)), Limits::default());
        let clock = Arc::new(TrustedClock::default());
        let metrics = Metrics::registered(&mut prometheus_client::registry::Registry::default());
        let opening = Journal::open(agent_id, &state, InForce::new(limits), clock, metrics);
        let journal = opening.await.unwrap();
        let (now, id) = journal.stamp();
        let event = Event::new(EventKind::SessionEnd, now, id).field("text", "x".repeat(1 << 20));
        journal.end(event.clone(), Room::Reserve).await;
        journal.end_later(event, Room::Reserve);
        journal.0.background.close();
        journal.0.background.wait().await;
        assert_eq!(journal.0.gaps.load(Ordering::Relaxed), 2);
    }
}
