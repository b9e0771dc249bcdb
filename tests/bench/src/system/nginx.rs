//! Three nginx `stream` hops: the first plays the connector (adds TLS), the second routes by SNI without decrypting
//! (`ssl_preread`), the third ends mutual TLS and dials the backend.

use std::process::Command;

use super::certificates::{HOST, SUITE};
use super::{Hop, Role, Site, Started};
use crate::process::{Running, free_ports, line_with, wait_for_port};

const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// Two for each of 9,000 sessions, should one worker get all of them.
const CONNECTIONS: u32 = 19_000;

pub(super) fn start(site: &Site<'_>) -> anyhow::Result<Started> {
    let [connector, proxy, agent] = free_ports()?;
    let keys = site.certificates.folder.display();
    let group = site.certificates.group;
    let end = format!(
        "server {{ listen 127.0.0.1:{agent} ssl; ssl_certificate {keys}/server.pem; ssl_certificate_key {keys}/server.key; \
         ssl_verify_client on; ssl_client_certificate {keys}/ca.pem; ssl_protocols TLSv1.3; \
         ssl_conf_command Ciphersuites {SUITE}; ssl_ecdh_curve {group}; ssl_session_tickets off; \
         proxy_pass 127.0.0.1:{backend}; }}",
        backend = site.backend,
    );
    let route = format!(
        "map $ssl_preread_server_name $upstream {{ {HOST} 127.0.0.1:{next}; }} \
         server {{ listen 127.0.0.1:{proxy}; ssl_preread on; proxy_pass $upstream; }}",
        next = site.reach(agent, 1)?,
    );
    let begin = format!(
        "server {{ listen 127.0.0.1:{connector}; proxy_pass 127.0.0.1:{next}; proxy_ssl on; proxy_ssl_server_name on; \
         proxy_ssl_name {HOST}; proxy_ssl_verify on; proxy_ssl_trusted_certificate {keys}/ca.pem; \
         proxy_ssl_certificate {keys}/client.pem; proxy_ssl_certificate_key {keys}/client.key; \
         proxy_ssl_protocols TLSv1.3; proxy_ssl_conf_command Ciphersuites {SUITE}; \
         proxy_ssl_conf_command Groups {group}; proxy_ssl_session_reuse off; }}",
        next = site.reach(proxy, 1)?,
    );
    Ok(Started {
        port: connector,
        hops: vec![
            hop(site, Role::Agent, &end, agent)?,
            hop(site, Role::Proxy, &route, proxy)?,
            hop(site, Role::Connector, &begin, connector)?,
        ],
        plane: None,
        version: ("nginx", version()),
    })
}

fn hop(site: &Site<'_>, role: Role, servers: &str, port: u16) -> anyhow::Result<Hop> {
    let word = role.word();
    let file = site.file(&format!("{word}.conf"));
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let text = format!(
        "load_module {MODULE};\n{user}\nworker_processes auto;\ndaemon off;\npid {pid};\nerror_log {log} error;\n\
         events {{ worker_connections {CONNECTIONS}; }}\n\
         stream {{ tcp_nodelay on; proxy_buffer_size 16k; {servers} }}\n",
        pid = site.file(&format!("{word}.pid")).display(),
        log = site.file(&format!("{word}.log")).display(),
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file).arg("-p").arg(&site.folder);
    command.arg("-e").arg(site.file("start.log"));
    let mut running = Running::start(&format!("nginx ({word})"), &mut command)?;
    wait_for_port(port, &mut running, 10)?;
    Ok(Hop::running(role, running))
}

/// Of `nginx version: nginx/1.22.1`.
fn version() -> String {
    let line = line_with(Command::new("nginx").arg("-v"), "nginx");
    line.rsplit(": ").next().unwrap_or_default().to_owned()
}
