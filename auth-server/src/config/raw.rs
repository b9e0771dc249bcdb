//! The file as it is written, and the checks that turn it into a `Config`, all mistakes at once.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use iap_identity::ClusterName;
use iap_runtime::config::{ByteSize, ConfigDuration, ConfigErrors};
use iap_runtime::net::{Cidr, HostPort};
use iap_runtime::telemetry::LogFormat;
use iap_runtime::traces::TracesSection;
use serde::Deserialize;

use super::connector::{self, RawConnector};
use super::{
    AuditConfig, Config, Limits, LoginConfig, RecordingsConfig, SnapshotConfig, WebCertificate, WhenFull,
};
use crate::store::LoginMethod;

const HTTPS_PORT: u16 = 443;
const ADMIN_PORT_DEFAULT: u16 = 7480;
const TTL_DEFAULT: ConfigDuration = ConfigDuration::from_secs(3600);
const TTL_MIN: Duration = Duration::from_secs(60);
/// Tests of renewal would wait too long otherwise.
const TTL_MIN_IN_DEVELOPMENT: Duration = Duration::from_secs(5);
const TTL_MAX: Duration = Duration::from_secs(12 * 3600);
const DEADLINE_DEFAULT: ConfigDuration = ConfigDuration::from_secs(12 * 3600);
const DEADLINE_WITHOUT_REFRESH_DEFAULT: Duration = Duration::from_secs(4 * 3600);
const DEADLINE_MAX: Duration = Duration::from_secs(7 * 86_400);
const RECHECK_DEFAULT: ConfigDuration = ConfigDuration::from_secs(15 * 60);
const RECHECK_MIN: Duration = Duration::from_secs(1);
const RECHECK_MAX: Duration = Duration::from_secs(86_400);
const SNAPSHOT_MAX_AGE_DEFAULT: ConfigDuration = ConfigDuration::from_secs(24 * 3600);
const BEAT_DEFAULT: ConfigDuration = ConfigDuration::from_secs(10);
const BEAT_MIN: Duration = Duration::from_millis(100);
const BEAT_MAX: Duration = Duration::from_secs(60);
const AGENT_LOST_AFTER_DEFAULT: ConfigDuration = ConfigDuration::from_secs(24 * 3600);
const AGENT_LOST_AFTER_MIN: Duration = Duration::from_secs(120);
const AGENT_LOST_AFTER_MAX: Duration = Duration::from_secs(30 * 86_400);
const KEEP_MIN: Duration = Duration::from_secs(86_400);
/// Tests of retention would wait too long otherwise.
const KEEP_MIN_IN_DEVELOPMENT: Duration = Duration::from_secs(1);
const KEEP_MAX: Duration = Duration::from_secs(36_500 * 86_400);
const RECORDINGS_BYTES_LEAST: u64 = 1 << 20;
const DISK_FREE_BYTES_MIN_DEFAULT: u64 = 512 << 20;

