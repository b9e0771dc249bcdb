//! The decision: locks, then what this host's own file allows, then policy. Its outcome is a [`Permit`], without
//! which no start record is written and no backend dialled, or a [`Refusal`].

mod refusal;
mod watching;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use iap_identity::{AgentId, LoginName, ServiceName, SessionId};
use iap_policy::{Asked, Denial, DenialCode, Feature, Grant, Protocol, Question, ServiceFacts};
use iap_proto::{ServiceRecord, Strictness};
use iap_runtime::big_stack;
use iap_runtime::config::InForce;
use iap_runtime::tls::KnownClients;
use iap_runtime::traces::Recorder;
use time::OffsetDateTime;
use tokio::sync::watch;

pub use refusal::{CeilingBreach, LockHit, Outage, Refusal};
pub use watching::{MayWatch, WatchBasis, WatchRefusal};

use crate::clock::TrustedClock;
use crate::config::{Ceiling, LocalService, LocalServices};
use crate::limits::Limits;
use crate::session::{Caller, Through};
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
    /// As which login, where it is known; counts for services whose logins are seen.
    pub login: Option<LoginName>,
    /// On which database; likewise.
    pub database: Option<String>,
}

/// Permission to start one session: the policy's grant, and the record of the service it was given for.
/// Only [`Gate`] makes one. Clones share it.
#[derive(Debug, Clone)]
pub struct Permit(Arc<Permission>);

#[derive(Debug)]
struct Permission {
    grant: Grant,
    service: Arc<ServiceRecord>,
    local: Arc<LocalService>,
    view_serial: u64,
}

impl Permit {
    /// The policy's grant.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        &self.0.grant
    }

    /// Whether the session may do that: as this host's own file says for everybody, or the rule where it says nothing.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        let local = self.local();
        let said = match feature {
            Feature::PostgresOptions => local.postgres.options,
            Feature::PostgresReplication => local.postgres.replication,
            Feature::SshPortForwarding => local.ssh.as_ref().and_then(|ssh| ssh.port_forwarding),
        };
        said.unwrap_or_else(|| self.grant().features().has(feature))
    }

    /// The central record of the service.
    #[must_use]
    pub fn service(&self) -> &Arc<ServiceRecord> {
        &self.0.service
    }

    /// The service as this host's own file knows it.
    #[must_use]
    pub fn local(&self) -> &LocalService {
        &self.0.local
    }

    /// Whether the mere passing of time can change it.
    #[must_use]
    pub fn time_dependent(&self) -> bool {
        self.0.grant.time_dependent()
    }
}

/// The one place where sessions are decided. Reads the published view and nothing that can block.
#[derive(Debug)]
pub struct Gate {
    agent_id: AgentId,
    agent_serial: watch::Receiver<String>,
    views: watch::Receiver<Option<Arc<View>>>,
    clock: Arc<TrustedClock>,
    services: watch::Receiver<Arc<LocalServices>>,
    limits: InForce<Limits>,
    known_clients: Arc<KnownClients>,
}

impl Gate {
    /// A gate that decides from what `views` publishes.
    #[must_use]
    pub fn new(
        agent_id: AgentId,
        agent_serial: watch::Receiver<String>,
        views: watch::Receiver<Option<Arc<View>>>,
        clock: Arc<TrustedClock>,
        services: watch::Receiver<Arc<LocalServices>>,
        limits: InForce<Limits>,
    ) -> Self {
        Self {
            agent_id,
            agent_serial,
            views,
            clock,
            services,
            limits,
            known_clients: Arc::default(),
        }
    }

    /// For which agent it decides.
    pub(crate) fn agent_id(&self) -> &AgentId {
        &self.agent_id
    }

    /// Whose certificates were verified a moment ago.
    pub(crate) fn known_clients(&self) -> &Arc<KnownClients> {
        &self.known_clients
    }

