//! What the agent logs in to backends with, held ahead of need: certificates of each service's own authorities, on
//! keys that never leave this host. A session takes them from memory and waits for nobody.
//!
//! Accounts that can be told from the policy are here before anybody asks. Another one, which only a rule that
//! gives any login allows, is asked for when it is first wanted; [`Credentials::wait_for`] waits for that one.

pub mod keeper;
mod source;
mod stored;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use iap_identity::backend::SshCertificate;
use iap_identity::{LoginName, ServiceName};
use iap_runtime::tls::CertifiedKey;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use crate::clock::TrustedClock;
use crate::metrics::Metrics;

pub use source::Relayed;
pub use stored::{ServiceCredentials, StoredError};

/// How long a session waits for a login that could not be told in advance.
const UNFORESEEN_WAIT: Duration = Duration::from_secs(5);
/// Logins of one service that are asked for beside those the policy tells; the auth server takes no more.
const ASKED_MAX: usize = 64;

/// A certificate and its key for a backend that verifies X.509 clients.
#[derive(Debug, Clone)]
pub struct ClientCredential {
    /// The leaf with its key, ready for TLS.
    pub certified: Arc<CertifiedKey>,
    /// The certificate's serial, lower-case hex.
    pub serial: String,
    /// Its end.
    pub not_after: OffsetDateTime,
}

/// A certificate and its key for SSH: a user's, for an SSH server; or a host's, for SSH clients.
#[derive(Debug, Clone)]
pub struct SshCredential {
    /// The private key.
    pub key: Arc<ssh_key::PrivateKey>,
    /// The certificate for it.
    pub certificate: Arc<SshCertificate>,
}

/// Why there is nothing to log in with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHeld {
    /// Nothing was issued for the service yet, or what was has ended.
    #[error(
        "the agent has no certificates for the backend of {0}: it has not reached the auth server for a day, or was \
         refused; its log says more"
    )]
    Service(ServiceName),
    /// The service has others.
    #[error("the agent has no certificate for the login {login} at {service} yet; try again in a moment")]
    Login {
        /// The service.
        service: ServiceName,
        /// The account.
        login: LoginName,
    },
}

/// Everything that is held at one moment, by service.
pub(crate) type Held = BTreeMap<ServiceName, Arc<ServiceCredentials>>;

/// What sessions see of it. Clones share it.
#[derive(Debug, Clone)]
pub struct Credentials {
    held: watch::Receiver<Arc<Held>>,
    wanted: Arc<Wanted>,
    clock: Arc<TrustedClock>,
    metrics: Metrics,
}

/// Where the keeper puts what sessions see.
#[derive(Debug)]
pub struct Holder {
    held: watch::Sender<Arc<Held>>,
    wanted: Arc<Wanted>,
}

/// Logins that sessions wanted and that the policy does not tell.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    logins: Mutex<BTreeMap<(ServiceName, LoginName), OffsetDateTime>>,
    more: Notify,
}

impl Credentials {
    /// Nothing is held yet; the keeper puts it into the holder.
    #[must_use]
    pub fn empty(clock: Arc<TrustedClock>, metrics: Metrics) -> (Self, Holder) {
        let (held, wanted) = (
            watch::Sender::new(Arc::new(Held::new())),
            Arc::new(Wanted::default()),
        );
        let credentials = Self {
            held: held.subscribe(),
            wanted: Arc::clone(&wanted),
            clock,
            metrics,
        };
        (credentials, Holder { held, wanted })
    }

    /// What to log in to an X.509 backend with.
    ///
    /// # Errors
    /// When it is not held; then it is asked for.
    pub fn postgres(&self, service: &ServiceName, login: &LoginName) -> Result<ClientCredential, NotHeld> {
        self.find(service, login, ServiceCredentials::client)
    }

    /// What to log in to an SSH server with.
    ///
    /// # Errors
    /// When it is not held; then it is asked for.
    pub fn ssh(&self, service: &ServiceName, login: &LoginName) -> Result<SshCredential, NotHeld> {
        self.find(service, login, ServiceCredentials::ssh)
    }

    /// What to show SSH clients.
    ///
    /// # Errors
    /// When it is not held.
    pub fn ssh_host(&self, service: &ServiceName) -> Result<SshCredential, NotHeld> {
        let held = self.of(service)?;
        held.ssh_host(self.clock.now())
            .ok_or_else(|| NotHeld::Service(service.clone()))
    }

    /// Waits a moment for a login that could not be told in advance; returns at once where it is held, or where
    /// nothing is held for the service at all.
    pub async fn wait_for(&self, service: &ServiceName, login: &LoginName) {
        // What is held wakes no keeper: it would look everything through for each session, and pay no heed to its pauses.
        if self
            .of(service)
            .is_ok_and(|held| held.has(login, self.clock.now()))
        {
            return;
        }
        let mut held = self.held.clone();
        let arrived = async {
            loop {
                let now = self.clock.now();
                let seen = held.borrow_and_update().get(service).cloned();
                if seen.is_none_or(|credentials| credentials.has(login, now)) || held.changed().await.is_err()
                {
                    return;
                }
            }
        };
        self.wanted.want(service, login, self.clock.now());
        let _ = tokio::time::timeout(UNFORESEEN_WAIT, arrived).await;
    }

    fn find<T>(
        &self,
        service: &ServiceName,
        login: &LoginName,
        take: impl FnOnce(&ServiceCredentials, &LoginName, OffsetDateTime) -> Option<T>,
    ) -> Result<T, NotHeld> {
        let (held, now) = (self.of(service), self.clock.now());
        let found = held.and_then(|held| {
            take(&held, login, now).ok_or_else(|| NotHeld::Login {
                service: service.clone(),
                login: login.clone(),
            })
        });
        match &found {
            // So that it is there again after the next renewal.
            Ok(_) => self.wanted.used(service, login, now),
            Err(_) => {
                self.metrics.credential_missed();
                self.wanted.want(service, login, now);
            }
        }
        found
    }

    fn of(&self, service: &ServiceName) -> Result<Arc<ServiceCredentials>, NotHeld> {
        let held = self.held.borrow().get(service).cloned();
        held.ok_or_else(|| NotHeld::Service(service.clone()))
    }
}

impl Wanted {
    /// Remembers a login and wakes the keeper.
    fn want(&self, service: &ServiceName, login: &LoginName, now: OffsetDateTime) {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (service.clone(), login.clone());
        let of_service = |key: &&(ServiceName, LoginName)| key.0 == *service;
        if !logins.contains_key(&key) && logins.keys().filter(of_service).count() >= ASKED_MAX {
            let oldest = logins.iter().filter(|(key, _)| of_service(key));
            let oldest = oldest.min_by_key(|(_, used)| **used).map(|(key, _)| key.clone());
            oldest.map(|key| logins.remove(&key));
        }
        logins.insert(key, now);
        self.more.notify_one();
    }

    /// Remembers that a login that was once wanted is in use.
    fn used(&self, service: &ServiceName, login: &LoginName, now: OffsetDateTime) {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = logins.get_mut(&(service.clone(), login.clone())) {
            *used = now;
        }
    }

    /// What is wanted of a service and was used since.
    fn of(&self, service: &ServiceName, since: OffsetDateTime) -> Vec<LoginName> {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.retain(|(of, _), used| of != service || *used >= since);
        let wanted = logins.keys().filter(|(of, _)| of == service);
        wanted.map(|(_, login)| login.clone()).collect()
    }
}
