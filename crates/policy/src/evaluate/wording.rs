//! Denials in words: a sentence for the user, a reason for the record.

use iap_identity::LoginName;

use super::{Deciding, Verdict};
use crate::decision::{Denial, DenialCode};
use crate::target::Wanted;

impl<'p> Deciding<'p, '_> {
    pub(super) fn denial_of(&self, verdict: Verdict<'p>, wanted: Wanted<'_>) -> Denial {
        let mut text = self.refusal(wanted);
        let (code, rule, detail) = match verdict {
            Verdict::Denied { rule, failure: None } => (
                DenialCode::DeniedByRule,
                Some(rule),
                format!("rule {rule:?} denies"),
            ),
            Verdict::Denied {
                rule,
                failure: Some(failure),
            } => {
                let detail = format!("rule {rule:?} denies because its condition failed: {failure}");
                (DenialCode::ConditionFailed, Some(rule), detail)
            }
            Verdict::Failed { rule, failure } => {
                let detail = format!("rule {rule:?} does not allow because its condition failed: {failure}");
                (DenialCode::ConditionFailed, Some(rule), detail)
            }
            Verdict::Renew { rule, group } => {
                text = "The certificate is older than the policy; renew it and try again.".to_owned();
                let detail = format!(
                    "rule {rule:?} depends on group {group}, which the certificate is too old to carry"
                );
                (DenialCode::RenewNeeded, Some(rule), detail)
            }
            Verdict::OtherTarget => {
                let detail = "rules allow other logins or databases of this service".to_owned();
                text = self.other_target(wanted);
                (DenialCode::LoginNotAllowed, None, detail)
            }
            Verdict::Nothing | Verdict::Allowed(_) => {
                (DenialCode::NoRuleMatches, None, "no rule allows this".to_owned())
            }
        };
        let rule = rule.map(str::to_owned);
        Denial {
            code,
            rule,
            policy_version: self.policy.version,
            text,
            detail,
        }
    }

    fn refusal(&self, wanted: Wanted<'_>) -> String {
        let (user, service) = (&self.question.user.name, &self.question.service.name);
        match wanted {
            Wanted::Named(login) => format!("Policy does not allow {user} to reach {service} as {login}."),
            Wanted::Nothing | Wanted::Unseen | Wanted::Whichever => {
                format!("Policy does not allow {user} to reach {service}.")
            }
        }
    }

    fn other_target(&self, wanted: Wanted<'_>) -> String {
        let (user, service) = (&self.question.user.name, &self.question.service.name);
        let Wanted::Named(login) = wanted else {
            return format!("Policy does not allow {user} to reach this database of {service}.");
        };
        let elsewhere = matches!(self.verdict(wanted, Wanted::Whichever), Verdict::Allowed(_));
        match (elsewhere, self.wanted_database()) {
            (true, Wanted::Named(database)) => {
                format!("Policy does not allow {user} to reach database {database} of {service} as {login}.")
            }
            (true | false, _) => {
                let logins = self.visible().map(|visible| visible.logins).unwrap_or_default();
                let hint = if logins.is_empty() {
                    String::new()
                } else {
                    format!("; allowed: {}", logins.join(", "))
                };
                format!("Policy does not allow {user} to reach {service} as {login}{hint}.")
            }
        }
    }

    pub(super) fn login_choice(&self, choices: Vec<LoginName>) -> Denial {
        let service = &self.question.service.name;
        let names: Vec<&str> = choices.iter().map(LoginName::as_str).collect();
        let text = if names.is_empty() {
            format!("Say which login of {service} to use with --login.")
        } else {
            format!(
                "Say which login of {service} to use with --login: {}.",
                names.join(", ")
            )
        };
        let detail = "no login was named and none is the default".to_owned();
        let code = DenialCode::LoginChoice(choices);
        Denial {
            code,
            rule: None,
            policy_version: self.policy.version,
            text,
            detail,
        }
    }
}
