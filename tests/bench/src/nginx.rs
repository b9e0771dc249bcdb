//! The peer: three nginx `stream` hops. The first plays the connector (adds TLS), the second routes by SNI without
//! decrypting (`ssl_preread`), the third ends mutual TLS and dials the backend.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::process::{Running, wait_for_port};
use crate::system::{Hop, System};

const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Starts the chain in front of the backend.
///
/// # Errors
/// When nginx or openssl is missing, or a hop does not start.
pub(crate) fn start(folder: &Path, backend: u16) -> anyhow::Result<System> {
    certificates(folder)?;
    let ports = free_ports()?;
    let [connector, proxy, agent] = ports;
    let keys = folder.display();
    let tls = "ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; ssl_session_tickets off;";
    let end = format!(
        "server {{ listen 127.0.0.1:{agent} ssl; ssl_certificate {keys}/server.pem; ssl_certificate_key {keys}/server.key; \
         ssl_verify_client on; ssl_client_certificate {keys}/ca.pem; {tls} proxy_pass 127.0.0.1:{backend}; }}"
    );
    let route = format!(
        "map $ssl_preread_server_name $upstream {{ bulk.bench 127.0.0.1:{agent}; }} \
         server {{ listen 127.0.0.1:{proxy}; ssl_preread on; proxy_pass $upstream; }}"
    );
    let begin = format!(
        "server {{ listen 127.0.0.1:{connector}; proxy_pass 127.0.0.1:{proxy}; proxy_ssl on; proxy_ssl_server_name on; \
         proxy_ssl_name bulk.bench; proxy_ssl_verify on; proxy_ssl_trusted_certificate {keys}/ca.pem; \
         proxy_ssl_certificate {keys}/client.pem; proxy_ssl_certificate_key {keys}/client.key; \
         proxy_ssl_protocols TLSv1.3; proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; proxy_ssl_session_reuse off; }}"
    );
    let hops = vec![
        hop(folder, "agent", &end, agent)?,
        hop(folder, "proxy", &route, proxy)?,
        hop(folder, "connector", &begin, connector)?,
    ];
    Ok(System {
        name: "nginx x3",
        port: connector,
        hops,
    })
}

fn hop(folder: &Path, role: &'static str, servers: &str, port: u16) -> anyhow::Result<Hop> {
    let file = folder.join(format!("{role}.conf"));
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let text = format!(
        "load_module {MODULE};\n{user}\nworker_processes auto;\ndaemon off;\npid {pid};\nerror_log {log} error;\n\
         events {{ worker_connections 4096; }}\nstream {{ tcp_nodelay on; proxy_buffer_size 16k; {servers} }}\n",
        pid = folder.join(format!("{role}.pid")).display(),
        log = folder.join(format!("{role}.log")).display(),
    );
    std::fs::write(&file, text)?;
    let mut running = Running::start(
        &format!("nginx ({role})"),
        Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(folder)
            .arg("-e")
            .arg(folder.join("start.log")),
    )?;
    wait_for_port(port, &mut running, 10)?;
    Ok(Hop {
        role,
        pid: running.id(),
        running: Some(running),
    })
}

fn free_ports() -> anyhow::Result<[u16; 3]> {
    let held: Vec<std::net::TcpListener> = (0..3)
        .map(|_| std::net::TcpListener::bind(("127.0.0.1", 0)))
        .collect::<Result<_, _>>()?;
    let ports: Vec<u16> = held
        .iter()
        .map(|one| one.local_addr().map(|at| at.port()))
        .collect::<Result<_, _>>()?;
    ports.try_into().map_err(|_| anyhow::anyhow!("no free ports"))
}

/// P-256 throughout, as on our path.
fn certificates(folder: &Path) -> anyhow::Result<()> {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let mut authority = vec![
        "req",
        "-x509",
        "-subj",
        "/CN=bench CA",
        "-days",
        "2",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
    ];
    authority.extend(key);
    openssl(folder, &authority)?;
    for (name, subject, alternative) in [
        ("server", "/CN=bulk.bench", "subjectAltName=DNS:bulk.bench"),
        ("client", "/CN=client", "subjectAltName=DNS:client"),
    ] {
        let (private, public) = (format!("{name}.key"), format!("{name}.pem"));
        let mut arguments = vec![
            "req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-subj", subject, "-days", "2",
        ];
        arguments.extend([
            "-addext",
            alternative,
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ]);
        arguments.extend(["-keyout", &private, "-out", &public]);
        arguments.extend(key);
        openssl(folder, &arguments)?;
    }
    Ok(())
}

fn openssl(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .context("cannot run openssl")?;
    ensure!(
        output.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// `nginx/1.22.1`
pub(crate) fn version() -> String {
    let output = Command::new("nginx").arg("-v").output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stderr).into_owned())
        .unwrap_or_default();
    text.rsplit(": ").next().unwrap_or_default().trim().to_owned()
}

/// A folder for the chain's files.
pub(crate) fn folder(parent: &Path) -> anyhow::Result<PathBuf> {
    let folder = parent.join("nginx");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
