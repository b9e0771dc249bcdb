//! `iap-agent doctor`: what may be wrong on this host and on the way to the cluster.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use iap_proto::v1::Signed;
use iap_proto::{open_beat, open_bundle};
use iap_runtime::doctor::{
    Finding, Report, Server, Target, check_path, check_private_tree, check_running, check_signed_time,
    check_space,
};
use iap_runtime::net::{self, HostPort};
use prost::Message as _;
use time::OffsetDateTime;
use tokio::net::UnixStream;

use crate::backend::BackendAddress;
use crate::clock::TrustedClock;
use crate::config::{Config, LocalService};
use crate::identity::OwnIdentity;
use crate::state::{Joined, StateDir, names};

const BACKEND_SECONDS_MAX: Duration = Duration::from_secs(5);
const JOIN: &str = "join with a token from `iapctl tokens create agent`: iap-agent join --config FILE --proxy HOST:PORT --token-file FILE";

/// Looks at everything; nothing is changed, and a running agent is not disturbed.
pub async fn examine(config: &Config, file: &Path) -> Report {
    let mut findings = vec![check_private_tree(&config.state_dir, JOIN)];
    if config.state_dir.exists() {
        findings.extend(examine_state(config, file).await);
    }
    for (name, service) in &config.services {
        findings.push(check_backend(name.as_str(), service).await);
    }
    if let Some(address) = config.admin_listen {
        let server = Server {
            check: "agent",
            unit: "iap-agent",
            admin: address,
        };
        findings.push(check_running(server).await.1);
    }
    Report::new(findings)
}

async fn examine_state(config: &Config, file: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let opened = StateDir::open(&config.state_dir).and_then(|state| Ok((state.joined()?, state)));
    let (joined, state) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            findings.push(Finding::failed("join", error.to_string(), JOIN));
            return findings;
        }
    };
    findings.push(Finding::ok(
        "join",
        format!("agent {} of {}", joined.agent_id, config.cluster),
    ));
    findings.extend(check_identity(config, joined, &state));
    findings.push(check_spool(config, &state));
    let proxies = known_proxies(config);
    if proxies.is_empty() {
        let fix = format!("name one in {}: proxies = [\"HOST:PORT\"]", file.display());
        findings.push(Finding::failed("proxies", "the file names no proxy", fix));
    }
    for address in proxies {
        let target = Target {
            address,
            cluster: config.cluster.clone(),
            pin: joined.pin,
            named_in: format!("`proxies` in {}", file.display()),
        };
        findings.extend(check_path(&target).await);
    }
    findings
}

fn known_proxies(config: &Config) -> Vec<HostPort> {
    config.proxies.clone()
}

/// The certificate, and the clock against the newest time that the auth server signed.
fn check_identity(config: &Config, joined: Joined, state: &StateDir) -> Vec<Finding> {
    let now = OffsetDateTime::now_utc();
    let damaged = |what: &str, why: String| Finding::failed("certificate", format!("{what}: {why}"), JOIN);
    let signed = |name| {
        state
            .read(name)
            .ok()
            .flatten()
            .and_then(|bytes| Signed::decode(bytes.as_slice()).ok())
    };
    let Some(bundle) = signed(names::BUNDLE) else {
        return vec![damaged("the trust bundle", "missing or damaged".to_owned())];
    };
    let bundle = match open_bundle(&bundle, &joined.pin, &config.cluster, now) {
        Ok(bundle) => bundle,
        Err(error) => return vec![damaged("the trust bundle", error.to_string())],
    };
    let mut findings = Vec::new();
    findings.push(
        match OwnIdentity::load(
            joined.agent_id,
            state.clone(),
            &bundle,
            Arc::new(TrustedClock::default()),
        ) {
            Err(error) => damaged("the agent's certificate", error.to_string()),
            Ok(identity) if identity.current().not_after <= now => Finding::warning(
                "certificate",
                format!(
                    "expired at {}; the agent renews it when it reaches the auth server",
                    identity.current().not_after
                ),
                "start iap-agent, and see that the path to a proxy is open",
            ),
            Ok(identity) => Finding::ok(
                "certificate",
                format!("valid until {}", identity.current().not_after),
            ),
        },
    );
    if let Some(Ok(beat)) = signed(names::BEAT).map(|beat| open_beat(&beat, &bundle)) {
        findings.push(check_signed_time(now, beat.time));
    }
    findings
}

fn check_spool(config: &Config, state: &StateDir) -> Finding {
    let path = state.path(names::SPOOL);
    let used: u64 = std::fs::read_dir(&path)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum();
    let limit = config.limits.spool_bytes_max;
    let near = limit / 10 * 9;
    if used >= near {
        let detail = format!(
            "{} MiB of {} MiB taken by records that wait for the auth server",
            used >> 20,
            limit >> 20
        );
        let fix = "bring the path to the auth server back, or raise limits.spool_bytes_max";
        return Finding::failed("spool", detail, fix);
    }
    check_space(&config.state_dir, limit.saturating_sub(used))
}

/// Opens a connection and closes it: not a byte reaches the backend, and no session is needed for that.
async fn check_backend(name: &str, service: &LocalService) -> Finding {
    let address = &service.backend;
    let connecting = async {
        match address {
            BackendAddress::Tcp(address) => net::connect(address, BACKEND_SECONDS_MAX).await.map(drop),
            BackendAddress::Unix(path) => UnixStream::connect(path).await.map(drop),
        }
    };
    let why = match tokio::time::timeout(BACKEND_SECONDS_MAX, connecting).await {
        Ok(Ok(())) => return Finding::ok("backend", format!("{name} at {address} answers")),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", BACKEND_SECONDS_MAX.as_secs()),
    };
    Finding::failed(
        "backend",
        format!("{name} at {address}: {why}"),
        format!("start the backend, or correct `backend` of the [[service]] {name:?}"),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use iap_runtime::doctor::Verdict;

    use super::*;

    fn config(state: &Path, rest: &str) -> Config {
        let text = format!(
            "cluster = \"iap.example.com\"\nstate_dir = \"{}\"\n{rest}",
            state.display()
        );
        Config::parse(&text, "agent.toml").unwrap()
    }

    fn of<'a>(report: &'a Report, check: &str) -> &'a Finding {
        report
            .findings
            .iter()
            .find(|finding| finding.check == check)
            .unwrap()
    }

    #[tokio::test]
    async fn a_host_that_never_joined_is_told_how_and_its_folder_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let report = examine(&config(&state, ""), Path::new("agent.toml")).await;
        assert!(!report.healthy && !state.exists());
        assert_eq!(of(&report, "permissions").fix.as_deref(), Some(JOIN));
    }

    #[tokio::test]
    async fn a_backend_that_refuses_is_named_and_one_that_listens_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let listening = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let open = listening.local_addr().unwrap();
        let services = format!(
            "[[service]]\nname = \"up\"\nbackend = \"{open}\"\n[[service]]\nname = \"down\"\nbackend = \"{closed}\""
        );
        let report = examine(
            &config(&folder.path().join("none"), &services),
            Path::new("agent.toml"),
        )
        .await;
        let backends: Vec<_> = report
            .findings
            .iter()
            .filter(|finding| finding.check == "backend")
            .collect();
        let [down, up] = backends.as_slice() else {
            unreachable!("{backends:?}")
        };
        assert_eq!((down.verdict, up.verdict), (Verdict::Failed, Verdict::Ok));
        assert!(down.fix.as_deref().unwrap().contains("\"down\""));
    }
}
