//! The decision: locks, then policy, then this host's own ceiling. Its outcome is a [`Permit`], without
//! which no start record is written and no backend dialled, or a [`Refusal`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use iap_audit::{DecisionRecord, Effect};
use iap_identity::{AgentId, Lock, LockKind, LoginName, ServiceName, SessionId};
use iap_policy::{Asked, Decision, Denial, DenialCode, Grant, Question};
use iap_proto::ServiceRecord;
use iap_runtime::big_stack;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::clock::TrustedClock;
use crate::config::{Ceiling, LocalService};
use crate::session::{Caller, SessionFacts};
use crate::view::View;

/// Who wants what, from where.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The id the session has or would have.
    pub session_id: SessionId,
    /// Who.
    pub caller: Caller,
    /// What.
    pub service: ServiceName,
    /// From where: the proxy's word.
    pub client: SocketAddr,
}

impl Attempt {
    /// A live session, asked about again.
    #[must_use]
    pub fn of_live(facts: &SessionFacts) -> Self {
        Self {
            session_id: facts.session_id,
            caller: facts.caller.clone(),
            service: facts.service.clone(),
            client: facts.client,
        }
    }
}

/// Permission to start one session: the policy's grant, and the record of the service it was given for.
/// Only [`Gate`] makes one.
#[derive(Debug, Clone)]
pub struct Permit {
    grant: Grant,
    service: Arc<ServiceRecord>,
    view_serial: u64,
}

impl Permit {
    /// The policy's grant.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// The central record of the service.
    #[must_use]
    pub fn service(&self) -> &Arc<ServiceRecord> {
        &self.service
    }

    /// The view it was decided with.
    #[must_use]
    pub fn view_serial(&self) -> u64 {
        self.view_serial
    }

    /// Whether the mere passing of time can change it.
    #[must_use]
    pub fn time_dependent(&self) -> bool {
        self.grant.time_dependent()
    }
}

/// A lock that hit, as records and people are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockHit {
    id: String,
    kind: LockKind,
    reason: String,
}

impl LockHit {
    fn of(lock: &Lock) -> Self {
        Self {
            id: lock.id.to_string(),
            kind: lock.kind,
            reason: lock.reason.clone(),
        }
    }
}

impl std::fmt::Display for LockHit {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} lock {}: {}", self.kind, self.id, self.reason)
    }
}

/// Why the agent knows too little to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// It has never had a snapshot.
    NoSnapshot,
    /// Its snapshot has expired.
    SnapshotExpired,
    /// It has not heard a beat for longer than allowed.
    FeedTooOld,
}

impl Outage {
    /// A sentence for the user and the record.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::NoSnapshot => "this agent has not received its rules yet",
            Self::SnapshotExpired => "this agent's rules have expired and the auth server cannot be reached",
            Self::FeedTooOld => {
                "the auth server has been out of reach for longer than sessions are allowed without it"
            }
        }
    }
}

/// Why this host's own file refuses what the policy allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CeilingBreach {
    /// The user is in none of the groups listed.
    Groups,
    /// The login is not listed, or cannot be seen on a service whose logins are bounded.
    Logins,
}

/// No session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The agent knows too little to decide.
    Outage(Outage),
    /// A lock on the user, the login, the device, the certificate or this agent.
    Locked(LockHit),
    /// A lock on this very session.
    Killed(LockHit),
    /// The service is not granted to this agent, or not in its own file.
    NotServed,
    /// The policy.
    Denied(Denial),
    /// This host's own file.
    Ceiling(CeilingBreach),
}

