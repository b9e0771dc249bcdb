//! A session that outlives its agent's being killed: what it needs lies in the store from its beginning, and is kept up to
//! date there.
//!
//! What is known of the session is a note in a [`LiveMemory`], written anew when the client comes back. How far its bytes
//! have come the kernel knows: it counts what was written to the backend's connection and what was read of it. What was
//! read is in the memory before it counts as read ([`KeptStream`]), and the client hears that it was passed on once the
//! kernel has it ([`Ledger`]).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use iap_runtime::handover::{
    DescriptorStore, KEPT_READ_BYTES_MAX, KeptStream, LiveMemory, Parcel, monotonic,
};
use iap_runtime::net::{TcpCounts, tcp_counts};
use iap_runtime::pump::Side;
use iap_runtime::resume::Ledger;
use iap_tunnel::resume::{KEPT_BEYOND_WINDOW_BYTES_MAX, Receives, Sends, Ticket, WINDOW_BYTES_MAX};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::peer::Who;
use super::state::{FACTS_BYTES_MAX, Facts, HEAD_BYTES, SessionState, StateError, encode_head};
use super::{Handover, LIVE_LABEL, SETTLE_TIMEOUT, Way, aside, locked, milliseconds};
use crate::session::Presence;

/// So many descriptors more the store has to take, for all sessions of an agent that is told to stop.
const SPARE_PLACES: usize = 64;
const NOTE_BYTES_MAX: u64 = (HEAD_BYTES + FACTS_BYTES_MAX) as u64;
const RING_BYTES_MAX: u64 = (WINDOW_BYTES_MAX + KEPT_BEYOND_WINDOW_BYTES_MAX) as u64;

/// Where a session and its backend's connection stood when it began to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Baseline {
    /// What the kernel had counted.
    written: u64,
    read: u64,
    /// The same in the session's bytes, and from where on those that were read are kept.
    passed_on: u64,
    taken: u64,
    kept_from: u64,
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reached {
    passed_on: u64,
    taken: u64,
}

impl Baseline {
    fn reached(&self, counts: TcpCounts) -> Option<Reached> {
        let since = |then: u64, counted: u64, now: u64| then.checked_add(now.checked_sub(counted)?);
        Some(Reached {
            passed_on: since(self.passed_on, self.written, counts.written)?,
            taken: since(self.taken, self.read, counts.read)?,
        })
    }
}

/// A session that is kept.
#[derive(Debug)]
pub(crate) struct Keeping {
    memory: Arc<LiveMemory>,
    ledger: Arc<Ledger>,
    facts: Mutex<Facts>,
    taken: u64,
    passed_on: u64,
    name: String,
    parcel: Parcel,
    store: DescriptorStore,
    is_done_with: AtomicBool,
}

/// What changes when a client comes back.
pub(crate) struct Returned {
    pub(crate) presence: Presence,
    /// Those that are good: the newest that is known to have arrived, and the one after it.
    pub(crate) tickets: (Ticket, Option<Ticket>),
    pub(crate) resumes: u64,
}

/// A session as it stands, for somebody who keeps it from now on.
pub(crate) struct ToKeep<'a> {
    pub(crate) facts: Facts,
    /// What the client has not acknowledged.
    pub(crate) kept: [&'a [u8]; 2],
    /// What was read from the backend, and not taken for the client.
    pub(crate) outward: &'a [u8],
    /// How many bytes were taken from the client, and not delivered.
    pub(crate) inward_bytes: usize,
}

impl Handover {
    /// Whether sessions are kept for the case that this agent is killed.
    pub(crate) fn survives_kill(&self) -> bool {
        self.survives_kill && self.keeps()
    }

    /// Keeps a session from now on. The store has it soon: see [`stored`](Self::stored).
    ///
    /// # Errors
    /// Why it cannot be kept; then nothing has changed.
    pub(crate) async fn keep(&self, session: ToKeep<'_>, backend: impl AsFd) -> io::Result<Arc<Keeping>> {
        let Way::Store(store, _) = &self.way else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let keeping = Arc::new(Keeping::begin(session, backend.as_fd(), store)?);
        let kept = Arc::clone(&keeping);
        aside(move || {
            let store = &kept.store;
            store.keep_leaving(&kept.name, kept.parcel.as_fd(), SPARE_PLACES)
        })
        .await?;
        Ok(keeping)
    }

