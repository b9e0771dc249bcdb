//! Certificates by which an agent logs in to a backend that verifies clients (PostgreSQL's `cert` method): subject
//! `CN=<login>` and no alternative name, because the backend compares the common name with the account.

use rcgen::{DnType, DnValue, ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry;

use super::{BACKEND_CERTIFICATE_LIFE_MAX, ClientCa};
use crate::Signer;
use crate::authority::base_params;
use crate::issue::{CLOCK_SKEW, Serial};
use crate::names::LoginName;
use crate::path::{self, Usage};
use crate::peer::PeerError;
use crate::profile::whole_seconds;
use crate::read;
use crate::request::Request;

/// A certificate for one login at one service's backend; only [`ClientLeaf::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientLeaf {
    der: CertificateDer<'static>,
    login: LoginName,
    serial: String,
    key_thumbprint: [u8; 32],
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

/// Why a certificate is not one for a login at this service's backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientLeafError {
    /// The service's authority did not issue it for clients, or it is not valid now.
    #[error("the login's certificate does not verify: {0}")]
    Path(#[from] PeerError),
    /// It cannot be read.
    #[error("the login's certificate cannot be read: {0}")]
    Malformed(&'static str),
    /// It has another form than such certificates have.
    #[error("the login's certificate breaks the profile: {0}")]
    Profile(&'static str),
}

/// Why a certificate for a login was not released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientLeafIssueError {
    /// The authority's certificate is not valid now.
    #[error("the service's client authority is not valid at this time")]
    AuthorityNotValid,
    /// The signing key is not the authority's.
    #[error("the signing key is not the service's client authority's")]
    WrongSigner,
    /// The signer failed.
    #[error("signing failed: {0}")]
    Sign(String),
    /// The finished certificate does not verify: our own fault.
    #[error(transparent)]
    Unsound(#[from] ClientLeafError),
    /// The finished certificate says something else than was asked for: our own fault.
    #[error("the new certificate's {0} differs from what was approved")]
    Differs(&'static str),
}

/// Issues a certificate for `login`, at most [`BACKEND_CERTIFICATE_LIFE_MAX`] long, and verifies what came out.
pub fn issue_client_leaf(
    request: &Request,
    login: &LoginName,
    ca: &ClientCa,
    signer: &dyn Signer,
    now: OffsetDateTime,
    serial: Serial,
) -> Result<ClientLeaf, ClientLeafIssueError> {
    if signer.subject_public_key_info() != ca.spki() {
        return Err(ClientLeafIssueError::WrongSigner);
    }
    if !ca.is_valid_at(now) {
        return Err(ClientLeafIssueError::AuthorityNotValid);
    }
    let now = whole_seconds(now);
    let mut params = base_params(request.public_key(), serial);
    params
        .distinguished_name
        .push(DnType::CommonName, DnValue::Utf8String(login.to_string()));
    params.not_before = now - CLOCK_SKEW;
    params.not_after = (now + BACKEND_CERTIFICATE_LIFE_MAX).min(ca.not_after());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let failed = |error: rcgen::Error| ClientLeafIssueError::Sign(error.to_string());
    let issuer = rcgen::Issuer::from_ca_cert_der(ca.der(), signer).map_err(failed)?;
    let certificate = params.signed_by(request.public_key(), &issuer).map_err(failed)?;
    let leaf = ClientLeaf::verify(certificate.der(), ca, now)?;
    let same = [
        ("login", leaf.login == *login),
        ("public key", leaf.key_thumbprint == request.spki_sha256()),
        ("serial", leaf.serial == serial.hex()),
        ("end", leaf.not_after == params.not_after),
    ];
    match same.into_iter().find(|(_, equal)| !equal) {
        Some((what, _)) => Err(ClientLeafIssueError::Differs(what)),
        None => Ok(leaf),
    }
}

impl ClientLeaf {
    /// Reads a certificate that this service's authority has issued for a login, and that is valid now: webpki's
    /// path validation anchored at that authority alone, then the profile's rules one by one.
    pub fn verify(der: &[u8], ca: &ClientCa, now: OffsetDateTime) -> Result<Self, ClientLeafError> {
        let der = CertificateDer::from(der.to_vec());
        let anchor = webpki::anchor_from_trusted_cert(ca.der())
            .map_err(|error| PeerError::Malformed(error.to_string()))?;
        path::verify(&der, &[anchor], Usage::Client, now)?;
        let certificate = read::certificate(&der).map_err(ClientLeafError::Malformed)?;
        check_fields(&certificate, ca)?;
        check_extensions(&certificate, ca)?;
        let (login, serial) = (read_login(&certificate)?, read::serial_hex(&certificate));
        let key_thumbprint = crate::sha256(certificate.public_key().raw);
        let (not_before, not_after) = (read::not_before(&certificate), read::not_after(&certificate));
        Ok(Self {
            login,
            serial,
            key_thumbprint,
            not_before,
            not_after,
            der,
        })
    }

    /// The certificate.
    pub const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The account it is for.
    pub const fn login(&self) -> &LoginName {
        &self.login
    }

    /// The serial in lower-case hex.
    pub fn serial_hex(&self) -> &str {
        &self.serial
    }

    /// SHA-256 of its key's SubjectPublicKeyInfo.
    pub const fn key_thumbprint(&self) -> &[u8; 32] {
        &self.key_thumbprint
    }

    /// Its start.
    pub const fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    /// Its end.
    pub const fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }
}

fn read_login(certificate: &X509Certificate<'_>) -> Result<LoginName, ClientLeafError> {
    let attributes: Vec<_> = certificate.subject().iter_attributes().collect();
    let [common] = attributes.as_slice() else {
        return Err(ClientLeafError::Profile("its subject is more than one name"));
    };
    if *common.attr_type() != oid_registry::OID_X509_COMMON_NAME {
        return Err(ClientLeafError::Profile("its subject is no common name"));
    }
    let name = common.as_str().ok().and_then(|name| LoginName::parse(name).ok());
    name.ok_or(ClientLeafError::Profile("its subject is no login"))
}

fn check_fields(certificate: &X509Certificate<'_>, ca: &ClientCa) -> Result<(), ClientLeafError> {
    let authority = read::certificate(ca.der()).map_err(ClientLeafError::Malformed)?;
    let life = read::not_after(certificate) - read::not_before(certificate);
    let serial = certificate.raw_serial();
    let rules = [
        (
            certificate.issuer().as_raw() == authority.subject().as_raw(),
            "its issuer is not the authority's subject",
        ),
        (
            life > Duration::ZERO && life <= BACKEND_CERTIFICATE_LIFE_MAX + CLOCK_SKEW,
            "it lives for more than 24 h",
        ),
        (
            read::not_after(certificate) <= ca.not_after(),
            "it outlives its authority",
        ),
        (
            serial.len() == 20 && serial.first().is_some_and(|byte| *byte < 0x80),
            "its serial is not a positive number of 20 bytes",
        ),
        (
            !read::has_repeated_extension(certificate),
            "an extension occurs twice",
        ),
    ];
    hold(&rules)
}

/// Exactly the extensions of the profile: no alternative name, and nothing a backend might read more into.
fn check_extensions(certificate: &X509Certificate<'_>, ca: &ClientCa) -> Result<(), ClientLeafError> {
    let (mut constrained, mut usage, mut extended) = (false, false, false);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => {
                constrained =
                    extension.critical && !constraints.ca && constraints.path_len_constraint.is_none();
            }
            // digitalSignature is bit 0 (RFC 5280 §4.2.1.3).
            ParsedExtension::KeyUsage(bits) => usage = extension.critical && bits.flags == 1,
            ParsedExtension::ExtendedKeyUsage(usages) => {
                let foreign = usages.any
                    || usages.server_auth
                    || usages.code_signing
                    || usages.email_protection
                    || usages.time_stamping
                    || usages.ocsp_signing
                    || !usages.other.is_empty();
                extended = !extension.critical && usages.client_auth && !foreign;
            }
            ParsedExtension::SubjectKeyIdentifier(_) | ParsedExtension::AuthorityKeyIdentifier(_)
                if !extension.critical => {}
            _ => {
                return Err(ClientLeafError::Profile(
                    "it has an extension that does not belong",
                ));
            }
        }
    }
    let own = read::key_identifier(&certificate.public_key().subject_public_key.data);
    let rules = [
        (constrained, "its basic constraints are not critical cA=FALSE"),
        (usage, "its key usage is not critical digitalSignature"),
        (extended, "its extended key usage is not clientAuth alone"),
        (
            read::subject_key_identifier(certificate).as_deref() == Some(&own),
            "its subject key identifier is not that of its key",
        ),
        (
            read::authority_key_identifier(certificate).as_deref() == Some(ca.key_identifier()),
            "its authority key identifier is not that of its authority",
        ),
    ];
    hold(&rules)
}

fn hold(rules: &[(bool, &'static str)]) -> Result<(), ClientLeafError> {
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, otherwise)) => Err(ClientLeafError::Profile(otherwise)),
        None => Ok(()),
    }
}
