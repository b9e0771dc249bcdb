//! A pair of stunnels: one adds mutual TLS, the other ends it. Nothing is in between.

use std::process::Command;

use super::certificates::{HOST, SUITE};
use super::{Hop, Role, Site, Started};
use crate::process::{Running, free_ports, line_with, wait_for_port};

pub(super) fn start(site: &Site<'_>) -> anyhow::Result<Started> {
    let [client, server] = free_ports()?;
    let end = service(site, "server", server, site.backend, "");
    let next = site.reach(server, 2)?;
    let names = format!("client = yes\nsni = {HOST}\ncheckHost = {HOST}\n");
    let begin = service(site, "client", client, next, &names);
    Ok(Started {
        port: client,
        hops: vec![
            hop(site, Role::Agent, &end, server)?,
            hop(site, Role::Connector, &begin, client)?,
        ],
        plane: None,
        version: ("stunnel", version()),
    })
}

fn service(site: &Site<'_>, identity: &str, accept: u16, connect: u16, more: &str) -> String {
    let keys = site.certificates;
    format!(
        "[bulk]\naccept = 127.0.0.1:{accept}\nconnect = 127.0.0.1:{connect}\ncert = {certificate}\nkey = {key}\n\
         CAfile = {authority}\nverifyChain = yes\nsslVersion = TLSv1.3\nciphersuites = {SUITE}\ncurves = {group}\n\
         sessionResume = no\n{more}",
        certificate = keys.path(&format!("{identity}.pem")),
        key = keys.path(&format!("{identity}.key")),
        authority = keys.path("ca.pem"),
        group = keys.group,
    )
}

fn hop(site: &Site<'_>, role: Role, service: &str, port: u16) -> anyhow::Result<Hop> {
    let word = role.word();
    let file = site.file(&format!("{word}.conf"));
    let log = site.file(&format!("{word}.log"));
    let text = format!(
        "foreground = quiet\npid =\ndebug = err\noutput = {}\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n{service}",
        log.display(),
    );
    std::fs::write(&file, text)?;
    let mut running = Running::start(
        &format!("stunnel ({word})"),
        Command::new("stunnel")
            .arg(&file)
            .stderr(std::process::Stdio::null()),
    )?;
    wait_for_port(port, &mut running, 10)?;
    Ok(Hop::running(role, running))
}

/// Of `stunnel 5.68 on x86_64-pc-linux-gnu platform`.
fn version() -> String {
    let line = line_with(Command::new("stunnel").arg("-version"), "stunnel");
    let version = line.split(" on ").next().unwrap_or_default();
    version.to_owned()
}
