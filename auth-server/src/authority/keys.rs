//! The authorities' keys and certificates in `data_dir`: made once, at the first start, and checked
//! against each other at every later one.

use std::path::Path;

use iap_identity::{
    AuthId, AuthorityError, CaClass, ClusterName, IssuerCertificate, Pin, RawBundle, RootCertificate, Serial,
    SignedKind, Signer as _, SigningKeyCertificate, TrustBundle, certify_ca, certify_signing_key, key_id,
    self_signed_root, signed_message,
};
use iap_proto::v1;
use iap_runtime::files::{DataDir, FileError};
use iap_runtime::keys::{self, KeyError, KeyKind};
use iap_runtime::tls::{certificates_from_pem, certificates_to_pem};
use rcgen::{KeyPair, PublicKeyData as _};
use time::OffsetDateTime;

use crate::context::{NoRandomness, Random};

/// The database's name in `data_dir`.
pub const DATABASE_FILE: &str = "auth.db";
/// The file that a complete `data_dir` has; written last.
pub(crate) const AUTH_ID_FILE: &str = "auth_id";
const ROOT_KEY_FILE: &str = "root.key.pem";
const ROOT_FILE: &str = "root.pem";
const SNAPSHOT_KEY_FILE: &str = "snapshot.key.pem";
const SNAPSHOT_FILE: &str = "snapshot.pem";
pub(super) const CA_DIRECTORY: &str = "ca";

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file or directory is missing, damaged, or open to others.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// An authority could not be made.
    #[error("an authority could not be made: {0}")]
    Authority(#[from] AuthorityError),
    /// No serial could be drawn.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The parts do not belong together.
    #[error("{0}")]
    Inconsistent(String),
}

/// An authority's certificate and the key that belongs to it.
#[derive(Debug)]
pub struct Issuer {
    /// The certificate.
    pub certificate: IssuerCertificate,
    /// Its key.
    pub key: KeyPair,
}

/// Everything in `data_dir` but the database. The root's key is only needed to certify authorities and
/// may be kept elsewhere.
#[derive(Debug)]
pub struct AuthorityKeys {
    /// This auth server's id.
    pub auth_id: AuthId,
    /// The root.
    pub root: RootCertificate,
    /// Issues for agents, proxies and auth servers.
    pub system: Issuer,
    /// Issues for users and bots.
    pub user: Issuer,
    /// Will issue for workloads.
    pub workload: Issuer,
    /// Signs snapshots, beats, locks and bundles.
    pub signer: FeedSigner,
}

/// Signs what agents and proxies live from.
#[derive(Debug)]
pub struct FeedSigner {
    key: KeyPair,
    key_id: String,
    certificate: Vec<u8>,
}

