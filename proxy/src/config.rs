//! The proxy's configuration: one TOML file, every limit by name.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iap_identity::ClusterName;
use iap_runtime::config::{self, ConfigErrors, LiveKeys};
use iap_runtime::net::{Cidr, HostPort};
use iap_runtime::quic::STREAMS_MAX;
use iap_runtime::telemetry::LogFormat;
use iap_runtime::traces::{self, TracesSection};
use serde::Deserialize;

/// Prefix of the environment variables that override the file: `IAP_PROXY__SECTION__KEY`.
pub const ENVIRONMENT_PREFIX: &str = "IAP_PROXY";

/// What SIGHUP takes over.
pub const LIVE_KEYS: LiveKeys = LiveKeys {
    taken_over: &["limits"],
    // QUIC tells each agent of it when it connects, from what the listener was made with.
    fixed: &["limits.quic_sessions_per_agent_max"],
};

/// Everything the proxy needs to know, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster whose names this proxy routes.
    pub cluster: ClusterName,
    /// Its key and certificate and the last good copy of what the auth server sent; 0700.
    pub state_dir: PathBuf,
    /// The public addresses.
    pub listen: Vec<SocketAddr>,
    /// How agents and clients reach this proxy.
    pub public_address: HostPort,
    /// Where the auth server listens.
    pub auth: HostPort,
    /// Health, readiness and metrics; loopback only.
    pub admin_listen: SocketAddr,
    /// Balancers whose PROXY v2 headers are believed.
    pub proxy_protocol_from: Vec<Cidr>,
    /// Control connections over QUIC.
    pub quic: QuicSection,
    /// How log lines are written.
    pub log: LogSection,
    /// Where spans go; nowhere by default.
    pub traces: Option<traces::Settings>,
    /// What strangers and agents may take.
    pub limits: Limits,
}

/// The `[quic]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct QuicSection {
    /// Whether agents may connect by QUIC, on UDP at the addresses and ports of `listen`.
    pub enabled: bool,
}

impl Default for QuicSection {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// The `[log]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct LogSection {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A level, or a list of `target=level`.
    pub level: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            level: "info".to_owned(),
        }
    }
}

/// What strangers and agents may take. The `[limits]` section has the same names; durations there are whole
/// seconds unless the name says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Routed connections at once.
    pub connections_max: usize,
    /// The share of these, in percent, that is kept for sources with a recent good session.
    pub connections_reserved_percent: u8,
    /// Routed connections at once from one source (/32, /64).
    pub connections_per_source_max: usize,
    /// The same from a source without a recent good session.
    pub stranger_connections_per_source_max: usize,
    /// Connections at once that have not yet said where they want to go.
    pub waiting_connections_max: usize,
    /// The same from one source.
    pub waiting_connections_per_source_max: usize,
    /// Sources remembered at once.
    pub sources_max: usize,
    /// Connections of one source that agents may report as unauthenticated within a minute before it is
    /// turned away; a source with a recent good one is not.
    pub failures_per_source_per_minute_max: u32,
    /// A ClientHello's size, record headers included.
    pub client_hello_bytes_max: usize,
    /// From accepting a connection to knowing where it wants to go.
    pub client_hello_seconds_max: Duration,
    /// Connections at once that wait for an agent to dial back.
    pub pending_opens_max: usize,
    /// How long one agent may take to dial back.
    pub dial_back_seconds_max: Duration,
    /// After which the next agent that serves the name is asked as well; the first to come has the connection. In
    /// whole milliseconds.
    pub dial_back_next_milliseconds: Duration,
    /// How many agents are asked for one connection.
    pub dial_back_attempts_max: usize,
    /// Control connections at once.
    pub agents_max: usize,
    /// Services one agent may announce.
    pub services_per_agent_max: usize,
    /// Messages that may wait for one slow agent.
    pub control_queue_messages_max: usize,
    /// TLS handshake and hello of a control connection.
    pub control_handshake_seconds_max: Duration,
    /// Sessions at once on one agent's QUIC connection.
    pub quic_sessions_per_agent_max: u32,
    /// Connections that agents dialled in advance, invited ones included.
    pub pool_connections_max: usize,
    /// The same of one agent.
    pub pool_connections_per_agent_max: usize,
    /// How long such a connection waits for a client.
    pub pool_idle_seconds_max: Duration,
    /// How often an agent is asked whether it is there.
    pub control_ping_seconds: Duration,
    /// Silence after which a control connection is closed.
    pub control_silence_seconds_max: Duration,
    /// Connecting to the auth server on behalf of a client.
    pub auth_connect_seconds_max: Duration,
    /// How long live sessions may go on once the proxy was told to stop.
    pub drain_seconds_max: Duration,
}

