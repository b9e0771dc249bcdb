//! The agent's own file: read, checked as a whole, and only then a [`Config`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iap_identity::{ClusterName, ServiceName};
use iap_runtime::config::{self, ConfigErrors};
use iap_runtime::net::HostPort;
use iap_runtime::telemetry::LogFormat;
use iap_runtime::traces::{self, TracesSection};
use iap_tunnel::DataWay;
use serde::Deserialize;

use crate::backend::{BackendAddress, Introduction};
use crate::handlers::PostgresSettings;
use crate::handlers::ssh::{RawSsh, SshSettings};
use crate::limits::Limits;

/// Prefix of the environment variables that override the file: `IAP_AGENT__LIMITS__SESSIONS_MAX`.
pub const ENVIRONMENT_PREFIX: &str = "IAP_AGENT";

/// The agent's configuration in its valid form.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster it belongs to.
    pub cluster: ClusterName,
    /// Where it keeps its key, certificates, last good snapshot and spool (0700).
    pub state_dir: PathBuf,
    /// Proxies to dial besides those the snapshot names.
    pub proxies: Vec<HostPort>,
    /// How it reaches them.
    pub control: ControlChoice,
    /// How sessions reach it from them.
    pub data: DataChoice,
    /// Loopback address of `/healthz`, `/readyz` and `/metrics`.
    pub admin_listen: Option<SocketAddr>,
    /// How it logs.
    pub log: LogConfig,
    /// Where spans go; nowhere by default.
    pub traces: Option<traces::Settings>,
    /// What becomes of sessions.
    pub sessions: Sessions,
    /// Named bounds.
    pub limits: Limits,
    /// The services it can serve, by name.
    pub services: LocalServices,
}

/// What control connections run over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ControlChoice {
    /// QUIC, and TLS over TCP where that does not get through.
    #[default]
    Auto,
    /// QUIC alone.
    Quic,
    /// TLS over TCP alone.
    Tls,
}

/// What sessions run over between proxy and agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataChoice {
    /// The cheapest that works.
    #[default]
    Auto,
    /// A TCP connection dialled back.
    Tcp,
    /// The same inside TLS.
    Tls,
    /// A stream of the QUIC connection.
    Quic,
}

impl DataChoice {
    /// The only way that is allowed, where there is but one.
    #[must_use]
    pub fn only(self) -> Option<DataWay> {
        match self {
            Self::Auto => None,
            Self::Tcp => Some(DataWay::Tcp),
            Self::Tls => Some(DataWay::Tls),
            Self::Quic => Some(DataWay::Quic),
        }
    }
}

/// What becomes of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// Whether those that can be are kept, while they run, so that they outlive the agent's being killed.
    pub survive_kill: bool,
}

/// The services of this host's own file, by name.
pub type LocalServices = BTreeMap<ServiceName, Arc<LocalService>>;

/// A service as this host's own file knows it: the centre can never change this part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalService {
    /// Where the backend listens.
    pub backend: BackendAddress,
    /// What the backend is told of its clients.
    pub introduction: Introduction,
    /// What this host allows at most.
    pub ceiling: Ceiling,
    /// How it is served where it is an inspected PostgreSQL service.
    pub postgres: PostgresSettings,
    /// How its sshd is dealt with where sessions are recorded.
    pub ssh: Option<SshSettings>,
    /// Where the backend sees this agent, if that cannot be found out here. SSH certificates are bound to it; an
    /// empty list binds them to nothing.
    pub source_addresses: Option<Vec<IpAddr>>,
}

/// A bound that the central policy can never exceed. An absent list bounds nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ceiling {
    /// Backend logins that may be used; `*` is any.
    #[serde(default)]
    pub logins: Option<Vec<String>>,
    /// Groups of which the user must be in at least one, as `connector:group` or `group`.
    #[serde(default)]
    pub groups: Option<Vec<String>>,
}

/// How the agent logs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A level such as `info`, or `target=level,...`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: "info".to_owned(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    cluster: ClusterName,
    state_dir: PathBuf,
    #[serde(default)]
    proxies: Vec<HostPort>,
    #[serde(default)]
    control: ControlChoice,
    #[serde(default)]
    data: DataChoice,
    #[serde(default)]
    admin_listen: Option<SocketAddr>,
    #[serde(default)]
    log: LogConfig,
    #[serde(default)]
    traces: TracesSection,
    #[serde(default)]
    sessions: Sessions,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    service: Vec<RawService>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    name: ServiceName,
    backend: BackendAddress,
    #[serde(default)]
    proxy_protocol: Introduction,
    #[serde(default)]
    ceiling: Ceiling,
    #[serde(default)]
    postgres: PostgresSettings,
    ssh: Option<RawSsh>,
    #[serde(default)]
    source_addresses: Option<Vec<IpAddr>>,
}

