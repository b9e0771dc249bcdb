//! `iap-agent join`: a token becomes an agent. First contact trusts the token's pin and nothing else.

use std::path::Path;

use iap_identity::{
    AgentId, CertificateDer, JoinToken, JoinTokenError, NameError, TrustBundle, certificate_request,
};
use iap_proto::v1::join_client::JoinClient;
use iap_proto::{OpenError, open_bundle, open_locks, open_snapshot, v1};
use iap_runtime::files::{self, FileError};
use iap_runtime::keys::{self, KeyError, KeyKind};
use iap_runtime::net::HostPort;
use iap_runtime::rpc;
use iap_runtime::spool::{Spool, SpoolOpenError};
use iap_runtime::tls::{self, PinVerifier};
use prost::Message as _;
use rcgen::KeyPair;
use time::OffsetDateTime;

use crate::config::Config;
use crate::identity::{self, IdentityError};
use crate::state::{StateDir, StateError, names};

/// The whole exchange, the connection included.
const JOIN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Why the agent has not joined. Nothing of an earlier join is lost.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token file.
    #[error("the token file cannot be used: {0}")]
    TokenFile(FileError),
    /// Not a token.
    #[error("the token file holds no join token: {0}")]
    Token(#[from] JoinTokenError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The agent belongs to the cluster already.
    #[error("this host has joined already as agent {agent_id}: pass --replace to join anew under a new id")]
    AlreadyJoined {
        /// As which agent.
        agent_id: AgentId,
    },
    /// That agent runs.
    #[error("agent {agent_id} runs on this host: stop it first, so that its records are set aside whole")]
    Running {
        /// As which agent the host has joined.
        agent_id: AgentId,
    },
    /// The audit spool of an earlier join.
    #[error(transparent)]
    Spool(#[from] SpoolOpenError),
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The cryptographic library.
    #[error("a certificate request could not be made: {0}")]
    Request(rcgen::Error),
    /// The connection could not be made.
    #[error("the auth server of {cluster} cannot be reached through {proxy}: {reason}")]
    Unreachable {
        /// The cluster.
        cluster: String,
        /// The proxy dialled.
        proxy: HostPort,
        /// What went wrong.
        reason: String,
    },
    /// The server does not hold the pinned root.
    #[error(
        "the server behind {proxy} did not prove to be {auth_host} under the token's pin {pin}: the token is for another cluster, or somebody is in between"
    )]
    WrongPin {
        /// The proxy dialled.
        proxy: HostPort,
        /// The name asked for.
        auth_host: String,
        /// The token's pin.
        pin: String,
    },
    /// The server's certificate is wrong in its time.
    #[error(
        "by this host's clock, {now}, the certificate of {auth_host} has expired or is not valid yet: set the clock that is wrong (`timedatectl`)"
    )]
    WrongClock {
        /// The name asked for.
        auth_host: String,
        /// This host's time.
        now: OffsetDateTime,
    },
    /// The auth server refused the token.
    #[error("the auth server refused: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// The auth server's answer does not hold together.
    #[error("the auth server's answer is not believed: {0}")]
    Answer(#[from] AnswerError),
    /// TLS.
    #[error("TLS refuses the configuration: {0}")]
    Configuration(String),
}

/// What is wrong with an answer to a join.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// A part is missing.
    #[error("it lacks the {0}")]
    Lacks(&'static str),
    /// The id is none.
    #[error(transparent)]
    AgentId(#[from] NameError),
    /// A signed object.
    #[error("{what}: {source}")]
    Signed {
        /// Which.
        what: &'static str,
        /// Why.
        source: OpenError,
    },
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] IdentityError),
}

/// What a join yields, for the person at the terminal.
#[derive(Debug)]
pub struct JoinedAgent {
    /// The new agent.
    pub agent_id: AgentId,
    /// Services granted to it by the token.
    pub granted: Vec<String>,
}