impl Limits {
    /// What is in force once these limits are taken over by a proxy that runs with `held`; see [`LIVE_KEYS`].
    #[must_use]
    pub fn taken_over(self, held: &Self) -> Self {
        Self {
            quic_sessions_per_agent_max: held.quic_sessions_per_agent_max,
            ..self
        }
    }

    /// Streams of one agent's QUIC connection: the first carries the control messages.
    pub(crate) fn quic_streams_max(&self) -> u32 {
        1 + self.quic_sessions_per_agent_max
    }
}

impl Default for Limits {
    fn default() -> Self {
        LimitsSection::default().into()
    }
}

impl Config {
    /// Reads the file and the environment; reports every mistake at once.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        config::load(path, ENVIRONMENT_PREFIX, File::check)
    }

    /// Reads configuration from text, for tests and for programs that embed the proxy.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigErrors> {
        Self::parse_with(text, file, [])
    }

    /// The same with overrides, as [`Config::load`] takes them from the process environment.
    pub fn parse_with(
        text: &str,
        file: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        config::parse(text, file, ENVIRONMENT_PREFIX, environment, File::check)
    }
}

#[derive(Deserialize)]
struct File {
    cluster: ClusterName,
    state_dir: PathBuf,
    listen: Vec<SocketAddr>,
    public_address: HostPort,
    auth: HostPort,
    #[serde(default = "default_admin_listen")]
    admin_listen: SocketAddr,
    #[serde(default)]
    proxy_protocol_from: Vec<Cidr>,
    #[serde(default)]
    quic: QuicSection,
    #[serde(default)]
    log: LogSection,
    #[serde(default)]
    traces: TracesSection,
    #[serde(default)]
    limits: LimitsSection,
}

fn default_admin_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7481))
}

impl File {
    fn check(self, file: &str) -> Result<Config, ConfigErrors> {
        let mut errors = ConfigErrors::none(file);
        if self.listen.is_empty() {
            errors.push("listen", "name at least one address, such as \"0.0.0.0:443\"");
        }
        if !self.admin_listen.ip().to_canonical().is_loopback() {
            errors.push(
                "admin_listen",
                "must be a loopback address, such as \"127.0.0.1:7481\"",
            );
        }
        let traces = self.traces.check(&mut errors);
        self.limits.check(&mut errors);
        if self.limits.quic_sessions_per_agent_max >= STREAMS_MAX {
            errors.push(
                "limits.quic_sessions_per_agent_max",
                format!("must be less than {STREAMS_MAX}"),
            );
        }
        if self.limits.connections_reserved_percent > 90 {
            errors.push("limits.connections_reserved_percent", "must be at most 90");
        }
        errors.into_result(Config {
            cluster: self.cluster,
            state_dir: self.state_dir,
            listen: self.listen,
            public_address: self.public_address,
            auth: self.auth,
            admin_listen: self.admin_listen,
            proxy_protocol_from: self.proxy_protocol_from,
            quic: self.quic,
            log: self.log,
            traces,
            limits: self.limits.into(),
        })
    }
}

