//! Why there is no session, for the caller, for the record, and for the reviewer of live sessions.

use iap_audit::{CloseReason, DecisionRecord, Effect};
use iap_identity::{Lock, LockKind};
use iap_policy::{Denial, DenialCode};
use iap_tunnel::StepUp;

use crate::view::View;

/// A lock that hit, as records and people are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockHit {
    id: String,
    kind: LockKind,
    reason: String,
}

impl LockHit {
    pub(super) fn of(lock: &Lock) -> Self {
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
    /// No beat has confirmed its snapshot for longer than the service allows.
    RulesUnconfirmed,
    /// Beats arrive, and this host's clock says that they are old.
    ClockAhead,
}

impl Outage {
    /// Why a live session ends that outlasts its grace.
    #[must_use]
    pub fn close_reason(self) -> CloseReason {
        match self {
            Self::NoSnapshot | Self::SnapshotExpired | Self::RulesUnconfirmed => CloseReason::SnapshotTooOld,
            Self::FeedTooOld | Self::ClockAhead => CloseReason::FeedTooOld,
        }
    }

    /// A sentence for the user and the record.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::NoSnapshot => "this agent has not received its rules yet",
            Self::SnapshotExpired => "this agent's rules have expired and the auth server cannot be reached",
            Self::FeedTooOld => {
                "the auth server has been out of reach for longer than sessions are allowed without it"
            }
            Self::RulesUnconfirmed => {
                "the auth server has not confirmed this agent's rules for longer than the service may do without"
            }
            Self::ClockAhead => {
                "this agent's clock is ahead of the auth server's, so that its rules look too old; its operator must set the clock"
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
            Self::Denied(Denial {
                code: DenialCode::StepUpNeeded(_),
                ..
            }) => "step_up",
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

    /// The login that would change the answer, if one would.
    #[must_use]
    pub fn step_up(&self) -> Option<StepUp> {
        match self {
            Self::Denied(Denial {
                code: DenialCode::StepUpNeeded(needed),
                ..
            }) => Some(StepUp {
                mfa: needed.mfa,
                acr: needed.acr.clone(),
            }),
            Self::Denied(_)
            | Self::Outage(_)
            | Self::Locked(_)
            | Self::Killed(_)
            | Self::NotServed
            | Self::Ceiling(_) => None,
        }
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
