//! Whether another login would change a denial: the same question, asked of the same person as if they had just
//! proven more.
//!
//! Purely hypothetical: nothing is granted here. A condition that looks at nothing a login can change is not asked
//! again.

use std::collections::BTreeSet;

use iap_identity::Class;
use serde::{Deserialize, Serialize};

use crate::decision::{Decision, Denial, DenialCode};
use crate::evaluate::Deciding;
use crate::facts::{Question, UserFacts, Vocabulary};
use crate::policy::Policy;

/// The most values of `user.acr` that are tried.
const ACR_TRIED_MAX: usize = 4;

/// The least that a new login would have to bring.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StepUp {
    /// Several factors.
    pub mfa: bool,
    /// This authentication context class.
    pub acr: Option<String>,
}

impl StepUp {
    /// The words behind "a fresh login".
    #[must_use]
    pub fn wording(&self) -> String {
        let mfa = if self.mfa { " with several factors" } else { "" };
        let acr = self
            .acr
            .as_ref()
            .map(|acr| format!(" of the class {acr}"))
            .unwrap_or_default();
        format!("{mfa}{acr}")
    }
}

impl Policy {
    /// The denial, saying so if the person could change it by logging in anew.
    pub(crate) fn with_step_up(
        &self,
        denial: Denial,
        question: &Question<'_>,
        vocabulary: &Vocabulary,
    ) -> Denial {
        let may_change = match denial.code {
            DenialCode::NoRuleMatches
            | DenialCode::DeniedByRule
            | DenialCode::ConditionFailed
            | DenialCode::LoginNotAllowed => question.user.kind == Class::User,
            DenialCode::StepUpNeeded(_) | DenialCode::RenewNeeded | DenialCode::LoginChoice(_) => false,
        };
        let looked_at = self.login_facts_looked_at();
        if !may_change || !looked_at.any() {
            return denial;
        }
        match self.least_login(&looked_at, question, vocabulary) {
            Some((step_up, rule)) => {
                let service = &question.service.name;
                let wording = step_up.wording();
                Denial {
                    text: format!("To reach {service}, log in anew{wording}."),
                    detail: format!(
                        "{}; after a fresh login{wording} rule {rule:?} would allow",
                        denial.detail
                    ),
                    code: DenialCode::StepUpNeeded(step_up),
                    ..denial
                }
            }
            None => denial,
        }
    }

    /// The first of the hypothetical logins, from the least on, with which the answer is yes, and the rule that says so.
    fn least_login(
        &self,
        looked_at: &LookedAt<'_>,
        question: &Question<'_>,
        vocabulary: &Vocabulary,
    ) -> Option<(StepUp, String)> {
        let classes =
            std::iter::once(None).chain(looked_at.acr.iter().take(ACR_TRIED_MAX).copied().map(Some));
        let mut logins = classes.flat_map(|acr| [(false, acr), (true, acr)]);
        logins.find_map(|(mfa, acr)| {
            let user = UserFacts {
                auth_time: Some(question.now),
                mfa_time: if mfa {
                    Some(question.now)
                } else {
                    question.user.mfa_time
                },
                acr: acr.map(str::to_owned).or_else(|| question.user.acr.clone()),
                ..question.user.clone()
            };
            let asked = Question {
                user: &user,
                ..*question
            };
            match Deciding::new(self, &asked, vocabulary).decide() {
                Decision::Grant(grant) => {
                    let acr = acr.map(str::to_owned);
                    Some((StepUp { mfa, acr }, grant.rule().to_owned()))
                }
                Decision::Denial(_) => None,
            }
        })
    }

    /// What of a login the document's conditions look at.
    fn login_facts_looked_at(&self) -> LookedAt<'_> {
        let mut looked_at = LookedAt::default();
        for rule in &self.rules {
            let Some(condition) = rule.condition.as_ref().map(|condition| &condition.condition) else {
                continue;
            };
            looked_at.at_ages |= ["user.auth_age", "user.mfa_age", "user"]
                .iter()
                .any(|variable| condition.variables.contains(*variable));
            looked_at
                .acr
                .extend(condition.acr_literals.iter().map(String::as_str));
        }
        looked_at
    }
}

#[derive(Default)]
struct LookedAt<'p> {
    at_ages: bool,
    acr: BTreeSet<&'p str>,
}

impl LookedAt<'_> {
    fn any(&self) -> bool {
        self.at_ages || !self.acr.is_empty()
    }
}
