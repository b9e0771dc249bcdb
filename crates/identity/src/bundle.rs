//! The trust bundle: every authority and signing key of a cluster, each certified by the pinned root.

use rustls_pki_types::{CertificateDer, TrustAnchor};
use time::OffsetDateTime;

pub use crate::ca::SigningKeyCertificate;
use crate::ca::{CaError, IssuerCertificate, RootCertificate};
use crate::class::CaClass;
use crate::names::ClusterName;
use crate::pin::Pin;

/// Authorities in one bundle, over all classes.
pub const AUTHORITIES_MAX: usize = 32;
/// Signing keys in one bundle.
pub const SIGNING_KEYS_MAX: usize = 16;

/// A bundle as it arrives: nothing in it has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawBundle {
    /// The cluster it claims to describe.
    pub cluster: ClusterName,
    /// Starts anew with each restore from backup.
    pub epoch: u64,
    /// Grows with each change inside an epoch.
    pub version: u64,
    /// The root's certificate.
    pub root: Vec<u8>,
    /// The authorities' certificates with the classes they are said to have.
    pub authorities: Vec<(CaClass, Vec<u8>)>,
    /// The certificates of the Ed25519 signing keys.
    pub signing_keys: Vec<Vec<u8>>,
}

/// Why a bundle was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// It describes another cluster.
    #[error("the trust bundle belongs to the cluster {0}")]
    WrongCluster(ClusterName),
    /// Its root is not the one the pin names.
    #[error("the root has the pin {found}, not the expected {expected}")]
    WrongPin {
        /// The pin of the root that came.
        found: Pin,
        /// The pin known in advance.
        expected: Pin,
    },
    /// The root cannot be used.
    #[error("the root: {0}")]
    Root(CaError),
    /// An authority cannot be used.
    #[error("the {class} authority: {reason}")]
    Authority {
        /// The class it was said to have.
        class: CaClass,
        /// What is wrong.
        reason: CaError,
    },
    /// An authority issues for another class than it was said to.
    #[error("an authority said to be of class {said} is of class {found}")]
    WrongClass {
        /// The class it was said to have.
        said: CaClass,
        /// The class its subject names.
        found: CaClass,
    },
    /// A signing key cannot be used.
    #[error("a signing key: {0}")]
    SigningKey(CaError),
    /// Too many authorities or keys.
    #[error("the trust bundle has more authorities or signing keys than allowed")]
    TooMany,
    /// Without a system authority nobody can be reached.
    #[error("the trust bundle has no system authority")]
    NoSystemAuthority,
}

/// The authorities and signing keys of one cluster. Every certificate in it was certified by the root
/// the pin names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    cluster: ClusterName,
    epoch: u64,
    version: u64,
    root: RootCertificate,
    pin: Pin,
    system: Authorities,
    user: Authorities,
    workload: Authorities,
    signing_keys: Vec<SigningKeyCertificate>,
}

