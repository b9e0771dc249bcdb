//! The configuration file, checked as a whole: `RawConfig` is the text, `Config` exists only when all of it is right.

mod raw;
mod values;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use iap_identity::ClusterName;
use secrecy::SecretString;

use crate::store::LoginMethod;

pub use raw::RawConfig;
pub use values::Network;

/// Everything the server was told, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// DNS suffix and trust domain.
    pub cluster: ClusterName,
    /// Keys, certificates and the database; 0700.
    pub data_dir: PathBuf,
    /// Where `<cluster>` and `auth.<cluster>` are served.
    pub listen: SocketAddr,
    /// How people reach the cluster, `host:port`; used in URLs.
    pub public_address: PublicAddress,
    /// Peers that may (and then must) begin with a PROXY v2 header.
    pub proxy_protocol_from: Vec<Network>,
    /// `/healthz`, `/readyz`, `/metrics`; loopback only.
    pub admin_listen: SocketAddr,
    /// Only ever written by the development plane: allows an identity provider on plain loopback HTTP.
    pub development: bool,
    /// Users (`user.name`) who hold every admin verb whatever the policy says.
    pub bootstrap_admins: BTreeSet<String>,
    /// A public certificate for `<cluster>`; without it the cluster's own is used.
    pub web: Option<WebCertificate>,
    /// Logins.
    pub login: LoginConfig,
    /// Identity providers, by name.
    pub connectors: Vec<ConnectorConfig>,
    /// Logins that no template may produce.
    pub reserved_logins: Vec<String>,
    /// The snapshot and the beat.
    pub snapshot: SnapshotConfig,
    /// What unauthenticated and authenticated peers may use.
    pub limits: Limits,
}

/// `host:port` as people type it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicAddress {
    /// A DNS name or an IP address.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// Files of a public certificate; read at start, PEM.
#[derive(Clone, Debug)]
pub struct WebCertificate {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// How long logins and their certificates live.
#[derive(Clone, Debug)]
pub struct LoginConfig {
    /// The life of one certificate.
    pub ttl: Duration,
    /// The life of a login, renewals included.
    pub deadline: Duration,
    /// Methods that are switched on.
    pub methods: BTreeSet<LoginMethod>,
}

/// One OpenID Connect provider.
#[derive(Clone, Debug)]
pub struct ConnectorConfig {
    /// The prefix of its groups; one LDH label.
    pub name: String,
    /// The issuer URL, exactly as the provider's tokens say it.
    pub issuer: String,
    /// Our client id there.
    pub client_id: String,
    /// Our client secret there; none for public clients.
    pub client_secret: Option<SecretString>,
    /// Scopes asked for; always contains `openid`.
    pub scopes: Vec<String>,
    /// The claim that lists the groups; none when the provider has no groups.
    pub groups_claim: Option<String>,
    /// Mail domains the connector owns, lower case: an email counts only if verified and in one of them.
    pub domains: BTreeSet<String>,
}

/// The snapshot's and the beat's times.
#[derive(Clone, Debug)]
pub struct SnapshotConfig {
    /// A snapshot is dead this long after it was issued.
    pub max_age: Duration,
    /// The time between two beats.
    pub beat: Duration,
}

/// Named limits, each with its unit last.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections that have not finished their TLS handshake.
    pub handshakes_max: usize,
    /// From accept to a finished handshake, the PROXY header included.
    pub handshake_timeout: Duration,
    /// All connections.
    pub connections_max: usize,
    /// Concurrent requests on one connection.
    pub streams_per_connection_max: u32,
    /// One gRPC message.
    pub message_bytes_max: usize,
    /// How long SIGTERM waits for requests under way.
    pub drain_timeout: Duration,
}

/// Why the configuration cannot be used: every problem at once.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file's shape is wrong: unreadable, unknown keys, wrong types.
    #[error(transparent)]
    File(#[from] iap_runtime::config::ConfigErrors),
    /// The values do not make sense.
    #[error("{}", render(.file, .problems))]
    Values {
        /// The file they come from.
        file: PathBuf,
        /// Every problem.
        problems: Vec<ConfigProblem>,
    },
}

/// One value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The key, dotted.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl Config {
    /// Reads, overrides from the environment (`IAP_AUTH__SECTION__KEY`) and checks a configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = iap_runtime::config::load(path, "IAP_AUTH")?;
        Self::check(raw).map_err(|problems| ConfigError::Values { file: path.to_owned(), problems })
    }

    /// Checks values, reading only the secrets' files they name.
    pub fn check(raw: RawConfig) -> Result<Self, Vec<ConfigProblem>> {
        raw::check(raw)
    }

    /// Whether this peer speaks PROXY v2 to us.
    pub fn speaks_proxy_protocol(&self, peer: IpAddr) -> bool {
        self.proxy_protocol_from.iter().any(|network| network.contains(peer))
    }

    /// `https://<cluster>[:port]`, without a trailing slash: how browsers reach the web pages.
    pub fn web_url(&self) -> String {
        match self.public_address.port {
            443 => format!("https://{}", self.cluster.as_str()),
            port => format!("https://{}:{port}", self.cluster.as_str()),
        }
    }

    /// The connector of that name.
    pub fn connector(&self, name: &str) -> Option<&ConnectorConfig> {
        self.connectors.iter().find(|connector| connector.name == name)
    }
}

impl std::fmt::Display for PublicAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

fn render(file: &Path, problems: &[ConfigProblem]) -> String {
    problems
        .iter()
        .map(|problem| format!("{}: {}: {}", file.display(), problem.key, problem.message))
        .collect::<Vec<_>>()
        .join("\n")
}
