//! The key that clients of a service see, made once and kept in the state directory, or named in the agent's own file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use iap_identity::ServiceName;
use iap_runtime::keys::{self, KeyError, KeyKind};
use russh::keys::{Certificate, PrivateKey};

use super::settings::SshSettings;
use crate::credentials::Credentials;
use crate::state::{StateDir, StateError};

/// Why there is no key to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostKeyError {
    /// It is no private key without a passphrase.
    #[error("{path} is no SSH host key without a passphrase: {source}", path = .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: russh::keys::Error,
    },
    /// It is no certificate, or one for another key.
    #[error("{path} is no SSH certificate of this host key: {reason}", path = .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key in the state directory.
    #[error(transparent)]
    Own(#[from] KeyError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// A thread of the runtime is gone.
    #[error("the SSH host key was not read: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// The host keys of this agent. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct HostKeys {
    state: StateDir,
    own: Arc<Mutex<HashMap<ServiceName, Arc<PrivateKey>>>>,
}

impl HostKeys {
    /// Those that are made lie in the state directory.
    pub(crate) fn new(state: StateDir) -> Self {
        Self {
            state,
            own: Arc::default(),
        }
    }

    /// The key of a service and its certificate. Files that the operator names are read anew each time, so that they can
    /// be replaced.
    pub(super) async fn of(
        &self,
        service: &ServiceName,
        settings: &SshSettings,
        credentials: &Credentials,
    ) -> Result<(PrivateKey, Option<Certificate>), HostKeyError> {
        let issued = credentials.ssh_host(service).ok();
        let (keys, service, settings) = (self.clone(), service.clone(), settings.clone());
        let reading = tokio::task::spawn_blocking(move || match &settings.host_key {
            Some(path) => named(path, settings.host_certificate.as_deref()),
            None => {
                let key = keys.own(&service)?;
                let certificate = issued.map(|issued| issued.certificate.certificate().clone());
                let is_its =
                    |certificate: &Certificate| certificate.public_key() == key.public_key().key_data();
                let certificate = certificate.filter(is_its);
                Ok((key, certificate))
            }
        });
        reading.await?
    }

    fn own(&self, service: &ServiceName) -> Result<PrivateKey, HostKeyError> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = own.get(service) {
            return Ok(PrivateKey::clone(key));
        }
        let pair = keys::load_or_create(&self.state.ssh_host_key(service)?, KeyKind::Ed25519)?;
        let key = Arc::new(keys::ssh_private_key(&pair)?);
        own.insert(service.clone(), Arc::clone(&key));
        Ok(PrivateKey::clone(&key))
    }
}

fn named(key: &Path, certificate: Option<&Path>) -> Result<(PrivateKey, Option<Certificate>), HostKeyError> {
    let key = load(key)?;
    let certificate = certificate.map(|path| certificate_of(path, &key)).transpose()?;
    Ok((key, certificate))
}

fn load(path: &Path) -> Result<PrivateKey, HostKeyError> {
    russh::keys::load_secret_key(path, None).map_err(|source| HostKeyError::Key {
        path: path.to_owned(),
        source,
    })
}

fn certificate_of(path: &Path, key: &PrivateKey) -> Result<Certificate, HostKeyError> {
    let refused = |reason: String| HostKeyError::Certificate {
        path: path.to_owned(),
        reason,
    };
    let certificate =
        russh::keys::load_openssh_certificate(path).map_err(|error| refused(error.to_string()))?;
    if certificate.public_key() != key.public_key().key_data() {
        return Err(refused("it certifies another key".to_owned()));
    }
    Ok(certificate)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_service_keeps_the_key_that_was_made_for_it_and_no_two_share_one() {
        let folder = tempfile::tempdir().unwrap();
        let public = |name: &str| {
            // As another process would.
            let keys = HostKeys::new(StateDir::open(&folder.path().join("state")).unwrap());
            let key = keys.own(&ServiceName::parse(name).unwrap()).unwrap();
            key.public_key().to_openssh().unwrap()
        };
        let first = public("ssh-a");
        assert_eq!(first, public("ssh-a"));
        assert_ne!(first, public("ssh-b"));
    }
}
