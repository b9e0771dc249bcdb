//! The state directory (0700, files 0600): what a joined agent knows across restarts.

use std::path::{Path, PathBuf};

use iap_identity::{AgentId, NameError, Pin, PinError, ServiceName};
use iap_runtime::files::{self, DataDir, FileError};

/// Names of the files in the state directory.
pub mod names {
    /// The agent's id; written last by `join`, so its presence means "joined".
    pub const AGENT_ID: &str = "agent_id";
    /// The root's pin, from the join token.
    pub const PIN: &str = "pin";
    /// The agent's own private key.
    pub const KEY: &str = "key.pem";
    /// The agent's certificate and its CA.
    pub const CERTIFICATE: &str = "cert.pem";
    /// Last good trust bundle (a `Signed`).
    pub const BUNDLE: &str = "bundle.bin";
    /// Last good snapshot (a `Signed`).
    pub const SNAPSHOT: &str = "snapshot.bin";
    /// Last good lock list (a `Signed`).
    pub const LOCKS: &str = "locks.bin";
    /// A recent beat (a `Signed`): how old the feed is after a restart.
    pub const BEAT: &str = "beat.bin";
    /// Keys and certificates of services, one folder for all.
    pub const LEAVES: &str = "leaves";
    /// Keys and certificates for backends, one file for each service.
    pub const CREDENTIALS: &str = "credentials";
    /// Audit records that wait for acknowledgement.
    pub const SPOOL: &str = "spool";
    /// Sessions that live while their start records may have left the spool.
    pub const LIVE: &str = "live.jsonl";
    /// Recordings that the auth server does not have yet.
    pub const RECORDINGS: &str = "recordings";
    /// The SSH keys that clients of recorded services see.
    pub const SSH_HOST_KEYS: &str = "ssh_host_keys";
    /// Where a successor asks a running agent for its sessions.
    pub const SUCCESSOR: &str = "successor";
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory or a file in it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The agent has never joined, or not to its end.
    #[error("{path} holds no joined agent: run `iap-agent join` with a token from `iapctl tokens create agent`", path = .path.display())]
    NotJoined {
        /// The state directory.
        path: PathBuf,
    },
    /// The id file is damaged.
    #[error("{path} is damaged: {source}; move the state directory away and join again", path = .path.display())]
    AgentId {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: NameError,
    },
    /// The pin file is damaged.
    #[error("{path} is damaged: {source}; move the state directory away and join again", path = .path.display())]
    Pin {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: PinError,
    },
}

/// The state directory of an agent.
#[derive(Debug, Clone)]
pub struct StateDir {
    directory: DataDir,
}

/// Who the agent is and whom it trusts, as `join` left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// This agent.
    pub agent_id: AgentId,
    /// The root of its cluster.
    pub pin: Pin,
}

impl StateDir {
    /// Opens the directory, making it where it is missing.
    ///
    /// # Errors
    /// When it cannot be used, or others could read it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        Ok(Self {
            directory: DataDir::open_or_create(path)?,
        })
    }

    /// A path inside.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The content of a file inside; `None` when it does not exist.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.directory.read(name)?)
    }

    /// Replaces a file inside, durably and in one step.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        Ok(self.directory.write(name, bytes)?)
    }

    /// Who this agent is.
    ///
    /// # Errors
    /// When it has not joined.
    pub fn joined(&self) -> Result<Joined, StateError> {
        let agent_id = self.text(names::AGENT_ID)?;
        let agent_id = AgentId::parse(agent_id.trim()).map_err(|source| StateError::AgentId {
            path: self.path(names::AGENT_ID),
            source,
        })?;
        let pin = self.text(names::PIN)?;
        let pin = Pin::parse(pin.trim()).map_err(|source| StateError::Pin {
            path: self.path(names::PIN),
            source,
        })?;
        Ok(Joined { agent_id, pin })
    }

    /// The key file of a service's leaf.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn leaf_key(&self, service: &ServiceName) -> Result<PathBuf, StateError> {
        Ok(self.leaves()?.join(&format!("{service}.key.pem")))
    }

    /// The stored certificate of a service's leaf.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub fn read_leaf_certificate(&self, service: &ServiceName) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.leaves()?.read(&format!("{service}.cert.pem"))?)
    }

    /// Replaces the stored certificate of a service's leaf.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write_leaf_certificate(&self, service: &ServiceName, pem: &[u8]) -> Result<(), StateError> {
        Ok(self.leaves()?.write(&format!("{service}.cert.pem"), pem)?)
    }

    /// The stored credentials for a service's backend.
    ///
    /// # Errors
    /// When they exist and cannot be read.
    pub fn read_credentials(&self, service: &ServiceName) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.credentials()?.read(&format!("{service}.json"))?)
    }

    /// Replaces the stored credentials for a service's backend.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write_credentials(&self, service: &ServiceName, json: &[u8]) -> Result<(), StateError> {
        Ok(self.credentials()?.write(&format!("{service}.json"), json)?)
    }

    /// The key file that clients of a recorded SSH service see; it outlives credentials and joins.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn ssh_host_key(&self, service: &ServiceName) -> Result<PathBuf, StateError> {
        let folder = self.directory.subdirectory(names::SSH_HOST_KEYS)?;
        Ok(folder.join(&format!("{service}.key.pem")))
    }

    fn credentials(&self) -> Result<DataDir, StateError> {
        Ok(self.directory.subdirectory(names::CREDENTIALS)?)
    }

    fn leaves(&self) -> Result<DataDir, StateError> {
        Ok(self.directory.subdirectory(names::LEAVES)?)
    }

    /// Moves what an earlier join left out of the way, under the earlier agent's id. Nothing is deleted:
    /// the spool may hold records that were never acknowledged.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn retire(&self, earlier: &AgentId) -> Result<(), StateError> {
        let attic = self
            .directory
            .subdirectory("retired")?
            .subdirectory(&earlier.to_string())?;
        // The id last: until it has gone, what is left can be retired again.
        for name in [
            names::SPOOL,
            names::LIVE,
            names::LEAVES,
            names::CREDENTIALS,
            names::KEY,
            names::CERTIFICATE,
            names::BEAT,
            names::AGENT_ID,
        ] {
            let from = self.path(name);
            match std::fs::rename(&from, attic.join(name)) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(FileError::Io {
                        action: "move aside",
                        path: from,
                        source,
                    }
                    .into());
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(files::sync_directory(self.directory.path())?)
    }

    fn text(&self, name: &str) -> Result<String, StateError> {
        match self.read(name)? {
            Some(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            None => Err(StateError::NotJoined {
                path: self.directory.path().to_owned(),
            }),
        }
    }
}
