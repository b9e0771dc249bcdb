//! Sessions whose client may come back over another connection: who may, and how it is handed over.

use std::collections::{HashMap, HashSet};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use iap_identity::{ProxyId, SessionId};
use iap_runtime::config::InForce;
use iap_runtime::handover::monotonic;
use iap_runtime::resume::{Allowance, Arrival, Budget, Reconnect, Resumable};
use iap_tunnel::resume::{Endpoint, Impossible, ResumeOffer, Ticket, Violation};
use tokio::time::{Instant, Sleep};

use super::{Caller, Live, handover};
use crate::dialback::ClientStream;
use crate::limits::Limits;

/// A session's bytes, over one connection after the other.
pub(crate) type ResumableStream = Resumable<ClientStream, ComingBack>;

/// The sessions that may be gone on with. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Resumptions {
    sessions: Arc<Mutex<HashMap<SessionId, Arc<Resumption>>>>,
    limits: InForce<Limits>,
    budget: Budget,
    by_user: Arc<Mutex<HashMap<String, Budget>>>,
    expected: Arc<Mutex<HashSet<SessionId>>>,
}

/// A session that is about to be taken over.
#[derive(Debug)]
pub(crate) struct Expected {
    session: SessionId,
    all: Arc<Mutex<HashSet<SessionId>>>,
}

/// How a session waits for its client, or would if the connection broke now.
#[derive(Debug)]
pub(crate) struct Waits {
    pub(crate) ticket: Ticket,
    pub(crate) next_ticket: Option<Ticket>,
    pub(crate) patience: Duration,
    pub(crate) deadline: Instant,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Resumption {
    pub(crate) live: Arc<Live>,
    principal: String,
    key_thumbprint: [u8; 32],
    tickets: Mutex<Tickets>,
    mailbox: Mutex<Option<Arrival<ClientStream>>>,
    has_mail: AtomicBool,
    is_sent_away: AtomicBool,
    waker: AtomicWaker,
}

/// A ticket is good until its successor was used, or shown to have arrived.
#[derive(Debug)]
struct Tickets {
    current: Ticket,
    next: Option<Ticket>,
}

/// Where a session's connections come from.
#[derive(Debug)]
pub(crate) struct ComingBack {
    resumption: Arc<Resumption>,
    patience: Duration,
    waits: Option<Pin<Box<Sleep>>>,
    is_confirmed: bool,
    sessions: Weak<Mutex<HashMap<SessionId, Arc<Resumption>>>>,
}

impl Resumptions {
    pub(crate) fn new(limits: InForce<Limits>) -> Self {
        Self {
            sessions: Arc::default(),
            budget: Budget::new(limits.now().resume_bytes_max),
            by_user: Arc::default(),
            expected: Arc::default(),
            limits,
        }
    }

    /// Whether sessions may be gone on with at all.
    pub(crate) fn are_on(&self) -> bool {
        self.limits.now().resume_seconds_max > 0
    }

    /// What a session's client is told of how it may go on.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(crate) fn offer(&self) -> io::Result<ResumeOffer> {
        let limits = self.limits.now();
        Ok(ResumeOffer {
            ticket: fresh_ticket()?,
            window_bytes: limits.resume_window_bytes,
            repeats: true,
            seconds: limits.resume_seconds_max,
        })
    }

