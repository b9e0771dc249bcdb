//! The key that clients of a service see, made once and kept in the state directory, or named in the agent's own file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use iap_identity::ServiceName;
use iap_runtime::files::{self, FileError, PRIVATE_FILE_MODE};
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{Certificate, PrivateKey};
use zeroize::Zeroizing;

use super::settings::SshSettings;

/// Why there is no key to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostKeyError {
    /// The folder or the file.
    #[error(transparent)]
    File(#[from] FileError),
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
    /// No new key can be made.
    #[error("no SSH host key can be made: {0}")]
    Generate(String),
    /// A thread of the runtime is gone.
    #[error("the SSH host key was not read: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// The host keys of this agent. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct HostKeys {
    folder: PathBuf,
    made: Arc<Mutex<HashMap<ServiceName, Arc<PrivateKey>>>>,
}

impl HostKeys {
    /// Those that are made lie in `folder`.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            made: Arc::default(),
        }
    }

    /// The key of a service and its certificate. Files that the operator names are read anew each time, so that they can
    /// be replaced.
    pub(super) async fn of(
        &self,
        service: &ServiceName,
        settings: &SshSettings,
    ) -> Result<(PrivateKey, Option<Certificate>), HostKeyError> {
        let (keys, service, settings) = (self.clone(), service.clone(), settings.clone());
        tokio::task::spawn_blocking(move || keys.read(&service, &settings)).await?
    }

    fn read(
        &self,
        service: &ServiceName,
        settings: &SshSettings,
    ) -> Result<(PrivateKey, Option<Certificate>), HostKeyError> {
        let key = match &settings.host_key {
            Some(path) => load(path)?,
            None => self.made(service)?,
        };
        let certificate = settings.host_certificate.as_deref();
        let certificate = certificate.map(|path| certificate_of(path, &key)).transpose()?;
        Ok((key, certificate))
    }

    fn made(&self, service: &ServiceName) -> Result<PrivateKey, HostKeyError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = made.get(service) {
            return Ok(PrivateKey::clone(key));
        }
        files::create_private_directory(&self.folder)?;
        let path = self.folder.join(format!("{service}.key"));
        if !path.exists() {
            let text = generate()?;
            files::write_atomic(&path, text.as_bytes(), PRIVATE_FILE_MODE)?;
        }
        files::check_private_file(&path)?;
        let key = Arc::new(load(&path)?);
        made.insert(service.clone(), Arc::clone(&key));
        Ok(PrivateKey::clone(&key))
    }
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

fn generate() -> Result<Zeroizing<String>, HostKeyError> {
    let told = |error: &dyn std::fmt::Display| HostKeyError::Generate(error.to_string());
    let mut seed = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(seed.as_mut()).map_err(|error| told(&error))?;
    let pair = Ed25519Keypair::from_seed(&seed);
    let key = PrivateKey::new(KeypairData::from(pair), "").map_err(|error| told(&error))?;
    key.to_openssh(LineEnding::LF).map_err(|error| told(&error))
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
            let keys = HostKeys::new(folder.path().join("keys"));
            let key = keys.made(&ServiceName::parse(name).unwrap()).unwrap();
            key.public_key().to_openssh().unwrap()
        };
        let first = public("ssh-a");
        assert_eq!(first, public("ssh-a"));
        assert_ne!(first, public("ssh-b"));
    }
}
