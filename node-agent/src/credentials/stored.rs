//! One service's credentials: as the auth server answers, as they lie on disk, and as sessions take them. They are
//! checked by the same rules wherever they come from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use iap_identity::backend::{
    ClientCa, ClientLeaf, ClientLeafError, SshAuthority, SshCertificate, SshCertificateError,
    SshCertificateKind,
};
use iap_identity::{ClusterName, LoginName, NameError, ServiceName, certificate_request};
use iap_policy::Protocol;
use iap_proto::v1;
use iap_runtime::keys::{self, KeyError, KeyKind};
use iap_runtime::tls::{self, MaterialError};
use rcgen::{KeyPair, PublicKeyData as _};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{ClientCredential, SshCredential};
use crate::leaves::renewal_time;

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// The file is no JSON of ours, or holds no base64 where it should.
    #[error("the stored credentials are damaged: {0}")]
    Damaged(String),
    /// The protocol has none.
    #[error("backends of this protocol take no certificates")]
    Protocol,
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A login's name.
    #[error(transparent)]
    Login(#[from] NameError),
    /// The X.509 authority.
    #[error("the service's client authority: {0}")]
    Authority(#[from] iap_identity::CaError),
    /// The authority is another service's.
    #[error("the client authority is of another service or cluster")]
    OtherService,
    /// A certificate of X.509.
    #[error(transparent)]
    Client(#[from] ClientLeafError),
    /// A certificate of SSH.
    #[error(transparent)]
    Ssh(#[from] SshCertificateError),
    /// A certificate is for another key or login.
    #[error("the certificate for {0} is for another key or login")]
    OtherKey(String),
    /// Key and certificate do not go together.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// A certificate came of another authority than those before.
    #[error("the service's authority has changed")]
    OtherAuthority,
    /// The request could not be made.
    #[error("a certificate request could not be made: {0}")]
    Request(#[from] rcgen::Error),
}

/// The keys for one service, made here.
pub struct ServiceKeys {
    protocol: Protocol,
    key: KeyPair,
    /// Shown to SSH clients.
    host_key: Option<KeyPair>,
}

/// What is held for one service.
pub struct ServiceCredentials {
    keys: ServiceKeys,
    authority: Vec<u8>,
    host_authority: Vec<u8>,
    host: Option<SshCredential>,
    logins: BTreeMap<LoginName, Login>,
    /// When they are to be replaced, keys included.
    pub(super) renew_at: OffsetDateTime,
    /// Whether every account that can be told has one.
    pub(super) complete: bool,
}

enum Login {
    Client {
        der: Vec<u8>,
        credential: ClientCredential,
    },
    Ssh(SshCredential),
}

/// As they lie on disk.
#[derive(Serialize, Deserialize)]
struct File {
    protocol: String,
    key: Zeroizing<String>,
    host_key: Option<Zeroizing<String>>,
    complete: bool,
    authority: String,
    host_authority: String,
    host_certificate: String,
    logins: BTreeMap<String, String>,
}

impl ServiceKeys {
    /// New keys for a service of this protocol.
    ///
    /// # Errors
    /// When its backends take no certificates, or no key can be made.
    pub fn generate(protocol: Protocol) -> Result<Self, StoredError> {
        let kind = kind_of(protocol)?;
        let host_key = (protocol == Protocol::Ssh).then(|| keys::generate(KeyKind::Ed25519));
        Ok(Self {
            protocol,
            key: keys::generate(kind)?,
            host_key: host_key.transpose()?,
        })
    }

    /// The same with another key for its own clients.
    #[must_use]
    pub fn showing(self, host_key: KeyPair) -> Self {
        Self {
            host_key: Some(host_key),
            ..self
        }
    }

    /// The two requests to be sent; the second is empty where there is no second key.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn requests(&self) -> Result<(Vec<u8>, Vec<u8>), StoredError> {
        let host = self.host_key.as_ref().map(|key| certificate_request(key));
        Ok((
            certificate_request(&self.key)?,
            host.transpose()?.unwrap_or_default(),
        ))
    }

    fn copy(&self) -> Result<Self, StoredError> {
        let pem = Zeroizing::new(self.key.serialize_pem());
        let host = self
            .host_key
            .as_ref()
            .map(|key| Zeroizing::new(key.serialize_pem()));
        Self::read(self.protocol, &pem, host.as_deref().map(String::as_str))
    }

    fn read(protocol: Protocol, key: &str, host_key: Option<&str>) -> Result<Self, StoredError> {
        Ok(Self {
            protocol,
            key: keys::from_pem(key, kind_of(protocol)?)?,
            host_key: host_key
                .map(|key| keys::from_pem(key, KeyKind::Ed25519))
                .transpose()?,
        })
    }
}

/// P-256 for TLS, which every backend's library takes; Ed25519 for SSH.
fn kind_of(protocol: Protocol) -> Result<KeyKind, StoredError> {
    match protocol {
        Protocol::Postgres => Ok(KeyKind::P256),
        Protocol::Ssh => Ok(KeyKind::Ed25519),
        Protocol::Tcp | Protocol::Http => Err(StoredError::Protocol),
    }
}

impl ServiceCredentials {
    /// Checks what the auth server answered for these keys.
    ///
    /// # Errors
    /// When anything in it is not what was asked for.
    pub fn take(
        keys: ServiceKeys,
        answer: &v1::BackendCredentialsReply,
        service: &ServiceName,
        cluster: &ClusterName,
        now: OffsetDateTime,
    ) -> Result<Self, StoredError> {
        let host = match &keys.host_key {
            Some(key) if !answer.host_certificate.is_empty() => Some(ssh(
                key,
                &answer.host_certificate,
                SshCertificateKind::Host,
                &answer.host_authority,
                now,
            )?),
            Some(_) | None => None,
        };
        let mut credentials = Self {
            keys,
            authority: answer.authority.clone(),
            host_authority: answer.host_authority.clone(),
            host,
            logins: BTreeMap::new(),
            renew_at: now,
            complete: answer.complete,
        };
        let authority = credentials.authority(service, cluster)?;
        for login in &answer.logins {
            credentials.add(&login.login, &login.certificate, &authority, now)?;
        }
        credentials.plan(now);
        Ok(credentials)
    }

    /// The same credentials and those for further logins on the same keys.
    ///
    /// # Errors
    /// When anything in the answer is not what was asked for.
    pub fn with(
        &self,
        answer: &v1::BackendCredentialsReply,
        service: &ServiceName,
        cluster: &ClusterName,
        now: OffsetDateTime,
    ) -> Result<Self, StoredError> {
        if answer.authority != self.authority {
            return Err(StoredError::OtherAuthority);
        }
        let mut more = Self {
            keys: self.keys.copy()?,
            authority: self.authority.clone(),
            host_authority: self.host_authority.clone(),
            host: self.host.clone(),
            logins: BTreeMap::new(),
            renew_at: self.renew_at,
            complete: self.complete,
        };
        let authority = more.authority(service, cluster)?;
        for (login, held) in &self.logins {
            more.logins.insert(login.clone(), held.share());
        }
        for login in &answer.logins {
            more.add(&login.login, &login.certificate, &authority, now)?;
        }
        Ok(more)
    }

    /// Reads what [`to_json`](Self::to_json) wrote; what has expired is left out.
    ///
    /// # Errors
    /// When it is damaged, or of another service.
    pub fn from_json(
        bytes: &[u8],
        service: &ServiceName,
        cluster: &ClusterName,
        now: OffsetDateTime,
    ) -> Result<Self, StoredError> {
        let file: File = serde_json::from_slice(bytes).map_err(damaged)?;
        let protocol = Protocol::parse(&file.protocol).map_err(damaged)?;
        let keys = ServiceKeys::read(protocol, &file.key, file.host_key.as_deref().map(String::as_str))?;
        let decode = |text: &str| BASE64.decode(text).map_err(damaged);
        let (host_certificate, host_authority) =
            (decode(&file.host_certificate)?, decode(&file.host_authority)?);
        let logins = file.logins.iter().map(|(login, certificate)| {
            Ok(v1::BackendLogin {
                login: login.clone(),
                certificate: decode(certificate)?,
            })
        });
        let answer = v1::BackendCredentialsReply {
            logins: logins.collect::<Result<_, StoredError>>()?,
            complete: file.complete,
            authority: decode(&file.authority)?,
            host_certificate,
            host_authority,
        };
        Self::take(keys, &answer, service, cluster, now)
    }

    /// As one file, so that keys and certificates always belong together.
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let certificate = |login: &Login| match login {
            Login::Client { der, .. } => BASE64.encode(der),
            Login::Ssh(credential) => BASE64.encode(credential.certificate.to_bytes()),
        };
        let host = self.host.as_ref().map(|host| host.certificate.to_bytes());
        let host_key = self.keys.host_key.as_ref();
        let file = File {
            protocol: self.keys.protocol.as_str().to_owned(),
            key: Zeroizing::new(self.keys.key.serialize_pem()),
            host_key: host_key.map(|key| Zeroizing::new(key.serialize_pem())),
            complete: self.complete,
            authority: BASE64.encode(&self.authority),
            host_authority: BASE64.encode(&self.host_authority),
            host_certificate: BASE64.encode(host.unwrap_or_default()),
            logins: self
                .logins
                .iter()
                .map(|(name, login)| (name.to_string(), certificate(login)))
                .collect(),
        };
        // Strings and maps of strings: nothing in it cannot be written.
        Zeroizing::new(serde_json::to_vec(&file).unwrap_or_default())
    }

    /// The request for further logins on the same keys.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn request(&self) -> Result<Vec<u8>, StoredError> {
        Ok(certificate_request(&self.keys.key)?)
    }

    /// Of which protocol its backend is.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.keys.protocol
    }

    /// Whether there is a certificate for this login, valid now.
    #[must_use]
    pub fn has(&self, login: &LoginName, now: OffsetDateTime) -> bool {
        self.logins
            .get(login)
            .is_some_and(|login| now < login.not_after())
    }

    /// The accounts there are certificates for.
    pub fn logins(&self) -> impl Iterator<Item = &LoginName> {
        self.logins.keys()
    }

    pub(super) fn client(&self, login: &LoginName, now: OffsetDateTime) -> Option<ClientCredential> {
        match self.logins.get(login)? {
            Login::Client { credential, .. } if now < credential.not_after => Some(credential.clone()),
            Login::Client { .. } | Login::Ssh(_) => None,
        }
    }

    pub(super) fn ssh(&self, login: &LoginName, now: OffsetDateTime) -> Option<SshCredential> {
        match self.logins.get(login)? {
            Login::Ssh(credential) if now < credential.certificate.not_after() => Some(credential.clone()),
            Login::Ssh(_) | Login::Client { .. } => None,
        }
    }

    pub(super) fn ssh_host(&self, now: OffsetDateTime) -> Option<SshCredential> {
        let host = self.host.as_ref();
        host.filter(|host| now < host.certificate.not_after()).cloned()
    }

    /// Where its SSH certificates may be used from; empty: from anywhere.
    pub(super) fn bound_to(&self) -> Vec<IpAddr> {
        let bound = self.logins.values().find_map(|login| match login {
            Login::Ssh(credential) => Some(credential.certificate.source_addresses()),
            Login::Client { .. } => None,
        });
        bound.unwrap_or_default()
    }

    /// Whether that is there. What has no certificates is bound to nothing and everything.
    pub(super) fn is_bound_to(&self, sources: &[IpAddr]) -> bool {
        let has_ssh = self.logins.values().any(|login| matches!(login, Login::Ssh(_)));
        !has_ssh || self.bound_to() == sources
    }

    fn authority(&self, service: &ServiceName, cluster: &ClusterName) -> Result<Authority, StoredError> {
        match kind_of(self.keys.protocol)? {
            KeyKind::P256 => {
                let ca = ClientCa::parse(&self.authority)?;
                match ca.service() == service && ca.cluster() == cluster {
                    true => Ok(Authority::Client(Box::new(ca))),
                    false => Err(StoredError::OtherService),
                }
            }
            KeyKind::Ed25519 => Ok(Authority::Ssh(SshAuthority::from_bytes(&self.authority)?)),
        }
    }

    fn add(
        &mut self,
        login: &str,
        certificate: &[u8],
        authority: &Authority,
        now: OffsetDateTime,
    ) -> Result<(), StoredError> {
        let name = LoginName::parse(login)?;
        let held = match authority {
            Authority::Client(ca) => client(&self.keys.key, &name, certificate, ca, now)?,
            Authority::Ssh(authority) => {
                let bytes = authority.to_bytes();
                let credential = ssh(&self.keys.key, certificate, SshCertificateKind::User, &bytes, now)?;
                if credential.certificate.principals() != [name.to_string()] {
                    return Err(StoredError::OtherKey(name.to_string()));
                }
                Login::Ssh(credential)
            }
        };
        self.logins.insert(name, held);
        Ok(())
    }

    /// All together when the first of them is at half its life; a service without any is asked about again then too.
    fn plan(&mut self, now: OffsetDateTime) {
        let host = self.host.iter().map(|host| host.certificate.not_after());
        let ends = self.logins.values().map(Login::not_after).chain(host);
        let life = iap_identity::backend::BACKEND_CERTIFICATE_LIFE_MAX;
        let end = ends.min().unwrap_or(now + life);
        // From when it was issued, which may be long ago for what lay on disk.
        self.renew_at = renewal_time(end - life, end);
    }
}

