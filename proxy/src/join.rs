//! `iap-proxy join`: from a token to a certificate. The token names whom to trust before the first byte.

use std::path::Path;
use std::time::Duration;

use iap_identity::{JoinToken, JoinTokenError, NameError, ProxyId};
use iap_proto::v1::join_client::JoinClient;
use iap_proto::v1::{JoinRequest, JoinedProxy};
use iap_proto::{OpenError, open_bundle};
use iap_runtime::files::{self, DataDir, FileError};
use iap_runtime::keys::{self, KeyError, KeyKind};
use iap_runtime::net::HostPort;
use iap_runtime::rpc::{self, ALPN_H2};
use iap_runtime::tls::{self, Material, PinVerifier};
use rcgen::KeyPair;
use std::sync::Arc;
use thiserror::Error;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::state::{self, KEY_FILE, StateError};
use crate::trust;

const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the proxy did not join.
#[derive(Debug, Error)]
pub enum JoinError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The token is damaged.
    #[error("the token file: {0}")]
    Token(#[from] JoinTokenError),
    /// The key cannot be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The request cannot be made.
    #[error("the certificate request: {0}")]
    Request(#[from] rcgen::Error),
    /// The connection cannot be made.
    #[error("the auth server cannot be reached at {auth}: {problem}")]
    Connect {
        /// Where to.
        auth: HostPort,
        /// What failed.
        problem: String,
    },
    /// Whoever answers does not hold the pinned root.
    #[error(
        "the server at {auth} did not prove to be {auth_host} under the token's pin {pin}: the token is for another cluster, `auth` is not the auth server's address, or somebody is in between"
    )]
    WrongPin {
        /// Where to.
        auth: HostPort,
        /// The name asked for.
        auth_host: String,
        /// The token's pin.
        pin: String,
    },
    /// The auth server said no.
    #[error("the auth server refused: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// The answer is not what a join brings.
    #[error("the answer lacks {0}")]
    Incomplete(&'static str),
    /// The bundle is not of the root that the token names.
    #[error("the trust bundle received: {0}")]
    Bundle(#[from] OpenError),
    /// The id is no id.
    #[error("the proxy id received: {0}")]
    Id(#[from] NameError),
    /// The certificate is not usable.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Joins the cluster with the token in `token_file` through `auth`, and fills the state directory.
pub async fn join(config: &Config, auth: HostPort, token_file: &Path) -> Result<ProxyId, JoinError> {
    let text = Zeroizing::new(files::read_private(token_file)?);
    let token = JoinToken::parse(&String::from_utf8_lossy(&text))?;
    let directory = DataDir::open_or_create(&config.state_dir)?;
    let key = keys::load_or_create(&directory.join(KEY_FILE), KeyKind::P256)?;
    let joined = ask(config, &auth, &token, &key).await?;
    take(config, &directory, &token, &key, joined)
}

async fn ask(
    config: &Config,
    auth: &HostPort,
    token: &JoinToken,
    key: &KeyPair,
) -> Result<JoinedProxy, JoinError> {
    let problem = |problem: String| JoinError::Connect {
        auth: auth.clone(),
        problem,
    };
    let verifier = Arc::new(PinVerifier::new(*token.pin(), config.cluster.clone()));
    let tls = tls::client_config(verifier, None, &[ALPN_H2]).map_err(|error| problem(error.to_string()))?;
    let channel = rpc::channel(auth.clone(), &config.cluster.auth_host(), tls)
        .map_err(|error| problem(error.to_string()))?;
    let request = JoinRequest {
        secret: token.secret().to_vec(),
        csr: iap_identity::certificate_request(key)?,
        host_name: host_name(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut client = JoinClient::new(channel);
    match tokio::time::timeout(JOIN_TIMEOUT, client.join_proxy(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(explain(&status, config, auth, token)),
        Err(_) => Err(problem(format!("no answer within {} s", JOIN_TIMEOUT.as_secs()))),
    }
}

/// Everything is verified from the token's pin up before anything is stored.
fn take(
    config: &Config,
    directory: &DataDir,
    token: &JoinToken,
    key: &KeyPair,
    joined: JoinedProxy,
) -> Result<ProxyId, JoinError> {
    let now = OffsetDateTime::now_utc();
    let proxy_id = ProxyId::from_bytes(&joined.proxy_id)?;
    let issued = joined.issued.ok_or(JoinError::Incomplete("a certificate"))?;
    let signed = joined.bundle.ok_or(JoinError::Incomplete("a trust bundle"))?;
    let bundle = open_bundle(&signed, token.pin(), &config.cluster, now)?;
    let material = Material::new(bundle);
    trust::store_joined(directory, &signed, joined.locks.as_ref())?;
    state::store_joined(directory, &proxy_id, issued, key, &material, now)?;
    Ok(proxy_id)
}

/// A status of the auth server's own is a refusal; one that wraps a transport error is the network, or TLS having found
/// the wrong server.
fn explain(status: &tonic::Status, config: &Config, auth: &HostPort, token: &JoinToken) -> JoinError {
    let causes = causes(status);
    let auth = auth.clone();
    if causes
        .iter()
        .any(|cause| cause.contains("invalid peer certificate"))
    {
        return JoinError::WrongPin {
            auth,
            auth_host: config.cluster.auth_host(),
            pin: token.pin().to_string(),
        };
    }
    match causes.into_iter().next_back() {
        Some(problem) => JoinError::Connect { auth, problem },
        None => JoinError::Refused {
            message: status.message().to_owned(),
        },
    }
}

/// What lies beneath a status, outermost first; nothing beneath one that the server sent.
fn causes(status: &tonic::Status) -> Vec<String> {
    let mut causes = Vec::new();
    let mut next = std::error::Error::source(status);
    while let Some(error) = next {
        causes.push(error.to_string());
        next = error.source();
    }
    causes
}

/// For the record of who joined; a system that does not tell joins all the same.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
