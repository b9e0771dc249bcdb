//! A pair of ghostunnels: one adds mutual TLS, the other ends it. It leaves no choice of cipher suite.

use std::process::Command;

use super::certificates::HOST;
use super::{Hop, Role, Site, Started};
use crate::process::{Running, free_ports, line_with, wait_for_port};

pub(super) fn start(site: &Site<'_>) -> anyhow::Result<Started> {
    let [client, server] = free_ports()?;
    let end = ["server", "--allow-cn", "client"];
    let begin = ["client", "--override-server-name", HOST];
    let hops = vec![
        hop(site, Role::Agent, &end, (server, site.backend))?,
        hop(site, Role::Connector, &begin, (client, site.reach(server, 2)?))?,
    ];
    let version = line_with(Command::new(&site.programs.ghostunnel).arg("--version"), "");
    Ok(Started {
        port: client,
        hops,
        plane: None,
        version: ("ghostunnel", version),
    })
}

fn hop(site: &Site<'_>, role: Role, mode: &[&str], (listen, target): (u16, u16)) -> anyhow::Result<Hop> {
    let keys = site.certificates;
    let identity = match role {
        Role::Connector => "client",
        Role::Proxy | Role::Agent | Role::Auth => "server",
    };
    let mut command = Command::new(&site.programs.ghostunnel);
    command.args(mode);
    command.args(["--listen", &format!("127.0.0.1:{listen}")]);
    command.args(["--target", &format!("127.0.0.1:{target}")]);
    command.args(["--cert", &keys.path(&format!("{identity}.pem"))]);
    command.args(["--key", &keys.path(&format!("{identity}.key"))]);
    command.args(["--cacert", &keys.path("ca.pem")]);
    if keys.group == "X25519" {
        // Go offers the hybrid of its own accord (crypto/tls, `tlsmlkem`).
        command.env("GODEBUG", "tlsmlkem=0,tlssecpmlkem=0");
    }
    let log = std::fs::File::create(site.file(&format!("{}.log", role.word())))?;
    command.stdout(log.try_clone()?).stderr(log);
    let mut running = Running::start(&format!("ghostunnel ({})", role.word()), &mut command)?;
    wait_for_port(listen, &mut running, 10)?;
    Ok(Hop::running(role, running))
}
