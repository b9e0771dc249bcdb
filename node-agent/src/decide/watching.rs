//! Whether somebody may watch a session while it runs: their own always; another's with what replaying it takes, the admin
//! verb `recording.read`, which stands in the policy that the snapshot carries. A lock, a deny rule that keeps them from
//! the service, and the end of their certificate say no to either.

use std::sync::Arc;

use iap_identity::Class;
use iap_policy::{DenialCode, Verb};
use iap_runtime::big_stack;

use super::{Attempt, Gate, LockHit, Outage, Refusal, evaluate};

/// Somebody may watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MayWatch {
    /// By what.
    pub basis: WatchBasis,
    /// Of which policy.
    pub policy_version: u64,
}

/// By what somebody may watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchBasis {
    /// It is their own session.
    OwnSession,
    /// They have the verb.
    RecordingRead,
}

/// Why somebody may not watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchRefusal {
    /// The agent knows too little to decide.
    Outage(Outage),
    /// A lock on them, on the session, or on this agent.
    Locked(LockHit),
    /// Their certificate has ended.
    CertificateEnded,
    /// A deny rule names a group that their certificate is too old to carry.
    Renew,
    /// The policy.
    NotAllowed(String),
    /// The service is this agent's no longer.
    NotServed,
}

impl WatchBasis {
    /// As records have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OwnSession => "own_session",
            Self::RecordingRead => Verb::RecordingRead.as_str(),
        }
    }
}

impl WatchRefusal {
    /// A stable word for records and for the watcher's program.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Outage(_) => "outage",
            Self::Locked(_) => "lock",
            Self::CertificateEnded => "certificate_ended",
            Self::Renew | Self::NotAllowed(_) => "policy",
            Self::NotServed => "service_removed",
        }
    }

    /// What the record says of it.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::Outage(outage) => outage.text().to_owned(),
            Self::Locked(lock) => lock.to_string(),
            Self::CertificateEnded => "the watcher's certificate has ended".to_owned(),
            Self::Renew => {
                "a deny rule names a group that the watcher's certificate is too old to carry".to_owned()
            }
            Self::NotAllowed(why) => why.clone(),
            Self::NotServed => "the service is no longer granted to this agent".to_owned(),
        }
    }

    /// What it tells somebody who watches already; nothing where an outage leaves things as they are.
    #[must_use]
    pub fn last_words(&self) -> Option<&'static str> {
        match self {
            Self::Outage(_) => None,
            Self::Locked(_) => Some("You may not watch any longer: access is locked."),
            Self::CertificateEnded => {
                Some("Your certificate has ended; with a fresh one you can watch again.")
            }
            Self::Renew | Self::NotAllowed(_) => {
                Some("You may not watch any longer: the policy has changed.")
            }
            Self::NotServed => Some("The service is no longer this agent's."),
        }
    }
}

impl Gate {
    /// Decides on `watcher`, whose attempt names the session's id, service and login; `owner` is the id of whoever is in it.
    ///
    /// # Errors
    /// Why not.
    pub async fn decide_on_watcher(
        self: &Arc<Self>,
        watcher: Attempt,
        owner: String,
    ) -> Result<MayWatch, WatchRefusal> {
        let gate = Arc::clone(self);
        big_stack::run_async(move || gate.decide_on_watcher_here(&watcher, &owner)).await
    }

    fn decide_on_watcher_here(&self, watcher: &Attempt, owner: &str) -> Result<MayWatch, WatchRefusal> {
        let view = self.view().ok_or(WatchRefusal::Outage(Outage::NoSnapshot))?;
        let now = self.clock.now();
        if let Err(Refusal::Locked(lock) | Refusal::Killed(lock)) = self.check_locks(&view, watcher, now) {
            return Err(WatchRefusal::Locked(lock));
        }
        if watcher.caller.peer().not_after() <= now {
            return Err(WatchRefusal::CertificateEnded);
        }
        let service = view.service_for(&watcher.service, &self.agent_id);
        let service = service.ok_or(WatchRefusal::NotServed)?;
        self.check_age(&view, &service.strictness, now)
            .map_err(WatchRefusal::Outage)?;
        let basis = self.basis(&view, watcher, owner)?;
        match evaluate(&view, &service, watcher, now) {
            Err(Refusal::Denied(denial)) => match denial.code {
                DenialCode::DeniedByRule | DenialCode::ConditionFailed => {
                    let rule = denial.rule.unwrap_or_default();
                    Err(WatchRefusal::NotAllowed(format!(
                        "rule {rule:?}: {}",
                        denial.detail
                    )))
                }
                DenialCode::RenewNeeded => Err(WatchRefusal::Renew),
                // Whoever watches need not be somebody who may reach the service.
                DenialCode::NoRuleMatches
                | DenialCode::LoginNotAllowed
                | DenialCode::StepUpNeeded(_)
                | DenialCode::LoginChoice(_) => Ok(()),
            },
            Err(_) | Ok(_) => Ok(()),
        }?;
        Ok(MayWatch {
            basis,
            policy_version: view.policy_version(),
        })
    }

    fn basis(
        &self,
        view: &crate::view::View,
        watcher: &Attempt,
        owner: &str,
    ) -> Result<WatchBasis, WatchRefusal> {
        let caller = &watcher.caller;
        if caller.peer().principal() == owner {
            return Ok(WatchBasis::OwnSession);
        }
        let verbs = view.policy().admin_verbs(&caller.facts());
        // Administration is for people: at the auth server, too, only users are asked for their verbs.
        match caller.peer().class() == Class::User && verbs.contains(&Verb::RecordingRead) {
            true => Ok(WatchBasis::RecordingRead),
            false => {
                let version = view.policy_version();
                let why = format!("no admin rule of policy version {version} gives recording.read");
                Err(WatchRefusal::NotAllowed(why))
            }
        }
    }
}
