//! Rules in their valid form.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use crate::condition::Condition;
use crate::condition::interpreter::Interpreter;
use crate::decision::Limits;
use crate::document::{Errors, LimitsEntry, Located, RuleEntry};
use crate::features::Features;
use crate::groups::{GroupNumber, GroupTable, NamedGroup};
use crate::options::Connectors;
use crate::selector::{ServiceSelector, UserSelector};
use crate::spans::parse_limit;
use crate::target::Targets;

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// It allows.
    Allow,
    /// It denies, whatever others allow.
    Deny,
}

impl Effect {
    /// Its name in documents.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Effect::Allow => "allow",
            Effect::Deny => "deny",
        }
    }
}

/// A condition and the groups it is about.
#[derive(Debug)]
pub(crate) struct RuleCondition {
    pub(crate) condition: Arc<Condition>,
    pub(crate) groups: Vec<GroupNumber>,
}

/// `[[rule]]`.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) effect: Effect,
    pub(crate) users: UserSelector,
    pub(crate) services: ServiceSelector,
    pub(crate) logins: Targets,
    pub(crate) databases: Targets,
    pub(crate) condition: Option<RuleCondition>,
    pub(crate) limits: Limits,
    pub(crate) features: Features,
}

/// Turns entries into rules. Equal conditions are compiled once.
pub(crate) struct RuleReader<'a> {
    pub(crate) interpreter: &'a Interpreter,
    pub(crate) connectors: &'a Connectors,
    pub(crate) groups: &'a mut GroupTable,
    compiled: HashMap<String, Result<Arc<Condition>, String>>,
    lines: HashMap<String, usize>,
}

impl<'a> RuleReader<'a> {
    pub(crate) fn new(
        interpreter: &'a Interpreter,
        connectors: &'a Connectors,
        groups: &'a mut GroupTable,
    ) -> Self {
        Self {
            interpreter,
            connectors,
            groups,
            compiled: HashMap::new(),
            lines: HashMap::new(),
        }
    }

    /// The rule, if enough of it is there to go on checking; what is wrong is in `errors`.
    pub(crate) fn read(&mut self, entry: &RuleEntry, errors: &mut Errors) -> Option<Rule> {
        let name = entry.name.value.clone();
        let what = format!("rule {name:?}");
        if let Some(line) = self.lines.insert(name.clone(), entry.name.line) {
            errors.add(
                Some(entry.name.line),
                format!("{what}: the rule on line {line} has this name too"),
            );
        }
        let effect = read_effect(&what, entry.effect.as_ref(), errors);
        let logins = Targets::read(&what, entry.logins.as_deref(), errors);
        let databases = Targets::read(&what, entry.databases.as_deref(), errors);
        let condition = entry
            .when
            .as_ref()
            .and_then(|when| self.condition(&what, when, errors));
        let limits = read_limits(&what, entry.limits.as_ref(), effect, errors);
        let features = Features::read(&what, entry.features.as_deref(), effect, errors);
        let gives = effect == Some(Effect::Allow);
        let users = entry
            .users
            .as_ref()
            .map(|users| UserSelector::read(&what, users, gives, self.groups, self.connectors, errors));
        let services = entry
            .services
            .as_ref()
            .map(|services| ServiceSelector::read(&what, services, errors));
        Some(Rule {
            name,
            line: entry.line,
            effect: effect?,
            users: users?,
            services: services?,
            logins,
            databases,
            condition,
            limits,
            features,
        })
    }

    fn condition(
        &mut self,
        what: &str,
        when: &Located<String>,
        errors: &mut Errors,
    ) -> Option<RuleCondition> {
        let interpreter = self.interpreter;
        let compiled = self
            .compiled
            .entry(when.value.clone())
            .or_insert_with(|| Condition::compile(&when.value, interpreter).map(Arc::new));
        match compiled {
            Ok(condition) => {
                let condition = Arc::clone(condition);
                let groups = self.condition_groups(&condition);
                Some(RuleCondition { condition, groups })
            }
            Err(problem) => {
                errors.add(Some(when.line), format!("{what}: `when`: {problem}"));
                None
            }
        }
    }

    /// Strings of the condition that are no groups number groups that nobody is in.
    fn condition_groups(&mut self, condition: &Condition) -> Vec<GroupNumber> {
        let named = condition.group_literals.iter();
        let parsed = named.filter_map(|text| NamedGroup::parse(text, self.connectors).ok());
        parsed.map(|group| self.groups.number(group)).collect()
    }
}

fn read_effect(what: &str, effect: Option<&Located<String>>, errors: &mut Errors) -> Option<Effect> {
    let effect = effect?;
    match effect.value.as_str() {
        "allow" => Some(Effect::Allow),
        "deny" => Some(Effect::Deny),
        other => {
            errors.add(
                Some(effect.line),
                format!("{what}: {other:?} is no effect; allowed are \"allow\", \"deny\""),
            );
            None
        }
    }
}

fn read_limits(
    what: &str,
    entry: Option<&LimitsEntry>,
    effect: Option<Effect>,
    errors: &mut Errors,
) -> Limits {
    let Some(entry) = entry else {
        return Limits::default();
    };
    if effect == Some(Effect::Deny) {
        errors.add(Some(entry.line), format!("{what}: a deny rule has no `limits`"));
    }
    let mut read = |limit: &Option<Located<String>>| {
        let limit = limit.as_ref()?;
        let parsed = parse_limit(&limit.value);
        parsed
            .map_err(|problem| errors.add(Some(limit.line), format!("{what}: {problem}")))
            .ok()
    };
    Limits {
        session: read(&entry.session),
        idle: read(&entry.idle),
    }
}
