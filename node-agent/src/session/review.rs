//! Live sessions are decided again: all of them when the rules or the locks change, those whose grant
//! depends on the time every minute; and their deadlines are held every second. A change that an outage kept
//! from being decided is decided as soon as the outage is over.

use std::sync::Arc;
use std::time::Duration;

use iap_audit::CloseReason;
use iap_runtime::big_stack;
use iap_runtime::config::InForce;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::Ending;
use super::live::{Live, Registry};
use crate::config::LocalServices;
use crate::decide::{Gate, Permit, Refusal};
use crate::limits::Limits;
use crate::view::View;

const TICK: Duration = Duration::from_secs(1);
const TIME_DEPENDENT_EVERY: Duration = Duration::from_secs(60);
/// Sessions decided in one go on one thread, so that new sessions find a thread in between.
const BATCH_SESSIONS_MAX: usize = 512;

/// The one task that cuts live sessions for reasons of policy, locks and time.
#[derive(Debug)]
pub struct Reviewer {
    gate: Arc<Gate>,
    registry: Arc<Registry>,
    views: watch::Receiver<Option<Arc<View>>>,
    services: watch::Receiver<Arc<LocalServices>>,
    limits: InForce<Limits>,
}

impl Reviewer {
    /// A reviewer of `registry` by `gate`'s decisions.
    #[must_use]
    pub fn new(
        gate: Arc<Gate>,
        registry: Arc<Registry>,
        views: watch::Receiver<Option<Arc<View>>>,
        services: watch::Receiver<Arc<LocalServices>>,
        limits: InForce<Limits>,
    ) -> Self {
        Self {
            gate,
            registry,
            views,
            services,
            limits,
        }
    }

    /// Runs until the publishers of views and services have gone.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut minute = tokio::time::interval(TIME_DEPENDENT_EVERY);
        minute.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = self.views.changed() => match changed {
                    Ok(()) => self.decide_again(|_| true).await,
                    Err(_publishers_gone) => return,
                },
                changed = self.services.changed() => match changed {
                    Ok(()) => self.decide_again(|_| true).await,
                    Err(_publishers_gone) => return,
                },
                _ = minute.tick() => self.decide_again(|live| live.permit().time_dependent()).await,
                _ = tick.tick() => {
                    self.hold_deadlines();
                    self.decide_again(|live| self.is_owed_a_decision(live)).await;
                }
            }
        }
    }

    async fn decide_again(&self, concerned: impl Fn(&Live) -> bool) {
        let mut sessions = self.registry.all();
        sessions.retain(|live| concerned(live));
        while !sessions.is_empty() {
            let rest = sessions.split_off(sessions.len().min(BATCH_SESSIONS_MAX));
            let batch = std::mem::replace(&mut sessions, rest);
            let gate = Arc::clone(&self.gate);
            big_stack::run_async(move || batch.iter().for_each(|live| review(&gate, live))).await;
        }
    }

    /// Something has changed since it was last allowed to go on, and it can be decided now: an outage, also one
    /// of a moment between a snapshot and the beat behind it, left it as it was.
    fn is_owed_a_decision(&self, live: &Live) -> bool {
        let permit = live.permit();
        live.cut_because().is_none()
            && !self.gate.is_current(&permit)
            && self.gate.outage_for(&permit.service().strictness).is_none()
    }

    fn hold_deadlines(&self) {
        let now = self.gate.now();
        for live in self.registry.all() {
            let permit = live.permit();
            let ending = overdue(&live, &permit, now).or_else(|| self.out_of_grace(&live, &permit));
            if let Some(ending) = ending {
                live.cut(ending);
            }
        }
    }

    /// An outage longer than the grace of this host's file or of the service, whichever is shorter.
    fn out_of_grace(&self, live: &Live, permit: &Permit) -> Option<Ending> {
        let strictness = permit.service().strictness;
        let own_grace = self.limits.now().outage_grace();
        let grace = strictness.grace.map_or(own_grace, |grace| grace.min(own_grace));
        let outage = self.gate.outage_for(&strictness);
        let lasted = live.outage_lasted(outage.is_some(), self.gate.now())?;
        outage
            .filter(|_| lasted >= grace)
            .map(|outage| Ending::because(outage.close_reason(), outage.text()))
    }
}

/// Decides one live session again; must run on a big stack.
pub fn review(gate: &Gate, live: &Live) {
    if cut_by_lock_on_proxy(gate, live) {
        return;
    }
    match gate.decide_here(&live.attempt()) {
        Ok(permit) => live.renew(permit),
        Err(refusal) => {
            if let Some(ending) = cut_ending(&refusal, live.permit().grant().rule()) {
                live.cut(ending);
            }
        }
    }
}

/// Cuts the session if the proxy that it runs through is locked: whoever broke into that is in its path. Whether it
/// did.
pub fn cut_by_lock_on_proxy(gate: &Gate, live: &Live) -> bool {
    let lock = gate.lock_on_proxy(&live.through());
    if let Some(lock) = &lock {
        live.cut(Ending::because(CloseReason::Lock, lock.to_string()));
    }
    lock.is_some()
}

/// How a refusal ends a live session that was allowed by `rule`; `None` when it has a grace of its own.
pub(crate) fn cut_ending(refusal: &Refusal, rule: &str) -> Option<Ending> {
    match refusal {
        Refusal::Outage(_) => None,
        Refusal::Locked(lock) => Some(Ending::because(CloseReason::Lock, lock.to_string())),
        Refusal::Killed(lock) => Some(Ending::because(CloseReason::Killed, lock.to_string())),
        Refusal::NotServed => Some(Ending::because(
            CloseReason::ServiceRemoved,
            "the service is no longer granted to this agent",
        )),
        Refusal::Ceiling(_) => Some(Ending::because(CloseReason::Policy, refusal.detail())),
        Refusal::Denied(denial) => Some(Ending::because(
            CloseReason::Policy,
            match &denial.rule {
                Some(rule) => format!(
                    "rule {rule:?} of policy version {}: {}",
                    denial.policy_version, denial.detail
                ),
                None => format!(
                    "rule {rule:?} no longer allows this session as of policy version {}: {}",
                    denial.policy_version, denial.detail
                ),
            },
        )),
    }
}

fn overdue(live: &Live, permit: &Permit, now: time::OffsetDateTime) -> Option<Ending> {
    if live
        .caller()
        .login_deadline()
        .is_some_and(|deadline| deadline <= now)
    {
        return Some(Ending::plain(CloseReason::LoginDeadline));
    }
    let limit = permit.grant().limits().session?;
    let over = now - live.facts.started >= limit;
    over.then(|| {
        let rule = permit.grant().rule();
        Ending::because(
            CloseReason::SessionLimit,
            format!("rule {rule:?} allows {} s", limit.as_secs()),
        )
    })
}