impl Refusal {
    /// A stable word for the caller's program. Refusals by rule look alike from outside, whichever rule, host
    /// or missing grant it was.
    #[must_use]
    pub fn public_code(&self) -> &'static str {
        match self {
            Self::Outage(_) => "outage",
            Self::Locked(_) | Self::Killed(_) => "locked",
            Self::Denied(Denial {
                code: code @ DenialCode::LoginChoice(_),
                ..
            }) => code.as_str(),
            Self::NotServed | Self::Denied(_) | Self::Ceiling(_) => "denied",
        }
    }

    /// A stable word for records and counters.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Outage(_) => "outage",
            Self::Locked(_) => "locked",
            Self::Killed(_) => "killed",
            Self::NotServed => "not_served",
            Self::Denied(denial) => denial.code.as_str(),
            Self::Ceiling(_) => "ceiling",
        }
    }

    /// One sentence for the user.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Outage(outage) => outage.text().to_owned(),
            Self::Locked(lock) | Self::Killed(lock) => format!("access is locked: {}", lock.reason),
            Self::NotServed => "the service is not available through this agent".to_owned(),
            Self::Denied(denial) => denial.text.clone(),
            Self::Ceiling(_) => "the service's own host does not allow this session".to_owned(),
        }
    }

    /// What happened, for the record.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::Outage(outage) => outage.text().to_owned(),
            Self::Locked(lock) | Self::Killed(lock) => lock.to_string(),
            Self::NotServed => "the service is not granted to this agent or not in its file".to_owned(),
            Self::Denied(denial) => denial.detail.clone(),
            Self::Ceiling(CeilingBreach::Groups) => {
                "the user is in none of the groups this host's ceiling lists".to_owned()
            }
            Self::Ceiling(CeilingBreach::Logins) => {
                "the login is not in this host's ceiling, or cannot be seen on this service".to_owned()
            }
        }
    }

    /// Whether renewing the certificate may change the answer.
    #[must_use]
    pub fn wants_renewal(&self) -> bool {
        matches!(
            self,
            Self::Denied(Denial {
                code: DenialCode::RenewNeeded,
                ..
            })
        )
    }

    /// The decision as records carry it.
    #[must_use]
    pub fn decision(&self, view: Option<&View>) -> DecisionRecord {
        let (rule, policy_version) = match self {
            Self::Denied(denial) => (denial.rule.clone(), denial.policy_version),
            Self::Outage(_) | Self::Locked(_) | Self::Killed(_) | Self::NotServed | Self::Ceiling(_) => {
                (None, view.map_or(0, View::policy_version))
            }
        };
        DecisionRecord {
            effect: Effect::Deny,
            rule,
            policy_version,
        }
    }
}

/// The one place where sessions are decided. Reads the published view and nothing that can block.
#[derive(Debug)]
pub struct Gate {
    agent_id: AgentId,
    agent_serial: watch::Receiver<String>,
    views: watch::Receiver<Option<Arc<View>>>,
    clock: Arc<TrustedClock>,
    services: Arc<BTreeMap<ServiceName, LocalService>>,
    lock_feed_max: Duration,
}

impl Gate {
    /// A gate that decides from what `views` publishes.
    #[must_use]
    pub fn new(
        agent_id: AgentId,
        agent_serial: watch::Receiver<String>,
        views: watch::Receiver<Option<Arc<View>>>,
        clock: Arc<TrustedClock>,
        services: Arc<BTreeMap<ServiceName, LocalService>>,
        lock_feed_max: Duration,
    ) -> Self {
        Self {
            agent_id,
            agent_serial,
            views,
            clock,
            services,
            lock_feed_max,
        }
    }

