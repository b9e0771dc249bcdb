//! The authorities that each service has for itself, in `data_dir/ca/services/<name>/`: made at first need and
//! kept for as long as `data_dir` is. A service that is removed and comes back has them again, so that its backend
//! need not be told anew.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use iap_identity::backend::{ClientCa, SshAuthority, self_signed_client_ca};
use iap_identity::{AuthorityError, ClusterName, Serial, ServiceName};
use iap_runtime::files::DataDir;
use iap_runtime::keys::{self, KeyKind};
use iap_runtime::tls::certificates_to_pem;
use rcgen::{KeyPair, PublicKeyData as _};

use super::keys::{CA_DIRECTORY, KeysError, inconsistent, read_certificate};
use crate::context::{Clock, Random};

const SERVICES_DIRECTORY: &str = "services";
const CLIENT_KEY_FILE: &str = "client.key.pem";
const CLIENT_FILE: &str = "client.pem";
const SSH_USER_KEY_FILE: &str = "ssh_user.key.pem";
const SSH_HOST_KEY_FILE: &str = "ssh_host.key.pem";

/// The authorities of one service.
#[derive(Debug)]
pub struct ServiceKeys {
    /// Certifies logins to backends that verify X.509 certificates.
    pub client: ClientCa,
    /// Its key.
    pub client_key: KeyPair,
    /// Certifies users to the service's SSH servers.
    pub ssh_user: SshAuthority,
    /// Its key.
    pub ssh_user_key: KeyPair,
    /// Certifies the service's SSH servers to users.
    pub ssh_host: SshAuthority,
    /// Its key.
    pub ssh_host_key: KeyPair,
}

/// Every service's authorities, as far as they were needed.
#[derive(Debug, Clone)]
pub struct ServiceAuthorities(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: DataDir,
    cluster: ClusterName,
    clock: Clock,
    random: Random,
    /// Locked while keys are made, so that a service has one set of them.
    known: Mutex<BTreeMap<ServiceName, Arc<ServiceKeys>>>,
}

impl ServiceAuthorities {
    /// Those below `data_dir`; none is read or made yet.
    pub fn open(
        dir: &DataDir,
        cluster: &ClusterName,
        clock: Clock,
        random: Random,
    ) -> Result<Self, KeysError> {
        let dir = dir.subdirectory(CA_DIRECTORY)?.subdirectory(SERVICES_DIRECTORY)?;
        Ok(Self(Arc::new(Shared {
            dir,
            cluster: cluster.clone(),
            clock,
            random,
            known: Mutex::default(),
        })))
    }

    /// The authorities of a service, made now if it has none. The caller knows that the service exists.
    pub async fn of(&self, service: &ServiceName) -> Result<Arc<ServiceKeys>, KeysError> {
        if let Some(keys) = self.0.lock().get(service) {
            return Ok(Arc::clone(keys));
        }
        let (shared, service) = (Arc::clone(&self.0), service.clone());
        tokio::task::spawn_blocking(move || shared.load_or_create(&service))
            .await
            .map_err(|error| KeysError::Inconsistent(error.to_string()))?
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServiceName, Arc<ServiceKeys>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load_or_create(&self, service: &ServiceName) -> Result<Arc<ServiceKeys>, KeysError> {
        let mut known = self.lock();
        if let Some(keys) = known.get(service) {
            return Ok(Arc::clone(keys));
        }
        let dir = self.dir.subdirectory(service.as_str())?;
        let client_key = keys::load_or_create(&dir.join(CLIENT_KEY_FILE), KeyKind::P256)?;
        let ssh_user_key = keys::load_or_create(&dir.join(SSH_USER_KEY_FILE), KeyKind::Ed25519)?;
        let ssh_host_key = keys::load_or_create(&dir.join(SSH_HOST_KEY_FILE), KeyKind::Ed25519)?;
        let keys = Arc::new(ServiceKeys {
            client: self.client_ca(&dir, service, &client_key)?,
            client_key,
            ssh_user: ssh_authority(&ssh_user_key)?,
            ssh_user_key,
            ssh_host: ssh_authority(&ssh_host_key)?,
            ssh_host_key,
        });
        known.insert(service.clone(), Arc::clone(&keys));
        Ok(keys)
    }

    fn client_ca(&self, dir: &DataDir, service: &ServiceName, key: &KeyPair) -> Result<ClientCa, KeysError> {
        let path = dir.join(CLIENT_FILE);
        if !path.exists() {
            let serial = Serial::from_random(self.random.bytes()?);
            let made = self_signed_client_ca(&self.cluster, service, key, self.clock.now(), serial)?;
            dir.write(CLIENT_FILE, certificates_to_pem([made.der().as_ref()]).as_bytes())?;
        }
        let der = read_certificate(dir, CLIENT_FILE)?;
        let ca = ClientCa::parse(&der).map_err(|error| inconsistent(&path, error))?;
        let is_ours = *ca.cluster() == self.cluster && ca.service() == service;
        match is_ours && ca.spki() == key.subject_public_key_info() {
            true => Ok(ca),
            false => Err(inconsistent(
                &path,
                "is not the certificate of this service and the key beside it",
            )),
        }
    }
}

fn ssh_authority(key: &KeyPair) -> Result<SshAuthority, KeysError> {
    SshAuthority::of_signer(key).map_err(|error| AuthorityError::Sign(error.to_string()).into())
}
