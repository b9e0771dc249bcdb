//! `iap-proxy doctor`: what may be wrong on this host, on the way to the auth server, and on the way in.

use std::path::Path;

use iap_identity::{ServerIdentity, ServerName, verify_server};
use iap_runtime::descriptors;
use iap_runtime::doctor::{
    Finding, Report, Server, Target, Transport, Verdict, check_bindable, check_listening, check_path,
    check_private_tree, check_running, check_server, check_signed_time, presented, worst_of,
};
use iap_tunnel::ALPN_CONTROL;
use time::OffsetDateTime;

use crate::config::Config;
use crate::state::{self, State};

const JOIN: &str =
    "join with a token from `iapctl tokens create proxy`: iap-proxy join --config FILE --token-file FILE";
/// What one routed connection holds open at most: two sockets, and a pipe for each direction while bytes are spliced.
const DESCRIPTORS_PER_CONNECTION: u64 = 6;

/// Looks at everything; nothing is changed, and a running proxy is not disturbed.
pub async fn examine(config: &Config, file: &Path) -> Report {
    let server = Server {
        check: "proxy",
        unit: "iap-proxy",
        admin: config.admin_listen,
    };
    let (runs, running) = check_running(server).await;
    let mut findings = vec![check_private_tree(&config.state_dir, JOIN)];
    for address in &config.listen {
        let transports = [
            Some(Transport::Tcp),
            config.quic.enabled.then_some(Transport::Udp),
        ];
        for transport in transports.into_iter().flatten() {
            findings.push(match runs {
                true => check_listening(*address, transport, server.unit).await,
                false => check_bindable(*address, transport),
            });
        }
    }
    findings.push(check_descriptors(
        descriptors::allowed_at_most(),
        config.limits.connections_max,
    ));
    // What is not private is not read.
    if findings
        .first()
        .is_some_and(|private| private.verdict == Verdict::Ok)
    {
        findings.extend(examine_state(config, file).await);
    }
    findings.push(running);
    Report::new(findings)
}

async fn examine_state(config: &Config, file: &Path) -> Vec<Finding> {
    let now = OffsetDateTime::now_utc();
    let state = match State::open(&config.state_dir, &config.cluster, now) {
        Ok(state) => state,
        Err(error) => return vec![Finding::failed("join", error.to_string(), JOIN)],
    };
    let joined = format!("proxy {} of {}", state.proxy_id, config.cluster);
    let mut findings = vec![
        Finding::ok("join", joined),
        check_certificate(&state, now),
        check_trust(&state, now),
    ];
    let target = |address: &iap_runtime::net::HostPort, key: &str| Target {
        address: address.clone(),
        cluster: config.cluster.clone(),
        pin: *state.material.bundle().pin(),
        named_in: format!("`{key}` in {}", file.display()),
    };
    findings.push(check_auth(&target(&config.auth, "auth")).await);
    let way_in = target(&config.public_address, "public_address");
    let checked = match config.quic.enabled {
        true => check_path(&way_in).await,
        false => check_server(&way_in).await,
    };
    let is_right = |finding: &Finding| finding.check == "tls" && finding.verdict == Verdict::Ok;
    let leads_to_the_cluster = checked.iter().any(is_right);
    findings.extend(checked);
    if leads_to_the_cluster {
        findings.push(check_leads_here(config, &state, &way_in.named_in).await);
    }
    findings
}

fn check_certificate(state: &State, now: OffsetDateTime) -> Finding {
    let Some(own) = state::own_certificate(&state.material, now) else {
        let detail = "the certificate has expired, or does not count any more";
        return Finding::failed("certificate", detail, JOIN);
    };
    let detail = format!("valid until {}", own.not_after);
    // Half its life it is young, and then renewed at the first success.
    match now - own.not_before > (own.not_after - own.not_before) / 4 * 3 {
        false => Finding::ok("certificate", detail),
        true => Finding::warning(
            "certificate",
            format!("{detail}, and not renewed for three quarters of its life"),
            "start iap-proxy, and see that the auth server can be reached",
        ),
    }
}