/// The authorities of one class, beside their bytes as TLS libraries want them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Authorities {
    issuers: Vec<IssuerCertificate>,
    certificates: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// Checks everything in a bundle against the pin.
    ///
    /// Authorities outside their validity period stay in the bundle but anchor nothing; signing keys
    /// outside theirs are left out.
    pub fn verify(
        raw: RawBundle,
        pin: &Pin,
        cluster: &ClusterName,
        now: OffsetDateTime,
    ) -> Result<Self, BundleError> {
        if raw.authorities.len() > AUTHORITIES_MAX || raw.signing_keys.len() > SIGNING_KEYS_MAX {
            return Err(BundleError::TooMany);
        }
        if raw.cluster != *cluster {
            return Err(BundleError::WrongCluster(raw.cluster));
        }
        let root = pinned_root(&raw.root, pin, cluster, now)?;
        let mut bundle = Self {
            cluster: raw.cluster,
            epoch: raw.epoch,
            version: raw.version,
            pin: *pin,
            system: Authorities::default(),
            user: Authorities::default(),
            workload: Authorities::default(),
            signing_keys: verified_keys(&raw.signing_keys, &root, cluster, now)?,
            root,
        };
        for (class, der) in raw.authorities {
            bundle.add_authority(class, &der)?;
        }
        if bundle.system.certificates.is_empty() {
            return Err(BundleError::NoSystemAuthority);
        }
        Ok(bundle)
    }

    /// The little that the chain of an auth server proves to somebody who holds the pin alone: leaf,
    /// system authority, root. Epoch and version are 0; there are no users' authorities and no keys.
    pub fn of_first_contact(
        chain: &[CertificateDer<'_>],
        pin: &Pin,
        cluster: &ClusterName,
        now: OffsetDateTime,
    ) -> Result<Self, BundleError> {
        let [_leaf, authorities @ .., root] = chain else {
            return Err(BundleError::Root(CaError::Malformed(
                "the chain does not carry it",
            )));
        };
        let raw = RawBundle {
            cluster: cluster.clone(),
            epoch: 0,
            version: 0,
            root: root.to_vec(),
            authorities: authorities
                .iter()
                .map(|der| (CaClass::System, der.to_vec()))
                .collect(),
            signing_keys: Vec::new(),
        };
        Self::verify(raw, pin, cluster, now)
    }

    /// The cluster it describes.
    pub const fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Starts anew with each restore from backup.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Grows with each change inside an epoch.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The pin it was checked against.
    pub const fn pin(&self) -> &Pin {
        &self.pin
    }

    /// The root.
    pub const fn root(&self) -> &RootCertificate {
        &self.root
    }

    /// The root's certificate: what `ca.pem` holds.
    pub const fn root_der(&self) -> &CertificateDer<'static> {
        self.root.der()
    }

    /// The certificates of the authorities of a class.
    pub fn authorities(&self, class: CaClass) -> &[CertificateDer<'static>] {
        &self.of_class(class).certificates
    }

    /// The signing keys that were valid when the bundle was verified.
    pub fn signing_keys(&self) -> &[SigningKeyCertificate] {
        &self.signing_keys
    }

    /// The public key with this id.
    pub fn signing_key(&self, key_id: &str) -> Option<[u8; 32]> {
        self.signing_keys
            .iter()
            .find(|key| key.key_id() == key_id)
            .map(|key| *key.public())
    }

    /// The bundle as it travels.
    pub fn to_raw(&self) -> RawBundle {
        let authorities = CaClass::ALL
            .into_iter()
            .flat_map(|class| {
                self.authorities(class)
                    .iter()
                    .map(move |der| (class, der.to_vec()))
            })
            .collect();
        RawBundle {
            cluster: self.cluster.clone(),
            epoch: self.epoch,
            version: self.version,
            root: self.root_der().to_vec(),
            authorities,
            signing_keys: self.signing_keys.iter().map(|key| key.der().to_vec()).collect(),
        }
    }

    /// Anchors of a class that are valid now: webpki does not check an anchor's own validity.
    pub(crate) fn anchors(&self, class: CaClass, now: OffsetDateTime) -> Vec<TrustAnchor<'_>> {
        self.of_class(class)
            .issuers
            .iter()
            .filter(|issuer| issuer.is_valid_at(now))
            .filter_map(|issuer| webpki::anchor_from_trusted_cert(issuer.der()).ok())
            .collect()
    }

    /// The last moment at which every authority of a class that is valid `now` still is. A verification of a certificate
    /// that such an authority issues has no other outcome before it, as long as the certificate itself is valid.
    pub fn valid_until(&self, class: CaClass, now: OffsetDateTime) -> OffsetDateTime {
        let issuers = self.of_class(class).issuers.iter();
        let valid = issuers.filter(|issuer| issuer.is_valid_at(now));
        valid.map(|issuer| issuer.not_after()).min().unwrap_or(now)
    }

    const fn of_class(&self, class: CaClass) -> &Authorities {
        match class {
            CaClass::System => &self.system,
            CaClass::User => &self.user,
            CaClass::Workload => &self.workload,
        }
    }

    fn add_authority(&mut self, class: CaClass, der: &[u8]) -> Result<(), BundleError> {
        let issuer = IssuerCertificate::parse(der)
            .and_then(|issuer| self.root.certified(issuer))
            .map_err(|reason| BundleError::Authority { class, reason })?;
        if issuer.class() != class {
            return Err(BundleError::WrongClass {
                said: class,
                found: issuer.class(),
            });
        }
        let authorities = match class {
            CaClass::System => &mut self.system,
            CaClass::User => &mut self.user,
            CaClass::Workload => &mut self.workload,
        };
        authorities.certificates.push(issuer.der().clone());
        authorities.issuers.push(issuer);
        Ok(())
    }
}

fn pinned_root(
    der: &[u8],
    pin: &Pin,
    cluster: &ClusterName,
    now: OffsetDateTime,
) -> Result<RootCertificate, BundleError> {
    let root = RootCertificate::parse(der).map_err(BundleError::Root)?;
    if root.pin() != *pin {
        return Err(BundleError::WrongPin {
            found: root.pin(),
            expected: *pin,
        });
    }
    if root.cluster() != cluster {
        return Err(BundleError::WrongCluster(root.cluster().clone()));
    }
    if !root.is_valid_at(now) {
        return Err(BundleError::Root(CaError::Validity));
    }
    Ok(root)
}

fn verified_keys(
    ders: &[Vec<u8>],
    root: &RootCertificate,
    cluster: &ClusterName,
    now: OffsetDateTime,
) -> Result<Vec<SigningKeyCertificate>, BundleError> {
    let mut keys = Vec::with_capacity(ders.len());
    for der in ders {
        let key = SigningKeyCertificate::parse(der, cluster)
            .and_then(|key| root.certified_key(key))
            .map_err(BundleError::SigningKey)?;
        if key.is_valid_at(now) {
            keys.push(key);
        }
    }
    Ok(keys)
}