/// Nothing was signed.
#[derive(Debug, thiserror::Error)]
#[error("signing failed: {0}")]
pub struct SignError(#[from] rcgen::Error);

impl FeedSigner {
    /// Signs a payload as what it is.
    pub fn sign(&self, kind: SignedKind, payload: Vec<u8>) -> Result<v1::Signed, SignError> {
        let signature = self.key.sign(&signed_message(kind, &payload))?;
        Ok(v1::Signed {
            key_id: self.key_id.clone(),
            payload,
            signature,
        })
    }
}

impl AuthorityKeys {
    /// Whether `data_dir` has never been used.
    pub fn is_first_start(dir: &DataDir) -> Result<bool, KeysError> {
        Ok(dir.read(AUTH_ID_FILE)?.is_none())
    }

    /// Makes every key and certificate. Can be repeated when it was interrupted: `auth_id` is written last.
    pub fn create(
        dir: &DataDir,
        cluster: &ClusterName,
        now: OffsetDateTime,
        random: &Random,
    ) -> Result<(), KeysError> {
        if dir.join(DATABASE_FILE).exists() {
            let path = dir.path().display();
            let why = format!("{path} has a database but no {AUTH_ID_FILE}: restore the missing files");
            return Err(KeysError::Inconsistent(why));
        }
        let root_key = keys::load_or_create(&dir.join(ROOT_KEY_FILE), KeyKind::P256)?;
        let serial = || Ok::<_, NoRandomness>(Serial::from_random(random.bytes()?));
        let root = self_signed_root(cluster, &root_key, now, serial()?)?;
        write_certificate(dir, ROOT_FILE, &root)?;
        let root = RootCertificate::parse(&root).map_err(AuthorityError::from)?;
        let authorities = dir.subdirectory(CA_DIRECTORY)?;
        for class in CaClass::ALL {
            let key = keys::load_or_create(&authorities.join(&key_file(class)), KeyKind::P256)?;
            let spki = key.subject_public_key_info();
            let certificate = certify_ca(class, cluster, &spki, &root, &root_key, now, serial()?)?;
            write_certificate(&authorities, &certificate_file(class), &certificate)?;
        }
        let key = keys::load_or_create(&dir.join(SNAPSHOT_KEY_FILE), KeyKind::Ed25519)?;
        let public = raw_public_key(&key)?;
        let certificate = certify_signing_key(cluster, &public, &root, &root_key, now, serial()?)?;
        write_certificate(dir, SNAPSHOT_FILE, &certificate)?;
        let auth_id = AuthId::from_uuid(random.uuid_v7(now)?);
        dir.write(AUTH_ID_FILE, format!("{auth_id}\n").as_bytes())?;
        Ok(())
    }

    /// Reads everything and checks that it belongs together and to this cluster.
    pub fn load(dir: &DataDir, cluster: &ClusterName, now: OffsetDateTime) -> Result<Self, KeysError> {
        let auth_id = dir.read(AUTH_ID_FILE)?.unwrap_or_default();
        let auth_id = AuthId::parse(String::from_utf8_lossy(&auth_id).trim())
            .map_err(|error| inconsistent(&dir.join(AUTH_ID_FILE), error))?;
        Self::load_as(auth_id, dir, cluster, now)
    }

    /// The same for a `data_dir` whose id is not in it yet.
    pub(crate) fn load_as(
        auth_id: AuthId,
        dir: &DataDir,
        cluster: &ClusterName,
        now: OffsetDateTime,
    ) -> Result<Self, KeysError> {
        let root_der = read_certificate(dir, ROOT_FILE)?;
        let root =
            RootCertificate::parse(&root_der).map_err(|error| inconsistent(&dir.join(ROOT_FILE), error))?;
        let authorities = dir.subdirectory(CA_DIRECTORY)?;
        let keys = Self {
            auth_id,
            root,
            system: Issuer::load(&authorities, CaClass::System)?,
            user: Issuer::load(&authorities, CaClass::User)?,
            workload: Issuer::load(&authorities, CaClass::Workload)?,
            signer: FeedSigner::load(dir)?,
        };
        keys.bundle(cluster, 1, 1, now)?;
        Ok(keys)
    }

    /// The root's pin.
    pub fn pin(&self) -> Pin {
        self.root.pin()
    }

    /// What each certificate is for, and its end.
    ///
    /// # Errors
    /// When the signing key's certificate is damaged.
    pub fn ends(&self) -> Result<[(&'static str, OffsetDateTime); 5], KeysError> {
        let signer = SigningKeyCertificate::parse(&self.signer.certificate, self.root.cluster());
        let signer = signer.map_err(AuthorityError::from)?;
        Ok([
            ("root", self.root.not_after()),
            ("system", self.system.certificate.not_after()),
            ("user", self.user.certificate.not_after()),
            ("workload", self.workload.certificate.not_after()),
            ("snapshot", signer.not_after()),
        ])
    }

    /// The trust bundle, checked as its receivers will check it.
    pub fn bundle(
        &self,
        cluster: &ClusterName,
        epoch: u64,
        version: u64,
        now: OffsetDateTime,
    ) -> Result<TrustBundle, KeysError> {
        let authorities = [&self.system, &self.user, &self.workload]
            .map(|issuer| (issuer.certificate.class(), issuer.certificate.der().to_vec()));
        let raw = RawBundle {
            cluster: cluster.clone(),
            epoch,
            version,
            root: self.root.der().to_vec(),
            authorities: authorities.to_vec(),
            signing_keys: vec![self.signer.certificate.clone()],
        };
        TrustBundle::verify(raw, &self.pin(), cluster, now).map_err(|error| {
            KeysError::Inconsistent(format!(
                "the keys in data_dir do not belong to this cluster: {error}"
            ))
        })
    }
}

impl Issuer {
    fn load(dir: &DataDir, class: CaClass) -> Result<Self, KeysError> {
        let path = dir.join(&certificate_file(class));
        let der = read_certificate(dir, &certificate_file(class))?;
        let certificate = IssuerCertificate::parse(&der).map_err(|error| inconsistent(&path, error))?;
        let key = keys::load(&dir.join(&key_file(class)), KeyKind::P256)?;
        if key.subject_public_key_info() != certificate.spki() {
            return Err(inconsistent(&path, "is not the certificate of the key beside it"));
        }
        Ok(Self { certificate, key })
    }
}

impl FeedSigner {
    fn load(dir: &DataDir) -> Result<Self, KeysError> {
        let certificate = read_certificate(dir, SNAPSHOT_FILE)?;
        let key = keys::load(&dir.join(SNAPSHOT_KEY_FILE), KeyKind::Ed25519)?;
        let key_id = key_id(&raw_public_key(&key)?);
        Ok(Self {
            key,
            key_id,
            certificate,
        })
    }
}

fn key_file(class: CaClass) -> String {
    format!("{}.key.pem", class.as_str())
}

fn certificate_file(class: CaClass) -> String {
    format!("{}.pem", class.as_str())
}

fn raw_public_key(key: &KeyPair) -> Result<[u8; 32], KeysError> {
    key.der_bytes()
        .try_into()
        .map_err(|_| KeysError::Inconsistent("the snapshot key is not Ed25519".to_owned()))
}

fn write_certificate(dir: &DataDir, name: &str, der: &[u8]) -> Result<(), KeysError> {
    Ok(dir.write(name, certificates_to_pem([der]).as_bytes())?)
}

pub(super) fn read_certificate(dir: &DataDir, name: &str) -> Result<Vec<u8>, KeysError> {
    let path = dir.join(name);
    let pem = dir.read(name)?.ok_or_else(|| inconsistent(&path, "is missing"))?;
    let certificates = certificates_from_pem(&pem).map_err(|error| inconsistent(&path, error))?;
    let first = certificates
        .first()
        .ok_or_else(|| inconsistent(&path, "holds no certificate"))?;
    Ok(first.to_vec())
}

pub(super) fn inconsistent(path: &Path, why: impl std::fmt::Display) -> KeysError {
    KeysError::Inconsistent(format!("{}: {why}", path.display()))
}
