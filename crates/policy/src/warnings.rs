//! What a document may say but probably does not mean.

use crate::facts::{ServiceFacts, Sight};
use crate::policy::Policy;
use crate::rule::{Effect, Rule};

/// Most warnings given for one document.
const WARNINGS_MAX: usize = 50;

pub(crate) fn warnings(policy: &Policy, services: &[ServiceFacts]) -> Vec<String> {
    let mut found = Vec::new();
    for rule in &policy.rules {
        let concerned: Vec<&ServiceFacts> = services
            .iter()
            .filter(|service| rule.services.matches(service))
            .collect();
        unseen_targets(rule, &concerned, &mut found);
        if concerned.is_empty() && !services.is_empty() {
            found.push(format!(
                "rule {:?} (line {}) is about no service there is",
                rule.name, rule.line
            ));
        }
        if rule
            .condition
            .as_ref()
            .is_some_and(|condition| condition.condition.scans_groups)
        {
            found.push(format!(
                "rule {:?} (line {}): its condition goes through user.groups, which holds only groups the policy \
                 names; ask for each with \"name\" in user.groups",
                rule.name, rule.line
            ));
        }
    }
    if found.len() > WARNINGS_MAX {
        let more = found.len() - WARNINGS_MAX;
        found.truncate(WARNINGS_MAX);
        found.push(format!("{more} more warnings"));
    }
    found
}

/// Rules that name logins or databases of services whose logins or databases the agent cannot see.
fn unseen_targets(rule: &Rule, services: &[&ServiceFacts], found: &mut Vec<String>) {
    let visible = |sight: Sight| matches!(sight, Sight::Visible | Sight::Certified);
    let unseen = services.iter().filter(|service| {
        (!rule.logins.is_any() && !visible(service.login_sight()))
            || (!rule.databases.is_any() && !visible(service.database_sight()))
    });
    let names: Vec<&str> = unseen.map(|service| service.name.as_str()).collect();
    if names.is_empty() {
        return;
    }
    let consequence = match rule.effect {
        Effect::Allow => "does not allow them",
        Effect::Deny => "denies them altogether where they may have some",
    };
    found.push(format!(
        "rule {:?} (line {}) names logins or databases, which the agent does not see on {}; it {consequence}",
        rule.name,
        rule.line,
        names.join(", ")
    ));
}
