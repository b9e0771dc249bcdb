//! Explanations: the decision and everything that led to it.

use std::fmt::Write as _;

use iap_identity::LoginName;
use serde::Serialize;

use crate::condition::{Condition, Truth};
use crate::decision::Decision;
use crate::evaluate::{Deciding, Matched};
use crate::facts::{Asked, Sight};
use crate::rule::Effect;
use crate::target::Wanted;

/// Why a question is answered as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `allow` or `deny`.
    pub effect: Effect,
    /// The denial's code; `None` for a grant.
    pub code: Option<String>,
    /// The deciding rule; `None` when it is the absence of one.
    pub rule: Option<String>,
    /// Version of the policy.
    pub policy_version: u64,
    /// The user.
    pub user: String,
    /// The service.
    pub service: String,
    /// The login that was asked for or chosen.
    pub login: Option<String>,
    /// What happened, in a sentence.
    pub detail: String,
    /// Whether time alone can change the answer.
    pub time_dependent: bool,
    /// Every rule that is about this user and this service, in the document's order.
    pub rules: Vec<RuleExplanation>,
}

/// What one rule had to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleExplanation {
    /// Its name.
    pub name: String,
    /// Its line in the document.
    pub line: usize,
    /// What it does when it applies.
    pub effect: Effect,
    /// Whether it is about this login.
    pub login_matches: bool,
    /// Whether it is about this database.
    pub database_matches: bool,
    /// The group it depends on and which the certificate is too old to carry.
    pub newer_group: Option<String>,
    /// Its condition.
    pub condition: Option<ConditionExplanation>,
    /// Whether it decided.
    pub decides: bool,
}

/// What a condition came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConditionExplanation {
    /// As written.
    pub source: String,
    /// `true`, `false`, or `error: ...`.
    pub value: String,
    /// The variables it looks at, and their values.
    pub variables: Vec<(String, String)>,
}

impl Explanation {
    /// The explanation as lines of text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        let answer = match self.effect {
            Effect::Allow => "allowed",
            Effect::Deny => "denied",
        };
        let login = self
            .login
            .as_ref()
            .map(|login| format!(" as {login}"))
            .unwrap_or_default();
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{answer}: {} on {}{login}: {}",
            self.user, self.service, self.detail
        );
        for rule in &self.rules {
            rule.render(&mut text);
        }
        if self.rules.is_empty() {
            text.push_str("  no rule is about this user and this service\n");
        }
        text
    }
}

impl RuleExplanation {
    fn render(&self, text: &mut String) {
        let decides = if self.decides { "  <- decides" } else { "" };
        let _ = writeln!(
            text,
            "  {} {:?} (line {}){decides}",
            self.effect.as_str(),
            self.name,
            self.line
        );
        if !self.login_matches {
            text.push_str("    not about this login\n");
        }
        if !self.database_matches {
            text.push_str("    not about this database\n");
        }
        if let Some(group) = &self.newer_group {
            let _ = writeln!(text, "    depends on group {group}, newer than the certificate");
        }
        if let Some(condition) = &self.condition {
            let _ = writeln!(text, "    when {} = {}", condition.source, condition.value);
            for (name, value) in &condition.variables {
                let _ = writeln!(text, "      {name} = {value}");
            }
        }
    }
}

impl Deciding<'_, '_> {
    pub(crate) fn explain(&self) -> Explanation {
        let decision = self.decide();
        let (effect, code, rule, detail) = match &decision {
            Decision::Grant(grant) => {
                let detail = format!("rule {:?} allows", grant.rule());
                (Effect::Allow, None, Some(grant.rule().to_owned()), detail)
            }
            Decision::Denial(denial) => {
                let code = denial.code.as_str().to_owned();
                (
                    Effect::Deny,
                    Some(code),
                    denial.rule.clone(),
                    denial.detail.clone(),
                )
            }
        };
        let login = self.explained_login(&decision);
        let rules = self.matched.iter();
        let rules = rules.map(|matched| self.explain_rule(matched, login.as_deref(), rule.as_deref()));
        Explanation {
            effect,
            code,
            policy_version: self.policy.version,
            user: self.question.user.name.clone(),
            service: self.question.service.name.to_string(),
            detail,
            time_dependent: self.time_dependent(),
            rules: rules.collect(),
            rule,
            login,
        }
    }

    fn explained_login(&self, decision: &Decision) -> Option<String> {
        match (decision, self.question.login) {
            (Decision::Grant(grant), _) => grant.login().map(LoginName::to_string),
            (Decision::Denial(_), Asked::Visible(Some(login))) => Some(login.to_string()),
            (Decision::Denial(_), Asked::Visible(None) | Asked::Opaque) => None,
        }
    }

    fn explain_rule(
        &self,
        matched: &Matched<'_>,
        login: Option<&str>,
        deciding: Option<&str>,
    ) -> RuleExplanation {
        let rule = matched.rule;
        let login = self.explained_target(self.question.service.login_sight(), login);
        let database = self.wanted_database();
        let user = self.question.user;
        let reserved = &self.policy.options.reserved_logins;
        let (login_matches, database_matches) = match rule.effect {
            Effect::Allow => (
                rule.logins.give(login, user, reserved),
                rule.databases.give(database, user, &Default::default()),
            ),
            Effect::Deny => (rule.logins.take(login, user), rule.databases.take(database, user)),
        };
        let newer_group = matched.newer_user_group.or(matched.newer_condition_group);
        RuleExplanation {
            name: rule.name.clone(),
            line: rule.line,
            effect: rule.effect,
            login_matches,
            database_matches,
            newer_group: newer_group.map(ToString::to_string),
            condition: self.explain_condition(matched, login, database),
            decides: deciding == Some(rule.name.as_str()),
        }
    }

    fn explained_target<'a>(&self, sight: Sight, login: Option<&'a str>) -> Wanted<'a> {
        match (sight, login) {
            (Sight::Opaque, _) => Wanted::Unseen,
            (Sight::Absent, _) => Wanted::Nothing,
            (Sight::Visible | Sight::Certified, Some(login)) => Wanted::Named(login),
            (Sight::Visible | Sight::Certified, None) => Wanted::Whichever,
        }
    }

    fn explain_condition(
        &self,
        matched: &Matched<'_>,
        login: Wanted<'_>,
        database: Wanted<'_>,
    ) -> Option<ConditionExplanation> {
        let condition = &matched.rule.condition.as_ref()?.condition;
        let value = match condition.evaluate(&self.variables(login, database), &self.policy.interpreter) {
            Truth::True => "true".to_owned(),
            Truth::False => "false".to_owned(),
            Truth::Failed(problem) => format!("error: {problem}"),
        };
        let variables = self.variables(login, database);
        // `service.labels` goes without saying where `service.labels.env` is shown.
        let names = condition.variables.iter();
        let narrower = |name: &str| {
            condition
                .variables
                .iter()
                .any(|other| other.starts_with(&format!("{name}.")))
        };
        let shown = names.filter(|name| !narrower(name)).map(|variable| {
            let value = Condition::value_of(variable, &variables, &self.policy.interpreter);
            (variable.clone(), value)
        });
        Some(ConditionExplanation {
            source: condition.source().to_owned(),
            value,
            variables: shown.collect(),
        })
    }
}