impl Config {
    /// Reads the file at `path`, with overrides from the environment.
    ///
    /// # Errors
    /// Every mistake in it, each with its key and what is allowed.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        config::load(path, ENVIRONMENT_PREFIX, Self::check)
    }

    /// Reads configuration from `text`; `file` is what errors call it.
    ///
    /// # Errors
    /// Every mistake in it, each with its key and what is allowed.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigErrors> {
        Self::parse_with(text, file, [])
    }

    /// The same with overrides, as [`Config::load`] takes them from the process environment.
    ///
    /// # Errors
    /// Every mistake in it, each with its key and what is allowed.
    pub fn parse_with(
        text: &str,
        file: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        config::parse(text, file, ENVIRONMENT_PREFIX, environment, Self::check)
    }

    fn check(raw: RawConfig, file: &str) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::none(file);
        for (key, allowed) in raw.limits.problems() {
            errors.push(key, format!("allowed is {allowed}"));
        }
        if raw.data == DataChoice::Quic && raw.control == ControlChoice::Tls {
            errors.push(
                "data",
                "\"quic\" needs a control connection by QUIC: set control to \"auto\" or \"quic\"",
            );
        }
        if let Some(address) = raw
            .admin_listen
            .filter(|address| !address.ip().to_canonical().is_loopback())
        {
            errors.push(
                "admin_listen",
                format!("{address} is no loopback address such as 127.0.0.1:7482"),
            );
        }
        let traces = raw.traces.check(&mut errors);
        let mut services = LocalServices::new();
        for (index, service) in raw.service.into_iter().enumerate() {
            let key = format!("service.{index}.ssh");
            let ssh = service
                .ssh
                .and_then(|ssh| ssh.check(&service.backend, &key, &mut errors));
            if ssh.is_some() && service.proxy_protocol != Introduction::None {
                errors.push(&key, "sshd understands no PROXY header: leave proxy_protocol out");
            }
            let local = LocalService {
                ssh,
                backend: service.backend,
                introduction: service.proxy_protocol,
                ceiling: service.ceiling,
                postgres: service.postgres,
                source_addresses: service.source_addresses,
            };
            if let Some((key, allowed)) = local.postgres.problem() {
                errors.push(&format!("service.{index}.postgres.{key}"), allowed);
            }
            let name = service.name.clone();
            if services.insert(service.name, Arc::new(local)).is_some() {
                errors.push(
                    &format!("service.{index}.name"),
                    format!("{name:?} is listed twice"),
                );
            }
        }
        let RawConfig {
            cluster,
            state_dir,
            proxies,
            control,
            data,
            admin_listen,
            log,
            sessions,
            limits,
            ..
        } = raw;
        errors.into_result(Self {
            cluster,
            state_dir,
            proxies,
            control,
            data,
            admin_listen,
            log,
            traces,
            sessions,
            limits,
            services,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"
        cluster = "iap.example.com"
        state_dir = "/var/lib/iap-agent"
        proxies = ["iap.example.com:443"]
        admin_listen = "127.0.0.1:7482"
        [limits]
        sessions_max = 5
        [[service]]
        name = "db-prod"
        backend = "unix:/run/postgresql/.s.PGSQL.5432"
        ceiling = { logins = ["readonly"], groups = ["okta:engineering"] }
        [[service]]
        name = "echo"
        backend = "127.0.0.1:7"
        proxy_protocol = "v2"
    "#;

    #[test]
    fn a_complete_file_is_read() {
        let config = Config::parse(GOOD, "agent.toml").unwrap();
        assert_eq!(config.limits.sessions_max, 5);
        assert_eq!(config.limits.handshakes_max, Limits::default().handshakes_max);
        assert_eq!(config.services.len(), 2);
        let database = config
            .services
            .get(&ServiceName::parse("db-prod").unwrap())
            .unwrap();
        assert_eq!(database.ceiling.logins, Some(vec!["readonly".to_owned()]));
        assert_eq!(database.introduction, Introduction::None);
        let echo = config.services.get(&ServiceName::parse("echo").unwrap()).unwrap();
        assert_eq!(echo.introduction, Introduction::V2);
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_its_key() {
        let text = r#"
            cluster = "iap.example.com"
            state_dir = "/var/lib/iap-agent"
            proxy = "x"
            admin_listen = "127.0.0.1:7482"
            [limits]
            sessions = 1
            [[service]]
            name = "Not A Label"
            backend = "nowhere"
        "#;
        let errors = Config::parse(text, "agent.toml").unwrap_err();
        let keys: Vec<_> = errors.errors().iter().map(|error| error.key.as_str()).collect();
        for key in ["proxy", "limits.sessions", "service.0.name", "service.0.backend"] {
            assert!(keys.contains(&key), "{key} is missing in {errors}");
        }
    }

    #[test]
    fn values_out_of_range_and_doubled_services_are_refused() {
        let text = r#"
            cluster = "iap.example.com"
            state_dir = "/s"
            admin_listen = "0.0.0.0:1"
            control = "tls"
            data = "quic"
            [limits]
            sessions_max = 0
            [[service]]
            name = "echo"
            backend = "a:1"
            [[service]]
            name = "echo"
            backend = "b:2"
        "#;
        let errors = Config::parse(text, "agent.toml").unwrap_err();
        let keys: Vec<_> = errors.errors().iter().map(|error| error.key.as_str()).collect();
        assert_eq!(
            keys,
            ["limits.sessions_max", "data", "admin_listen", "service.1.name"]
        );
    }
}
