//! A loaded policy.

use std::collections::BTreeSet;
use std::net::IpAddr;

use iap_identity::GroupName;
use time::OffsetDateTime;

use crate::admin::{AdminRule, Verb};
use crate::condition::interpreter::Interpreter;
use crate::decision::{Decision, Visible};
use crate::document::{self, Errors};
use crate::error::{PolicyError, PolicyErrors};
use crate::evaluate::Deciding;
use crate::explain::Explanation;
use crate::facts::{Asked, Question, ServiceFacts, UserFacts, Vocabulary};
use crate::groups::{GroupTable, NamedGroup};
use crate::index::RuleIndex;
use crate::options::{Connectors, LoadOptions};
use crate::rule::{Rule, RuleReader};
use crate::suite::TestCase;

/// A policy document in its only valid form: read, capped, compiled, checked and indexed.
///
/// Immutable; share it behind an `Arc`. Loading, evaluating, explaining and listing evaluate CEL and
/// must run on a thread with [`crate::POLICY_STACK_BYTES`] of stack.
pub struct Policy {
    pub(crate) version: u64,
    pub(crate) rules: Vec<Rule>,
    pub(crate) index: RuleIndex,
    pub(crate) groups: GroupTable,
    pub(crate) admins: Vec<AdminRule>,
    pub(crate) tests: Vec<TestCase>,
    pub(crate) interpreter: Interpreter,
    pub(crate) options: LoadOptions,
}

impl Policy {
    /// Loads a document with the default options: see [`Policy::load_with`].
    ///
    /// # Errors
    ///
    /// All mistakes of the document.
    pub fn load(source: &str) -> Result<Self, PolicyErrors> {
        Self::load_with(source, &LoadOptions::default())
    }

    /// Loads a document. Its `[[test]]`s are checked for shape but not run: see [`Policy::run_tests`].
    ///
    /// # Errors
    ///
    /// All mistakes of the document, in order of line.
    pub fn load_with(source: &str, options: &LoadOptions) -> Result<Self, PolicyErrors> {
        let interpreter = Interpreter::new().map_err(|error| {
            PolicyErrors(vec![PolicyError {
                line: None,
                message: error.to_string(),
            }])
        })?;
        let mut errors = Errors::new(source);
        let document = document::read(source, &mut errors);
        let mut groups = GroupTable::default();
        let mut reader = RuleReader::new(&interpreter, &options.connectors, &mut groups);
        let mut rules = Vec::with_capacity(document.rules.len());
        for entry in &document.rules {
            if errors.is_full() {
                break;
            }
            rules.extend(reader.read(entry, &mut errors));
        }
        let admins = AdminRule::read_all(&document.admins, &mut groups, &options.connectors, &mut errors);
        let tests = TestCase::read_all(&document.tests, &options.connectors, &mut errors);
        let index = RuleIndex::new(&rules);
        let options = options.clone();
        errors.finish(Self {
            version: 0,
            rules,
            index,
            groups,
            admins,
            tests,
            interpreter,
            options,
        })
    }

    /// The policy as version `version`, which decisions will state.
    #[must_use]
    pub fn with_version(self, version: u64) -> Self {
        Self { version, ..self }
    }

    /// Its version; 0 until it is set.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many `[[rule]]`s it has.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// The answer to `question`. Default is denial; a deny rule wins; rules are looked at in the
    /// document's order.
    pub fn evaluate(&self, question: &Question<'_>, vocabulary: &Vocabulary) -> Decision {
        match Deciding::new(self, question, vocabulary).decide() {
            Decision::Grant(grant) => Decision::Grant(grant),
            Decision::Denial(denial) => Decision::Denial(self.with_step_up(denial, question, vocabulary)),
        }
    }

    /// The same answer, with what led to it.
    #[must_use]
    pub fn explain(&self, question: &Question<'_>, vocabulary: &Vocabulary) -> Explanation {
        let mut explanation = Deciding::new(self, question, vocabulary).explain();
        if let Decision::Denial(denial) = self.evaluate(question, vocabulary) {
            explanation.code = Some(denial.code.as_str().to_owned());
            explanation.detail = denial.detail;
        }
        explanation
    }

    /// What `user` would see of `service` in a listing; `None` if nothing.
    #[must_use]
    pub fn visible(
        &self,
        user: &UserFacts,
        service: &ServiceFacts,
        vocabulary: &Vocabulary,
        client_ip: IpAddr,
        now: OffsetDateTime,
    ) -> Option<Visible> {
        let (login, database) = (Asked::Visible(None), Asked::Visible(None));
        let question = Question {
            user,
            service,
            login,
            database,
            client_ip,
            now,
        };
        Deciding::new(self, &question, vocabulary).visible()
    }

    /// The groups the document names, in selectors and conditions: the ones certificates must carry.
    #[must_use]
    pub fn named_groups(&self) -> BTreeSet<NamedGroup> {
        self.groups.all()
    }

    /// Whether the document names `group`.
    #[must_use]
    pub fn names_group(&self, group: &GroupName) -> bool {
        self.groups.names(group)
    }

    /// The groups named with their connector. Loaded with [`Connectors::One`] or
    /// [`Connectors::Several`], these are all of them: what [`Vocabulary::advance`] takes.
    #[must_use]
    pub fn vocabulary_groups(&self) -> BTreeSet<GroupName> {
        let full = |group: NamedGroup| match group {
            NamedGroup::Full(name) => Some(name),
            NamedGroup::Bare(_) => None,
        };
        self.groups.all().into_iter().filter_map(full).collect()
    }

    /// What `user` may administer. A group newer than their certificate gives nothing.
    #[must_use]
    pub fn admin_verbs(&self, user: &UserFacts) -> BTreeSet<Verb> {
        let vocabulary = Vocabulary::default();
        let memberships = self.groups.memberships(user, &vocabulary);
        let granted = self
            .admins
            .iter()
            .filter(|admin| admin.matches(user, &memberships));
        granted.flat_map(AdminRule::verbs).collect()
    }

    /// Whether replacing `current` by this policy takes `policy.write` from its author. The first
    /// admins, whom no policy names, are the caller's to know.
    #[must_use]
    pub fn locks_out_author(&self, current: &Policy, author: &UserFacts) -> bool {
        current.admin_verbs(author).contains(&Verb::PolicyWrite)
            && !self.admin_verbs(author).contains(&Verb::PolicyWrite)
    }

    /// What is allowed but probably not meant, given the services there are.
    #[must_use]
    pub fn warnings(&self, services: &[ServiceFacts]) -> Vec<String> {
        crate::warnings::warnings(self, services)
    }

    /// Whether a group's bare name is among `user.groups` beside its full one.
    pub(crate) fn bare_groups(&self) -> bool {
        match self.options.connectors {
            Connectors::Unknown | Connectors::One(_) => true,
            Connectors::Several => false,
        }
    }
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (version, rules) = (self.version, self.rules.len());
        formatter
            .debug_struct("Policy")
            .field("version", &version)
            .field("rules", &rules)
            .finish()
    }
}