    /// Returns once the store has everything that it was given.
    ///
    /// # Errors
    /// When it does not say so.
    pub(crate) async fn stored(&self) -> io::Result<()> {
        match self.way.clone() {
            Way::Store(store, _) => aside(move || store.settled(SETTLE_TIMEOUT)).await,
            Way::Direct(_) => Ok(()),
        }
    }

    /// Goes on keeping a session that was killed with its agent, where it lies.
    pub(crate) fn keep_on(
        &self,
        state: &SessionState,
        memory: LiveMemory,
        (name, parcel): (&str, Parcel),
    ) -> Option<Keeping> {
        let Way::Store(store, _) = &self.way else {
            return None;
        };
        let facts = state.facts.clone();
        let (outgoing, incoming) = (&facts.standing.outgoing, &facts.standing.incoming);
        let passed_on = incoming.taken + u64::from(incoming.is_finished);
        Some(Keeping {
            memory: Arc::new(memory),
            ledger: Arc::new(Ledger::at(passed_on, outgoing.base)),
            taken: outgoing.sent,
            passed_on: incoming.taken,
            name: name.to_owned(),
            facts: Mutex::new(facts),
            parcel,
            store: store.clone(),
            is_done_with: AtomicBool::new(false),
        })
    }
}

impl Keeping {
    fn begin(session: ToKeep<'_>, backend: BorrowedFd<'_>, store: &DescriptorStore) -> io::Result<Self> {
        let ToKeep {
            mut facts,
            kept,
            outward,
            inward_bytes,
        } = session;
        let counts = tcp_counts(backend)?;
        let (outgoing, incoming) = (&facts.standing.outgoing, &facts.standing.incoming);
        let kept_bytes = (kept.iter().map(|piece| piece.len()).sum::<usize>() + outward.len()) as u64;
        let taken = outgoing.base + kept_bytes;
        let passed_on = incoming.taken.saturating_sub(inward_bytes as u64);
        let knows_end = incoming.is_finished && inward_bytes == 0;
        if incoming.acknowledged > passed_on + u64::from(knows_end) {
            return Err(io::Error::other("the client was told more than its backend has"));
        }
        let told = passed_on.max(incoming.acknowledged);
        let ring_bytes = facts.standing.window.max(kept_bytes) + KEPT_READ_BYTES_MAX as u64;
        let memory = LiveMemory::create("iap-live-session", NOTE_BYTES_MAX, ring_bytes)?;
        let mut position = outgoing.base;
        for piece in kept.into_iter().chain([outward]) {
            memory.write(position, piece)?;
            position += piece.len() as u64;
        }
        memory.mark(outgoing.base)?;
        let ledger = Ledger::at(told, outgoing.base);
        facts.baseline = Some(Baseline {
            written: counts.written,
            read: counts.read,
            passed_on,
            taken,
            kept_from: outgoing.base,
        });
        memory.note(&encode_head(&facts, [0; 3]).map_err(io::Error::other)?)?;
        let label = super::live_label_of(facts.session_id);
        let parcel = Parcel::of(&label, &[backend, memory.as_fd()])?;
        // Of its own: under another name the same session may lie there until that is taken out.
        let name = format!("{LIVE_LABEL}{}", Uuid::now_v7());
        Ok(Self {
            memory: Arc::new(memory),
            ledger: Arc::new(ledger),
            facts: Mutex::new(facts),
            taken,
            passed_on,
            name,
            parcel,
            store: store.clone(),
            is_done_with: AtomicBool::new(false),
        })
    }

    /// The backend's connection, which reads and writes so that nothing is lost from now on.
    pub(crate) fn stream(&self, backend: TcpStream) -> io::Result<KeptStream> {
        let window = locked(&self.facts).standing.window;
        let (memory, ledger) = (Arc::clone(&self.memory), Arc::clone(&self.ledger));
        KeptStream::new(backend, memory, ledger, window, (self.taken, self.passed_on))
    }

