//! From a question to a decision.

mod logins;
mod wording;

pub(crate) use logins::own_login;

use std::cell::OnceCell;
use std::collections::BTreeSet;

use iap_identity::LoginName;

use crate::condition::Truth;
use crate::condition::variables::Variables;
use crate::decision::{Decision, Grant};
use crate::facts::{Asked, Question, Sight, Vocabulary};
use crate::groups::{Memberships, NamedGroup};
use crate::policy::Policy;
use crate::rule::{Effect, Rule};
use crate::selector::UserMatch;
use crate::target::Wanted;

/// A rule whose selectors match the question's user and service.
pub(crate) struct Matched<'p> {
    pub(crate) rule: &'p Rule,
    /// The group through which alone it may match, and which the certificate is too old to carry.
    pub(crate) newer_user_group: Option<&'p NamedGroup>,
    /// A group its condition is about, and which the certificate is too old to carry.
    pub(crate) newer_condition_group: Option<&'p NamedGroup>,
    /// The condition's value, where login and database do not matter.
    truth: OnceCell<Truth>,
}

/// One question being decided.
pub(crate) struct Deciding<'p, 'q> {
    pub(crate) policy: &'p Policy,
    pub(crate) question: &'q Question<'q>,
    pub(crate) matched: Vec<Matched<'p>>,
    client_ip: String,
}

/// What the rules say about one login on one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict<'p> {
    Allowed(&'p str),
    Denied {
        rule: &'p str,
        /// Set when its condition failed instead of being true.
        failure: Option<String>,
    },
    /// It depends on a group that the certificate is too old to carry.
    Renew {
        rule: &'p str,
        group: &'p NamedGroup,
    },
    /// Nothing allows, but this rule might have, had its condition not failed.
    Failed {
        rule: &'p str,
        failure: String,
    },
    /// Rules allow other logins or databases.
    OtherTarget,
    Nothing,
}

impl<'p, 'q> Deciding<'p, 'q> {
    pub(crate) fn new(policy: &'p Policy, question: &'q Question<'q>, vocabulary: &'p Vocabulary) -> Self
    where
        'q: 'p,
    {
        let memberships = policy.groups.memberships(question.user, vocabulary);
        let candidates = policy.index.candidates(question.service);
        let rules = candidates
            .into_iter()
            .filter_map(|position| policy.rules.get(position));
        let matched = rules
            .filter_map(|rule| Matched::new(rule, question, &memberships))
            .collect();
        let client_ip = question.client_ip.to_canonical().to_string();
        Self {
            policy,
            question,
            matched,
            client_ip,
        }
    }

    pub(crate) fn decide(&self) -> Decision {
        let database = self.wanted_database();
        match self.wanted_login() {
            Some(login) => {
                let named = match login {
                    // The client's word, and nothing at the agent holds it to that.
                    Wanted::Named(_) if self.question.service.login_sight() == Sight::Certified => None,
                    Wanted::Named(name) => LoginName::parse(name).ok(),
                    Wanted::Nothing | Wanted::Unseen | Wanted::Whichever => None,
                };
                self.decision(self.verdict(login, database), login, named)
            }
            None if self.question.service.login_sight() == Sight::Certified => {
                self.decide_certified(database)
            }
            None => self.choose_login(database),
        }
    }