/// The configuration file, key by key.
#[derive(Clone, Debug, Deserialize)]
pub struct RawConfig {
    cluster: ClusterName,
    data_dir: PathBuf,
    listen: SocketAddr,
    public_address: Option<HostPort>,
    #[serde(default)]
    proxy_protocol_from: Vec<Cidr>,
    admin_listen: Option<SocketAddr>,
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
    audit: RawAudit,
    #[serde(default)]
    recordings: RawRecordings,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    log: RawLog,
    #[serde(default)]
    traces: TracesSection,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RawBootstrap {
    #[serde(default)]
    admins: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct RawWeb {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RawLogin {
    ttl: Option<ConfigDuration>,
    deadline: Option<ConfigDuration>,
    deadline_without_refresh: Option<ConfigDuration>,
    recheck: Option<ConfigDuration>,
    refresh_key_file: Option<PathBuf>,
    methods: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RawPolicy {
    reserved_logins: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RawSnapshot {
    max_age: Option<ConfigDuration>,
    beat: Option<ConfigDuration>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RawAudit {
    agent_lost_after: Option<ConfigDuration>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RawRecordings {
    keep: Option<ConfigDuration>,
    bytes_max: Option<ByteSize>,
    when_full: Option<String>,
    disk_free_bytes_min: Option<ByteSize>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RawLimits {
    unauthenticated_connections_max: Option<usize>,
    unauthenticated_connections_per_source_max: Option<usize>,
    unauthenticated_timeout: Option<ConfigDuration>,
    handshake_timeout: Option<ConfigDuration>,
    connections_max: Option<usize>,
    streams_per_connection_max: Option<u32>,
    message_bytes_max: Option<ByteSize>,
    certificates_per_user_per_hour_max: Option<u32>,
    certificates_per_bot_per_hour_max: Option<u32>,
    certificates_per_agent_per_hour_max: Option<u32>,
    certificates_per_proxy_per_hour_max: Option<u32>,
    drain_timeout: Option<ConfigDuration>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RawLog {
    #[serde(default)]
    format: LogFormat,
    level: Option<String>,
}

pub(super) fn check(raw: RawConfig, file: &str) -> Result<Config, ConfigErrors> {
    let mut errors = ConfigErrors::none(file);
    if !raw.data_dir.is_absolute() {
        errors.push("data_dir", "must be an absolute path");
    }
    let public_address = public_address(&raw, &mut errors);
    let config = Config {
        login: login(&raw, &mut errors),
        connectors: connector::check(&raw.connector, raw.development, &mut errors),
        snapshot: snapshot(&raw.snapshot, &mut errors),
        audit: audit(&raw.audit, &mut errors),
        recordings: recordings(&raw.recordings, raw.development, &mut errors),
        limits: limits(&raw.limits, &mut errors),
        admin_listen: admin_listen(raw.admin_listen, &mut errors),
        cluster: raw.cluster,
        data_dir: raw.data_dir,
        listen: raw.listen,
        public_address,
        proxy_protocol_from: raw.proxy_protocol_from,
        development: raw.development,
        bootstrap_admins: raw.bootstrap.admins.into_iter().collect(),
        web: raw.web.map(|web| WebCertificate {
            certificate: web.certificate,
            key: web.key,
        }),
        reserved_logins: raw
            .policy
            .reserved_logins
            .unwrap_or_else(|| iap_policy::RESERVED_LOGINS.map(str::to_owned).to_vec()),
        log_format: raw.log.format,
        log_level: raw.log.level.unwrap_or_else(|| "info".to_owned()),
        traces: raw.traces.check(&mut errors),
    };
    check_admins(&config, &mut errors);
    errors.into_result(config)
}

/// At many providers people choose their `preferred_username`. One that is an email is believed only where no
/// connector owns its domain, so an administrator named by an email must be in a domain that one owns.
fn check_admins(config: &Config, errors: &mut ConfigErrors) {
    if config.connectors.is_empty() {
        return;
    }
    for admin in &config.bootstrap_admins {
        let Some((_, domain)) = admin.rsplit_once('@') else {
            continue;
        };
        let domain = domain.to_ascii_lowercase();
        if !config
            .connectors
            .iter()
            .any(|connector| connector.domains.contains(&domain))
        {
            errors.push_given(
                "bootstrap.admins",
                &["connector"],
                format!("{admin}: no connector owns {domain}; add it to the domains of theirs, or others could call themselves so"),
            );
        }
    }
}

fn public_address(raw: &RawConfig, errors: &mut ConfigErrors) -> HostPort {
    let stand_in = HostPort::from(raw.listen);
    raw.public_address.clone().unwrap_or_else(|| {
        HostPort::new(raw.cluster.as_str(), HTTPS_PORT).unwrap_or_else(|error| {
            errors.push("public_address", error.to_string());
            stand_in
        })
    })
}

fn admin_listen(address: Option<SocketAddr>, errors: &mut ConfigErrors) -> SocketAddr {
    let address = address.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, ADMIN_PORT_DEFAULT).into());
    if !address.ip().to_canonical().is_loopback() {
        errors.push(
            "admin_listen",
            "must be a loopback address: nobody has to prove who they are there",
        );
    }
    address
}

fn login(all: &RawConfig, errors: &mut ConfigErrors) -> LoginConfig {
    let raw = &all.login;
    let ttl = raw.ttl.unwrap_or(TTL_DEFAULT).get();
    let deadline = raw.deadline.unwrap_or(DEADLINE_DEFAULT).get();
    let ttl_min = if all.development {
        TTL_MIN_IN_DEVELOPMENT
    } else {
        TTL_MIN
    };
    if ttl < ttl_min || ttl > TTL_MAX.min(deadline) {
        errors.push(
            "login.ttl",
            "must be at least 1m, at most 12h, and not longer than login.deadline",
        );
    }
    if deadline > DEADLINE_MAX {
        errors.push("login.deadline", "must be at most 7d");
    }
    let deadline_without_refresh = raw.deadline_without_refresh.map_or_else(
        || DEADLINE_WITHOUT_REFRESH_DEFAULT.min(deadline),
        ConfigDuration::get,
    );
    if deadline_without_refresh.is_zero() || deadline_without_refresh > deadline {
        errors.push(
            "login.deadline_without_refresh",
            "must be longer than nothing and not longer than login.deadline",
        );
    }
    let recheck = raw.recheck.unwrap_or(RECHECK_DEFAULT).get();
    if recheck < RECHECK_MIN || recheck > RECHECK_MAX {
        errors.push("login.recheck", "must be between 1s and 24h");
    }
    LoginConfig {
        ttl,
        deadline,
        deadline_without_refresh,
        recheck,
        refresh_key_file: refresh_key_file(all, errors),
        methods: methods(raw.methods.as_deref(), errors),
    }
}

fn refresh_key_file(all: &RawConfig, errors: &mut ConfigErrors) -> PathBuf {
    let named = all.login.refresh_key_file.clone();
    let path = named.unwrap_or_else(|| all.data_dir.join(crate::login::KEY_FILE));
    if all.data_dir.is_absolute() && !path.is_absolute() {
        errors.push("login.refresh_key_file", "must be an absolute path");
    }
    path
}

fn methods(names: Option<&[String]>, errors: &mut ConfigErrors) -> BTreeSet<LoginMethod> {
    let Some(names) = names else {
        return LoginMethod::ALL.into_iter().collect();
    };
    if names.is_empty() {
        errors.push(
            "login.methods",
            "must name at least one of browser, no-browser, headless",
        );
    }
    let mut methods = BTreeSet::new();
    for name in names {
        match LoginMethod::parse(name) {
            Some(method) => drop(methods.insert(method)),
            None => errors.push(
                "login.methods",
                format!("{name:?} is none of browser, no-browser, headless"),
            ),
        }
    }
    methods
}

fn snapshot(raw: &RawSnapshot, errors: &mut ConfigErrors) -> SnapshotConfig {
    let max_age = raw.max_age.unwrap_or(SNAPSHOT_MAX_AGE_DEFAULT).get();
    let beat = raw.beat.unwrap_or(BEAT_DEFAULT).get();
    if beat < BEAT_MIN || beat > BEAT_MAX {
        errors.push("snapshot.beat", "must be between 100ms and 60s");
    }
    if max_age < beat * 4 {
        errors.push("snapshot.max_age", "must be at least four beats");
    }
    SnapshotConfig { max_age, beat }
}

fn audit(raw: &RawAudit, errors: &mut ConfigErrors) -> AuditConfig {
    let agent_lost_after = raw.agent_lost_after.unwrap_or(AGENT_LOST_AFTER_DEFAULT).get();
    if agent_lost_after < AGENT_LOST_AFTER_MIN || agent_lost_after > AGENT_LOST_AFTER_MAX {
        errors.push(
            "audit.agent_lost_after",
            "must be between 2m and 30d: agents report every 30 s",
        );
    }
    AuditConfig { agent_lost_after }
}

fn recordings(raw: &RawRecordings, development: bool, errors: &mut ConfigErrors) -> RecordingsConfig {
    let keep = raw.keep.map(ConfigDuration::get);
    let keep_min = if development {
        KEEP_MIN_IN_DEVELOPMENT
    } else {
        KEEP_MIN
    };
    if keep.is_some_and(|keep| keep < keep_min || keep > KEEP_MAX) {
        errors.push(
            "recordings.keep",
            "must be between 1d and 36500d; without it they are kept for ever",
        );
    }
    let bytes_max = raw.bytes_max.map(ByteSize::bytes);
    if bytes_max.is_some_and(|bytes_max| bytes_max < RECORDINGS_BYTES_LEAST) {
        errors.push("recordings.bytes_max", "must be at least 1MiB");
    }
    let when_full = match raw.when_full.as_deref() {
        None | Some("refuse") => WhenFull::Refuse,
        Some("erase_oldest") => {
            if bytes_max.is_none() {
                errors.push(
                    "recordings.when_full",
                    "\"erase_oldest\" needs recordings.bytes_max",
                );
            }
            WhenFull::EraseOldest
        }
        Some(other) => {
            errors.push(
                "recordings.when_full",
                format!("{other:?} is neither refuse nor erase_oldest"),
            );
            WhenFull::Refuse
        }
    };
    let default = RecordingsConfig::default();
    RecordingsConfig {
        keep,
        bytes_max,
        when_full,
        disk_free_bytes_min: raw
            .disk_free_bytes_min
            .map_or(default.disk_free_bytes_min, ByteSize::bytes),
    }
}

impl Default for RecordingsConfig {
    fn default() -> Self {
        Self {
            keep: None,
            bytes_max: None,
            when_full: WhenFull::Refuse,
            disk_free_bytes_min: DISK_FREE_BYTES_MIN_DEFAULT,
        }
    }
}

fn limits(raw: &RawLimits, errors: &mut ConfigErrors) -> Limits {
    let default = Limits::default();
    let limits = Limits {
        unauthenticated_connections_max: raw
            .unauthenticated_connections_max
            .unwrap_or(default.unauthenticated_connections_max),
        unauthenticated_connections_per_source_max: raw
            .unauthenticated_connections_per_source_max
            .unwrap_or(default.unauthenticated_connections_per_source_max),
        unauthenticated_timeout: raw
            .unauthenticated_timeout
            .map_or(default.unauthenticated_timeout, ConfigDuration::get),
        handshake_timeout: raw
            .handshake_timeout
            .map_or(default.handshake_timeout, ConfigDuration::get),
        connections_max: raw.connections_max.unwrap_or(default.connections_max),
        streams_per_connection_max: raw
            .streams_per_connection_max
            .unwrap_or(default.streams_per_connection_max),
        message_bytes_max: raw.message_bytes_max.map_or(default.message_bytes_max, |size| {
            usize::try_from(size.bytes()).unwrap_or(usize::MAX)
        }),
        certificates_per_user_per_hour_max: raw
            .certificates_per_user_per_hour_max
            .unwrap_or(default.certificates_per_user_per_hour_max),
        certificates_per_bot_per_hour_max: raw
            .certificates_per_bot_per_hour_max
            .unwrap_or(default.certificates_per_bot_per_hour_max),
        certificates_per_agent_per_hour_max: raw
            .certificates_per_agent_per_hour_max
            .unwrap_or(default.certificates_per_agent_per_hour_max),
        certificates_per_proxy_per_hour_max: raw
            .certificates_per_proxy_per_hour_max
            .unwrap_or(default.certificates_per_proxy_per_hour_max),
        drain_timeout: raw
            .drain_timeout
            .map_or(default.drain_timeout, ConfigDuration::get),
    };
    let at_least_one = [
        (
            "limits.unauthenticated_connections_max",
            limits.unauthenticated_connections_max,
        ),
        (
            "limits.unauthenticated_connections_per_source_max",
            limits.unauthenticated_connections_per_source_max,
        ),
        ("limits.connections_max", limits.connections_max),
        (
            "limits.certificates_per_user_per_hour_max",
            limits.certificates_per_user_per_hour_max as usize,
        ),
        (
            "limits.certificates_per_bot_per_hour_max",
            limits.certificates_per_bot_per_hour_max as usize,
        ),
        (
            "limits.certificates_per_agent_per_hour_max",
            limits.certificates_per_agent_per_hour_max as usize,
        ),
        (
            "limits.certificates_per_proxy_per_hour_max",
            limits.certificates_per_proxy_per_hour_max as usize,
        ),
        (
            "limits.streams_per_connection_max",
            limits.streams_per_connection_max as usize,
        ),
    ];
    for (key, value) in at_least_one {
        if value == 0 {
            errors.push(key, "must be at least 1");
        }
    }
    if !(2 << 20..=64 << 20).contains(&limits.message_bytes_max) {
        errors.push(
            "limits.message_bytes_max",
            "must be between 2MiB and 64MiB: an audit batch has to fit",
        );
    }
    limits
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unauthenticated_connections_max: 1024,
            unauthenticated_connections_per_source_max: 256,
            unauthenticated_timeout: Duration::from_secs(15 * 60),
            handshake_timeout: Duration::from_secs(5),
            connections_max: 8192,
            streams_per_connection_max: 64,
            message_bytes_max: 4 << 20,
            certificates_per_user_per_hour_max: 120,
            certificates_per_bot_per_hour_max: 600,
            certificates_per_agent_per_hour_max: 4096,
            certificates_per_proxy_per_hour_max: 60,
            drain_timeout: Duration::from_secs(5),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn recordings_of(section: &str) -> Result<RecordingsConfig, String> {
        let text = format!(
            "cluster = \"iap.example.com\"\ndata_dir = \"/data\"\nlisten = \"127.0.0.1:0\"\n[recordings]\n{section}\n"
        );
        let config = Config::parse(&text, "auth.toml");
        config
            .map(|config| config.recordings)
            .map_err(|errors| errors.to_string())
    }

    #[test]
    fn recordings_are_kept_for_ever_unless_something_else_is_said() {
        assert_eq!(recordings_of("").unwrap(), RecordingsConfig::default());
        let all = "keep = \"90d\"\nbytes_max = \"200GiB\"\nwhen_full = \"erase_oldest\"\ndisk_free_bytes_min = \"1GiB\"";
        let expected = RecordingsConfig {
            keep: Some(Duration::from_secs(90 * 86_400)),
            bytes_max: Some(200 << 30),
            when_full: WhenFull::EraseOldest,
            disk_free_bytes_min: 1 << 30,
        };
        assert_eq!(recordings_of(all).unwrap(), expected);
    }

    #[test]
    fn what_would_erase_more_than_was_meant_is_refused() {
        for (section, key) in [
            ("keep = \"23h\"", "recordings.keep"),
            ("bytes_max = \"1KiB\"", "recordings.bytes_max"),
            ("when_full = \"erase_oldest\"", "recordings.when_full"),
            ("when_full = \"erase\"", "recordings.when_full"),
        ] {
            let refused = recordings_of(section).unwrap_err();
            assert!(refused.contains(key), "{section}: {refused}");
        }
    }
}
