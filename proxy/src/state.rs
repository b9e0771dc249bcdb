//! What the proxy keeps on disk: its id, its key and certificate, and the last good copy of what the auth
//! server sent. Everything is verified again when it is read.

use std::path::Path;
use std::sync::Arc;

use iap_identity::{
    Class, ClassSet, ClusterName, Pin, PinError, ProxyId, ProxyPeer, VerifiedPeer, verify_client,
};
use iap_proto::v1::Issued;
use iap_proto::{OpenError, open_bundle};
use iap_runtime::files::{DataDir, FileError};
use iap_runtime::keys::{self, KeyError, KeyKind};
use iap_runtime::tls::{
    CertificateDer, Material, MaterialError, PemError, certificates_from_pem, certificates_to_pem,
};
use rcgen::KeyPair;
use thiserror::Error;
use time::OffsetDateTime;

use crate::trust::{TrustError, TrustKeeper, stored_bundle};

const ID_FILE: &str = "proxy_id";
pub(crate) const KEY_FILE: &str = "key.pem";
const CERTIFICATE_FILE: &str = "cert.pem";

/// A joined proxy's state.
pub struct State {
    /// Where it lies.
    pub directory: DataDir,
    /// Given at join.
    pub proxy_id: ProxyId,
    /// The only key a proxy holds.
    pub key: Arc<KeyPair>,
    /// What it shows and whom it trusts.
    pub material: Arc<Material>,
    /// The writer of what it believes.
    pub keeper: TrustKeeper,
}

/// Why a proxy cannot start from its state directory.
#[derive(Debug, Error)]
pub enum StateError {
    /// Nothing was ever stored.
    #[error("{directory} holds no certificate: run `iap-proxy join` first")]
    NotJoined {
        /// The state directory.
        directory: String,
    },
    /// A file is unusable.
    #[error(transparent)]
    File(#[from] FileError),
    /// The key is unusable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate is unusable.
    #[error("the certificate: {0}")]
    Certificate(#[from] PemError),
    /// Certificate and key, or certificate and bundle, do not belong together.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// What it believes is damaged.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The bundle does not verify.
    #[error("the stored trust bundle: {0}")]
    Bundle(#[from] OpenError),
    /// The bundle's root cannot be read.
    #[error("the stored trust bundle: {0}")]
    Root(#[from] PinError),
    /// The id is no id.
    #[error("proxy_id: {0}")]
    Id(#[from] iap_identity::NameError),
}

impl State {
    /// Reads and verifies the state of a joined proxy. An expired certificate is not shown but no error
    /// either: the proxy goes on to be reachable for everything but agents, and renewing is hopeless only
    /// until somebody joins it again.
    pub fn open(path: &Path, cluster: &ClusterName, now: OffsetDateTime) -> Result<Self, StateError> {
        let directory = DataDir::open_or_create(path)?;
        let not_joined = || StateError::NotJoined {
            directory: path.display().to_string(),
        };
        let id = directory.read(ID_FILE)?.ok_or_else(not_joined)?;
        let proxy_id = ProxyId::parse(String::from_utf8_lossy(&id).trim())?;
        let signed = stored_bundle(&directory)?.ok_or_else(not_joined)?;
        let root = iap_proto::convert::bundle::decode_bundle(&signed.payload)
            .map_err(OpenError::from)?
            .root;
        let bundle = open_bundle(&signed, &Pin::of_certificate(&root)?, cluster, now)?;
        let key = keys::load(&directory.join(KEY_FILE), KeyKind::P256)?;
        let chain = directory.read(CERTIFICATE_FILE)?.ok_or_else(not_joined)?;
        let material = Material::new(bundle.clone());
        show(&material, certificates_from_pem(&chain)?, &key, now)?;
        let keeper = TrustKeeper::open(directory.clone(), bundle, Arc::clone(&material))?;
        Ok(Self {
            directory,
            proxy_id,
            key: Arc::new(key),
            material,
            keeper,
        })
    }
}

/// Shows the certificate on disk from now on: what SIGHUP does after the proxy has joined again.
#[derive(Debug, Clone)]
pub struct Reloader {
    pub(crate) directory: DataDir,
    pub(crate) material: Arc<Material>,
}

impl Reloader {
    /// Checks and shows the key and certificate now on disk. After an error the old ones stay.
    pub fn reload(&self, now: OffsetDateTime) -> Result<(), StateError> {
        let key = keys::load(&self.directory.join(KEY_FILE), KeyKind::P256)?;
        let missing = || StateError::NotJoined {
            directory: self.directory.path().display().to_string(),
        };
        let chain = self.directory.read(CERTIFICATE_FILE)?.ok_or_else(missing)?;
        let chain = certificates_from_pem(&chain)?;
        Ok(self
            .material
            .publish_identity(chain, keys::private_key_der(&key), now)?)
    }
}

fn show(
    material: &Material,
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
    now: OffsetDateTime,
) -> Result<(), StateError> {
    match material.publish_identity(chain, keys::private_key_der(key), now) {
        Err(MaterialError::Certificate(iap_identity::PeerError::Expired { not_after })) => {
            tracing::error!(%not_after, "the proxy's certificate has expired: run `iap-proxy join` with a new token");
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Checks a certificate that the auth server issued, stores it, and shows it from now on.
pub(crate) fn take_over(
    issued: Issued,
    directory: &DataDir,
    key: &KeyPair,
    material: &Material,
    now: OffsetDateTime,
) -> Result<(), StateError> {
    let pem = certificates_to_pem(issued.chain.iter().map(Vec::as_slice));
    let chain = issued.chain.into_iter().map(CertificateDer::from).collect();
    material.publish_identity(chain, keys::private_key_der(key), now)?;
    directory.write(CERTIFICATE_FILE, pem.as_bytes())?;
    Ok(())
}

/// Whether a join has left an identity in `path`.
///
/// # Errors
/// When the folder cannot be read, or others may enter it.
pub fn is_joined(path: &Path) -> Result<bool, FileError> {
    let directory = DataDir::open_or_create(path)?;
    Ok(directory.read(ID_FILE)?.is_some() && directory.read(CERTIFICATE_FILE)?.is_some())
}

/// Stores what a join brought, the id last: a directory without it is not joined.
pub(crate) fn store_joined(
    directory: &DataDir,
    proxy_id: &ProxyId,
    issued: Issued,
    key: &KeyPair,
    material: &Material,
    now: OffsetDateTime,
) -> Result<(), StateError> {
    take_over(issued, directory, key, material, now)?;
    directory.write(ID_FILE, proxy_id.to_string().as_bytes())?;
    Ok(())
}

/// The certificate shown, while it counts.
pub(crate) fn own_certificate(material: &Material, now: OffsetDateTime) -> Option<ProxyPeer> {
    let identity = material.identity()?;
    match verify_client(
        &identity.cert,
        ClassSet::of(&[Class::Proxy]),
        &material.bundle(),
        now,
    )
    .ok()?
    {
        VerifiedPeer::Proxy(proxy) => Some(proxy),
        VerifiedPeer::User(_) | VerifiedPeer::Bot(_) | VerifiedPeer::Agent(_) | VerifiedPeer::Auth(_) => None,
    }
}