    /// The login to decide about; `None` if one has to be chosen first.
    fn wanted_login(&self) -> Option<Wanted<'q>> {
        match (self.question.service.login_sight(), self.question.login) {
            (Sight::Absent, _) => Some(Wanted::Nothing),
            (Sight::Opaque, _) | (Sight::Visible, Asked::Opaque) => Some(Wanted::Unseen),
            (Sight::Visible | Sight::Certified, Asked::Visible(Some(login))) => {
                Some(Wanted::Named(login.as_str()))
            }
            (Sight::Visible, Asked::Visible(None)) | (Sight::Certified, _) => None,
        }
    }

    pub(crate) fn wanted_database(&self) -> Wanted<'q> {
        match (self.question.service.database_sight(), self.question.database) {
            (Sight::Absent, _) | (Sight::Visible, Asked::Visible(None)) => Wanted::Nothing,
            (Sight::Opaque | Sight::Certified, _) | (Sight::Visible, Asked::Opaque) => Wanted::Unseen,
            (Sight::Visible, Asked::Visible(Some(database))) => Wanted::Named(database),
        }
    }

    /// What the matched rules say. Denials first: the first that holds for sure ends it.
    pub(crate) fn verdict(&self, login: Wanted<'_>, database: Wanted<'_>) -> Verdict<'p> {
        let renewable_denial = match self.denial(login, database) {
            Some(Verdict::Renew { rule, group }) => Some(Verdict::Renew { rule, group }),
            Some(denied) => return denied,
            None => None,
        };
        let allowance = self.allowance(login, database);
        match (renewable_denial, &allowance) {
            // Renewing settles the denial, and only then is it worth the while.
            (Some(renew), Verdict::Allowed(_) | Verdict::Renew { .. }) => renew,
            (Some(_) | None, _) => allowance,
        }
    }

    fn denial(&self, login: Wanted<'_>, database: Wanted<'_>) -> Option<Verdict<'p>> {
        let user = self.question.user;
        let mut renewable = None;
        for matched in self
            .matched
            .iter()
            .filter(|matched| matched.rule.effect == Effect::Deny)
        {
            let rule = matched.rule;
            if !rule.logins.take(login, user) || !rule.databases.take(database, user) {
                continue;
            }
            if let Some(group) = matched.newer_condition_group {
                renewable.get_or_insert(Verdict::Renew {
                    rule: &rule.name,
                    group,
                });
                continue;
            }
            let failure = match self.truth(matched, login, database) {
                Truth::False => continue,
                Truth::True => None,
                Truth::Failed(problem) => Some(problem),
            };
            match matched.newer_user_group {
                Some(group) => {
                    renewable.get_or_insert(Verdict::Renew {
                        rule: &rule.name,
                        group,
                    });
                }
                None => {
                    return Some(Verdict::Denied {
                        rule: &rule.name,
                        failure,
                    });
                }
            }
        }
        renewable
    }

    fn allowance(&self, login: Wanted<'_>, database: Wanted<'_>) -> Verdict<'p> {
        let mut best = Verdict::Nothing;
        for matched in self
            .matched
            .iter()
            .filter(|matched| matched.rule.effect == Effect::Allow)
        {
            let verdict = self.allowance_by(matched, login, database);
            if let Verdict::Allowed(_) = verdict {
                return verdict;
            }
            if verdict.rank() > best.rank() {
                best = verdict;
            }
        }
        best
    }

    fn allowance_by(&self, matched: &Matched<'p>, login: Wanted<'_>, database: Wanted<'_>) -> Verdict<'p> {
        let rule = matched.rule;
        let user = self.question.user;
        let reserved = &self.policy.options.reserved_logins;
        let gives_login = rule.logins.give(login, user, reserved);
        let gives_database = rule.databases.give(database, user, &BTreeSet::new());
        if !gives_login || !gives_database {
            // Only what was named and seen can be of another login.
            let named = matches!(login, Wanted::Named(_)) || matches!(database, Wanted::Named(_));
            let certain = matched.newer_user_group.is_none() && matched.newer_condition_group.is_none();
            let other = named && certain && self.truth(matched, login, database) == Truth::True;
            return if other {
                Verdict::OtherTarget
            } else {
                Verdict::Nothing
            };
        }
        if let Some(group) = matched.newer_condition_group {
            return Verdict::Renew {
                rule: &rule.name,
                group,
            };
        }
        match (self.truth(matched, login, database), matched.newer_user_group) {
            (Truth::True, None) => Verdict::Allowed(&rule.name),
            (Truth::True, Some(group)) => Verdict::Renew {
                rule: &rule.name,
                group,
            },
            (Truth::Failed(failure), None) => Verdict::Failed {
                rule: &rule.name,
                failure,
            },
            (Truth::Failed(_), Some(_)) | (Truth::False, _) => Verdict::Nothing,
        }
    }

    /// The value of a matched rule's condition; true if it has none.
    pub(crate) fn truth(&self, matched: &Matched<'p>, login: Wanted<'_>, database: Wanted<'_>) -> Truth {
        let Some(condition) = matched
            .rule
            .condition
            .as_ref()
            .map(|condition| &condition.condition)
        else {
            return Truth::True;
        };
        let evaluate = || condition.evaluate(&self.variables(login, database), &self.policy.interpreter);
        if condition.target_dependent {
            evaluate()
        } else {
            matched.truth.get_or_init(evaluate).clone()
        }
    }

    pub(crate) fn variables<'a>(&'a self, login: Wanted<'a>, database: Wanted<'a>) -> Variables<'a> {
        Variables {
            user: self.question.user,
            service: self.question.service,
            login: login.variable(),
            database: database.variable(),
            client_ip: &self.client_ip,
            now: self.question.now,
            bare_groups: self.policy.bare_groups(),
        }
    }

    fn decision(&self, verdict: Verdict<'p>, wanted: Wanted<'_>, login: Option<LoginName>) -> Decision {
        let granted = match &verdict {
            Verdict::Allowed(name) => self.matched.iter().find(|matched| matched.rule.name == *name),
            _ => None,
        };
        match granted {
            Some(matched) => Decision::Grant(Grant {
                rule: matched.rule.name.clone(),
                policy_version: self.policy.version,
                login,
                limits: matched.rule.limits,
                features: matched.rule.features.clone(),
                time_dependent: self.time_dependent(),
            }),
            None => Decision::Denial(self.denial_of(verdict, wanted)),
        }
    }

    pub(crate) fn time_dependent(&self) -> bool {
        let conditions = self
            .matched
            .iter()
            .filter_map(|matched| matched.rule.condition.as_ref());
        conditions
            .into_iter()
            .any(|condition| condition.condition.time_dependent)
    }
}

impl<'p> Matched<'p> {
    fn new(rule: &'p Rule, question: &Question<'_>, memberships: &Memberships<'p>) -> Option<Self> {
        if !rule.services.matches(question.service) {
            return None;
        }
        let newer_user_group = match rule.users.matches(question.user, memberships) {
            UserMatch::Yes => None,
            UserMatch::Newer(group) => Some(group),
            UserMatch::No => return None,
        };
        let condition_groups = rule
            .condition
            .as_ref()
            .map(|condition| condition.groups.as_slice());
        let newer_condition_group = memberships.newer(condition_groups.unwrap_or_default());
        Some(Self {
            rule,
            newer_user_group,
            newer_condition_group,
            truth: OnceCell::new(),
        })
    }
}

impl Verdict<'_> {
    /// Of several reasons why nothing allows, the one worth telling.
    fn rank(&self) -> u8 {
        match self {
            Verdict::Nothing => 0,
            Verdict::OtherTarget => 1,
            Verdict::Failed { .. } => 2,
            Verdict::Renew { .. } => 3,
            Verdict::Denied { .. } => 4,
            Verdict::Allowed(_) => 5,
        }
    }
}
