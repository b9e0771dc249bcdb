//! What the caller knows and a document does not say.

use std::collections::BTreeSet;

use crate::facts::Vocabulary;

/// Logins that a template never yields and that are never picked unasked.
pub const RESERVED_LOGINS: [&str; 9] = [
    "root",
    "postgres",
    "mysql",
    "sa",
    "daemon",
    "nobody",
    "rdsadmin",
    "cloudsqladmin",
    "azure_superuser",
];

/// Which connectors there are, and so what a group without a `connector:` prefix means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Connectors {
    /// Not known here: a bare name stands for that group of any connector. For readers of a document
    /// that the auth server, which knows, has accepted.
    #[default]
    Unknown,
    /// One, so that the prefix may be left out.
    One(String),
    /// Several: a group without a prefix is an error.
    Several,
}

impl Connectors {
    /// The single connector's name, or `None` when there are several.
    #[must_use]
    pub fn single(name: Option<&str>) -> Self {
        name.map_or(Connectors::Several, |name| Connectors::One(name.to_owned()))
    }

    /// What an agent knows from its snapshot: the connector that all groups of the vocabulary share.
    #[must_use]
    pub fn of_vocabulary(vocabulary: &Vocabulary) -> Self {
        vocabulary
            .single_connector()
            .map_or(Connectors::Unknown, |name| Connectors::One(name.to_owned()))
    }
}

/// How to load a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// What bare group names mean.
    pub connectors: Connectors,
    /// Logins that must be granted literally.
    pub reserved_logins: BTreeSet<String>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            connectors: Connectors::Unknown,
            reserved_logins: RESERVED_LOGINS.iter().map(|login| (*login).to_owned()).collect(),
        }
    }
}
