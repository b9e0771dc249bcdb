//! The groups a policy names, numbered, so that a user's groups are looked up once per decision.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use iap_identity::GroupName;

use crate::facts::{UserFacts, Vocabulary};
use crate::options::Connectors;

/// A group as a policy names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamedGroup {
    /// `connector:group`.
    Full(GroupName),
    /// `group`, of whichever connector: see [`Connectors::Unknown`].
    Bare(String),
}

impl NamedGroup {
    /// Whether `group` is meant.
    #[must_use]
    pub fn matches(&self, group: &GroupName) -> bool {
        match self {
            NamedGroup::Full(name) => name == group,
            NamedGroup::Bare(name) => name == group.group(),
        }
    }

    /// Reads a group's name as a document writes it.
    pub(crate) fn parse(text: &str, connectors: &Connectors) -> Result<Self, String> {
        if text.contains(':') {
            return GroupName::parse(text)
                .map(NamedGroup::Full)
                .map_err(|error| error.to_string());
        }
        match connectors {
            Connectors::One(connector) => GroupName::new(connector, text)
                .map(NamedGroup::Full)
                .map_err(|error| error.to_string()),
            // Any connector's name would do for the check.
            Connectors::Unknown => match GroupName::new("any", text) {
                Ok(_) => Ok(NamedGroup::Bare(text.to_owned())),
                Err(error) => Err(error.to_string()),
            },
            Connectors::Several => Err(format!(
                "group {text:?} needs its connector (\"connector:{text}\"): there are several"
            )),
        }
    }

    /// Whether a certificate with vocabulary `known` of a user of connector `idp` is too old to carry it.
    fn is_newer(&self, user: &UserFacts, vocabulary: &Vocabulary) -> bool {
        let Some(known) = user.groups_vocabulary else {
            return false;
        };
        let possible = |group: &GroupName| user.idp.is_empty() || group.connector() == user.idp;
        match self {
            NamedGroup::Full(group) => {
                possible(group) && vocabulary.first_version(group).is_some_and(|first| first > known)
            }
            NamedGroup::Bare(name) => vocabulary
                .iter()
                .any(|(group, first)| first > known && group.group() == name && possible(group)),
        }
    }
}

impl fmt::Display for NamedGroup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NamedGroup::Full(group) => group.fmt(formatter),
            NamedGroup::Bare(group) => formatter.write_str(group),
        }
    }
}

/// A group's number in its [`GroupTable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupNumber(usize);

/// All groups a document names.
#[derive(Debug, Default)]
pub(crate) struct GroupTable {
    groups: Vec<NamedGroup>,
    full: HashMap<String, GroupNumber>,
    bare: HashMap<String, GroupNumber>,
}

impl GroupTable {
    /// The number of `group`, a new one if it is new.
    pub(crate) fn number(&mut self, group: NamedGroup) -> GroupNumber {
        let (numbers, name) = match &group {
            NamedGroup::Full(name) => (&mut self.full, name.to_string()),
            NamedGroup::Bare(name) => (&mut self.bare, name.clone()),
        };
        let groups = &mut self.groups;
        *numbers.entry(name).or_insert_with(|| {
            groups.push(group);
            GroupNumber(groups.len() - 1)
        })
    }

    pub(crate) fn name(&self, number: GroupNumber) -> Option<&NamedGroup> {
        self.groups.get(number.0)
    }

    /// Whether `group` is among them.
    pub(crate) fn names(&self, group: &GroupName) -> bool {
        self.full.contains_key(group.as_str()) || self.bare.contains_key(group.group())
    }

    pub(crate) fn all(&self) -> BTreeSet<NamedGroup> {
        self.groups.iter().cloned().collect()
    }

    /// The user's groups among these.
    pub(crate) fn memberships<'a>(
        &'a self,
        user: &'a UserFacts,
        vocabulary: &'a Vocabulary,
    ) -> Memberships<'a> {
        let mut member = vec![false; self.groups.len()];
        let full = user
            .groups
            .iter()
            .filter_map(|group| self.full.get(group.as_str()));
        let bare = user
            .groups
            .iter()
            .filter_map(|group| self.bare.get(group.group()));
        for number in full.chain(bare) {
            if let Some(slot) = member.get_mut(number.0) {
                *slot = true;
            }
        }
        let outrun = vocabulary.outruns(user.groups_vocabulary);
        Memberships {
            table: self,
            user,
            vocabulary,
            member,
            outrun,
        }
    }
}

/// Which of a policy's groups a user is in, and of which that cannot be told.
pub(crate) struct Memberships<'a> {
    table: &'a GroupTable,
    user: &'a UserFacts,
    vocabulary: &'a Vocabulary,
    member: Vec<bool>,
    /// Whether any group at all is newer than the user's certificate.
    outrun: bool,
}

impl<'a> Memberships<'a> {
    pub(crate) fn contains(&self, number: GroupNumber) -> bool {
        self.member.get(number.0).copied().unwrap_or(false)
    }

    /// The first of `numbers` that the user's certificate is too old to carry.
    pub(crate) fn newer(&self, numbers: &[GroupNumber]) -> Option<&'a NamedGroup> {
        if !self.outrun {
            return None;
        }
        let unknown = |number: &&GroupNumber| !self.contains(**number);
        numbers
            .iter()
            .filter(unknown)
            .filter_map(|number| self.table.name(*number))
            .find(|group| group.is_newer(self.user, self.vocabulary))
    }
}
