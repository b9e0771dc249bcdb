//! A certificate for whoever administers the host, when nobody can log in: it holds every admin verb for some
//! minutes, needs no identity provider, cannot be renewed, and is on record with its reason before it exists.

use std::fs::{self, DirBuilder};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iap_audit::{EventKind, UserRecord};
use iap_identity::{IdentityProvider, LoginId, Request, UserId, certificate_request};
use iap_runtime::files::{PRIVATE_DIRECTORY_MODE, PRIVATE_FILE_MODE, write_atomic};
use iap_runtime::keys::{self, KeyKind};
use iap_runtime::net::HostPort;
use iap_runtime::tls::certificates_to_pem;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;

use crate::authority::{UserLogin, format_time};
use crate::config::Config;
use crate::context::AppContext;
use crate::local::{self, LocalError};

/// What such a certificate says instead of how somebody logged in; no login can say it.
pub const LOGIN_METHOD: &str = "break-glass";
/// The longest such a certificate lives.
pub const LIFE_MAX: Duration = Duration::from_secs(3600);
const LIFE_MIN: Duration = Duration::from_secs(60);
const REASON_BYTES_MAX: usize = 500;

/// What is asked of the running server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminCertificateRequest {
    /// A certificate request, DER, hex.
    csr: String,
    life_seconds: u64,
    reason: String,
}

/// What comes back: all that a home of `iapctl` needs.
#[derive(Debug, Serialize, Deserialize)]
pub struct AdminCertificate {
    certificates_pem: String,
    root_pem: String,
    pin: String,
    /// The signed bundle, hex.
    bundle: String,
    /// `user.name`.
    pub name: String,
    /// RFC 3339.
    pub not_after: String,
}

