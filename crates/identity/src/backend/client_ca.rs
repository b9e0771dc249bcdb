//! A service's X.509 client authority: what a backend is told to trust, and nothing else does.

use rcgen::{BasicConstraints, DnType, DnValue, IsCa, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry;

use crate::Signer;
use crate::authority::{AuthorityError, CA_LIFE, base_params, period, require_ecdsa};
use crate::ca::{CaError, check_authority_extensions, common_name};
use crate::issue::Serial;
use crate::names::{ClusterName, ServiceName};
use crate::read;

/// The word in the common name.
const WORD: &str = "client";

/// The certificate of a service's client authority: self-signed, subject
/// `O=<cluster>, OU=<service>, CN=client CA <8 hex of SKI>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCa {
    der: CertificateDer<'static>,
    cluster: ClusterName,
    service: ServiceName,
    key_identifier: [u8; 20],
    spki: Vec<u8>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl ClientCa {
    /// Reads the certificate and checks its signature by itself.
    pub fn parse(der: &[u8]) -> Result<Self, CaError> {
        let certificate = read::certificate(der).map_err(CaError::Malformed)?;
        if read::has_repeated_extension(&certificate) {
            return Err(CaError::Profile("an extension occurs twice"));
        }
        check_authority_extensions(&certificate, Some(0))?;
        let public_key = certificate.public_key();
        let key_identifier = read::key_identifier(&public_key.subject_public_key.data);
        if read::subject_key_identifier(&certificate).as_deref() != Some(&key_identifier) {
            return Err(CaError::Profile("its key identifier is not that of its key"));
        }
        let (cluster, service) = read_subject(&certificate, &key_identifier)?;
        if certificate.issuer().as_raw() != certificate.subject().as_raw() {
            return Err(CaError::Profile("a service's authority is its own issuer"));
        }
        certificate
            .verify_signature(None)
            .map_err(|_| CaError::NotCertified)?;
        Ok(Self {
            der: CertificateDer::from(der.to_vec()),
            cluster,
            service,
            key_identifier,
            spki: public_key.raw.to_vec(),
            not_before: read::not_before(&certificate),
            not_after: read::not_after(&certificate),
        })
    }

    /// The certificate.
    pub const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Whose cluster it belongs to.
    pub const fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Whose logins it certifies.
    pub const fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The leftmost 160 bits of SHA-256 over the public key (RFC 7093 §2 method 1).
    pub const fn key_identifier(&self) -> &[u8; 20] {
        &self.key_identifier
    }

    /// The SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Its end.
    pub const fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Whether `now` lies within its validity period.
    pub fn is_valid_at(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// A new client authority for a service. `key` is P-256 or P-384, which every backend's TLS library accepts.
pub fn self_signed_client_ca(
    cluster: &ClusterName,
    service: &ServiceName,
    key: &dyn Signer,
    now: OffsetDateTime,
    serial: Serial,
) -> Result<ClientCa, AuthorityError> {
    require_ecdsa(&key)?;
    let mut params = base_params(&key, serial);
    let common = common_name(WORD, &read::key_identifier(key.der_bytes()));
    let names = [
        (DnType::OrganizationName, cluster.to_string()),
        (DnType::OrganizationalUnitName, service.to_string()),
        (DnType::CommonName, common),
    ];
    for (kind, value) in names {
        params.distinguished_name.push(kind, DnValue::Utf8String(value));
    }
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    (params.not_before, params.not_after) = period(now, CA_LIFE, None);
    let certificate = params
        .self_signed(&key)
        .map_err(|error| AuthorityError::Sign(error.to_string()))?;
    Ok(ClientCa::parse(certificate.der())?)
}

/// (cluster, service) of `O=<cluster>, OU=<service>, CN=client CA <8 hex>`.
fn read_subject(
    certificate: &X509Certificate<'_>,
    key_identifier: &[u8; 20],
) -> Result<(ClusterName, ServiceName), CaError> {
    let kinds = [
        oid_registry::OID_X509_ORGANIZATION_NAME,
        oid_registry::OID_X509_ORGANIZATIONAL_UNIT,
        oid_registry::OID_X509_COMMON_NAME,
    ];
    let attributes: Vec<_> = certificate.subject().iter_attributes().collect();
    if !attributes
        .iter()
        .map(|attribute| attribute.attr_type())
        .eq(kinds.iter())
    {
        return Err(CaError::Subject);
    }
    let text = |index: usize| {
        attributes
            .get(index)
            .and_then(|attribute| attribute.as_str().ok())
    };
    if text(2) != Some(common_name(WORD, key_identifier).as_str()) {
        return Err(CaError::Subject);
    }
    let cluster = text(0).and_then(|name| ClusterName::parse(name).ok());
    let service = text(1).and_then(|name| ServiceName::parse(name).ok());
    cluster.zip(service).ok_or(CaError::Subject)
}
