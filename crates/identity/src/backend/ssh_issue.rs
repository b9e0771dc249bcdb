//! Issuing OpenSSH certificates: signed with the service's key, then read back by [`SshCertificate::verify`],
//! which is the only way to one.

use std::net::IpAddr;

use ssh_key::certificate::{Builder, CertType};
use ssh_key::public::{EcdsaPublicKey, Ed25519PublicKey, KeyData};
use ssh_key::{Algorithm, Certificate, Signature};
use time::{Duration, OffsetDateTime};

use super::ssh::{
    SOURCE_ADDRESS, SshAuthority, SshCertificate, SshCertificateError, SshCertificateKind, SshExtension,
    is_principal, source_address_option,
};
use crate::Signer;
use crate::issue::{CLOCK_SKEW, Serial};
use crate::request::Request;

/// What a certificate is to say.
#[derive(Debug, Clone)]
pub struct SshProfile {
    /// For a user or a host.
    pub kind: SshCertificateKind,
    /// What the host's log shows.
    pub key_id: String,
    /// The accounts or host names; never empty.
    pub principals: Vec<String>,
    /// Where it may be used from; empty: from anywhere. For users alone.
    pub source_addresses: Vec<IpAddr>,
    /// What it permits. For users alone.
    pub extensions: Vec<SshExtension>,
    /// How long it lives, at most [`SshCertificateKind::life_max`].
    pub life: Duration,
}

/// Why a certificate was not released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SshIssueError {
    /// It would name nobody, and so everybody, or something that is no name.
    #[error("an SSH certificate names at least one principal, and none that is a pattern")]
    Principals,
    /// Nothing would be left to live.
    #[error("the SSH certificate would end before it began")]
    Over,
    /// The key it is to be issued to.
    #[error("SSH certificates are issued to keys of type P-256 or Ed25519")]
    Key,
    /// The authority's key is of another kind.
    #[error("an SSH authority's key is Ed25519")]
    WrongSigner,
    /// The signer failed.
    #[error("signing failed: {0}")]
    Sign(String),
    /// The finished certificate does not verify: our own fault.
    #[error(transparent)]
    Unsound(#[from] SshCertificateError),
    /// The finished certificate says something else than was asked for: our own fault.
    #[error("the new SSH certificate differs from what was approved")]
    Differs,
}

/// The key whose possession the request proves, as SSH knows it.
pub fn ssh_public_key(request: &Request) -> Result<KeyData, SshIssueError> {
    key_data(request.public_key())
}

impl SshAuthority {
    /// The public half of an authority's key.
    pub fn of_signer(signer: &dyn Signer) -> Result<Self, SshIssueError> {
        let key = key_data(&signer)?;
        Self::of_key(key).map_err(|_| SshIssueError::WrongSigner)
    }
}

/// Issues a certificate for `key` and verifies what came out. `nonce` is 32 random bytes: without them, whoever
/// chose the rest would choose what is signed (PROTOCOL.certkeys).
pub fn issue_ssh_certificate(
    key: &KeyData,
    profile: &SshProfile,
    signer: &dyn Signer,
    now: OffsetDateTime,
    serial: Serial,
    nonce: [u8; 32],
) -> Result<SshCertificate, SshIssueError> {
    let authority = SshAuthority::of_signer(signer)?;
    if profile.principals.is_empty() || !profile.principals.iter().all(|name| is_principal(name)) {
        return Err(SshIssueError::Principals);
    }
    let seconds = |time: OffsetDateTime| u64::try_from(time.unix_timestamp()).unwrap_or(0);
    let life = profile.life.min(profile.kind.life_max());
    if life <= Duration::ZERO {
        return Err(SshIssueError::Over);
    }
    let (from, until) = (seconds(now - CLOCK_SKEW), seconds(now + life));
    let certificate = sign(
        key,
        profile,
        (from, until),
        serial.short(),
        nonce,
        &authority,
        signer,
    );
    let certificate = certificate.map_err(|error| SshIssueError::Sign(error.to_string()))?;
    let bytes = certificate
        .to_bytes()
        .map_err(|error| SshIssueError::Sign(error.to_string()))?;
    let verified = SshCertificate::verify(&bytes, profile.kind, &authority, now)?;
    match says(&verified, key, profile, (from, until), serial.short()) {
        true => Ok(verified),
        false => Err(SshIssueError::Differs),
    }
}

fn sign(
    key: &KeyData,
    profile: &SshProfile,
    (from, until): (u64, u64),
    serial: u64,
    nonce: [u8; 32],
    authority: &SshAuthority,
    signer: &dyn Signer,
) -> Result<Certificate, ssh_key::Error> {
    let mut builder = Builder::new(nonce, key.clone(), from, until)?;
    builder
        .serial(serial)?
        .key_id(&profile.key_id)?
        .cert_type(match profile.kind {
            SshCertificateKind::User => CertType::User,
            SshCertificateKind::Host => CertType::Host,
        })?;
    for principal in &profile.principals {
        builder.valid_principal(principal)?;
    }
    if !profile.source_addresses.is_empty() {
        builder.critical_option(SOURCE_ADDRESS, source_address_option(&profile.source_addresses))?;
    }
    for extension in &profile.extensions {
        builder.extension(extension.as_str(), "")?;
    }
    builder.sign(&AuthoritySigner { authority, signer })
}

fn says(
    verified: &SshCertificate,
    key: &KeyData,
    profile: &SshProfile,
    (from, until): (u64, u64),
    serial: u64,
) -> bool {
    let certificate = verified.certificate();
    let extensions = profile.extensions.iter().map(|extension| extension.as_str());
    let mut wanted: Vec<&str> = extensions.collect();
    wanted.sort_unstable();
    certificate.public_key() == key
        && certificate.key_id() == profile.key_id
        && certificate.serial() == serial
        && certificate.valid_principals() == profile.principals
        && (certificate.valid_after(), certificate.valid_before()) == (from, until)
        && certificate.extensions().keys().map(String::as_str).eq(wanted)
        && verified.source_addresses().len() == profile.source_addresses.len()
}

fn key_data(key: &impl rcgen::PublicKeyData) -> Result<KeyData, SshIssueError> {
    let (algorithm, bytes) = (key.algorithm(), key.der_bytes());
    if *algorithm == rcgen::PKCS_ED25519 {
        let public: [u8; 32] = bytes.try_into().map_err(|_| SshIssueError::Key)?;
        return Ok(KeyData::from(Ed25519PublicKey(public)));
    }
    if *algorithm == rcgen::PKCS_ECDSA_P256_SHA256 {
        let public = EcdsaPublicKey::from_sec1_bytes(bytes).map_err(|_| SshIssueError::Key)?;
        return Ok(KeyData::from(public));
    }
    Err(SshIssueError::Key)
}

/// Signs with a key that ssh-key does not know.
struct AuthoritySigner<'a> {
    authority: &'a SshAuthority,
    signer: &'a dyn Signer,
}

impl From<&AuthoritySigner<'_>> for KeyData {
    fn from(signer: &AuthoritySigner<'_>) -> Self {
        signer.authority.0.clone()
    }
}

impl signature::Signer<Signature> for AuthoritySigner<'_> {
    fn try_sign(&self, message: &[u8]) -> Result<Signature, signature::Error> {
        let bytes = self.signer.sign(message).map_err(|_| signature::Error::new())?;
        Signature::new(Algorithm::Ed25519, bytes).map_err(|_| signature::Error::new())
    }
}
