//! Service leaves: one certificate and one key per service, made here, renewed at half-life.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use iap_identity::{
    AgentId, CertificateDer, PeerError, ServerName, ServiceName, TrustBundle, certificate_request,
    verify_server,
};
use iap_runtime::backoff::jittered;
use iap_runtime::keys::{self, KeyError, KeyKind};
use iap_runtime::tls::{self, CertifiedKey, MaterialError};
use rcgen::KeyPair;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::state::{StateDir, StateError};

/// Renewals happen at half-life, moved by up to this much either way.
pub(crate) const RENEWAL_JITTER_PERCENT: u32 = 10;

/// Why a leaf cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate is not this agent's, or not valid.
    #[error("the service's certificate: {0}")]
    Certificate(#[from] PeerError),
    /// The certificate names another agent.
    #[error("the service's certificate belongs to another agent")]
    OtherAgent,
    /// Key and certificate do not belong together.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The certificate cannot be read.
    #[error("the service's certificate cannot be read: {0}")]
    Unreadable(String),
    /// The request for a certificate could not be made.
    #[error("a certificate request could not be made: {0}")]
    Request(rcgen::Error),
}

/// A service's certificate with its key, ready for handshakes.
#[derive(Debug)]
pub struct Leaf {
    /// Leaf, then CA, with the key.
    pub certified: Arc<CertifiedKey>,
    /// When it is to be replaced.
    pub renew_at: OffsetDateTime,
    /// Its end.
    pub not_after: OffsetDateTime,
}

/// Every leaf the agent holds now: what it announces, and what it answers with.
#[derive(Debug, Default)]
pub struct Offer {
    leaves: BTreeMap<ServiceName, Arc<Leaf>>,
}

impl Offer {
    /// An offer of these leaves.
    #[must_use]
    pub fn new(leaves: BTreeMap<ServiceName, Arc<Leaf>>) -> Self {
        Self { leaves }
    }

    /// The leaf for a service.
    #[must_use]
    pub fn leaf(&self, service: &ServiceName) -> Option<Arc<Leaf>> {
        self.leaves.get(service).cloned()
    }

    /// Names and leaf certificates, as announcements carry them.
    #[must_use]
    pub fn announced(&self) -> Vec<(ServiceName, Vec<u8>)> {
        let der = |leaf: &Leaf| leaf.certified.cert.first().map(|der| der.to_vec());
        self.leaves
            .iter()
            .filter_map(|(name, leaf)| Some((name.clone(), der(leaf)?)))
            .collect()
    }

    /// The names.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.leaves.keys().map(ServiceName::to_string).collect()
    }
}

/// The leaves on disk and the offer made of them: one writer.
#[derive(Debug)]
pub struct Leaves {
    agent_id: AgentId,
    state: StateDir,
    held: BTreeMap<ServiceName, Arc<Leaf>>,
    offers: watch::Sender<Arc<Offer>>,
}

/// A key for which a certificate was asked.
#[derive(Debug)]
pub struct Asked {
    service: ServiceName,
    key: KeyPair,
    /// The request to be sent.
    pub csr: Vec<u8>,
}

impl Leaves {
    /// Nothing is held before [`adopt`](Self::adopt).
    #[must_use]
    pub fn new(agent_id: AgentId, state: StateDir) -> Self {
        let offers = watch::Sender::new(Arc::new(Offer::default()));
        Self {
            agent_id,
            state,
            held: BTreeMap::new(),
            offers,
        }
    }

    /// The offers as they change.
    #[must_use]
    pub fn offers(&self) -> watch::Receiver<Arc<Offer>> {
        self.offers.subscribe()
    }

