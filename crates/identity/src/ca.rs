//! Authorities' certificates, read strictly: the root, the authorities under it, and the certificates
//! of signing keys. A value of these types has the shape of the profile; [`RootCertificate::certified`]
//! says whether this root signed it.

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry;

use crate::class::CaClass;
use crate::names::ClusterName;
use crate::pin::Pin;
use crate::read;
use crate::signed;
use crate::uri::signing_key_uri;

/// Why an authority's certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// It cannot be read.
    #[error("the authority's certificate cannot be read: {0}")]
    Malformed(&'static str),
    /// It is readable, but not what an authority of ours looks like.
    #[error("the certificate is not one of this plane's authorities: {0}")]
    Profile(&'static str),
    /// Its subject is not `O=<cluster>, CN=<class> CA <8 hex of SKI>`.
    #[error("the authority's subject does not name its cluster, class and key")]
    Subject,
    /// The root did not sign it.
    #[error("the root did not certify it")]
    NotCertified,
    /// Its validity period is over or has not begun, or exceeds the root's.
    #[error("the authority's certificate is not valid at this time")]
    Validity,
}

/// The fields every authority's certificate shares.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Authority {
    der: CertificateDer<'static>,
    cluster: ClusterName,
    word: String,
    key_identifier: [u8; 20],
    spki: Vec<u8>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

/// The root: self-signed, offline-able, certifies every authority and signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootCertificate(Authority);

/// An authority of one class, under the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerCertificate {
    authority: Authority,
    /// What it issues.
    class: CaClass,
}

/// An Ed25519 key the root has certified for signing snapshots, beats, lock lists and bundles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKeyCertificate {
    der: CertificateDer<'static>,
    cluster: ClusterName,
    key_id: String,
    public: [u8; 32],
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

macro_rules! authority_accessors {
    ($($path:tt)+) => {
        /// The certificate.
        pub const fn der(&self) -> &CertificateDer<'static> {
            &self.$($path)+.der
        }

        /// The cluster it belongs to.
        pub const fn cluster(&self) -> &ClusterName {
            &self.$($path)+.cluster
        }

        /// Its start.
        pub const fn not_before(&self) -> OffsetDateTime {
            self.$($path)+.not_before
        }

        /// Its end.
        pub const fn not_after(&self) -> OffsetDateTime {
            self.$($path)+.not_after
        }

        /// The SubjectPublicKeyInfo.
        pub fn spki(&self) -> &[u8] {
            &self.$($path)+.spki
        }

        /// The leftmost 160 bits of SHA-256 over the public key (RFC 7093 §2 method 1).
        pub const fn key_identifier(&self) -> &[u8; 20] {
            &self.$($path)+.key_identifier
        }

        /// Whether `now` lies within its validity period.
        pub fn is_valid_at(&self, now: OffsetDateTime) -> bool {
            self.$($path)+.not_before <= now && now <= self.$($path)+.not_after
        }
    };
}

impl RootCertificate {
    authority_accessors!(0);

    /// Reads a root and checks its signature by itself.
    pub fn parse(der: &[u8]) -> Result<Self, CaError> {
        let authority = Authority::read(der, Some(1))?;
        if authority.word != "root" {
            return Err(CaError::Subject);
        }
        let certificate = read::certificate(der).map_err(CaError::Malformed)?;
        if certificate.issuer().as_raw() != certificate.subject().as_raw() {
            return Err(CaError::Profile("a root is its own issuer"));
        }
        certificate
            .verify_signature(None)
            .map_err(|_| CaError::NotCertified)?;
        Ok(Self(authority))
    }

    /// The pin that names this root.
    pub fn pin(&self) -> Pin {
        Pin::from_bytes(crate::sha256(&self.0.spki))
    }

    /// Passes on an authority that this root has certified.
    pub fn certified(&self, issuer: IssuerCertificate) -> Result<IssuerCertificate, CaError> {
        self.check_certified(issuer.der(), issuer.cluster())?;
        Ok(issuer)
    }

    /// Passes on a signing key that this root has certified.
    pub fn certified_key(&self, key: SigningKeyCertificate) -> Result<SigningKeyCertificate, CaError> {
        self.check_certified(&key.der, &key.cluster)?;
        Ok(key)
    }

    fn check_certified(&self, der: &[u8], cluster: &ClusterName) -> Result<(), CaError> {
        let root = read::certificate(&self.0.der).map_err(CaError::Malformed)?;
        let certificate = read::certificate(der).map_err(CaError::Malformed)?;
        let named = *cluster == self.0.cluster
            && certificate.issuer().as_raw() == root.subject().as_raw()
            && read::authority_key_identifier(&certificate).as_deref() == Some(&self.0.key_identifier);
        if !named || certificate.verify_signature(Some(root.public_key())).is_err() {
            return Err(CaError::NotCertified);
        }
        if read::not_after(&certificate) > self.0.not_after {
            return Err(CaError::Validity);
        }
        Ok(())
    }
}

impl IssuerCertificate {
    authority_accessors!(authority);

    /// Reads an authority's certificate. Whether the root certified it is [`RootCertificate::certified`]'s
    /// to say.
    pub fn parse(der: &[u8]) -> Result<Self, CaError> {
        let authority = Authority::read(der, Some(0))?;
        let class = CaClass::parse(&authority.word).ok_or(CaError::Subject)?;
        Ok(Self { authority, class })
    }

