//! Who may administer what.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::document::{AdminEntry, Errors};
use crate::facts::UserFacts;
use crate::groups::{GroupTable, Memberships};
use crate::options::Connectors;
use crate::selector::{UserMatch, UserSelector};

/// Something an administrator may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verb {
    /// Read the policy.
    #[serde(rename = "policy.read")]
    PolicyRead,
    /// Replace the policy.
    #[serde(rename = "policy.write")]
    PolicyWrite,
    /// Add, change and remove services.
    #[serde(rename = "service.write")]
    ServiceWrite,
    /// Create and remove join tokens.
    #[serde(rename = "token.write")]
    TokenWrite,
    /// Add and remove locks.
    #[serde(rename = "lock.write")]
    LockWrite,
    /// End sessions.
    #[serde(rename = "session.kill")]
    SessionKill,
    /// Read agents, tokens and locks.
    #[serde(rename = "inventory.read")]
    InventoryRead,
    /// Read the audit log and everybody's sessions, statements included.
    #[serde(rename = "audit.read")]
    AuditRead,
    /// Erase what lies beside audit records: statements, command lines, recordings.
    #[serde(rename = "audit.erase")]
    AuditErase,
    /// Read recordings.
    #[serde(rename = "recording.read")]
    RecordingRead,
    /// Rotate certificate authorities.
    #[serde(rename = "ca.rotate")]
    CaRotate,
    /// Certify keys that others hold.
    #[serde(rename = "ca.sign")]
    CaSign,
}

/// A word that is no verb.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no verb; allowed are {list}", list = verb_list())]
pub struct VerbError(String);

impl Verb {
    /// All verbs.
    pub const ALL: [Verb; 12] = [
        Verb::PolicyRead,
        Verb::PolicyWrite,
        Verb::ServiceWrite,
        Verb::TokenWrite,
        Verb::LockWrite,
        Verb::SessionKill,
        Verb::InventoryRead,
        Verb::AuditRead,
        Verb::AuditErase,
        Verb::RecordingRead,
        Verb::CaRotate,
        Verb::CaSign,
    ];

    /// Its name in documents, records and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::PolicyRead => "policy.read",
            Verb::PolicyWrite => "policy.write",
            Verb::ServiceWrite => "service.write",
            Verb::TokenWrite => "token.write",
            Verb::LockWrite => "lock.write",
            Verb::SessionKill => "session.kill",
            Verb::InventoryRead => "inventory.read",
            Verb::AuditRead => "audit.read",
            Verb::AuditErase => "audit.erase",
            Verb::RecordingRead => "recording.read",
            Verb::CaRotate => "ca.rotate",
            Verb::CaSign => "ca.sign",
        }
    }

    /// The verb called `name`.
    ///
    /// # Errors
    ///
    /// [`VerbError`] when there is none.
    pub fn parse(name: &str) -> Result<Self, VerbError> {
        let found = Verb::ALL.into_iter().find(|verb| verb.as_str() == name);
        found.ok_or_else(|| VerbError(name.to_owned()))
    }

    /// The reading that a writing verb implies.
    #[must_use]
    pub fn implies(self) -> Option<Verb> {
        match self {
            Verb::PolicyWrite => Some(Verb::PolicyRead),
            Verb::ServiceWrite | Verb::TokenWrite | Verb::LockWrite => Some(Verb::InventoryRead),
            Verb::PolicyRead
            | Verb::SessionKill
            | Verb::InventoryRead
            | Verb::AuditRead
            | Verb::AuditErase
            | Verb::RecordingRead
            | Verb::CaRotate
            | Verb::CaSign => None,
        }
    }

    /// Whether it changes policy, tokens, CAs or locks, or takes evidence away, and so needs a login no older than
    /// [`crate::limits::ADMIN_AUTH_AGE_SECONDS_MAX`].
    #[must_use]
    pub fn needs_recent_auth(self) -> bool {
        match self {
            Verb::PolicyWrite
            | Verb::TokenWrite
            | Verb::LockWrite
            | Verb::AuditErase
            | Verb::CaRotate
            | Verb::CaSign => true,
            Verb::PolicyRead
            | Verb::ServiceWrite
            | Verb::SessionKill
            | Verb::InventoryRead
            | Verb::AuditRead
            | Verb::RecordingRead => false,
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

fn verb_list() -> String {
    Verb::ALL.map(|verb| format!("{:?}", verb.as_str())).join(", ")
}

/// `[[admin]]`.
#[derive(Debug)]
pub(crate) struct AdminRule {
    what: String,
    users: UserSelector,
    verbs: BTreeSet<Verb>,
}

impl AdminRule {
    pub(crate) fn read_all(
        entries: &[AdminEntry],
        groups: &mut GroupTable,
        connectors: &Connectors,
        errors: &mut Errors,
    ) -> Vec<Self> {
        entries
            .iter()
            .filter_map(|entry| Self::read(entry, groups, connectors, errors))
            .collect()
    }

    fn read(
        entry: &AdminEntry,
        groups: &mut GroupTable,
        connectors: &Connectors,
        errors: &mut Errors,
    ) -> Option<Self> {
        let mut verbs = BTreeSet::new();
        for name in &entry.verbs {
            match Verb::parse(&name.value) {
                Ok(verb) => verbs.extend([Some(verb), verb.implies()].into_iter().flatten()),
                Err(error) => errors.add(Some(name.line), format!("{}: {error}", entry.what)),
            }
        }
        let users = entry.users.as_ref()?;
        Some(Self {
            what: entry.what.clone(),
            users: UserSelector::read(&entry.what, users, true, groups, connectors, errors),
            verbs,
        })
    }

    pub(crate) fn matches(&self, user: &UserFacts, memberships: &Memberships<'_>) -> bool {
        self.users.matches(user, memberships) == UserMatch::Yes
    }

    /// What errors call it.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    pub(crate) fn verbs(&self) -> impl Iterator<Item = Verb> {
        self.verbs.iter().copied()
    }
}
