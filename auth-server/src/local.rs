//! The socket in `data_dir`, for whoever administers the host: how the first proxy gets its token, before anybody can
//! log in through one.
//!
//! One JSON line in, one out. Only the server's own user and root are answered, whatever the file's permissions say.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use iap_audit::{EventKind, UserRecord};
use iap_proto::v1::{TokenCreateReply, TokenCreateRequest};
use iap_runtime::shutdown::Shutdown;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::break_glass::{self, AdminCertificate, AdminCertificateRequest};
use crate::context::AppContext;
use crate::store::ProxyRow;
use crate::tokens;

/// The socket's name in `data_dir`.
pub const SOCKET_FILE: &str = "local.sock";

const REQUEST_BYTES_MAX: u64 = 4096;
/// A policy of the largest size (4 MiB), as JSON text.
const REPLY_BYTES_MAX: u64 = 16 << 20;
const EXCHANGE_SECONDS_MAX: u64 = 5;
const CONNECTIONS_MAX: usize = 8;
/// After a failed accept, so that a lasting cause does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What may be asked for on the host itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LocalRequest {
    /// A single-use token for a proxy.
    ProxyToken {
        /// Until when it can be used; 0 for the default of 30 minutes.
        ttl_seconds: u32,
    },
    /// The policy in force, for `iap-auth idp test`.
    Policy,
    /// Which proxies there are, for `iap-auth doctor`.
    Proxies,
    /// Record that a backup is about to be made.
    Backup {
        /// Where it goes.
        output: String,
    },
    /// A short-lived certificate with every admin verb.
    AdminCertificate(AdminCertificateRequest),
}

/// The proxies that have joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownProxies {
    /// How many have.
    pub joined: usize,
    /// The public addresses of those that follow the feed now.
    pub connected: Vec<String>,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalReply {
    /// The token, to be given to `iap-proxy join`.
    Token(String),
    /// The policy, as it was applied.
    Policy(String),
    /// The proxies.
    Proxies(KnownProxies),
    /// It is in the audit log.
    Recorded,
    /// The certificate, and what a home needs beside it.
    AdminCertificate(Box<AdminCertificate>),
    /// Why not.
    Refused(String),
}

/// Why the running server could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Nobody answers.
    #[error("no auth server runs in {path}: start `iap-auth --config FILE` first ({source})")]
    NotRunning {
        /// `data_dir`.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The conversation failed.
    #[error("the running auth server could not be asked: {0}")]
    Exchange(#[from] io::Error),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// Listens in `data_dir`.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(data_dir: &Path) -> io::Result<UnixListener> {
    let folder = File::open(data_dir)?;
    let path = short_path(&folder);
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until the shutdown.
pub async fn serve(context: Arc<AppContext>, listener: UnixListener, shutdown: Shutdown) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the local socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let context = Arc::clone(&context);
        shutdown.spawn(async move {
            let _place = place;
            let limit = Duration::from_secs(EXCHANGE_SECONDS_MAX);
            match tokio::time::timeout(limit, answer(&context, stream)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a local conversation failed"),
                Err(_) => tracing::debug!("a local conversation took too long"),
            }
        });
    }
}

/// Asks the server that runs in `data_dir` for a proxy's token.
///
/// # Errors
/// When none runs there, or it refuses.
pub async fn ask_for_proxy_token(data_dir: &Path, ttl_seconds: u32) -> Result<String, LocalError> {
    match ask(data_dir, &LocalRequest::ProxyToken { ttl_seconds }).await? {
        LocalReply::Token(token) => Ok(token),
        _ => Err(unexpected()),
    }
}

/// Asks the server that runs in `data_dir` for the policy in force.
///
/// # Errors
/// When none runs there, or it refuses.
pub async fn ask_for_policy(data_dir: &Path) -> Result<String, LocalError> {
    match ask(data_dir, &LocalRequest::Policy).await? {
        LocalReply::Policy(toml) => Ok(toml),
        _ => Err(unexpected()),
    }
}

/// Asks the server that runs in `data_dir` for its proxies.
///
/// # Errors
/// When none runs there, or it refuses.
pub async fn ask_for_proxies(data_dir: &Path) -> Result<KnownProxies, LocalError> {
    match ask(data_dir, &LocalRequest::Proxies).await? {
        LocalReply::Proxies(proxies) => Ok(proxies),
        _ => Err(unexpected()),
    }
}

/// Has the server that runs in `data_dir` record that a backup is about to be made.
///
/// # Errors
/// When none runs there, or it cannot.
pub async fn record_backup(data_dir: &Path, output: &Path) -> Result<(), LocalError> {
    let output = output.display().to_string();
    match ask(data_dir, &LocalRequest::Backup { output }).await? {
        LocalReply::Recorded => Ok(()),
        _ => Err(unexpected()),
    }
}

