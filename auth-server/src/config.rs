//! The configuration file, checked as a whole: `RawConfig` is the text, `Config` exists only when all of it is right.

mod connector;
mod raw;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iap_identity::ClusterName;
use iap_runtime::config::{ConfigErrors, LiveKeys};
use iap_runtime::net::{Cidr, HostPort};
use iap_runtime::telemetry::LogFormat;
use iap_runtime::traces;

use crate::store::LoginMethod;

pub use connector::{ConnectorConfig, ConnectorKind};
pub use raw::RawConfig;

/// Overrides come from `IAP_AUTH__SECTION__KEY`, as in `IAP_AUTH__LOG__LEVEL`.
pub const ENVIRONMENT_PREFIX: &str = "IAP_AUTH";

/// What SIGHUP takes over.
pub const LIVE_KEYS: LiveKeys = LiveKeys {
    taken_over: &["limits"],
    // The API server is made with them.
    fixed: &["limits.message_bytes_max", "limits.streams_per_connection_max"],
};

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
    pub public_address: HostPort,
    /// Peers that may (and then must) begin with a PROXY v2 header.
    pub proxy_protocol_from: Vec<Cidr>,
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
    /// The audit log.
    pub audit: AuditConfig,
    /// How long recordings are kept, and how many.
    pub recordings: RecordingsConfig,
    /// What unauthenticated and authenticated peers may use.
    pub limits: Limits,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// A level, or a list of `target=level`.
    pub log_level: String,
    /// Where spans go; nowhere by default.
    pub traces: Option<traces::Settings>,
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
    /// The life of a login, renewals included, where the provider gives refresh tokens.
    pub deadline: Duration,
    /// The same where it gives none, so that nobody can be asked about the login again.
    pub deadline_without_refresh: Duration,
    /// The time between two questions to the provider about a login that nothing renews.
    pub recheck: Duration,
    /// The file with the keys that seal refresh tokens.
    pub refresh_key_file: PathBuf,
    /// Methods that are switched on.
    pub methods: BTreeSet<LoginMethod>,
}

/// The snapshot's and the beat's times.
#[derive(Clone, Debug)]
pub struct SnapshotConfig {
    /// A snapshot is dead this long after it was issued.
    pub max_age: Duration,
    /// The time between two beats.
    pub beat: Duration,
}

/// The audit log's times.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// Sessions of an agent that was not heard of for this long are recorded as lost.
    pub agent_lost_after: Duration,
}

/// How long recordings of terminals are kept, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordingsConfig {
    /// From the end of their session; none: for ever.
    pub keep: Option<Duration>,
    /// All of them; none: as much as there is room.
    pub bytes_max: Option<u64>,
    /// What happens beyond that.
    pub when_full: WhenFull,
    /// So much of the disk they leave free.
    pub disk_free_bytes_min: u64,
}

/// What happens when there are too many recordings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// No more are taken: they wait at their agents.
    Refuse,
    /// The oldest go.
    EraseOldest,
}

/// Named limits, each with its unit last.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections whose clients have proven nothing yet, or show no certificate.
    pub unauthenticated_connections_max: usize,
    /// The same from one source (/32, /64).
    pub unauthenticated_connections_per_source_max: usize,
    /// How long an API connection without a certificate lasts; a login takes at most ten minutes.
    pub unauthenticated_timeout: Duration,
    /// From accept to a finished handshake, the PROXY header included.
    pub handshake_timeout: Duration,
    /// All connections.
    pub connections_max: usize,
    /// Concurrent requests on one connection.
    pub streams_per_connection_max: u32,
    /// One gRPC message.
    pub message_bytes_max: usize,
    /// Certificates of one user within an hour.
    pub certificates_per_user_per_hour_max: u32,
    /// The same of one bot.
    pub certificates_per_bot_per_hour_max: u32,
    /// The same of one agent, those of its services included.
    pub certificates_per_agent_per_hour_max: u32,
    /// The same of one proxy.
    pub certificates_per_proxy_per_hour_max: u32,
    /// How long SIGTERM waits for requests under way.
    pub drain_timeout: Duration,
}

impl Limits {
    /// What is in force once these limits are taken over by a server that runs with `held`; see [`LIVE_KEYS`].
    #[must_use]
    pub fn taken_over(self, held: &Self) -> Self {
        Self {
            message_bytes_max: held.message_bytes_max,
            streams_per_connection_max: held.streams_per_connection_max,
            ..self
        }
    }
}

impl Config {
    /// Reads a configuration file, overrides it from the environment, and checks it: all mistakes at once.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        iap_runtime::config::load(path, ENVIRONMENT_PREFIX, Self::check)
    }

    /// The configuration in `text`; `file` is what errors call it.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigErrors> {
        iap_runtime::config::parse(text, file, ENVIRONMENT_PREFIX, [], Self::check)
    }

    /// The same with overrides, as [`Config::load`] takes them from the process environment.
    pub fn parse_with(
        text: &str,
        file: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        iap_runtime::config::parse(text, file, ENVIRONMENT_PREFIX, environment, Self::check)
    }

    /// Checks values, reading only the secrets' files they name.
    pub fn check(raw: RawConfig, file: &str) -> Result<Self, ConfigErrors> {
        raw::check(raw, file)
    }

    /// `https://<cluster>[:port]`, without a trailing slash: how browsers reach the web pages.
    pub fn web_url(&self) -> String {
        match self.public_address.port() {
            443 => format!("https://{}", self.cluster.as_str()),
            port => format!("https://{}:{port}", self.cluster.as_str()),
        }
    }

    /// The connector of that name.
    pub fn connector(&self, name: &str) -> Option<&ConnectorConfig> {
        self.connectors.iter().find(|connector| connector.name == name)
    }
}
