//! Making the plane's authorities: the root, the authorities under it and certified signing keys. Each
//! finished certificate is read back and checked before it is returned.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, KeyIdMethod,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use crate::Signer;
use crate::ca::common_name;
pub use crate::ca::{CaError, IssuerCertificate, RootCertificate, SigningKeyCertificate};
use crate::class::CaClass;
use crate::issue::{CLOCK_SKEW, Serial};
use crate::names::ClusterName;
use crate::read;
use crate::signed::key_id;
use crate::uri::signing_key_uri;

/// How long a root lives.
pub const ROOT_LIFE: Duration = Duration::days(20 * 365);
/// How long an authority under the root lives.
pub const CA_LIFE: Duration = Duration::days(5 * 365);
/// How long a certified signing key lives.
pub const SIGNING_KEY_LIFE: Duration = Duration::days(5 * 365);

/// The DER of an Ed25519 SubjectPublicKeyInfo before the 32 bytes of the key (RFC 8410 §4).
const ED25519_SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Why an authority could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// The public key to be certified is not one of the key policy.
    #[error("an authority's key is P-256 or P-384")]
    Key,
    /// The signing key does not belong to the root certificate.
    #[error("the signing key is not the root's")]
    WrongSigner,
    /// The signer failed.
    #[error("signing failed: {0}")]
    Sign(String),
    /// The finished certificate does not hold what it should; nothing was released.
    #[error(transparent)]
    Unsound(#[from] CaError),
}

/// A new root for the cluster. `key` is P-256 or P-384, so that every client's TLS library accepts it.
pub fn self_signed_root(
    cluster: &ClusterName,
    key: &dyn Signer,
    now: OffsetDateTime,
    serial: Serial,
) -> Result<Vec<u8>, AuthorityError> {
    require_ecdsa(&key)?;
    let mut params = authority_params(cluster, "root", &key, serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    (params.not_before, params.not_after) = period(now, ROOT_LIFE, None);
    let certificate = params
        .self_signed(&key)
        .map_err(|error| AuthorityError::Sign(error.to_string()))?;
    RootCertificate::parse(certificate.der())?;
    Ok(certificate.der().to_vec())
}

/// Certifies an authority of `class` under the root.
pub fn certify_ca(
    class: CaClass,
    cluster: &ClusterName,
    public_key_spki: &[u8],
    root: &RootCertificate,
    root_key: &dyn Signer,
    now: OffsetDateTime,
    serial: Serial,
) -> Result<Vec<u8>, AuthorityError> {
    let public_key = SubjectPublicKeyInfo::from_der(public_key_spki).map_err(|_| AuthorityError::Key)?;
    require_ecdsa(&public_key)?;
    let mut params = authority_params(cluster, class.as_str(), &public_key, serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = period(now, CA_LIFE, Some(root.not_after()));
    let der = sign_under_root(&params, &public_key, root, root_key)?;
    root.certified(IssuerCertificate::parse(&der)?)?;
    Ok(der.to_vec())
}

/// Certifies an Ed25519 key under the root for signing snapshots, beats, lock lists and bundles.
pub fn certify_signing_key(
    cluster: &ClusterName,
    ed25519_public: &[u8; 32],
    root: &RootCertificate,
    root_key: &dyn Signer,
    now: OffsetDateTime,
    serial: Serial,
) -> Result<Vec<u8>, AuthorityError> {
    let spki = [ED25519_SPKI_PREFIX.as_slice(), ed25519_public].concat();
    let public_key = SubjectPublicKeyInfo::from_der(&spki).map_err(|_| AuthorityError::Key)?;
    let uri = signing_key_uri(cluster, &key_id(ed25519_public));
    let mut params = base_params(&public_key, serial);
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(|_| AuthorityError::Key)?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = period(now, SIGNING_KEY_LIFE, Some(root.not_after()));
    let der = sign_under_root(&params, &public_key, root, root_key)?;
    root.certified_key(SigningKeyCertificate::parse(&der, cluster)?)?;
    Ok(der.to_vec())
}

/// Parameters with every default of rcgen's replaced (its own are unsafe for an authority).
pub(crate) fn base_params(public_key: &impl PublicKeyData, serial: Serial) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.subject_alt_names = Vec::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = Vec::new();
    params.extended_key_usages = Vec::new();
    params.name_constraints = None;
    params.crl_distribution_points = Vec::new();
    params.custom_extensions = Vec::new();
    params.use_authority_key_identifier_extension = false;
    params.key_identifier_method =
        KeyIdMethod::PreSpecified(read::key_identifier(public_key.der_bytes()).to_vec());
    params
}

fn authority_params(
    cluster: &ClusterName,
    word: &str,
    public_key: &impl PublicKeyData,
    serial: Serial,
) -> CertificateParams {
    let mut params = base_params(public_key, serial);
    let common = common_name(word, &read::key_identifier(public_key.der_bytes()));
    params
        .distinguished_name
        .push(DnType::OrganizationName, DnValue::Utf8String(cluster.to_string()));
    params
        .distinguished_name
        .push(DnType::CommonName, DnValue::Utf8String(common));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(crate) fn require_ecdsa(key: &impl PublicKeyData) -> Result<(), AuthorityError> {
    let algorithm = key.algorithm();
    if *algorithm == rcgen::PKCS_ECDSA_P256_SHA256 || *algorithm == rcgen::PKCS_ECDSA_P384_SHA384 {
        Ok(())
    } else {
        Err(AuthorityError::Key)
    }
}

pub(crate) fn period(
    now: OffsetDateTime,
    life: Duration,
    limit: Option<OffsetDateTime>,
) -> (OffsetDateTime, OffsetDateTime) {
    let end = now + life;
    (now - CLOCK_SKEW, limit.map_or(end, |limit| end.min(limit)))
}

fn sign_under_root(
    params: &CertificateParams,
    public_key: &impl PublicKeyData,
    root: &RootCertificate,
    root_key: &dyn Signer,
) -> Result<CertificateDer<'static>, AuthorityError> {
    if root_key.subject_public_key_info() != root.spki() {
        return Err(AuthorityError::WrongSigner);
    }
    let failed = |error: rcgen::Error| AuthorityError::Sign(error.to_string());
    let issuer = rcgen::Issuer::from_ca_cert_der(root.der(), root_key).map_err(failed)?;
    Ok(params
        .signed_by(public_key, &issuer)
        .map_err(failed)?
        .der()
        .clone())
}
