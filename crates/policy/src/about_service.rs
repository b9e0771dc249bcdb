//! What a document says about one service, whoever asks: for `who-can`.

use iap_identity::Class;
use serde::Serialize;

use crate::facts::ServiceFacts;
use crate::policy::Policy;
use crate::rule::{Effect, Rule};

/// A rule that is about a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceRule {
    /// Its name.
    pub name: String,
    /// Its line in the document.
    pub line: usize,
    /// What it does when it applies.
    pub effect: Effect,
    /// The names of the users it is about; `None` for any.
    pub users: Option<Vec<String>>,
    /// The groups it is about; `None` for any, or none at all.
    pub groups: Option<Vec<String>>,
    /// The kinds of principals it is about.
    pub kinds: Vec<&'static str>,
    /// Logins as written; `"*"` for any.
    pub logins: Vec<String>,
    /// Databases as written; `"*"` for any.
    pub databases: Vec<String>,
    /// Its condition, which is not evaluated here.
    pub condition: Option<String>,
}

impl Policy {
    /// The rules whose `services` match, in the document's order.
    #[must_use]
    pub fn about_service(&self, service: &ServiceFacts) -> Vec<ServiceRule> {
        let candidates = self.index.candidates(service);
        let rules = candidates
            .into_iter()
            .filter_map(|position| self.rules.get(position));
        rules
            .filter(|rule| rule.services.matches(service))
            .map(|rule| self.service_rule(rule))
            .collect()
    }

    fn service_rule(&self, rule: &Rule) -> ServiceRule {
        let named = |number| self.groups.name(number).map(ToString::to_string);
        let groups = rule.users.groups();
        ServiceRule {
            name: rule.name.clone(),
            line: rule.line,
            effect: rule.effect,
            users: rule.users.names(),
            groups: groups.map(|groups| groups.iter().filter_map(|number| named(*number)).collect()),
            kinds: [Class::User, Class::Bot, Class::Workload]
                .into_iter()
                .filter(|class| rule.users.kinds().contains(*class))
                .map(Class::as_str)
                .collect(),
            logins: rule.logins.written(),
            databases: rule.databases.written(),
            condition: rule
                .condition
                .as_ref()
                .map(|condition| condition.condition.source().to_owned()),
        }
    }
}