    /// The time decisions are made with.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        self.clock.now()
    }

    /// Whether the auth server has been heard since this agent was started: what it had to say comes before its beat.
    #[must_use]
    pub(crate) fn has_heard_feed(&self) -> bool {
        self.clock.has_heard()
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

    /// Whether nothing a permit was decided from has changed since.
    #[must_use]
    pub fn is_current(&self, permit: &Permit) -> bool {
        let permit = &permit.0;
        let local = self.local(&permit.service.facts.name);
        self.view()
            .is_some_and(|view| view.serial() == permit.view_serial)
            && local.is_some_and(|local| Arc::ptr_eq(&local, &permit.local))
    }

    /// Whether the agent knows too little to decide, and why.
    #[must_use]
    pub fn outage(&self) -> Option<Outage> {
        self.outage_for(&Strictness::default())
    }

    /// Whether it knows too little for a service that is this strict.
    #[must_use]
    pub fn outage_for(&self, strictness: &Strictness) -> Option<Outage> {
        match self.view() {
            Some(view) => self.check_age(&view, strictness, self.clock.now()).err(),
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

    /// The same as a step of a trace.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) async fn decide_on_trace(
        self: &Arc<Self>,
        attempt: Attempt,
        recorder: &Recorder,
    ) -> Result<Permit, Refusal> {
        let mark = recorder.mark();
        let decided = self.decide(attempt).await;
        recorder.phase("decide", mark, |details| {
            details.truth("iap.allowed", decided.is_ok());
        });
        decided
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
        // And so does what this host's own file and the last grant no longer allow.
        let local = self.local(&attempt.service).ok_or(Refusal::NotServed)?;
        let service = view.service_for(&attempt.service, &self.agent_id);
        let service = service.ok_or(Refusal::NotServed)?;
        check_groups(&local.ceiling, &attempt.caller.facts().groups)?;
        self.check_age(&view, &service.strictness, now)
            .map_err(Refusal::Outage)?;
        let grant = evaluate(&view, &service, attempt, now)?;
        if attempt.login.is_some() || !is_heard(&service.facts) {
            check_logins(&local.ceiling, grant.login())?;
        }
        Ok(Permit(Arc::new(Permission {
            grant,
            service,
            local,
            view_serial: view.serial(),
        })))
    }

    fn local(&self, service: &ServiceName) -> Option<Arc<LocalService>> {
        self.services.borrow().get(service).cloned()
    }

    /// The service narrows what this host's file allows, and never widens it.
    fn check_age(&self, view: &View, strictness: &Strictness, now: OffsetDateTime) -> Result<(), Outage> {
        let own_max = self.limits.now().lock_feed();
        let lock_feed_max = strictness
            .lock_feed_max_age
            .map_or(own_max, |max| max.min(own_max));
        let is_fresh = |age: Duration| age <= lock_feed_max;
        let outage = if view.expires() <= now {
            Outage::SnapshotExpired
        } else if !self.clock.feed_age().is_some_and(is_fresh) {
            Outage::FeedTooOld
        } else if strictness
            .snapshot_max_age
            .is_some_and(|max| view.rules_age(now) > max)
        {
            Outage::RulesUnconfirmed
        } else {
            return Ok(());
        };
        Err(if self.clock.is_ahead_of_a_live_feed() {
            Outage::ClockAhead
        } else {
            outage
        })
    }

    /// The lock on the proxy that a session runs through, if there is one.
    #[must_use]
    pub fn lock_on_proxy(&self, through: &Through) -> Option<LockHit> {
        let view = self.view()?;
        let now = self.clock.now();
        let lock = view.locks().matching_proxy(&through.proxy, &through.serial, now);
        lock.map(LockHit::of)
    }

    /// The lock on somebody, if there is one.
    #[must_use]
    pub fn lock_on_caller(&self, caller: &Caller) -> Option<LockHit> {
        let view = self.view()?;
        let lock = view.locks().matching_peer(caller.peer(), self.clock.now());
        lock.map(LockHit::of)
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

/// Whether the login comes in the client's own words, behind the first decision.
#[must_use]
pub fn is_heard(service: &ServiceFacts) -> bool {
    service.protocol == Protocol::Ssh && service.inspect
}

/// To a service that is not inspected, logins and databases are opaque whatever is said here.
fn evaluate(
    view: &View,
    service: &ServiceRecord,
    attempt: &Attempt,
    now: OffsetDateTime,
) -> Result<Grant, Refusal> {
    let user = attempt.caller.facts();
    let inspected = service.facts.inspect;
    let ask = |login: Option<&LoginName>| {
        let question = Question {
            user: &user,
            service: &service.facts,
            login: if inspected {
                Asked::Visible(login)
            } else {
                Asked::Opaque
            },
            database: if inspected {
                Asked::Visible(attempt.database.as_deref())
            } else {
                Asked::Opaque
            },
            client_ip: canonical(attempt.client.ip()),
            now,
        };
        view.policy().evaluate(&question, view.vocabulary()).into_result()
    };
    let decided = match &attempt.login {
        None if is_heard(&service.facts) => any_login(ask),
        login => ask(login.as_ref()),
    };
    decided.map_err(Refusal::Denied)
}

/// Whether there is a login at all: the default one, or else the first of those to choose from. Where any may be used,
/// one that no rule is likely to name stands for it.
fn any_login(ask: impl Fn(Option<&LoginName>) -> Result<Grant, Denial>) -> Result<Grant, Denial> {
    let denial = match ask(None) {
        Ok(grant) => return Ok(grant),
        Err(denial) => denial,
    };
    let login = match &denial.code {
        DenialCode::LoginChoice(choices) => choices.first().cloned(),
        DenialCode::NoRuleMatches
        | DenialCode::DeniedByRule
        | DenialCode::ConditionFailed
        | DenialCode::LoginNotAllowed
        | DenialCode::StepUpNeeded(_)
        | DenialCode::RenewNeeded => return Err(denial),
    };
    match login.or_else(|| LoginName::parse("nobody").ok()) {
        Some(login) => ask(Some(&login)),
        None => Err(denial),
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
