//! What a login leaves behind for SSH: a key of its own, a certificate for each service whose server reads it, the
//! authorities that vouch for hosts, and a fragment of configuration that ties them together.
//!
//! The key is not the one of the login. People put SSH keys into agents and forward those; whoever holds a forwarded
//! agent has it sign what they like, and with the key of the login that would be as good as being that person at every
//! service.

pub mod config;

use anyhow::Context as _;
use iap_identity::backend::{SshAuthority, SshCertificate, SshCertificateKind};
use iap_identity::{ClusterName, ServiceName};
use iap_proto::v1;
use iap_runtime::keys::{self, KeyKind};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::home::{ClusterHome, SSH_FOLDER};
use config::Paths;

/// The key as we keep it.
pub(crate) const KEY_FILE: &str = "key.pem";
/// The key as OpenSSH reads it.
pub(crate) const IDENTITY_FILE: &str = "id_ed25519";
/// Who vouches for hosts.
pub(crate) const AUTHORITIES_FILE: &str = "known_hosts";
/// The fragment to include.
pub(crate) const CONFIG_FILE: &str = "config";
const SERVICES_FILE: &str = "services.json";

/// An SSH service that this login reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshService {
    /// Its name.
    pub name: ServiceName,
    /// The login used when none is named.
    pub login: Option<String>,
    /// The logins in its certificate; empty where the agent logs in by itself, and where there is none.
    pub principals: Vec<String>,
}

/// One file of the folder.
pub type File = (String, Zeroizing<Vec<u8>>);

/// The key that the stored login uses for SSH, or a new one.
///
/// # Errors
/// When none can be made.
pub fn key(home: &ClusterHome) -> anyhow::Result<KeyPair> {
    if let Some(pem) = home.ssh_file(KEY_FILE)?
        && let Ok(key) = keys::from_pem(&String::from_utf8_lossy(&pem), KeyKind::Ed25519)
    {
        return Ok(key);
    }
    Ok(keys::generate(KeyKind::Ed25519)?)
}

/// The SSH services of the stored login; none where it has never heard of any.
///
/// # Errors
/// When the file cannot be read.
pub fn services(home: &ClusterHome) -> anyhow::Result<Vec<SshService>> {
    match home.ssh_file(SERVICES_FILE)? {
        Some(bytes) => {
            serde_json::from_slice(&bytes).context("the stored SSH services are malformed: log in again")
        }
        None => Ok(Vec::new()),
    }
}

/// The service of that name, or of that name behind the cluster's.
pub fn service_label<'a>(name: &'a str, cluster: &ClusterName) -> &'a str {
    let suffix = name.strip_suffix(cluster.as_str());
    suffix.and_then(|label| label.strip_suffix('.')).unwrap_or(name)
}

/// Everything of one generation.
///
/// # Errors
/// When the key cannot be written as OpenSSH reads it.
pub fn files(home: &ClusterHome, key: &KeyPair, access: Vec<v1::SshAccess>) -> anyhow::Result<Vec<File>> {
    let private = keys::ssh_private_key(key)?;
    let openssh = private.to_openssh(ssh_key::LineEnding::LF)?;
    let plain = |name: &str, text: String| (name.to_owned(), Zeroizing::new(text.into_bytes()));
    let mut files = vec![
        (
            KEY_FILE.to_owned(),
            Zeroizing::new(key.serialize_pem().into_bytes()),
        ),
        (
            IDENTITY_FILE.to_owned(),
            Zeroizing::new(openssh.as_bytes().to_vec()),
        ),
        plain(
            &format!("{IDENTITY_FILE}.pub"),
            format!("{}\n", private.public_key().to_openssh()?),
        ),
    ];
    let (mut services, mut authorities) = (Vec::new(), String::new());
    for access in access {
        let Ok(name) = ServiceName::parse(&access.service) else {
            continue;
        };
        if let Ok(authority) = SshAuthority::from_bytes(&access.host_authority) {
            authorities.push_str(&config::authority_line(&name, home.cluster(), &authority));
        }
        let certificate = certificate(&access, &private);
        if let Some(certificate) = &certificate {
            let line = format!("{}\n", certificate.line());
            files.push(plain(&config::certificate_file(&name), line));
        }
        let principals = certificate.map(|certificate| certificate.principals().to_vec());
        services.push(SshService {
            name,
            login: Some(access.login).filter(|login| !login.is_empty()),
            principals: principals.unwrap_or_default(),
        });
    }
    let fragment = config::fragment(&services, &Paths::of(home)?);
    files.push(plain(AUTHORITIES_FILE, authorities));
    files.push(plain(CONFIG_FILE, fragment));
    files.push((
        SERVICES_FILE.to_owned(),
        Zeroizing::new(serde_json::to_vec_pretty(&services)?),
    ));
    Ok(files)
}

/// The certificate that came, provided it is one for our key of the authority named beside it. The server decides
/// whether it is good.
fn certificate(access: &v1::SshAccess, key: &ssh_key::PrivateKey) -> Option<SshCertificate> {
    if access.certificate.is_empty() {
        return None;
    }
    let authority = SshAuthority::from_bytes(&access.user_authority).ok()?;
    let (kind, now) = (SshCertificateKind::User, OffsetDateTime::now_utc());
    let certificate = SshCertificate::verify(&access.certificate, kind, &authority, now).ok()?;
    let is_ours = certificate.certificate().public_key() == key.public_key().key_data();
    is_ours.then_some(certificate)
}

impl ClusterHome {
    /// A file of the login's SSH folder.
    fn ssh_file(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let path = self.file(SSH_FOLDER).join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The fragment of configuration, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn ssh_config(&self) -> anyhow::Result<Option<String>> {
        let bytes = self.ssh_file(CONFIG_FILE)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}
