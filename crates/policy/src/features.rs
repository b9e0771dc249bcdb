//! What sessions may do beyond the usual, by protocol: `features` of an allow rule.

use serde::Serialize;

use crate::document::{Errors, Located};
use crate::rule::Effect;

/// Something that a rule has to allow by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Feature {
    /// PostgreSQL: run-time parameters by `options` of the startup message (`PGOPTIONS`).
    #[serde(rename = "postgres.options")]
    PostgresOptions,
    /// PostgreSQL: replication.
    #[serde(rename = "postgres.replication")]
    PostgresReplication,
    /// SSH: connections to other ports through sshd (`ssh -L`, `-W`).
    #[serde(rename = "ssh.port_forwarding")]
    SshPortForwarding,
}

impl Feature {
    const ALL: [Self; 3] = [
        Self::PostgresOptions,
        Self::PostgresReplication,
        Self::SshPortForwarding,
    ];

    /// Its name in documents.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PostgresOptions => "postgres.options",
            Self::PostgresReplication => "postgres.replication",
            Self::SshPortForwarding => "ssh.port_forwarding",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|feature| feature.as_str() == text)
    }
}

/// Those that a rule allows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Features(Vec<Feature>);

impl Features {
    /// Whether it is among them.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.0.contains(&feature)
    }

    pub(crate) fn read(
        what: &str,
        entries: Option<&[Located<String>]>,
        effect: Option<Effect>,
        errors: &mut Errors,
    ) -> Self {
        let entries = entries.unwrap_or_default();
        if let (Some(Effect::Deny), Some(first)) = (effect, entries.first()) {
            errors.add(Some(first.line), format!("{what}: a deny rule has no `features`"));
        }
        let mut features = Vec::new();
        for entry in entries {
            match Feature::parse(&entry.value) {
                Some(feature) => features.push(feature),
                None => {
                    let allowed = Feature::ALL.map(|feature| format!("{:?}", feature.as_str()));
                    let allowed = allowed.join(", ");
                    let text = format!("{what}: {:?} is no feature; allowed are {allowed}", entry.value);
                    errors.add(Some(entry.line), text);
                }
            }
        }
        Self(features)
    }
}