impl Login {
    fn not_after(&self) -> OffsetDateTime {
        match self {
            Self::Client { credential, .. } => credential.not_after,
            Self::Ssh(credential) => credential.certificate.not_after(),
        }
    }

    fn share(&self) -> Self {
        match self {
            Self::Client { der, credential } => Self::Client {
                der: der.clone(),
                credential: credential.clone(),
            },
            Self::Ssh(credential) => Self::Ssh(credential.clone()),
        }
    }
}

enum Authority {
    Client(Box<ClientCa>),
    Ssh(SshAuthority),
}

fn client(
    key: &KeyPair,
    login: &LoginName,
    der: &[u8],
    ca: &ClientCa,
    now: OffsetDateTime,
) -> Result<Login, StoredError> {
    let leaf = ClientLeaf::verify(der, ca, now)?;
    let thumbprint = thumbprint(&key.subject_public_key_info());
    if leaf.login() != login || *leaf.key_thumbprint() != thumbprint {
        return Err(StoredError::OtherKey(login.to_string()));
    }
    let certified = tls::certified_key(vec![leaf.der().clone()], keys::private_key_der(key))?;
    Ok(Login::Client {
        der: der.to_vec(),
        credential: ClientCredential {
            certified,
            serial: leaf.serial_hex().to_owned(),
            not_after: leaf.not_after(),
        },
    })
}

fn ssh(
    key: &KeyPair,
    certificate: &[u8],
    kind: SshCertificateKind,
    authority: &[u8],
    now: OffsetDateTime,
) -> Result<SshCredential, StoredError> {
    let certificate = SshCertificate::verify(certificate, kind, &SshAuthority::from_bytes(authority)?, now)?;
    let key = keys::ssh_private_key(key)?;
    if certificate.certificate().public_key() != key.public_key().key_data() {
        return Err(StoredError::OtherKey(certificate.principals().join(", ")));
    }
    Ok(SshCredential {
        key: Arc::new(key),
        certificate: Arc::new(certificate),
    })
}

fn thumbprint(spki: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, spki);
    let mut thumbprint = [0; 32];
    thumbprint.copy_from_slice(digest.as_ref());
    thumbprint
}

fn damaged(error: impl std::fmt::Display) -> StoredError {
    StoredError::Damaged(error.to_string())
}

impl std::fmt::Debug for ServiceCredentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let logins: Vec<&LoginName> = self.logins.keys().collect();
        formatter
            .debug_struct("ServiceCredentials")
            .field("logins", &logins)
            .field("renew_at", &self.renew_at)
            .finish_non_exhaustive()
    }
}
