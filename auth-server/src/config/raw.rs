//! The file as it is written, and the checks that turn it into a `Config`, all problems at once.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use iap_identity::ClusterName;
use secrecy::SecretString;
use serde::Deserialize;

use super::values::{parse_duration, parse_public_address};
use super::{
    Config, ConfigProblem, ConnectorConfig, Limits, LoginConfig, Network, SnapshotConfig, WebCertificate,
};
use crate::store::LoginMethod;

const TTL_DEFAULT: Duration = Duration::from_secs(3600);
const DEADLINE_DEFAULT: Duration = Duration::from_secs(12 * 3600);
const SNAPSHOT_MAX_AGE_DEFAULT: Duration = Duration::from_secs(24 * 3600);
const BEAT_DEFAULT: Duration = Duration::from_secs(10);
const CLIENT_SECRET_BYTES_MAX: u64 = 4096;
const RESERVED_LOGINS_DEFAULT: [&str; 4] = ["root", "postgres", "admin", "administrator"];

/// The configuration file, word for word.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    cluster: String,
    data_dir: PathBuf,
    listen: String,
    public_address: Option<String>,
    #[serde(default)]
    proxy_protocol_from: Vec<String>,
    admin_listen: Option<String>,
    #[serde(default)]
    development: bool,
    #[serde(default)]
    bootstrap: RawBootstrap,
    web: Option<RawWeb>,
    #[serde(default)]
    login: RawLogin,
    #[serde(default)]
    connector: Vec<RawConnector>,
    #[serde(default)]
    policy: RawPolicy,
    #[serde(default)]
    snapshot: RawSnapshot,
    #[serde(default)]
    limits: RawLimits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBootstrap {
    #[serde(default)]
    admins: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWeb {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLogin {
    ttl: Option<String>,
    deadline: Option<String>,
    methods: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConnector {
    name: String,
    issuer: String,
    client_id: String,
    client_secret_file: Option<PathBuf>,
    scopes: Option<Vec<String>>,
    groups_claim: Option<String>,
    #[serde(default)]
    domains: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    reserved_logins: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSnapshot {
    max_age: Option<String>,
    beat: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    handshakes_max: Option<usize>,
    handshake_timeout: Option<String>,
    connections_max: Option<usize>,
    streams_per_connection_max: Option<u32>,
    message_bytes_max: Option<usize>,
    drain_timeout: Option<String>,
}

/// Problems found so far; `take` turns a failed check into one and carries on.
#[derive(Default)]
struct Problems(Vec<ConfigProblem>);

impl Problems {
    fn add(&mut self, key: impl Into<String>, message: impl std::fmt::Display) {
        self.0.push(ConfigProblem { key: key.into(), message: message.to_string() });
    }

    fn take<T, E: std::fmt::Display>(&mut self, key: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(key, error)).ok()
    }

    fn duration(&mut self, key: &str, text: Option<&str>, default: Duration) -> Duration {
        text.and_then(|text| self.take(key, parse_duration(text))).unwrap_or(default)
    }
}

pub(super) fn check(raw: RawConfig) -> Result<Config, Vec<ConfigProblem>> {
    let mut problems = Problems::default();
    let cluster = problems.take("cluster", ClusterName::parse(&raw.cluster));
    let listen = problems.take("listen", raw.listen.parse().map_err(|_| "must be ADDRESS:PORT"));
    let admin_listen = problems.take("admin_listen", admin_address(raw.admin_listen.as_deref()));
    let default_address = format!("{}:443", raw.cluster);
    let public_address = problems.take(
        "public_address",
        parse_public_address(raw.public_address.as_deref().unwrap_or(&default_address)),
    );
    let proxy_protocol_from = raw
        .proxy_protocol_from
        .iter()
        .filter_map(|text| problems.take("proxy_protocol_from", Network::parse(text)))
        .collect();
    let login = login(&raw.login, &mut problems);
    let connectors = connectors(&raw, &mut problems);
    let snapshot = snapshot(&raw.snapshot, &mut problems);
    let limits = limits(&raw.limits, &mut problems);
    if !raw.data_dir.is_absolute() {
        problems.add("data_dir", "must be an absolute path");
    }
    let (Some(cluster), Some(listen), Some(admin_listen), Some(public_address), true) =
        (cluster, listen, admin_listen, public_address, problems.0.is_empty())
    else {
        return Err(problems.0);
    };
    Ok(Config {
        cluster,
        data_dir: raw.data_dir,
        listen,
        public_address,
        proxy_protocol_from,
        admin_listen,
        development: raw.development,
        bootstrap_admins: raw.bootstrap.admins.into_iter().collect(),
        web: raw.web.map(|web| WebCertificate { certificate: web.certificate, key: web.key }),
        login,
        connectors,
        reserved_logins: raw
            .policy
            .reserved_logins
            .unwrap_or_else(|| RESERVED_LOGINS_DEFAULT.map(str::to_owned).to_vec()),
        snapshot,
        limits,
    })
}

fn admin_address(text: Option<&str>) -> Result<std::net::SocketAddr, &'static str> {
    let address: std::net::SocketAddr =
        text.unwrap_or("127.0.0.1:7480").parse().map_err(|_| "must be ADDRESS:PORT")?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => Err("must be a loopback address: it has no authentication"),
    }
}

fn login(raw: &RawLogin, problems: &mut Problems) -> LoginConfig {
    let ttl = problems.duration("login.ttl", raw.ttl.as_deref(), TTL_DEFAULT);
    let deadline = problems.duration("login.deadline", raw.deadline.as_deref(), DEADLINE_DEFAULT);
    if ttl > deadline {
        problems.add("login.ttl", "must not be longer than login.deadline");
    }
    if ttl < Duration::from_secs(60) {
        problems.add("login.ttl", "must be at least 1m");
    }
    let mut methods = BTreeSet::new();
    for name in raw.methods.iter().flatten() {
        match LoginMethod::parse(name) {
            Some(method) => drop(methods.insert(method)),
            None => problems.add(
                "login.methods",
                format!("{name:?} is not a method; allowed: browser, no-browser, headless"),
            ),
        }
    }
    if raw.methods.is_none() {
        methods.extend(LoginMethod::ALL);
    }
    if methods.is_empty() {
        problems.add("login.methods", "must name at least one method");
    }
    LoginConfig { ttl, deadline, methods }
}

fn connectors(raw: &RawConfig, problems: &mut Problems) -> Vec<ConnectorConfig> {
    let mut names = BTreeSet::new();
    raw.connector
        .iter()
        .filter_map(|connector| {
            if !names.insert(connector.name.as_str()) {
                problems.add("connector.name", format!("{:?} is used twice", connector.name));
            }
            check_connector(connector, raw.development, problems)
        })
        .collect()
}

fn check_connector(raw: &RawConnector, development: bool, problems: &mut Problems) -> Option<ConnectorConfig> {
    let key = |field: &str| format!("connector[{}].{field}", raw.name);
    let label = raw.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if raw.name.is_empty() || raw.name.len() > 32 || !label {
        problems.add(key("name"), "must be 1 to 32 lower-case letters, digits and hyphens");
    }
    if !issuer_is_allowed(&raw.issuer, development) {
        problems.add(key("issuer"), "must be an https:// URL without query and fragment");
    }
    if raw.client_id.is_empty() {
        problems.add(key("client_id"), "must not be empty");
    }
    let client_secret = match &raw.client_secret_file {
        Some(path) => Some(problems.take(&key("client_secret_file"), read_secret(path))?),
        None => None,
    };
    let mut scopes =
        raw.scopes.clone().unwrap_or_else(|| ["openid", "email", "profile"].map(str::to_owned).to_vec());
    if !scopes.iter().any(|scope| scope == "openid") {
        scopes.insert(0, "openid".to_owned());
    }
    let groups_claim = match raw.groups_claim.as_deref() {
        Some("") => None,
        Some(claim) => Some(claim.to_owned()),
        None => Some("groups".to_owned()),
    };
    Some(ConnectorConfig {
        name: raw.name.clone(),
        issuer: raw.issuer.clone(),
        client_id: raw.client_id.clone(),
        client_secret,
        scopes,
        groups_claim,
        domains: raw.domains.iter().map(|domain| domain.to_ascii_lowercase()).collect(),
    })
}

fn issuer_is_allowed(issuer: &str, development: bool) -> bool {
    let Ok(url) = reqwest::Url::parse(issuer) else { return false };
    let plain = url.query().is_none() && url.fragment().is_none() && url.host_str().is_some();
    let loopback = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
    plain && (url.scheme() == "https" || (development && loopback && url.scheme() == "http"))
}

fn read_secret(path: &std::path::Path) -> Result<SecretString, String> {
    let length = std::fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?.len();
    if length > CLIENT_SECRET_BYTES_MAX {
        return Err(format!("{} is longer than {CLIENT_SECRET_BYTES_MAX} bytes", path.display()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    match text.trim() {
        "" => Err(format!("{} is empty", path.display())),
        secret => Ok(SecretString::from(secret.to_owned())),
    }
}

fn snapshot(raw: &RawSnapshot, problems: &mut Problems) -> SnapshotConfig {
    let max_age = problems.duration("snapshot.max_age", raw.max_age.as_deref(), SNAPSHOT_MAX_AGE_DEFAULT);
    let beat = problems.duration("snapshot.beat", raw.beat.as_deref(), BEAT_DEFAULT);
    if beat < Duration::from_millis(100) || beat > Duration::from_secs(60) {
        problems.add("snapshot.beat", "must be between 100ms and 60s");
    }
    if max_age < beat * 4 {
        problems.add("snapshot.max_age", "must be at least four beats");
    }
    SnapshotConfig { max_age, beat }
}

fn limits(raw: &RawLimits, problems: &mut Problems) -> Limits {
    let limits = Limits {
        handshakes_max: raw.handshakes_max.unwrap_or(512),
        handshake_timeout: problems.duration(
            "limits.handshake_timeout",
            raw.handshake_timeout.as_deref(),
            Duration::from_secs(5),
        ),
        connections_max: raw.connections_max.unwrap_or(8192),
        streams_per_connection_max: raw.streams_per_connection_max.unwrap_or(64),
        message_bytes_max: raw.message_bytes_max.unwrap_or(4 << 20),
        drain_timeout: problems.duration(
            "limits.drain_timeout",
            raw.drain_timeout.as_deref(),
            Duration::from_secs(5),
        ),
    };
    let counts = [
        ("limits.handshakes_max", limits.handshakes_max),
        ("limits.connections_max", limits.connections_max),
        ("limits.streams_per_connection_max", limits.streams_per_connection_max as usize),
    ];
    for (key, value) in counts {
        if value == 0 {
            problems.add(key, "must be at least 1");
        }
    }
    if !(2 << 20..=64 << 20).contains(&limits.message_bytes_max) {
        problems.add("limits.message_bytes_max", "must be between 2 MiB and 64 MiB");
    }
    limits
}