    /// The time decisions are made with.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        self.clock.now()
    }

    /// The view decisions are made from.
    #[must_use]
    pub fn view(&self) -> Option<Arc<View>> {
        self.views.borrow().clone()
    }

    /// The views as they are published.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<Option<Arc<View>>> {
        self.views.clone()
    }

    /// Whether the agent knows too little to decide, and why.
    #[must_use]
    pub fn outage(&self) -> Option<Outage> {
        match self.view() {
            Some(view) => self.check_age(&view, self.clock.now()).err(),
            None => Some(Outage::NoSnapshot),
        }
    }

    /// Decides without blocking the caller's thread.
    ///
    /// # Errors
    /// The refusal.
    pub async fn decide(self: &Arc<Self>, attempt: Attempt) -> Result<Permit, Refusal> {
        let gate = Arc::clone(self);
        big_stack::run_async(move || gate.decide_here(&attempt)).await
    }

    /// Decides on the calling thread, whose stack must be a big one.
    ///
    /// # Errors
    /// The refusal.
    pub fn decide_here(&self, attempt: &Attempt) -> Result<Permit, Refusal> {
        let view = self.view().ok_or(Refusal::Outage(Outage::NoSnapshot))?;
        let now = self.clock.now();
        // Before anything else: a lock counts even where the rules are too old to allow.
        self.check_locks(&view, attempt, now)?;
        self.check_age(&view, now).map_err(Refusal::Outage)?;
        let local = self.services.get(&attempt.service).ok_or(Refusal::NotServed)?;
        let service = view
            .service_for(&attempt.service, &self.agent_id)
            .ok_or(Refusal::NotServed)?;
        let facts = attempt.caller.facts();
        check_groups(&local.ceiling, &facts.groups)?;
        let grant = evaluate(&view, &service, attempt, now)?;
        check_logins(&local.ceiling, grant.login())?;
        Ok(Permit {
            grant,
            service,
            view_serial: view.serial(),
        })
    }

    fn check_age(&self, view: &View, now: OffsetDateTime) -> Result<(), Outage> {
        if view.expires() <= now {
            return Err(Outage::SnapshotExpired);
        }
        match self.clock.feed_age() {
            Some(age) if age <= self.lock_feed_max => Ok(()),
            Some(_) | None => Err(Outage::FeedTooOld),
        }
    }

    fn check_locks(&self, view: &View, attempt: &Attempt, now: OffsetDateTime) -> Result<(), Refusal> {
        let locks = view.locks();
        if let Some(lock) = locks.matching_session(&attempt.session_id, now) {
            return Err(Refusal::Killed(LockHit::of(lock)));
        }
        let on_caller = locks.matching_peer(attempt.caller.peer(), now);
        let on_agent = || locks.matching_agent(&self.agent_id, &self.agent_serial.borrow(), now);
        match on_caller.or_else(on_agent) {
            Some(lock) => Err(Refusal::Locked(LockHit::of(lock))),
            None => Ok(()),
        }
    }
}

/// No handler of this agent reads a protocol yet, so logins and databases are opaque to the policy.
fn evaluate(
    view: &View,
    service: &ServiceRecord,
    attempt: &Attempt,
    now: OffsetDateTime,
) -> Result<Grant, Refusal> {
    let user = attempt.caller.facts();
    let question = Question {
        user: &user,
        service: &service.facts,
        login: Asked::Opaque,
        database: Asked::Opaque,
        client_ip: canonical(attempt.client.ip()),
        now,
    };
    match view.policy().evaluate(&question, view.vocabulary()) {
        Decision::Grant(grant) => Ok(grant),
        Decision::Denial(denial) => Err(Refusal::Denied(denial)),
    }
}

fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

fn check_groups(ceiling: &Ceiling, held: &[iap_identity::GroupName]) -> Result<(), Refusal> {
    let Some(listed) = &ceiling.groups else {
        return Ok(());
    };
    let matches = |group: &iap_identity::GroupName| {
        let full = group.as_str();
        let bare = full.split_once(':').map_or(full, |(_, bare)| bare);
        listed.iter().any(|entry| entry == full || entry == bare)
    };
    if held.iter().any(matches) {
        Ok(())
    } else {
        Err(Refusal::Ceiling(CeilingBreach::Groups))
    }
}

fn check_logins(ceiling: &Ceiling, login: Option<&LoginName>) -> Result<(), Refusal> {
    let Some(listed) = &ceiling.logins else {
        return Ok(());
    };
    let any = listed.iter().any(|entry| entry == "*");
    // A login the agent cannot see is a login it cannot bound.
    let named = login.is_some_and(|login| listed.iter().any(|entry| entry == login.as_str()));
    if any || named {
        Ok(())
    } else {
        Err(Refusal::Ceiling(CeilingBreach::Logins))
    }
}
