//! OpenSSH certificates (PROTOCOL.certkeys), read strictly. A certificate without principals is good for every
//! account, an option that is not understood may be a restriction that is skipped, and a certificate of one kind
//! must not pass as the other: all of that is refused here, whoever signed it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ssh_key::certificate::CertType;
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, Certificate, EcdsaCurve, HashAlg, PublicKey};
use time::{Duration, OffsetDateTime};

use super::{BACKEND_CERTIFICATE_LIFE_MAX, SSH_HOST_CERTIFICATE_LIFE_MAX};
use crate::issue::CLOCK_SKEW;

/// Most principals of one certificate. OpenSSH takes 256.
pub const SSH_PRINCIPALS_MAX: usize = 64;
/// Longest certificate. One of ours is below 8 KiB.
const CERTIFICATE_BYTES_MAX: usize = 32 * 1024;
const PRINCIPAL_BYTES_MAX: usize = 255;
/// The only critical option there is here.
pub(super) const SOURCE_ADDRESS: &str = "source-address";

/// For whom a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SshCertificateKind {
    /// Somebody who logs in.
    User,
    /// A host that is logged in to.
    Host,
}

impl SshCertificateKind {
    /// The longest a certificate of the kind lives.
    pub const fn life_max(self) -> Duration {
        match self {
            Self::User => BACKEND_CERTIFICATE_LIFE_MAX,
            Self::Host => SSH_HOST_CERTIFICATE_LIFE_MAX,
        }
    }
}

/// What a user's certificate permits beyond running commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SshExtension {
    /// Terminals.
    Pty,
    /// Forwarded ports.
    PortForwarding,
    /// A forwarded agent, which lets the host use the user's keys.
    AgentForwarding,
}

impl SshExtension {
    /// Every extension there is here.
    pub const ALL: [Self; 3] = [Self::Pty, Self::PortForwarding, Self::AgentForwarding];

    /// Its name in certificates.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pty => "permit-pty",
            Self::PortForwarding => "permit-port-forwarding",
            Self::AgentForwarding => "permit-agent-forwarding",
        }
    }
}

/// The public key of a service's SSH authority: what `TrustedUserCAKeys` or `@cert-authority` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshAuthority(pub(super) KeyData);

/// A certificate whose signature, kind, principals, options and period were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshCertificate {
    pub(super) certificate: Certificate,
    not_after: OffsetDateTime,
}

/// Why an OpenSSH certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SshCertificateError {
    /// It cannot be read, or not in one way only.
    #[error("the SSH certificate cannot be read: {0}")]
    Malformed(String),
    /// It is for a host where one for a user belongs, or the other way round.
    #[error("the SSH certificate is of the other kind (user or host)")]
    WrongKind,
    /// Another key signed it, or none did.
    #[error("the service's SSH authority did not issue the certificate")]
    UnknownIssuer,
    /// Its time is over or has not begun.
    #[error("the SSH certificate is not valid at this time")]
    NotValidNow,
    /// It has another form than certificates of ours.
    #[error("the SSH certificate breaks the profile: {0}")]
    Profile(&'static str),
}

impl SshAuthority {
    /// Reads the key from one line as `authorized_keys` has it.
    pub fn parse(line: &str) -> Result<Self, SshCertificateError> {
        let key = PublicKey::from_openssh(line).map_err(malformed)?;
        Self::of_key(key.key_data().clone())
    }

    /// Reads the key in its wire format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SshCertificateError> {
        let key = PublicKey::from_bytes(bytes).map_err(malformed)?;
        Self::of_key(key.key_data().clone())
    }

    pub(super) fn of_key(key: KeyData) -> Result<Self, SshCertificateError> {
        match key.algorithm() {
            Algorithm::Ed25519 => Ok(Self(key)),
            _ => Err(SshCertificateError::Profile("an authority's key is Ed25519")),
        }
    }

    /// One line with a comment, as files of public keys have it.
    pub fn line(&self, comment: &str) -> String {
        let key = PublicKey::new(self.0.clone(), comment);
        // The key is one of ours: it can be written.
        key.to_openssh().unwrap_or_default()
    }

    /// The key in its wire format.
    pub fn to_bytes(&self) -> Vec<u8> {
        PublicKey::from(self.0.clone()).to_bytes().unwrap_or_default()
    }

    /// `SHA256:…` as `ssh-keygen -l` shows it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }
}

impl SshCertificate {
    /// Reads a certificate of `kind` that `authority` has issued and that is valid now.
    pub fn verify(
        bytes: &[u8],
        kind: SshCertificateKind,
        authority: &SshAuthority,
        now: OffsetDateTime,
    ) -> Result<Self, SshCertificateError> {
        if bytes.len() > CERTIFICATE_BYTES_MAX {
            return Err(SshCertificateError::Profile("it is larger than 32 KiB"));
        }
        let certificate = Certificate::from_bytes(bytes).map_err(malformed)?;
        // What was checked is then what everybody reads.
        if certificate.to_bytes().map_err(malformed)? != bytes {
            return Err(SshCertificateError::Malformed(
                "it has a second spelling".to_owned(),
            ));
        }
        check_signature(&certificate, authority)?;
        check_kind(&certificate, kind)?;
        check_form(&certificate, kind)?;
        let not_after = check_period(&certificate, kind.life_max(), now)?;
        Ok(Self {
            certificate,
            not_after,
        })
    }

    /// The same for one line as `…-cert.pub` has it.
    pub fn verify_line(
        line: &str,
        kind: SshCertificateKind,
        authority: &SshAuthority,
        now: OffsetDateTime,
    ) -> Result<Self, SshCertificateError> {
        let certificate = Certificate::from_openssh(line.trim_end()).map_err(malformed)?;
        Self::verify(&certificate.to_bytes().map_err(malformed)?, kind, authority, now)
    }