/// Declares the `[limits]` section once: key, default, and the smallest value that makes sense.
macro_rules! limits_section {
    ($($key:ident: $type:ty = $default:literal, at least $least:literal;)+) => {
        #[derive(Deserialize)]
        #[serde(default)]
        struct LimitsSection { $($key: $type,)+ }

        impl Default for LimitsSection {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl LimitsSection {
            // A limit of which 0 makes sense cannot be too small.
            #[allow(unused_comparisons)]
            fn check(&self, errors: &mut ConfigErrors) {
                $(if self.$key < $least {
                    errors.push(
                        concat!("limits.", stringify!($key)),
                        concat!("must be at least ", stringify!($least)),
                    );
                })+
            }
        }
    };
}

limits_section! {
    connections_max: usize = 65_536, at least 1;
    connections_reserved_percent: u8 = 12, at least 0;
    connections_per_source_max: usize = 16_384, at least 1;
    stranger_connections_per_source_max: usize = 2_048, at least 1;
    waiting_connections_max: usize = 8_192, at least 1;
    waiting_connections_per_source_max: usize = 1_024, at least 1;
    sources_max: usize = 65_536, at least 16;
    failures_per_source_per_minute_max: u32 = 600, at least 1;
    client_hello_bytes_max: usize = 16_384, at least 4_096;
    client_hello_seconds_max: u64 = 5, at least 1;
    pending_opens_max: usize = 4_096, at least 1;
    dial_back_seconds_max: u64 = 5, at least 1;
    dial_back_next_milliseconds: u64 = 1_000, at least 50;
    dial_back_attempts_max: usize = 3, at least 1;
    agents_max: usize = 4_096, at least 1;
    services_per_agent_max: usize = 1_024, at least 1;
    control_queue_messages_max: usize = 1_024, at least 8;
    control_handshake_seconds_max: u64 = 10, at least 1;
    quic_sessions_per_agent_max: u32 = 256, at least 1;
    pool_connections_max: usize = 8_192, at least 0;
    pool_connections_per_agent_max: usize = 16, at least 0;
    pool_idle_seconds_max: u64 = 300, at least 1;
    control_ping_seconds: u64 = 15, at least 1;
    control_silence_seconds_max: u64 = 45, at least 2;
    auth_connect_seconds_max: u64 = 5, at least 1;
    drain_seconds_max: u64 = 20, at least 1;
}

impl From<LimitsSection> for Limits {
    fn from(section: LimitsSection) -> Self {
        Self {
            connections_max: section.connections_max,
            connections_reserved_percent: section.connections_reserved_percent,
            connections_per_source_max: section.connections_per_source_max,
            stranger_connections_per_source_max: section.stranger_connections_per_source_max,
            waiting_connections_max: section.waiting_connections_max,
            waiting_connections_per_source_max: section.waiting_connections_per_source_max,
            sources_max: section.sources_max,
            failures_per_source_per_minute_max: section.failures_per_source_per_minute_max,
            client_hello_bytes_max: section.client_hello_bytes_max,
            client_hello_seconds_max: Duration::from_secs(section.client_hello_seconds_max),
            pending_opens_max: section.pending_opens_max,
            dial_back_seconds_max: Duration::from_secs(section.dial_back_seconds_max),
            dial_back_next_milliseconds: Duration::from_millis(section.dial_back_next_milliseconds),
            dial_back_attempts_max: section.dial_back_attempts_max,
            agents_max: section.agents_max,
            services_per_agent_max: section.services_per_agent_max,
            control_queue_messages_max: section.control_queue_messages_max,
            control_handshake_seconds_max: Duration::from_secs(section.control_handshake_seconds_max),
            quic_sessions_per_agent_max: section.quic_sessions_per_agent_max,
            pool_connections_max: section.pool_connections_max,
            pool_connections_per_agent_max: section.pool_connections_per_agent_max,
            pool_idle_seconds_max: Duration::from_secs(section.pool_idle_seconds_max),
            control_ping_seconds: Duration::from_secs(section.control_ping_seconds),
            control_silence_seconds_max: Duration::from_secs(section.control_silence_seconds_max),
            auth_connect_seconds_max: Duration::from_secs(section.auth_connect_seconds_max),
            drain_seconds_max: Duration::from_secs(section.drain_seconds_max),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;

    const EXAMPLE: &str = include_str!("../../deploy/examples/proxy.toml");

    #[test]
    fn the_example_file_is_accepted() {
        let config = Config::parse(EXAMPLE, "proxy.toml").unwrap();
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let text = EXAMPLE
            .replace("127.0.0.1:7481", "0.0.0.0:7481")
            .replace("[\"0.0.0.0:443\"]", "[]");
        let text = format!("{text}\n[limits]\nagents_max = 0\nclient_hello_seconds_max = 0\n");
        let errors = Config::parse(&text, "proxy.toml").unwrap_err();
        let keys: Vec<_> = errors.errors().iter().map(|error| error.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "listen",
                "admin_listen",
                "limits.client_hello_seconds_max",
                "limits.agents_max"
            ],
            "{errors}"
        );
    }

    #[test]
    fn a_misspelt_limit_is_an_error() {
        let text = format!("{EXAMPLE}\n[limits]\nagent_max = 3\n");
        assert!(
            Config::parse(&text, "proxy.toml")
                .unwrap_err()
                .to_string()
                .contains("limits.agent_max")
        );
    }
}
