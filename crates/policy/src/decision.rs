//! Decisions: a [`Grant`], which is needed to dial a backend, or a [`Denial`].

use std::time::Duration;

use iap_identity::LoginName;
use serde::{Deserialize, Serialize};

use crate::features::Features;
use crate::step_up::StepUp;

/// What the policy says to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// Yes, in the name of a rule.
    Grant(Grant),
    /// No, and why.
    Denial(Denial),
}

impl Decision {
    /// The grant, or the denial as the error.
    ///
    /// # Errors
    ///
    /// The [`Denial`], when it is one.
    pub fn into_result(self) -> Result<Grant, Denial> {
        match self {
            Decision::Grant(grant) => Ok(grant),
            Decision::Denial(denial) => Err(denial),
        }
    }
}

/// How long a session may last and may idle; `None` is unlimited by policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// From its start.
    pub session: Option<Duration>,
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
}

/// Permission to open one session. Only [`crate::Policy::evaluate`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub(crate) rule: String,
    pub(crate) policy_version: u64,
    pub(crate) login: Option<LoginName>,
    pub(crate) limits: Limits,
    pub(crate) features: Features,
    pub(crate) time_dependent: bool,
}

impl Grant {
    /// Name of the rule that allows: the first in the document of those that do.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// Version of the policy that decided.
    #[must_use]
    pub fn policy_version(&self) -> u64 {
        self.policy_version
    }

    /// The login to use; `None` where the agent sees none.
    #[must_use]
    pub fn login(&self) -> Option<&LoginName> {
        self.login.as_ref()
    }

    /// The deciding rule's limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What the deciding rule allows beyond the usual.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Whether the mere passing of time can change this decision: some condition that matters here
    /// looks at `now`, `user.auth_age` or `user.mfa_age`.
    #[must_use]
    pub fn time_dependent(&self) -> bool {
        self.time_dependent
    }
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenialCode {
    /// No allow rule covers this.
    NoRuleMatches,
    /// A deny rule does.
    DeniedByRule,
    /// A condition could not be evaluated: an allow rule's, and nothing else allows; or a deny rule's.
    ConditionFailed,
    /// The service may be reached, but not as this login (or on this database).
    LoginNotAllowed,
    /// Nothing allows this now, but a rule would after another login: with fresh proof, or with more.
    StepUpNeeded(StepUp),
    /// It depends on a group that the certificate is too old to carry: renew it and ask again.
    RenewNeeded,
    /// Several logins are possible and none is the obvious one. With `logins = ["*"]` the list may be empty.
    LoginChoice(Vec<LoginName>),
}

impl DenialCode {
    /// Its name on the wire and in records.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            DenialCode::NoRuleMatches => "no_rule_matches",
            DenialCode::DeniedByRule => "denied_by_rule",
            DenialCode::ConditionFailed => "condition_failed",
            DenialCode::LoginNotAllowed => "login_not_allowed",
            DenialCode::StepUpNeeded(_) => "step_up_needed",
            DenialCode::RenewNeeded => "renew_needed",
            DenialCode::LoginChoice(_) => "login_choice",
        }
    }
}

/// Refusal to open a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Why not.
    pub code: DenialCode,
    /// The rule that refuses, when it is one.
    pub rule: Option<String>,
    /// Version of the policy that decided.
    pub policy_version: u64,
    /// One sentence for the user. It does not tell a deny rule from a missing allow rule.
    pub text: String,
    /// What happened, for the audit record.
    pub detail: String,
}

/// What a user sees of a service in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Visible {
    /// Logins that may be used; `"*"` stands for any. Empty where the agent sees none.
    pub logins: Vec<String>,
    /// Databases that may be used; `"*"` stands for any. Empty where the agent sees none.
    pub databases: Vec<String>,
    /// The login used when none is named.
    pub login: Option<LoginName>,
}