/// Against the newest time that the auth server signed and sent here.
fn check_trust(state: &State, now: OffsetDateTime) -> Finding {
    let reader = state.keeper.reader();
    let trust = reader.borrow();
    let locks = trust.locks.as_ref().map(|locks| locks.issued);
    let snapshot = trust.snapshot.as_ref().map(|snapshot| snapshot.issued);
    match locks.max(snapshot) {
        Some(signed) => check_signed_time(now, signed),
        None => Finding::warning(
            "clock",
            "the auth server has not sent anything yet that the clock could be held against",
            "start iap-proxy, and see that the auth server can be reached",
        ),
    }
}

/// Whether the auth server answers where the file says, and proves to be it.
async fn check_auth(target: &Target) -> Finding {
    let well = format!("{} is the auth server of {}", target.address, target.cluster);
    let found = worst_of("auth", check_server(target).await, well);
    match found.verdict {
        Verdict::Ok | Verdict::Warning => found,
        Verdict::Failed => Finding {
            fix: Some(format!(
                "start iap-auth, let TCP {} through to it from here, or correct {}",
                target.address.port(),
                target.named_in
            )),
            ..found
        },
    }
}

/// Whether clients that go where they are told end up here.
async fn check_leads_here(config: &Config, state: &State, named_in: &str) -> Finding {
    let address = &config.public_address;
    let host = ServerName::Proxy.host(&config.cluster);
    let (bundle, now) = (state.material.bundle(), OffsetDateTime::now_utc());
    let chain = match presented(address, &host, &[ALPN_CONTROL]).await {
        Ok(chain) => chain,
        Err(error) => {
            let detail = format!("nobody answers for {host} at {address}: {error}");
            return Finding::failed("public_address", detail, format!("correct {named_in}"));
        }
    };
    match verify_server(&chain, &ServerName::Proxy, &bundle, now).map(|server| server.identity) {
        Ok(ServerIdentity::Proxy(id)) if id == state.proxy_id => {
            Finding::ok("public_address", format!("{address} leads to this proxy"))
        }
        Ok(ServerIdentity::Proxy(id)) => Finding::warning(
            "public_address",
            format!(
                "{address} leads to proxy {id}, not to this one ({})",
                state.proxy_id
            ),
            format!(
                "as it may be behind a balancer or a name with several addresses; else correct {named_in}"
            ),
        ),
        Ok(_) => Finding::failed(
            "public_address",
            format!("{address} answers for {host}, and is no proxy"),
            format!("correct {named_in}"),
        ),
        Err(error) => Finding::failed(
            "public_address",
            format!("{address} answers for {host} with a certificate that does not count: {error}"),
            "have whatever stands before the proxy pass TCP through (layer 4); a proxy whose certificate has expired joins again",
        ),
    }
}

fn check_descriptors(allowed: u64, connections_max: usize) -> Finding {
    let connections = u64::try_from(connections_max).unwrap_or(u64::MAX);
    let needed = connections.saturating_mul(DESCRIPTORS_PER_CONNECTION);
    let detail = format!(
        "whoever runs this may open {allowed} files; limits.connections_max = {connections_max} may take {needed}"
    );
    match needed <= allowed {
        true => Finding::ok("descriptors", detail),
        false => Finding::warning(
            "descriptors",
            detail,
            "the proxy's own unit counts: see `systemctl show iap-proxy -p LimitNOFILE`; raise that, or lower limits.connections_max",
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[tokio::test]
    async fn a_host_that_never_joined_is_told_how_and_its_folder_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let text = format!(
            "cluster = \"iap.example.com\"\nstate_dir = \"{}\"\nlisten = [\"127.0.0.1:0\"]\n\
             public_address = \"iap.example.com:443\"\nauth = \"127.0.0.1:1\"\nadmin_listen = \"127.0.0.1:1\"\n",
            state.display()
        );
        let config = Config::parse(&text, "proxy.toml").unwrap();
        let report = examine(&config, Path::new("proxy.toml")).await;
        assert!(!report.healthy && !state.exists());
        let checks: Vec<_> = report.findings.iter().map(|finding| finding.check).collect();
        assert_eq!(
            checks,
            ["permissions", "listen", "listen", "descriptors", "proxy"]
        );
        assert_eq!(report.findings[0].fix.as_deref(), Some(JOIN));
    }

    #[test]
    fn descriptors_are_judged_by_the_connections_they_are_for() {
        assert_eq!(check_descriptors(600, 100).verdict, Verdict::Ok);
        assert_eq!(check_descriptors(599, 100).verdict, Verdict::Warning);
    }
}