    /// From now on the session may be gone on with by whoever holds the offer's ticket, as the same person with the same
    /// key. `connection` is what it begins over.
    ///
    /// # Errors
    /// Never, as nothing was read.
    pub(crate) fn begin(
        &self,
        live: &Arc<Live>,
        offer: &ResumeOffer,
        connection: ClientStream,
    ) -> io::Result<ResumableStream> {
        let caller = live.caller();
        let resumption = Arc::new(Resumption {
            live: Arc::clone(live),
            principal: caller.peer().principal(),
            key_thumbprint: *caller.peer().key_thumbprint(),
            tickets: Mutex::new(Tickets {
                current: offer.ticket,
                next: None,
            }),
            mailbox: Mutex::new(None),
            has_mail: AtomicBool::new(false),
            is_sent_away: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        locked(&self.sessions).insert(live.facts.session_id, Arc::clone(&resumption));
        let coming_back = ComingBack {
            patience: Duration::from_secs(offer.seconds),
            waits: None,
            is_confirmed: true,
            sessions: Arc::downgrade(&self.sessions),
            resumption,
        };
        let allowance = self.allowance(&caller);
        let endpoint = Endpoint::new(offer.window_bytes);
        let stream = Resumable::new(connection, &[], endpoint, coming_back, allowance);
        stream.map_err(io::Error::other)
    }

    pub(crate) fn find(&self, session: &SessionId) -> Option<Arc<Resumption>> {
        locked(&self.sessions).get(session).cloned()
    }

    /// Those whose client came through `proxy`.
    pub(crate) fn through(&self, proxy: ProxyId) -> Vec<Arc<Resumption>> {
        let sessions = locked(&self.sessions);
        let concerned = sessions.values().filter(|session| session.is_through(proxy));
        concerned.cloned().collect()
    }

    /// A session that the predecessor has left will be there in a moment: until the guard is dropped, or after it was
    /// [taken over](Self::take_over), its client is not told that it is over.
    pub(crate) fn expect(&self, session: SessionId) -> Expected {
        locked(&self.expected).insert(session);
        Expected {
            session,
            all: Arc::clone(&self.expected),
        }
    }

    pub(crate) fn is_expected(&self, session: &SessionId) -> bool {
        locked(&self.expected).contains(session)
    }

    /// A session that the predecessor has left waits for its client for as long as it would have waited there.
    ///
    /// # Errors
    /// When none can stand where this one does.
    pub(crate) fn take_over(
        &self,
        live: &Arc<Live>,
        facts: &handover::state::Facts,
        kept: Vec<u8>,
    ) -> Result<ResumableStream, Impossible> {
        let began = &live.facts.caller;
        let resumption = Arc::new(Resumption {
            live: Arc::clone(live),
            principal: began.peer().principal(),
            key_thumbprint: *began.peer().key_thumbprint(),
            tickets: Mutex::new(Tickets {
                current: facts.ticket,
                next: facts.next_ticket,
            }),
            mailbox: Mutex::new(None),
            has_mail: AtomicBool::new(false),
            is_sent_away: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        let left = Duration::from_millis(facts.deadline_milliseconds).saturating_sub(monotonic());
        let patience = Duration::from_secs(facts.patience_seconds);
        let coming_back = ComingBack {
            patience,
            waits: Some(Box::pin(tokio::time::sleep(left.min(patience)))),
            is_confirmed: true,
            sessions: Arc::downgrade(&self.sessions),
            resumption: Arc::clone(&resumption),
        };
        let allowance = self.allowance(began);
        let stream = Resumable::restore(&facts.standing, kept, coming_back, allowance)?;
        locked(&self.sessions).insert(live.facts.session_id, resumption);
        Ok(stream)
    }

    fn allowance(&self, caller: &Caller) -> Allowance {
        let limits = self.limits.now();
        self.budget.resize(limits.resume_bytes_max);
        let mut by_user = locked(&self.by_user);
        // Of those whose sessions are over only this one refers to theirs.
        by_user.retain(|_, budget| budget.shared_by() > 1);
        let user = by_user
            .entry(caller.peer().principal())
            .or_insert_with(|| Budget::new(limits.resume_bytes_per_user_max));
        user.resize(limits.resume_bytes_per_user_max);
        Allowance::within(vec![self.budget.clone(), user.clone()])
    }
}

impl Resumption {
    /// Whether this is who began it, with the key it was begun with, and a ticket that is good.
    pub(crate) fn admits(&self, caller: &Caller, ticket: &Ticket) -> bool {
        let tickets = locked(&self.tickets);
        let is_good = tickets.current == *ticket || tickets.next.as_ref() == Some(ticket);
        let peer = caller.peer();
        is_good && peer.principal() == self.principal && *peer.key_thumbprint() == self.key_thumbprint
    }

    /// Trades a ticket that is good for the next.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(crate) fn trade(&self, ticket: &Ticket) -> io::Result<Ticket> {
        let fresh = fresh_ticket()?;
        let mut tickets = locked(&self.tickets);
        if tickets.next.as_ref() == Some(ticket) {
            tickets.current = *ticket;
        }
        tickets.next = Some(fresh);
        Ok(fresh)
    }

    /// The tickets that are good: the newest that is known to have arrived, and the one after it.
    pub(crate) fn tickets(&self) -> (Ticket, Option<Ticket>) {
        let tickets = locked(&self.tickets);
        (tickets.current, tickets.next)
    }

    /// Hands a connection over, in place of one that was not taken up yet.
    pub(crate) fn hand_over(&self, arrival: Arrival<ClientStream>) {
        *locked(&self.mailbox) = Some(arrival);
        self.has_mail.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Gives up the client's connection through `proxy`, if it is still that: the client comes back by another.
    pub(crate) fn send_away(&self, proxy: ProxyId) {
        if self.is_through(proxy) {
            self.is_sent_away.store(true, Ordering::Release);
            self.waker.wake();
        }
    }

    fn is_through(&self, proxy: ProxyId) -> bool {
        self.live.through().proxy == proxy
    }

    fn poll_mailbox(&self, context: &mut Context<'_>) -> Poll<Arrival<ClientStream>> {
        self.waker.register(context.waker());
        if !self.has_mail.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        match locked(&self.mailbox).take() {
            Some(arrival) => Poll::Ready(arrival),
            None => Poll::Pending,
        }
    }

    fn confirm(&self) {
        let mut tickets = locked(&self.tickets);
        if let Some(next) = tickets.next.take() {
            tickets.current = next;
        }
    }
}

impl Reconnect<ClientStream> for ComingBack {
    const REPLACES: bool = true;

    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
        _endpoint: &mut Endpoint,
    ) -> Poll<io::Result<Arrival<ClientStream>>> {
        if let Poll::Ready(arrival) = self.resumption.poll_mailbox(context) {
            return Poll::Ready(Ok(arrival));
        }
        let Some(waits) = &mut self.waits else {
            return Poll::Pending;
        };
        ready!(waits.as_mut().poll(context));
        let seconds = self.patience.as_secs();
        let why = format!("the client did not come back within {seconds} s");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }

    fn lost(&mut self, why: &io::Error) {
        let session = self.resumption.live.facts.session_id;
        tracing::debug!(%session, %why, "the client's connection is lost");
        self.waits = Some(Box::pin(tokio::time::sleep(self.patience)));
    }

    fn found(&mut self) {
        self.waits = None;
        self.is_confirmed = false;
        // That was meant for the connection before.
        self.resumption.is_sent_away.store(false, Ordering::Release);
    }

    fn heard(&mut self) {
        if !self.is_confirmed {
            self.is_confirmed = true;
            self.resumption.confirm();
        }
    }

    fn gives_up(&mut self) -> Option<io::Error> {
        let flag = &self.resumption.is_sent_away;
        let sent_away = flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::AcqRel);
        sent_away.then(|| io::Error::other("the proxy that it came through drains"))
    }
}

impl ComingBack {
    pub(crate) fn waits(&self) -> Waits {
        let tickets = locked(&self.resumption.tickets);
        let waits = self.waits.as_ref().map(|waits| waits.deadline());
        Waits {
            ticket: tickets.current,
            next_ticket: tickets.next,
            patience: self.patience,
            deadline: waits.unwrap_or_else(|| Instant::now() + self.patience),
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        locked(&self.all).remove(&self.session);
    }
}

impl Drop for ComingBack {
    fn drop(&mut self) {
        if let Some(sessions) = self.sessions.upgrade() {
            locked(&sessions).remove(&self.resumption.live.facts.session_id);
        }
    }
}

/// What a client that cannot go on where it says is told.
pub(crate) fn cannot_stand(violation: &Violation) -> String {
    format!("The session cannot go on: {violation}.")
}

fn fresh_ticket() -> io::Result<Ticket> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("the system has no randomness"))?;
    Ok(Ticket::from_random(bytes))
}

/// Nothing here holds an invariant that a panic elsewhere could break.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
