//! `dev.json`: what scripts and tests read of a running development plane.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// The content of `dev.json`. Unknown keys are ignored by readers, so that it may grow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Descriptor {
    pub(crate) cluster: String,
    pub(crate) proxy_addr: String,
    pub(crate) web_url: String,
    pub(crate) issuer: String,
    pub(crate) ca_file: PathBuf,
    pub(crate) iapctl_home: PathBuf,
    pub(crate) services: Vec<DemoService>,
    pub(crate) users: Vec<DemoUser>,
    pub(crate) pids: Pids,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DemoService {
    pub(crate) name: String,
    pub(crate) protocol: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DemoUser {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
}

/// Process ids of the three servers, of the supervisor, and of the demo's database and SSH server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pids {
    pub(crate) auth: u32,
    pub(crate) proxy: u32,
    pub(crate) agent: u32,
    #[serde(default)]
    pub(crate) dev: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) postgres: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sshd: Option<u32>,
}

impl Descriptor {
    /// Reads `DIR/dev.json`.
    ///
    /// # Errors
    /// When it is missing (no plane runs there) or malformed.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("dev.json");
        let bytes = std::fs::read(&path).with_context(|| {
            format!(
                "no development plane runs in {}: start one with `iapctl dev --demo`",
                dir.display()
            )
        })?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} is not readable", path.display()))
    }

    /// Replaces `path` in one step, so that a reader never sees half a file.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let next = path.with_extension("json.next");
        std::fs::write(&next, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", next.display()))?;
        std::fs::rename(&next, path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The people the built-in identity provider knows.
pub(crate) fn users() -> Vec<DemoUser> {
    [
        ("alice", "engineering"),
        ("bob", "support"),
        ("auditor", "auditors"),
        ("admin", "admins"),
    ]
    .into_iter()
    .map(|(name, group)| DemoUser {
        name: format!("{name}@example.com"),
        groups: vec![group.to_owned()],
    })
    .collect()
}

/// What `--demo` adds.
pub(crate) fn demo_services() -> Vec<DemoService> {
    [
        ("db-prod", "postgres"),
        ("echo", "tcp"),
        ("ssh-demo", "ssh"),
        ("web", "tcp"),
    ]
    .into_iter()
    .map(|(name, protocol)| DemoService {
        name: name.to_owned(),
        protocol: protocol.to_owned(),
    })
    .collect()
}