    /// For the client's stream.
    pub(crate) fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger)
    }

    /// Notes what a client that is about to hear of its next ticket comes back with. `now` is asked while nobody else notes
    /// anything.
    ///
    /// # Errors
    /// When that cannot be noted.
    pub(crate) fn note(&self, now: impl FnOnce() -> Returned) -> io::Result<()> {
        let mut facts = locked(&self.facts);
        let Returned {
            presence,
            tickets: (ticket, next_ticket),
            resumes,
        } = now();
        let who = Who::of(&presence.caller, presence.client, &presence.through);
        facts.last = who.ok_or(io::ErrorKind::InvalidInput)?;
        (facts.ticket, facts.next_ticket) = (ticket, next_ticket);
        facts.resumes = resumes;
        self.memory
            .note(&encode_head(&facts, [0; 3]).map_err(io::Error::other)?)
    }

    /// The session is over, and recorded as such.
    pub(crate) async fn over(self: Arc<Self>) {
        self.empty();
        self.left().await;
    }

    fn empty(&self) {
        if let Err(error) = self.parcel.empty() {
            tracing::debug!(%error, "what was kept of a session stays where it is");
        }
    }

    /// The session was left to the successor as it stands: what is kept of it is done with once that is in the store.
    pub(crate) async fn left(self: Arc<Self>) {
        self.is_done_with.store(true, Ordering::Relaxed);
        if let Err(error) = aside(move || self.store.forget(&self.name)).await {
            tracing::warn!(%error, "the service manager keeps what it need not");
        }
    }
}

impl Drop for Keeping {
    /// A session that ended otherwise than it should is over all the same, and its backend's connection with it.
    fn drop(&mut self) {
        if !self.is_done_with.load(Ordering::Relaxed) {
            self.empty();
        }
    }
}

/// A killed session as it stands.
pub(super) fn recover(memory: &LiveMemory, backend: &OwnedFd) -> Result<SessionState, Lost> {
    let note = memory.noted().map_err(Lost::Memory)?;
    let mut state = SessionState::decode(&note)?;
    let baseline = state
        .facts
        .baseline
        .ok_or(StateError::Contradiction("it was not kept"))?;
    let counts = tcp_counts(backend).map_err(Lost::Counts)?;
    let impossible = || StateError::Contradiction("its backend's connection was another");
    let Reached { passed_on, taken } = baseline.reached(counts).ok_or_else(impossible)?;
    let marked = memory.marked().map_err(Lost::Memory)?;
    let kept_from = marked
        .max(baseline.kept_from)
        .max(taken.saturating_sub(memory.ring_bytes()));
    state.kept = memory.read(kept_from, taken).map_err(Lost::Memory)?;
    let facts = &mut state.facts;
    facts.standing.outgoing = Sends {
        base: kept_from,
        sent: taken,
        // Whether the client knows it will be seen.
        is_finished: counts.is_at_end,
        finish_sent: counts.is_at_end,
        finish_acknowledged: false,
    };
    facts.standing.incoming = Receives {
        taken: passed_on,
        acknowledged: passed_on + u64::from(counts.is_shut),
        is_finished: counts.is_shut,
    };
    (facts.bytes_in, facts.bytes_out) = (passed_on, taken);
    (facts.inward_ended, facts.outward_ended) = (counts.is_shut, counts.is_at_end);
    facts.first_closed = match (counts.is_shut, counts.is_at_end) {
        (true, _) => Some(Side::Client),
        (false, true) => Some(Side::Backend),
        (false, false) => None,
    };
    // When the client was lost nobody has noted. Nor what a PostgreSQL backend has said last.
    facts.deadline_milliseconds =
        milliseconds(monotonic()).saturating_add(facts.patience_seconds.saturating_mul(1000));
    facts.rested_milliseconds = 0;
    facts.boundaries = None;
    Ok(state)
}

/// What lies in the store under a label of kept sessions.
pub(super) fn open(memory: OwnedFd) -> io::Result<LiveMemory> {
    LiveMemory::open(memory, NOTE_BYTES_MAX, RING_BYTES_MAX)
}

/// Whether a parcel is of a session that was kept while it ran.
pub(super) fn is_label(label: &str) -> bool {
    label.starts_with(LIVE_LABEL)
}

/// Why a session that was kept cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("its state cannot be read: {0}")]
    Memory(io::Error),
    #[error("its state cannot be read: {0}")]
    State(#[from] StateError),
    #[error("it is not known how far its backend's connection has come: {0}")]
    Counts(io::Error),
}