/// Asks the server that runs in `data_dir` for a break-glass certificate.
///
/// # Errors
/// When none runs there, or it refuses.
pub(crate) async fn ask_for_admin_certificate(
    data_dir: &Path,
    request: AdminCertificateRequest,
) -> Result<AdminCertificate, LocalError> {
    match ask(data_dir, &LocalRequest::AdminCertificate(request)).await? {
        LocalReply::AdminCertificate(given) => Ok(*given),
        _ => Err(unexpected()),
    }
}

async fn ask(data_dir: &Path, request: &LocalRequest) -> Result<LocalReply, LocalError> {
    let folder = File::open(data_dir).map_err(|source| not_running(data_dir, source))?;
    let stream = UnixStream::connect(short_path(&folder)).await;
    let mut stream = stream.map_err(|source| not_running(data_dir, source))?;
    let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let reply = read_line(&mut stream, REPLY_BYTES_MAX).await?;
    match serde_json::from_slice(&reply).map_err(io::Error::other)? {
        LocalReply::Refused(why) => Err(LocalError::Refused(why)),
        reply => Ok(reply),
    }
}

/// It may hold a secret: not shown.
fn unexpected() -> LocalError {
    LocalError::Refused("the running server answered something else".to_owned())
}

async fn answer(context: &AppContext, mut stream: UnixStream) -> io::Result<()> {
    let caller = stream.peer_cred()?;
    let own = rustix::process::geteuid().as_raw();
    if caller.uid() != own && caller.uid() != 0 {
        tracing::warn!(uid = caller.uid(), "another user asked on the local socket");
        return Ok(());
    }
    let reply = match serde_json::from_slice(&read_line(&mut stream, REQUEST_BYTES_MAX).await?) {
        Ok(LocalRequest::ProxyToken { ttl_seconds }) => proxy_token(context, caller.uid(), ttl_seconds).await,
        Ok(LocalRequest::Policy) => LocalReply::Policy(context.policies.current().toml.clone()),
        Ok(LocalRequest::Proxies) => proxies(context).await,
        Ok(LocalRequest::Backup { output }) => record(context, caller.uid(), &output).await,
        Ok(LocalRequest::AdminCertificate(request)) => {
            let uid = caller.uid();
            let issued = break_glass::issue(context, &host_user(uid), uid, &request).await;
            issued.map_or_else(LocalReply::Refused, |given| {
                LocalReply::AdminCertificate(Box::new(given))
            })
        }
        Err(error) => LocalReply::Refused(format!("that is not a request: {error}")),
    };
    let mut line = serde_json::to_vec(&reply).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

async fn proxy_token(context: &AppContext, uid: u32, ttl_seconds: u32) -> LocalReply {
    let author = host_user(uid);
    let request = TokenCreateRequest {
        kind: "proxy".to_owned(),
        services: Vec::new(),
        uses: 1,
        ttl_seconds,
    };
    match tokens::create(context, &author, request).await {
        Ok(TokenCreateReply { token, .. }) => LocalReply::Token(token),
        Err(error) => LocalReply::Refused(error.text),
    }
}

async fn proxies(context: &AppContext) -> LocalReply {
    let rows = match context.store.proxies().await {
        Ok(rows) => rows,
        Err(error) => return LocalReply::Refused(error.to_string()),
    };
    let watchers = context.feed.watchers();
    let connected = rows
        .iter()
        .filter(|row| watchers.contains(*row.proxy_id.as_uuid()));
    let address = |row: &ProxyRow| {
        row.public_address
            .clone()
            .unwrap_or_else(|| row.proxy_id.to_string())
    };
    LocalReply::Proxies(KnownProxies {
        joined: rows.len(),
        connected: connected.map(address).collect(),
    })
}

async fn record(context: &AppContext, uid: u32, output: &str) -> LocalReply {
    let recorded = match context.audit.event(EventKind::AuthBackup) {
        Ok(event) => {
            let event = event.user(&host_user(uid)).field("output", output);
            context
                .audit
                .record(event)
                .await
                .map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    recorded.map_or_else(LocalReply::Refused, |()| LocalReply::Recorded)
}

fn host_user(uid: u32) -> UserRecord {
    let name = format!("uid {uid} on the auth server's host");
    UserRecord {
        id: name.clone(),
        name,
        kind: "host".to_owned(),
    }
}

async fn read_line(stream: &mut UnixStream, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream)
        .take(bytes_max)
        .read_until(b'\n', &mut line)
        .await?;
    Ok(line)
}

/// `sockaddr_un` holds 107 bytes and `data_dir` may be longer: the kernel's own name for the open folder is short.
fn short_path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_FILE}", folder.as_raw_fd()))
}

fn not_running(path: &Path, source: io::Error) -> LocalError {
    LocalError::NotRunning {
        path: path.to_owned(),
        source,
    }
}