    /// In its wire format.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.certificate.to_bytes().unwrap_or_default()
    }

    /// One line, as `…-cert.pub` has it.
    pub fn line(&self) -> String {
        self.certificate.to_openssh().unwrap_or_default()
    }

    /// As SSH libraries take it.
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The accounts or host names it is for.
    pub fn principals(&self) -> &[String] {
        self.certificate.valid_principals()
    }

    /// What the host's log shows of it.
    pub fn key_id(&self) -> &str {
        self.certificate.key_id()
    }

    /// Its number, which the host's log shows too.
    pub fn serial(&self) -> u64 {
        self.certificate.serial()
    }

    /// Where it may be used from; empty: from anywhere.
    pub fn source_addresses(&self) -> Vec<IpAddr> {
        let option = self.certificate.critical_options().get(SOURCE_ADDRESS);
        option.and_then(|text| source_addresses(text)).unwrap_or_default()
    }

    /// Its end.
    pub const fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }
}

/// Keys that certificates are issued to: P-256 and Ed25519.
pub(super) fn is_allowed_key(key: &KeyData) -> bool {
    match key.algorithm() {
        Algorithm::Ed25519 => true,
        Algorithm::Ecdsa { curve } => curve == EcdsaCurve::NistP256,
        _ => false,
    }
}

/// Whether a certificate may name this account or host. Hosts' principals are patterns to OpenSSH.
pub(super) fn is_principal(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= PRINCIPAL_BYTES_MAX
        && !name.chars().any(|letter| {
            letter.is_control() || letter.is_whitespace() || matches!(letter, '*' | '?' | ',' | '!')
        })
}

pub(super) fn source_address_option(addresses: &[IpAddr]) -> String {
    let texts: Vec<String> = addresses
        .iter()
        .map(|address| match address.to_canonical() {
            IpAddr::V4(address) => format!("{address}/32"),
            IpAddr::V6(address) => format!("{address}/128"),
        })
        .collect();
    texts.join(",")
}

fn source_addresses(text: &str) -> Option<Vec<IpAddr>> {
    let single = |entry: &str| {
        let (address, bits) = entry.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let whole = if address.is_ipv4() { "32" } else { "128" };
        (bits == whole).then_some(address)
    };
    text.split(',').map(single).collect()
}

fn check_signature(certificate: &Certificate, authority: &SshAuthority) -> Result<(), SshCertificateError> {
    if *certificate.signature_key() != authority.0 || certificate.verify_signature().is_err() {
        return Err(SshCertificateError::UnknownIssuer);
    }
    Ok(())
}

fn check_kind(certificate: &Certificate, kind: SshCertificateKind) -> Result<(), SshCertificateError> {
    match (certificate.cert_type(), kind) {
        (CertType::User, SshCertificateKind::User) | (CertType::Host, SshCertificateKind::Host) => Ok(()),
        (CertType::User | CertType::Host, _) => Err(SshCertificateError::WrongKind),
    }
}

fn check_form(certificate: &Certificate, kind: SshCertificateKind) -> Result<(), SshCertificateError> {
    let principals = certificate.valid_principals();
    let unique: BTreeSet<&String> = principals.iter().collect();
    let known = |name: &String| SshExtension::ALL.iter().any(|known| known.as_str() == name);
    let flags = certificate.extensions();
    let options = certificate.critical_options();
    let source = options.get(SOURCE_ADDRESS);
    let rules = [
        (
            is_allowed_key(certificate.public_key()),
            "its key is neither Ed25519 nor P-256",
        ),
        (
            !principals.is_empty(),
            "it names no principal, which OpenSSH takes for all of them",
        ),
        (
            principals.len() <= SSH_PRINCIPALS_MAX && unique.len() == principals.len(),
            "it names too many principals, or one twice",
        ),
        (
            principals.iter().all(|name| is_principal(name)),
            "a principal is empty, a pattern, or not printable",
        ),
        (
            options.keys().all(|name| name == SOURCE_ADDRESS),
            "it has a critical option that is not known here",
        ),
        (
            source.is_none_or(|text| source_addresses(text).is_some()),
            "its source addresses cannot be read",
        ),
        (
            flags.iter().all(|(name, value)| known(name) && value.is_empty()),
            "it has an extension that is not known here",
        ),
        (
            kind == SshCertificateKind::User || (flags.is_empty() && options.is_empty()),
            "a host's certificate has no options",
        ),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, otherwise)) => Err(SshCertificateError::Profile(otherwise)),
        None => Ok(()),
    }
}

/// The end. PROTOCOL.certkeys: valid after ≤ now < valid before.
fn check_period(
    certificate: &Certificate,
    life_max: Duration,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, SshCertificateError> {
    let time = |seconds: u64| {
        let seconds = i64::try_from(seconds).ok()?;
        OffsetDateTime::from_unix_timestamp(seconds).ok()
    };
    let (Some(from), Some(until)) = (time(certificate.valid_after()), time(certificate.valid_before()))
    else {
        return Err(SshCertificateError::Profile("it has no end"));
    };
    if until - from > life_max + CLOCK_SKEW + Duration::SECOND {
        return Err(SshCertificateError::Profile(
            "it lives longer than certificates of its kind may",
        ));
    }
    match from <= now && now < until {
        true => Ok(until),
        false => Err(SshCertificateError::NotValidNow),
    }
}

fn malformed(error: impl std::fmt::Display) -> SshCertificateError {
    SshCertificateError::Malformed(error.to_string())
}