/// The id under which this host has joined, if it has.
///
/// # Errors
/// When its state cannot be read.
pub fn joined(config: &Config) -> Result<Option<AgentId>, JoinError> {
    match StateDir::open(&config.state_dir)?.joined() {
        Ok(joined) => Ok(Some(joined.agent_id)),
        Err(StateError::NotJoined { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Joins with the token in `token_file` through `proxy`.
///
/// # Errors
/// Why not; what an earlier join left is untouched then.
pub async fn join(
    config: &Config,
    proxy: &HostPort,
    token_file: &Path,
    replace: bool,
) -> Result<JoinedAgent, JoinError> {
    let text = files::read_private(token_file).map_err(JoinError::TokenFile)?;
    let token = JoinToken::parse(&String::from_utf8_lossy(&text))?;
    let state = StateDir::open(&config.state_dir)?;
    let earlier = match state.joined() {
        Ok(joined) if !replace => {
            return Err(JoinError::AlreadyJoined {
                agent_id: joined.agent_id,
            });
        }
        Ok(joined) => Some(joined.agent_id),
        Err(StateError::NotJoined { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    // Before the token is used up: what a running agent still writes would be left behind.
    let _lock = match (earlier, Spool::lock(&state.path(names::SPOOL))) {
        (None, _) => None,
        (Some(_), Ok(lock)) => lock,
        (Some(agent_id), Err(SpoolOpenError::InUse { .. })) => return Err(JoinError::Running { agent_id }),
        (Some(_), Err(error)) => return Err(error.into()),
    };
    let key = keys::generate(KeyKind::P256)?;
    let csr = certificate_request(&key).map_err(JoinError::Request)?;
    let answer = ask(config, proxy, &token, csr).await?;
    let now = OffsetDateTime::now_utc();
    let checked = check(config, &token, &key, answer, now)?;
    if let Some(earlier) = earlier {
        state.retire(&earlier)?;
    }
    store(&state, &token, &key, &checked)?;
    Ok(JoinedAgent {
        agent_id: checked.agent_id,
        granted: checked.granted,
    })
}

async fn ask(
    config: &Config,
    proxy: &HostPort,
    token: &JoinToken,
    csr: Vec<u8>,
) -> Result<v1::JoinedAgent, JoinError> {
    let host = config.cluster.auth_host();
    let verifier = PinVerifier::new(*token.pin(), config.cluster.clone());
    let tls_config = tls::client_config(std::sync::Arc::new(verifier), None, &[rpc::ALPN_H2])
        .map_err(|error| JoinError::Configuration(error.to_string()))?;
    let unreachable = |reason: String| JoinError::Unreachable {
        cluster: config.cluster.to_string(),
        proxy: proxy.clone(),
        reason,
    };
    let channel = rpc::channel_outwards(vec![proxy.clone()], &host, tls_config)
        .map_err(|error| unreachable(error.to_string()))?;
    let request = v1::JoinRequest {
        secret: token.secret().to_vec(),
        csr,
        host_name: host_name(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut client = JoinClient::new(channel).max_decoding_message_size(32 * 1024 * 1024);
    match tokio::time::timeout(JOIN_TIMEOUT, client.join_agent(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(explain(&status, proxy, &host, token, unreachable)),
        Err(_elapsed) => Err(unreachable(format!(
            "no answer within {} s",
            JOIN_TIMEOUT.as_secs()
        ))),
    }
}

/// A status of the auth server's own is a refusal; one that wraps a transport error is the network, or TLS
/// having found the wrong server.
fn explain(
    status: &tonic::Status,
    proxy: &HostPort,
    host: &str,
    token: &JoinToken,
    unreachable: impl Fn(String) -> JoinError,
) -> JoinError {
    let chain = causes(status);
    let out_of_time = [
        "invalid peer certificate: Expired",
        "invalid peer certificate: NotValidYet",
    ];
    if chain
        .iter()
        .any(|cause| out_of_time.iter().any(|text| cause.contains(text)))
    {
        let (auth_host, now) = (host.to_owned(), OffsetDateTime::now_utc());
        return JoinError::WrongClock { auth_host, now };
    }
    if chain
        .iter()
        .any(|cause| cause.contains("invalid peer certificate"))
    {
        return JoinError::WrongPin {
            proxy: proxy.clone(),
            auth_host: host.to_owned(),
            pin: token.pin().to_string(),
        };
    }
    match chain.last() {
        Some(cause) if status.code() == tonic::Code::Unavailable => unreachable(cause.clone()),
        Some(_) | None if status.code() == tonic::Code::Unavailable => {
            unreachable(status.message().to_owned())
        }
        Some(_) | None => JoinError::Refused {
            message: status.message().to_owned(),
        },
    }
}

fn causes(status: &tonic::Status) -> Vec<String> {
    let mut causes = Vec::new();
    let mut next = std::error::Error::source(status);
    while let Some(error) = next {
        causes.push(error.to_string());
        next = error.source();
    }
    causes
}

/// Everything a join stores, checked.
struct Checked {
    agent_id: AgentId,
    chain: Vec<CertificateDer<'static>>,
    bundle: v1::Signed,
    snapshot: v1::Signed,
    locks: v1::Signed,
    granted: Vec<String>,
}

fn check(
    config: &Config,
    token: &JoinToken,
    key: &KeyPair,
    answer: v1::JoinedAgent,
    now: OffsetDateTime,
) -> Result<Checked, AnswerError> {
    let agent_id = AgentId::from_bytes(&answer.agent_id)?;
    let signed = |what| move |source| AnswerError::Signed { what, source };
    let bundle = answer.bundle.ok_or(AnswerError::Lacks("trust bundle"))?;
    let trusted: TrustBundle =
        open_bundle(&bundle, token.pin(), &config.cluster, now).map_err(signed("trust bundle"))?;
    let snapshot = answer.snapshot.ok_or(AnswerError::Lacks("snapshot"))?;
    let opened = open_snapshot(&snapshot, &trusted).map_err(signed("snapshot"))?;
    let locks = answer.locks.ok_or(AnswerError::Lacks("lock list"))?;
    open_locks(&locks, &trusted).map_err(signed("lock list"))?;
    let issued = answer.issued.ok_or(AnswerError::Lacks("certificate"))?;
    let chain: Vec<_> = issued.chain.into_iter().map(CertificateDer::from).collect();
    identity::check(chain.clone(), key, agent_id, &trusted, now)?;
    let granted = opened
        .services
        .iter()
        .filter(|service| service.agents.contains(&agent_id));
    let granted = granted.map(|service| service.facts.name.to_string()).collect();
    Ok(Checked {
        agent_id,
        chain,
        bundle,
        snapshot,
        locks,
        granted,
    })
}

/// The id comes last: as long as it is missing, the host has not joined.
fn store(state: &StateDir, token: &JoinToken, key: &KeyPair, checked: &Checked) -> Result<(), JoinError> {
    let pem = tls::certificates_to_pem(checked.chain.iter().map(AsRef::as_ref));
    keys::store(&state.path(names::KEY), key)?;
    state.write(names::CERTIFICATE, pem.as_bytes())?;
    state.write(names::PIN, format!("{}\n", token.pin()).as_bytes())?;
    state.write(names::BUNDLE, &checked.bundle.encode_to_vec())?;
    state.write(names::SNAPSHOT, &checked.snapshot.encode_to_vec())?;
    state.write(names::LOCKS, &checked.locks.encode_to_vec())?;
    state.write(names::AGENT_ID, format!("{}\n", checked.agent_id).as_bytes())?;
    Ok(())
}

fn host_name() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"));
    read.map(|name| name.trim().chars().take(64).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustls::{CertificateError, Error};

    fn explained(error: CertificateError) -> JoinError {
        let token = JoinToken::parse(&format!("iapj1.{}.{}", "0".repeat(64), "A".repeat(43))).unwrap();
        let status =
            tonic::Status::from_error(Box::new(std::io::Error::other(Error::InvalidCertificate(error))));
        let proxy = HostPort::new("proxy.example.com", 443).unwrap();
        let host = "auth.iap.example.com";
        explain(&status, &proxy, host, &token, |reason| JoinError::Unreachable {
            cluster: String::new(),
            proxy: proxy.clone(),
            reason,
        })
    }

    #[test]
    fn a_certificate_out_of_its_time_blames_the_clock_and_another_one_the_server() {
        for error in [CertificateError::Expired, CertificateError::NotValidYet] {
            let said = explained(error).to_string();
            assert!(said.contains("set the clock"), "{said}");
        }
        let other = explained(CertificateError::UnknownIssuer);
        assert!(matches!(other, JoinError::WrongPin { .. }), "{other}");
    }
}