    /// What it issues.
    pub const fn class(&self) -> CaClass {
        self.class
    }
}

impl SigningKeyCertificate {
    /// Its end.
    pub const fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Reads the certificate of an Ed25519 signing key.
    pub fn parse(der: &[u8], cluster: &ClusterName) -> Result<Self, CaError> {
        let certificate = read::certificate(der).map_err(CaError::Malformed)?;
        if read::has_repeated_extension(&certificate) {
            return Err(CaError::Profile("an extension occurs twice"));
        }
        if certificate.is_ca() {
            return Err(CaError::Profile("a signing key is no authority"));
        }
        let public_key = certificate.public_key();
        if public_key.algorithm.algorithm != oid_registry::OID_SIG_ED25519 {
            return Err(CaError::Profile("a signing key is an Ed25519 key"));
        }
        let public: [u8; 32] = public_key
            .subject_public_key
            .data
            .as_ref()
            .try_into()
            .map_err(|_| CaError::Profile("an Ed25519 key has 32 bytes"))?;
        let key_id = signed::key_id(&public);
        if single_uri(&certificate).as_deref() != Some(&signing_key_uri(cluster, &key_id)) {
            return Err(CaError::Profile("a signing key's URI names its cluster and key"));
        }
        Ok(Self {
            der: CertificateDer::from(der.to_vec()),
            cluster: cluster.clone(),
            key_id,
            public,
            not_before: read::not_before(&certificate),
            not_after: read::not_after(&certificate),
        })
    }

    /// The certificate.
    pub const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The name signed objects refer to it by.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The raw public key.
    pub const fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Whether `now` lies within its validity period.
    pub fn is_valid_at(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

impl Authority {
    fn read(der: &[u8], path_length: Option<u32>) -> Result<Self, CaError> {
        let certificate = read::certificate(der).map_err(CaError::Malformed)?;
        if read::has_repeated_extension(&certificate) {
            return Err(CaError::Profile("an extension occurs twice"));
        }
        check_authority_extensions(&certificate, path_length)?;
        let public_key = certificate.public_key();
        let key_identifier = read::key_identifier(&public_key.subject_public_key.data);
        if read::subject_key_identifier(&certificate).as_deref() != Some(&key_identifier) {
            return Err(CaError::Profile("its key identifier is not that of its key"));
        }
        let (cluster, word) = read_subject(&certificate, &key_identifier)?;
        Ok(Self {
            der: CertificateDer::from(der.to_vec()),
            cluster,
            word,
            key_identifier,
            spki: public_key.raw.to_vec(),
            not_before: read::not_before(&certificate),
            not_after: read::not_after(&certificate),
        })
    }
}

/// The common name of an authority: unique by key (two authorities of one class overlap during rotation).
pub(crate) fn common_name(word: &str, key_identifier: &[u8; 20]) -> String {
    format!(
        "{word} CA {}",
        crate::text::hex(key_identifier.get(..4).unwrap_or_default())
    )
}

pub(crate) fn check_authority_extensions(
    certificate: &X509Certificate<'_>,
    path_length: Option<u32>,
) -> Result<(), CaError> {
    let mut constrained = false;
    let mut usage = false;
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => {
                constrained =
                    extension.critical && constraints.ca && constraints.path_len_constraint == path_length;
            }
            // keyCertSign is bit 5, cRLSign bit 6 (RFC 5280 §4.2.1.3).
            ParsedExtension::KeyUsage(bits) => usage = extension.critical && bits.flags == 0b110_0000,
            ParsedExtension::SubjectKeyIdentifier(_) | ParsedExtension::AuthorityKeyIdentifier(_) => {}
            _ => {
                return Err(CaError::Profile(
                    "it has an extension that belongs to no authority",
                ));
            }
        }
    }
    match (constrained, usage) {
        (true, true) => Ok(()),
        (false, _) => Err(CaError::Profile("its basic constraints are not an authority's")),
        (true, false) => Err(CaError::Profile("its key usage is not an authority's")),
    }
}

/// (cluster, class word) of `O=<cluster>, CN=<word> CA <8 hex>`.
fn read_subject(
    certificate: &X509Certificate<'_>,
    key_identifier: &[u8; 20],
) -> Result<(ClusterName, String), CaError> {
    let attributes: Vec<_> = certificate.subject().iter_attributes().collect();
    let [organization, common] = attributes.as_slice() else {
        return Err(CaError::Subject);
    };
    if *organization.attr_type() != oid_registry::OID_X509_ORGANIZATION_NAME
        || *common.attr_type() != oid_registry::OID_X509_COMMON_NAME
    {
        return Err(CaError::Subject);
    }
    let cluster = organization
        .as_str()
        .ok()
        .and_then(|name| ClusterName::parse(name).ok())
        .ok_or(CaError::Subject)?;
    let name = common.as_str().map_err(|_| CaError::Subject)?;
    let (word, _) = name.split_once(' ').ok_or(CaError::Subject)?;
    if name != common_name(word, key_identifier) {
        return Err(CaError::Subject);
    }
    Ok((cluster, word.to_owned()))
}

/// The URI, if it is the only alternative name.
fn single_uri(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })?;
    match names.as_slice() {
        [GeneralName::URI(uri)] => Some((*uri).to_owned()),
        _ => None,
    }
}