/// What to ask for, and where to put it.
#[derive(Debug)]
pub struct Wish {
    /// How long the certificate lives.
    pub life: Duration,
    /// Why it is needed; goes into the audit log.
    pub reason: String,
    /// The folder to make.
    pub home: PathBuf,
    /// What `iapctl` dials; none: this server itself, where it takes local callers.
    pub address: Option<HostPort>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum BreakGlassError {
    /// The wish is not acceptable.
    #[error("{0}")]
    Invalid(String),
    /// The folder is there.
    #[error("{} exists already: name another folder with --home", .0.display())]
    HomeExists(PathBuf),
    /// The server was not reached, or refused.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The folder cannot be written.
    #[error("cannot write {path}: {why}", path = .path.display())]
    Home {
        /// The folder.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// No key could be made.
    #[error("no key could be made: {0}")]
    Key(String),
}

/// Asks the server that runs in `data_dir`, and leaves a home for `iapctl --home`.
///
/// # Errors
/// When the server does not run, refuses, or the folder cannot be made.
pub async fn obtain(config: &Config, wish: &Wish) -> Result<AdminCertificate, BreakGlassError> {
    if wish.home.exists() {
        return Err(BreakGlassError::HomeExists(wish.home.clone()));
    }
    let key = keys::generate(KeyKind::P256).map_err(|error| BreakGlassError::Key(error.to_string()))?;
    let csr = certificate_request(&key).map_err(|error| BreakGlassError::Key(error.to_string()))?;
    let request = AdminCertificateRequest {
        csr: iap_identity::hex(&csr),
        life_seconds: wish.life.as_secs(),
        reason: wish.reason.clone(),
    };
    let given = local::ask_for_admin_certificate(&config.data_dir, request).await?;
    let address = wish.address.clone().unwrap_or_else(|| own_address(config));
    write_home(&wish.home, config, &given, &key.serialize_pem(), &address).map_err(|why| {
        BreakGlassError::Home {
            path: wish.home.clone(),
            why,
        }
    })?;
    Ok(given)
}

/// The server itself, unless it takes local callers for proxies; then the way everybody takes.
fn own_address(config: &Config) -> HostPort {
    let mut local = config.listen;
    if local.ip().is_unspecified() {
        local.set_ip(match local.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let expects_header = config
        .proxy_protocol_from
        .iter()
        .any(|from| from.contains(local.ip()));
    match expects_header {
        true => config.public_address.clone(),
        false => HostPort::from(local),
    }
}

/// The files of `iapctl`'s home, as it documents them.
fn write_home(
    home: &Path,
    config: &Config,
    given: &AdminCertificate,
    key_pem: &str,
    address: &HostPort,
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let cluster = config.cluster.as_str();
    let folder = home.join("clusters").join(cluster);
    DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIRECTORY_MODE)
        .create(&folder)
        .map_err(|error| text(&error))?;
    let record = json!({"cluster": cluster, "addresses": [address.to_string()], "pin": given.pin});
    let files = [
        (
            home.join("config.toml"),
            format!("cluster = \"{cluster}\"\n").into_bytes(),
        ),
        (folder.join("cluster.json"), record.to_string().into_bytes()),
        (folder.join("ca.pem"), given.root_pem.clone().into_bytes()),
        (
            folder.join("bundle.bin"),
            from_hex(&given.bundle).ok_or("the server sent no bundle")?,
        ),
        (folder.join("key.pem"), key_pem.as_bytes().to_vec()),
        (
            folder.join("cert.pem"),
            given.certificates_pem.clone().into_bytes(),
        ),
    ];
    for (path, content) in files {
        write_atomic(&path, &content, PRIVATE_FILE_MODE).map_err(|error| text(&error))?;
    }
    fs::metadata(home).map(drop).map_err(|error| text(&error))
}

/// The server's side: records who asked and why, then issues.
///
/// # Errors
/// A sentence for the caller on the host.
pub(crate) async fn issue(
    context: &AppContext,
    host_user: &UserRecord,
    uid: u32,
    request: &AdminCertificateRequest,
) -> Result<AdminCertificate, String> {
    let life = checked_life(request.life_seconds)?;
    let reason = checked_reason(&request.reason)?;
    let csr = from_hex(&request.csr).ok_or("the certificate request is not hex")?;
    let csr = Request::parse(&csr).map_err(|error| error.to_string())?;
    let now = context.clock.now();
    let login_id = context.random.uuid_v7(now).map_err(|error| error.to_string())?;
    let login = login(context, uid, LoginId::from_uuid(login_id), now, life);
    let event = context
        .audit
        .event(EventKind::AdminBreakGlass)
        .map_err(|error| error.to_string())?
        .user(host_user)
        .login_id(&login.login_id)
        .field("name", login.name.clone())
        .field("expires", format_time(login.login_deadline))
        .reason(reason);
    context
        .audit
        .record(event)
        .await
        .map_err(|error| error.to_string())?;
    tracing::warn!(uid, reason, login = %login.login_id, "a break-glass certificate is issued");
    let issued = context
        .authority
        .issue_once(&login, csr)
        .await
        .map_err(|error| error.to_string())?;
    Ok(AdminCertificate {
        certificates_pem: certificates_to_pem(issued.chain_der().iter().map(Vec::as_slice)),
        root_pem: context.authority.root_pem(),
        pin: context.authority.pin().to_string(),
        bundle: iap_identity::hex(&context.feed.bundle().encode_to_vec()),
        name: login.name,
        not_after: format_time(issued.not_after()),
    })
}

fn login(
    context: &AppContext,
    uid: u32,
    login_id: LoginId,
    now: OffsetDateTime,
    life: time::Duration,
) -> UserLogin {
    let cluster = context.config.cluster.as_str();
    // A connector's name has no space in it: no provider's user can have this id.
    let (connector, issuer, subject) = (
        "this host",
        format!("https://auth.{cluster}"),
        format!("uid {uid}"),
    );
    UserLogin {
        user_id: UserId::derive(connector, &issuer, &subject),
        name: format!("{LOGIN_METHOD}@{cluster}"),
        login_id,
        auth_time: now,
        login_deadline: now + life,
        idp: IdentityProvider {
            connector: connector.to_owned(),
            issuer,
            subject,
            acr: None,
        },
        login_method: LOGIN_METHOD.to_owned(),
        mfa_time: None,
        groups: Vec::new(),
        groups_as_of: now,
    }
}

fn checked_life(seconds: u64) -> Result<time::Duration, String> {
    let life = Duration::from_secs(seconds);
    match (LIFE_MIN..=LIFE_MAX).contains(&life) {
        true => Ok(time::Duration::seconds(
            i64::try_from(seconds).unwrap_or(i64::MAX),
        )),
        false => Err(format!(
            "--ttl must be between {} and {} seconds",
            LIFE_MIN.as_secs(),
            LIFE_MAX.as_secs()
        )),
    }
}

fn checked_reason(reason: &str) -> Result<&str, String> {
    let reason = reason.trim();
    let is_text = !reason.is_empty() && !reason.chars().any(char::is_control);
    match is_text && reason.len() <= REASON_BYTES_MAX {
        true => Ok(reason),
        false => Err(format!(
            "--reason needs a sentence of at most {REASON_BYTES_MAX} bytes: it goes into the audit log"
        )),
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}
