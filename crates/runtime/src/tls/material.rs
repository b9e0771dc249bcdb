//! What a program shows and what it trusts, replaced while it runs.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use iap_identity::{Class, ClassSet, PeerError, TrustBundle, verify_client};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::{Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::provider;

/// A certificate chain with its private key, checked to belong together.
pub type CertifiedKey = rustls::sign::CertifiedKey;

/// Why new material was not taken over. What was there before stays.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// The key is unusable or another certificate's.
    #[error("the private key does not belong to the certificate: {0}")]
    Key(Error),
    /// The bundle does not vouch for the certificate.
    #[error("the certificate does not verify against the trust bundle: {0}")]
    Certificate(#[from] PeerError),
    /// A bundle of another cluster or root.
    #[error("the new trust bundle is for another cluster or root")]
    OtherRoot,
    /// A bundle older than the one in use.
    #[error("trust bundle {offered} is older than {current}, the one in use")]
    Rollback {
        /// Epoch and version offered.
        offered: String,
        /// Epoch and version in use.
        current: String,
    },
}

/// One's own certificate and the trust bundle. Both are checked before they are published; every connection uses
/// what is current when it begins.
#[derive(Debug)]
pub struct Material {
    bundle: ArcSwap<TrustBundle>,
    identity: ArcSwapOption<CertifiedKey>,
    generation: watch::Sender<u64>,
}

impl Material {
    /// Trusts `bundle`, and has nothing to show yet.
    pub fn new(bundle: TrustBundle) -> Arc<Self> {
        Arc::new(Self {
            bundle: ArcSwap::from_pointee(bundle),
            identity: ArcSwapOption::empty(),
            generation: watch::Sender::new(0),
        })
    }

    /// The bundle now in use.
    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.bundle.load_full()
    }

    /// The certificate now shown.
    pub fn identity(&self) -> Option<Arc<CertifiedKey>> {
        self.identity.load_full()
    }

    /// Changes with each publication.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Replaces the trust bundle by a newer one of the same root. The same version again is no error.
    pub fn publish_bundle(&self, bundle: TrustBundle) -> Result<(), MaterialError> {
        let current = self.bundle.load();
        if bundle.cluster() != current.cluster() || bundle.pin() != current.pin() {
            return Err(MaterialError::OtherRoot);
        }
        let (offered, used) = (age(&bundle), age(&current));
        if offered < used {
            let text = |(epoch, version)| format!("epoch {epoch} version {version}");
            return Err(MaterialError::Rollback {
                offered: text(offered),
                current: text(used),
            });
        }
        self.bundle.store(Arc::new(bundle));
        self.announce();
        Ok(())
    }

    /// Replaces the certificate shown, after checking that the key fits and that the bundle in use vouches for it.
    pub fn publish_identity(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        now: OffsetDateTime,
    ) -> Result<(), MaterialError> {
        const ANY: ClassSet = ClassSet::of(&Class::ALL);
        verify_client(&chain, ANY, &self.bundle.load(), now)?;
        self.identity.store(Some(certified_key(chain, key)?));
        self.announce();
        Ok(())
    }

    fn announce(&self) {
        self.generation
            .send_modify(|generation| *generation = generation.wrapping_add(1));
    }
}

impl ResolvesServerCert for Material {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.identity()
    }
}

impl ResolvesClientCert for Material {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.identity()
    }

    fn has_certs(&self) -> bool {
        self.identity.load().is_some()
    }
}

/// What `material` shows, to clients that ask for this one name: where no proxy has read the name before.
#[derive(Debug)]
pub struct NamedIdentity {
    /// The only server name that is answered.
    pub host: String,
    /// What is shown.
    pub material: Arc<Material>,
}

impl ResolvesServerCert for NamedIdentity {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name()?;
        if asked.eq_ignore_ascii_case(&self.host) {
            self.material.identity()
        } else {
            None
        }
    }
}

/// One certificate that does not change: a service leaf for one connection, or a client's.
#[derive(Debug, Clone)]
pub struct FixedIdentity(pub Arc<CertifiedKey>);

impl ResolvesServerCert for FixedIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ResolvesClientCert for FixedIdentity {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A chain and its key, refused when they do not belong together.
pub fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, MaterialError> {
    let checked = CertifiedKey::from_der(chain, key, &provider()).map_err(MaterialError::Key)?;
    Ok(Arc::new(checked))
}

fn age(bundle: &TrustBundle) -> (u64, u64) {
    (bundle.epoch(), bundle.version())
}