    /// Keeps the leaves of exactly these services: drops the others, and takes up from disk what is there.
    pub fn adopt(&mut self, wanted: &[ServiceName], bundle: &TrustBundle, now: OffsetDateTime) {
        self.held
            .retain(|service, leaf| wanted.contains(service) && now < leaf.not_after);
        for service in wanted {
            if self.held.contains_key(service) {
                continue;
            }
            match self.load(service, bundle, now) {
                Ok(Some(leaf)) => drop(self.held.insert(service.clone(), Arc::new(leaf))),
                Ok(None) => {}
                Err(error) => tracing::info!(%service, %error, "the stored certificate is not usable"),
            }
        }
        self.publish();
    }

    /// Services of `wanted` whose leaf is missing or due for renewal.
    #[must_use]
    pub fn due(&self, wanted: &[ServiceName], now: OffsetDateTime) -> Vec<ServiceName> {
        let is_due = |service: &&ServiceName| self.held.get(*service).is_none_or(|leaf| leaf.renew_at <= now);
        wanted.iter().filter(is_due).cloned().collect()
    }

    /// When the next leaf is due.
    #[must_use]
    pub fn next_due(&self) -> Option<OffsetDateTime> {
        self.held.values().map(|leaf| leaf.renew_at).min()
    }

    /// A new key for a service, and the request for its certificate.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn ask(service: &ServiceName) -> Result<Asked, LeafError> {
        let key = keys::generate(KeyKind::P256)?;
        let csr = certificate_request(&key).map_err(LeafError::Request)?;
        Ok(Asked {
            service: service.clone(),
            key,
            csr,
        })
    }

    /// Checks the certificate that came for a key, stores both, and offers it.
    ///
    /// # Errors
    /// When it is not this agent's certificate for the service and the key.
    pub fn take(
        &mut self,
        asked: Asked,
        chain: Vec<CertificateDer<'static>>,
        bundle: &TrustBundle,
        now: OffsetDateTime,
    ) -> Result<(), LeafError> {
        let Asked { service, key, .. } = asked;
        let pem = tls::certificates_to_pem(chain.iter().map(AsRef::as_ref));
        let leaf = check(&service, chain, &key, self.agent_id, bundle, now)?;
        keys::store(&self.state.leaf_key(&service)?, &key)?;
        self.state.write_leaf_certificate(&service, pem.as_bytes())?;
        self.held.insert(service, Arc::new(leaf));
        self.publish();
        Ok(())
    }

    fn load(
        &self,
        service: &ServiceName,
        bundle: &TrustBundle,
        now: OffsetDateTime,
    ) -> Result<Option<Leaf>, LeafError> {
        let Some(pem) = self.state.read_leaf_certificate(service)? else {
            return Ok(None);
        };
        let chain =
            tls::certificates_from_pem(&pem).map_err(|error| LeafError::Unreadable(error.to_string()))?;
        let key = keys::load(&self.state.leaf_key(service)?, KeyKind::P256)?;
        check(service, chain, &key, self.agent_id, bundle, now).map(Some)
    }

    fn publish(&self) {
        let offer = Arc::new(Offer::new(self.held.clone()));
        self.offers.send_if_modified(|held| {
            let changed = held.announced() != offer.announced();
            if changed {
                *held = offer;
            }
            changed
        });
    }
}

fn check(
    service: &ServiceName,
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
    agent_id: AgentId,
    bundle: &TrustBundle,
    now: OffsetDateTime,
) -> Result<Leaf, LeafError> {
    let verified = verify_server(&chain, &ServerName::Service(service.clone()), bundle, now)?;
    if verified.agent() != Some(agent_id) {
        return Err(LeafError::OtherAgent);
    }
    let certified = tls::certified_key(chain, keys::private_key_der(key))?;
    let not_after = verified.not_after;
    Ok(Leaf {
        certified,
        renew_at: renewal_time(now, not_after),
        not_after,
    })
}

/// Half of what is left of a life, plus or minus a tenth of that.
pub(crate) fn renewal_time(from: OffsetDateTime, not_after: OffsetDateTime) -> OffsetDateTime {
    let left = Duration::try_from(not_after - from).unwrap_or(Duration::ZERO);
    from + jittered(left / 2, RENEWAL_JITTER_PERCENT)
}
