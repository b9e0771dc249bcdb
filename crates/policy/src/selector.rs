//! Selectors: which users and which services a rule is about.
//!
//! Within a list any value will do; of the keys given, all must match.

use std::collections::{BTreeMap, HashSet};

use iap_identity::{Class, ClassSet, ServiceName};

use crate::document::{Errors, ServicesEntry, UsersEntry};
use crate::facts::{ServiceFacts, UserFacts};
use crate::groups::{GroupNumber, GroupTable, Memberships, NamedGroup};
use crate::options::Connectors;

/// The word for any name.
pub(crate) const ANY: &str = "*";

/// Whether a rule is about a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UserMatch<'a> {
    Yes,
    No,
    /// It depends on this group, which the user's certificate is too old to carry.
    Newer(&'a NamedGroup),
}

/// `users = {...}`, in its valid form.
#[derive(Debug)]
pub(crate) struct UserSelector {
    /// `None`: any name.
    names: Option<HashSet<String>>,
    /// `None`: any groups, none included.
    groups: Option<Vec<GroupNumber>>,
    kinds: ClassSet,
}

/// Every kind of principal a rule can be about.
const PRINCIPALS: ClassSet = ClassSet::of(&[Class::User, Class::Bot, Class::Workload]);

impl UserSelector {
    /// `kinds_by_default` are the kinds meant when the selector names none: users alone in a rule
    /// that gives (a user chooses their display name and must not pass as the bot of that name),
    /// everybody in one that takes away.
    pub(crate) fn read(
        what: &str,
        entry: &UsersEntry,
        gives: bool,
        groups: &mut GroupTable,
        connectors: &Connectors,
        errors: &mut Errors,
    ) -> Self {
        if entry.names.is_none() && entry.groups.is_none() && entry.kinds.is_none() {
            errors.add(
                Some(entry.line),
                format!("{what}: `users` is empty; for everybody write names = [\"*\"]"),
            );
        }
        let names = entry
            .names
            .as_ref()
            .filter(|names| names.iter().all(|name| name.value != ANY));
        Self {
            names: names.map(|names| names.iter().map(|name| name.value.clone()).collect()),
            groups: entry
                .groups
                .as_ref()
                .map(|_| read_groups(what, entry, groups, connectors, errors)),
            kinds: read_kinds(what, entry, gives, errors),
        }
    }

    /// The names, in order; `None` for any.
    pub(crate) fn names(&self) -> Option<Vec<String>> {
        let mut names: Vec<String> = self.names.as_ref()?.iter().cloned().collect();
        names.sort();
        Some(names)
    }

    /// The groups; `None` for any, none included.
    pub(crate) fn groups(&self) -> Option<&[GroupNumber]> {
        self.groups.as_deref()
    }

    pub(crate) fn kinds(&self) -> ClassSet {
        self.kinds
    }

    pub(crate) fn matches<'a>(&self, user: &UserFacts, memberships: &Memberships<'a>) -> UserMatch<'a> {
        if !self.kinds.contains(user.kind) {
            return UserMatch::No;
        }
        if self
            .names
            .as_ref()
            .is_some_and(|names| !names.contains(&user.name))
        {
            return UserMatch::No;
        }
        match &self.groups {
            None => UserMatch::Yes,
            Some(groups) if groups.iter().any(|group| memberships.contains(*group)) => UserMatch::Yes,
            Some(groups) => memberships.newer(groups).map_or(UserMatch::No, UserMatch::Newer),
        }
    }
}

fn read_groups(
    what: &str,
    entry: &UsersEntry,
    groups: &mut GroupTable,
    connectors: &Connectors,
    errors: &mut Errors,
) -> Vec<GroupNumber> {
    let mut numbers = Vec::new();
    for name in entry.groups.iter().flatten() {
        match NamedGroup::parse(&name.value, connectors) {
            Ok(group) => numbers.push(groups.number(group)),
            Err(problem) => errors.add(Some(name.line), format!("{what}: {problem}")),
        }
    }
    numbers
}

fn read_kinds(what: &str, entry: &UsersEntry, gives: bool, errors: &mut Errors) -> ClassSet {
    let Some(kinds) = &entry.kinds else {
        return if gives {
            ClassSet::of(&[Class::User])
        } else {
            PRINCIPALS
        };
    };
    let mut classes = Vec::new();
    for kind in kinds {
        match Class::parse(&kind.value).filter(|class| PRINCIPALS.contains(*class)) {
            Some(class) => classes.push(class),
            None => errors.add(
                Some(kind.line),
                format!(
                    "{what}: {:?} is no kind; allowed are \"user\", \"bot\", \"workload\"",
                    kind.value
                ),
            ),
        }
    }
    ClassSet::of(&classes)
}

/// `services = {...}`, in its valid form.
#[derive(Debug)]
pub(crate) struct ServiceSelector {
    /// `None`: any name.
    pub(crate) names: Option<Vec<ServiceName>>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl ServiceSelector {
    pub(crate) fn read(what: &str, entry: &ServicesEntry, errors: &mut Errors) -> Self {
        let labels: BTreeMap<String, String> = entry.labels.iter().flatten().cloned().collect();
        if entry.names.is_none() && labels.is_empty() {
            errors.add(
                Some(entry.line),
                format!("{what}: `services` is empty; for every service write names = [\"*\"]"),
            );
        }
        let names = entry
            .names
            .as_ref()
            .filter(|names| names.iter().all(|name| name.value != ANY));
        Self {
            names: names.map(|_| read_names(what, entry, errors)),
            labels,
        }
    }

    pub(crate) fn matches(&self, service: &ServiceFacts) -> bool {
        let named = self
            .names
            .as_ref()
            .is_none_or(|names| names.binary_search(&service.name).is_ok());
        named
            && self
                .labels
                .iter()
                .all(|(label, value)| service.labels.get(label) == Some(value))
    }
}

/// The names, sorted.
fn read_names(what: &str, entry: &ServicesEntry, errors: &mut Errors) -> Vec<ServiceName> {
    let mut names = Vec::new();
    for name in entry.names.iter().flatten() {
        match ServiceName::parse(&name.value) {
            Ok(name) => names.push(name),
            Err(error) => errors.add(Some(name.line), format!("{what}: {error}")),
        }
    }
    names.sort();
    names.dedup();
    names
}
