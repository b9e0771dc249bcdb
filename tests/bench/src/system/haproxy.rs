//! Three HAProxy hops in TCP mode. The first adds mutual TLS, the third ends it. The one in the middle routes by SNI and
//! passes the bytes through, or ends TLS and begins it anew, as most access planes do.

use std::process::Command;

use super::certificates::{HOST, SUITE};
use super::{Hop, Role, Site, Started};
use crate::process::{Running, free_ports, line_with, wait_for_port};

/// Its sockets and some more fit into 20,000 descriptors.
const CONNECTIONS: u32 = 9_600;

/// The proxy decrypts nothing.
pub(super) fn start(site: &Site<'_>) -> anyhow::Result<Started> {
    chain(site, |listen, next| {
        format!(
            "frontend in\n  bind 127.0.0.1:{listen}\n  tcp-request inspect-delay 5s\n  \
             tcp-request content accept if {{ req.ssl_hello_type 1 }}\n  \
             use_backend out if {{ req.ssl_sni -m str {HOST} }}\n\
             backend out\n  server agent 127.0.0.1:{next}\n"
        )
    })
}

/// The proxy decrypts and encrypts again.
pub(super) fn start_bridge(site: &Site<'_>) -> anyhow::Result<Started> {
    chain(site, |listen, next| {
        relay(
            &format!("{listen} {}", ends_tls(site)),
            &format!("{next} {}", begins_tls(site)),
        )
    })
}

fn chain(site: &Site<'_>, middle: impl FnOnce(u16, u16) -> String) -> anyhow::Result<Started> {
    let [connector, proxy, agent] = free_ports()?;
    let end = relay(&format!("{agent} {}", ends_tls(site)), &site.backend.to_string());
    let route = middle(proxy, site.reach(agent, 1)?);
    let next = format!("{} {}", site.reach(proxy, 1)?, begins_tls(site));
    let begin = relay(&connector.to_string(), &next);
    Ok(Started {
        port: connector,
        hops: vec![
            hop(site, Role::Agent, &end, agent)?,
            hop(site, Role::Proxy, &route, proxy)?,
            hop(site, Role::Connector, &begin, connector)?,
        ],
        plane: None,
        version: ("haproxy", version()),
    })
}

fn relay(bind: &str, server: &str) -> String {
    format!(
        "frontend in\n  bind 127.0.0.1:{bind}\n  default_backend out\n\
         backend out\n  server next 127.0.0.1:{server}\n"
    )
}

/// How a `bind` line ends mutual TLS.
fn ends_tls(site: &Site<'_>) -> String {
    let keys = site.certificates;
    format!(
        "ssl crt {} ca-file {} verify required curves {} {VERSIONS} ciphersuites {SUITE} no-tls-tickets",
        keys.path("server-all.pem"),
        keys.path("ca.pem"),
        keys.group,
    )
}

/// How a `server` line begins it. Which key exchange it offers first is OpenSSL's choice: the same.
fn begins_tls(site: &Site<'_>) -> String {
    let keys = site.certificates;
    format!(
        "ssl crt {} ca-file {} verify required verifyhost {HOST} sni str({HOST}) {VERSIONS} ciphersuites {SUITE} \
         no-ssl-reuse no-tls-tickets",
        keys.path("client-all.pem"),
        keys.path("ca.pem"),
    )
}

const VERSIONS: &str = "ssl-min-ver TLSv1.3 ssl-max-ver TLSv1.3";

fn hop(site: &Site<'_>, role: Role, sections: &str, port: u16) -> anyhow::Result<Hop> {
    let word = role.word();
    let file = site.file(&format!("{word}.cfg"));
    let text = format!(
        "global\n  maxconn {CONNECTIONS}\n  tune.ssl.cachesize 0\n\
         defaults\n  mode tcp\n  maxconn {CONNECTIONS}\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n\
         {sections}"
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new("haproxy");
    command.args(["-db", "-q", "-f"]).arg(&file);
    let log = std::fs::File::create(site.file(&format!("{word}.log")))?;
    command.stdout(log.try_clone()?).stderr(log);
    let mut running = Running::start(&format!("haproxy ({word})"), &mut command)?;
    wait_for_port(port, &mut running, 10)?;
    Ok(Hop::running(role, running))
}

/// Of `HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/`.
fn version() -> String {
    let line = line_with(Command::new("haproxy").arg("-v"), "HAProxy");
    let version = line.split(" - ").next().unwrap_or_default();
    version.to_owned()
}
