//! What a document says about one person, whatever the service: for trying out an identity provider.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::admin::Verb;
use crate::facts::{UserFacts, Vocabulary};
use crate::policy::Policy;
use crate::rule::Effect;
use crate::selector::UserMatch;

/// A rule whose `users` match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleAbout {
    /// Its name.
    pub name: String,
    /// Its line in the document.
    pub line: usize,
    /// What it does when it applies.
    pub effect: Effect,
    /// Its condition, which is not evaluated here.
    pub condition: Option<String>,
}

/// An `[[admin]]` whose `users` match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdminAbout {
    /// What the document's errors call it.
    pub what: String,
    /// What it lets them do.
    pub verbs: BTreeSet<Verb>,
}

impl Policy {
    /// The rules and admin rules whose `users` match, in the document's order.
    #[must_use]
    pub fn about(&self, user: &UserFacts) -> (Vec<RuleAbout>, Vec<AdminAbout>) {
        let vocabulary = Vocabulary::default();
        let memberships = self.groups.memberships(user, &vocabulary);
        let rules = self
            .rules
            .iter()
            .filter(|rule| rule.users.matches(user, &memberships) == UserMatch::Yes)
            .map(|rule| RuleAbout {
                name: rule.name.clone(),
                line: rule.line,
                effect: rule.effect,
                condition: rule
                    .condition
                    .as_ref()
                    .map(|condition| condition.condition.source().to_owned()),
            });
        let admins = self
            .admins
            .iter()
            .filter(|admin| admin.matches(user, &memberships))
            .map(|admin| AdminAbout {
                what: admin.what().to_owned(),
                verbs: admin.verbs().collect(),
            });
        (rules.collect(), admins.collect())
    }
}
