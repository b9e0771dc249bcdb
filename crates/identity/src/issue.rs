//! Issuing as a typestate: [`Request`] → [`Approved`] → [`Prepared`] → [`Unverified`] → [`Issued`].
//! Each step consumes the one before, and only [`Unverified::finish`] makes an [`Issued`]: a certificate
//! that was not verified cannot leave.

use rcgen::{CertificateParams, CustomExtension, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use crate::Signer;
use crate::authority::{IssuerCertificate, base_params};
use crate::class::CaClass;
use crate::extension::{ExtensionError, IDENTITY_EXTENSION_OID_PARTS};
use crate::leaf::Leaf;
use crate::lint::{self, LintError};
use crate::path::{self, Usage};
use crate::peer::PeerError;
use crate::profile::{Profile, whole_seconds};
use crate::request::Request;

/// How far back a certificate's start is put, for clocks that are behind.
pub const CLOCK_SKEW: Duration = Duration::seconds(60);

/// A certificate's serial: 20 bytes, positive, always the full length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serial([u8; 20]);

impl Serial {
    /// Makes a serial of 158 random bits: the top bit is cleared (RFC 5280 §4.1.2.2 wants a positive
    /// number of at most 20 bytes) and the next one set.
    pub const fn from_random(random: [u8; 20]) -> Self {
        let [first, rest @ ..] = random;
        let mut bytes = [0; 20];
        let (head, tail) = bytes.split_at_mut(1);
        head.copy_from_slice(&[first & 0x7f | 0x40]);
        tail.copy_from_slice(&rest);
        Self(bytes)
    }

    /// A serial of 63 bits made of its last bytes, for formats with room for no more.
    pub fn short(&self) -> u64 {
        self.0
            .iter()
            .rev()
            .take(8)
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
            >> 1
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// Lower-case hex.
    pub fn hex(&self) -> String {
        crate::text::hex(&self.0)
    }
}

/// Why a certificate could not be prepared or signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// The authority issues for another class.
    #[error("a certificate of the {needed} authority cannot be issued by the {found} authority")]
    WrongAuthority {
        /// The class the profile needs.
        needed: CaClass,
        /// The class of the authority given.
        found: CaClass,
    },
    /// The authority belongs to another cluster.
    #[error("the authority belongs to another cluster")]
    WrongCluster,
    /// The authority's certificate is not valid now.
    #[error("the authority's certificate is not valid at this time")]
    AuthorityNotValid,
    /// The login deadline has passed: nothing would be left to live.
    #[error("the login is over")]
    LoginOver,
    /// A name cannot be written into a certificate.
    #[error("a name cannot be written into a certificate")]
    Name,
    /// The identity extension cannot be written.
    #[error(transparent)]
    Extension(#[from] ExtensionError),
    /// The signing key is not the authority's.
    #[error("the signing key is not the authority's")]
    WrongSigner,
    /// The signer failed.
    #[error("signing failed: {0}")]
    Sign(String),
}

/// Why a finished certificate was not released: always our own fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// It does not verify.
    #[error("the new certificate does not verify: {0}")]
    Verify(#[from] PeerError),
    /// It does not say what the profile says.
    #[error("the new certificate's {0} differs from what was approved")]
    Differs(&'static str),
    /// It breaks a rule of the profile.
    #[error("the new certificate breaks the profile: {0}")]
    Lint(#[from] LintError),
}

/// A proven key and what its certificate is to say.
#[derive(Debug, Clone)]
pub struct Approved {
    request: Request,
    profile: Profile,
}

/// Everything but the signature.
#[derive(Debug)]
pub struct Prepared {
    approved: Approved,
    params: CertificateParams,
    serial: Serial,
    issuer: IssuerCertificate,
}

/// Signed, and not yet to be trusted with.
#[derive(Debug)]
pub struct Unverified {
    prepared: Prepared,
    der: CertificateDer<'static>,
}

/// A certificate that may leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    leaf: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    serial: String,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Request {
    /// Decides what the certificate for this key will say.
    pub const fn approve(self, profile: Profile) -> Approved {
        Approved {
            request: self,
            profile,
        }
    }
}

impl Approved {
    /// Lays the certificate out: `notBefore = now − 60 s`,
    /// `notAfter = min(now + life, authority's end, login deadline)`.
    pub fn prepare(
        self,
        now: OffsetDateTime,
        serial: Serial,
        issuer: &IssuerCertificate,
    ) -> Result<Prepared, PrepareError> {
        self.check_issuer(issuer, now)?;
        let profile = &self.profile;
        let now = whole_seconds(now);
        let mut not_after = (now + profile.life()).min(issuer.not_after());
        if let Some(deadline) = profile.login_deadline() {
            not_after = not_after.min(whole_seconds(deadline));
        }
        if not_after <= now {
            return Err(PrepareError::LoginOver);
        }
        let mut params = base_params(self.request.public_key(), serial);
        params.not_before = now - CLOCK_SKEW;
        params.not_after = not_after;
        params.subject_alt_names = profile.alternative_names().ok_or(PrepareError::Name)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = profile.extended_key_usages();
        params.use_authority_key_identifier_extension = true;
        if let Some(extension) = profile.extension() {
            let content = extension.to_der()?;
            params.custom_extensions = vec![CustomExtension::from_oid_content(
                &IDENTITY_EXTENSION_OID_PARTS,
                content,
            )];
        }
        Ok(Prepared {
            approved: self,
            params,
            serial,
            issuer: issuer.clone(),
        })
    }

    fn check_issuer(&self, issuer: &IssuerCertificate, now: OffsetDateTime) -> Result<(), PrepareError> {
        let (needed, found) = (self.profile.ca_class(), issuer.class());
        if needed != found {
            return Err(PrepareError::WrongAuthority { needed, found });
        }
        if issuer.cluster() != self.profile.cluster() {
            return Err(PrepareError::WrongCluster);
        }
        if !issuer.is_valid_at(now) {
            return Err(PrepareError::AuthorityNotValid);
        }
        Ok(())
    }
}

impl Prepared {
    /// The serial the certificate will have, for the audit record that precedes its release.
    pub fn serial_hex(&self) -> String {
        self.serial.hex()
    }

    /// Signs with the authority's key.
    pub fn sign(self, signer: &dyn Signer) -> Result<Unverified, PrepareError> {
        if signer.subject_public_key_info() != self.issuer.spki() {
            return Err(PrepareError::WrongSigner);
        }
        let failed = |error: rcgen::Error| PrepareError::Sign(error.to_string());
        let issuer = rcgen::Issuer::from_ca_cert_der(self.issuer.der(), signer).map_err(failed)?;
        let certificate = self
            .params
            .signed_by(self.approved.request.public_key(), &issuer)
            .map_err(failed)?;
        Ok(Unverified {
            prepared: self,
            der: certificate.der().clone(),
        })
    }
}

impl Unverified {
    /// Verifies the finished bytes as a stranger would: webpki's path validation, our own reading of the
    /// names and the extension, and the profile's rules one by one.
    pub fn finish(self, now: OffsetDateTime) -> Result<Issued, IssueError> {
        let Self { prepared, der } = self;
        let profile = &prepared.approved.profile;
        verify_path(&der, &prepared.issuer, profile, now)?;
        let leaf = Leaf::read(&der)?;
        check_content(&leaf, &prepared)?;
        match profile {
            Profile::ServiceLeaf { .. } => leaf.service_leaf().map(drop)?,
            Profile::User(_) | Profile::Bot(_) | Profile::Agent(_) | Profile::Proxy(_) | Profile::Auth(_) => {
                leaf.clone().into_peer().map(drop)?;
            }
        }
        lint::leaf(&der, &prepared.issuer)?;
        Ok(Issued {
            leaf: der,
            authority: prepared.issuer.der().clone(),
            serial: leaf.serial,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
        })
    }
}

impl Issued {
    /// The certificate.
    pub const fn leaf_der(&self) -> &CertificateDer<'static> {
        &self.leaf
    }

    /// The certificate, then its authority's.
    pub fn chain_der(&self) -> Vec<Vec<u8>> {
        vec![self.leaf.to_vec(), self.authority.to_vec()]
    }

    /// The serial in lower-case hex.
    pub fn serial_hex(&self) -> &str {
        &self.serial
    }

    /// The certificate's start.
    pub const fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    /// The certificate's end.
    pub const fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }
}

fn verify_path(
    der: &CertificateDer<'_>,
    issuer: &IssuerCertificate,
    profile: &Profile,
    now: OffsetDateTime,
) -> Result<(), PeerError> {
    let anchor = webpki::anchor_from_trusted_cert(issuer.der())
        .map_err(|error| PeerError::Malformed(error.to_string()))?;
    let anchors = [anchor];
    let (client, server) = profile.usages();
    if client {
        path::verify(der, &anchors, Usage::Client, now)?;
    }
    if server {
        path::verify(der, &anchors, Usage::Server, now)?;
    }
    Ok(())
}

fn check_content(leaf: &Leaf, prepared: &Prepared) -> Result<(), IssueError> {
    let Prepared {
        approved: Approved { request, profile },
        params,
        serial,
        ..
    } = prepared;
    let same = [
        ("URI", leaf.uri == profile.uri()),
        ("email address", leaf.email.as_deref() == profile.email()),
        ("DNS names", leaf.dns == profile.dns()),
        ("identity extension", leaf.extension == profile.extension()),
        (
            "extended key usage",
            (leaf.client_auth, leaf.server_auth) == profile.usages(),
        ),
        ("public key", leaf.key_thumbprint == request.spki_sha256()),
        ("serial", leaf.serial == serial.hex()),
        ("start", leaf.not_before == params.not_before),
        ("end", leaf.not_after == params.not_after),
    ];
    match same.into_iter().find(|(_, equal)| !equal) {
        Some((what, _)) => Err(IssueError::Differs(what)),
        None => Ok(()),
    }
}
