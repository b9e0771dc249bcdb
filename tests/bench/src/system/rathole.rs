//! rathole: a public server and a client beside the backend that dialled out to it, TLS between the two. Its visitors
//! come in plain TCP, so there is no connector.

use std::process::Command;

use super::certificates::HOST;
use super::{Hop, Role, Site, Started};
use crate::process::{Running, free_ports, line_with, run, wait_for_port};

/// Of the file that holds the server's key for as long as the run lasts.
const PASSWORD: &str = "bench";

pub(super) fn start(site: &Site<'_>) -> anyhow::Result<Started> {
    let version = line_with(
        Command::new(&site.programs.rathole).arg("--version"),
        "Build Version",
    );
    let [visitors, control] = free_ports()?;
    let keys = site.certificates;
    let identity = site.file("identity.pfx");
    export(site, &identity)?;
    let server = format!(
        "[server]\nbind_addr = \"127.0.0.1:{control}\"\ndefault_token = \"bench\"\n\
         [server.transport]\ntype = \"tls\"\n\
         [server.transport.tls]\npkcs12 = \"{}\"\npkcs12_password = \"{PASSWORD}\"\n\
         [server.services.bulk]\nbind_addr = \"127.0.0.1:{visitors}\"\nnodelay = true\n",
        identity.display(),
    );
    let client = format!(
        "[client]\nremote_addr = \"127.0.0.1:{next}\"\ndefault_token = \"bench\"\n\
         [client.transport]\ntype = \"tls\"\n\
         [client.transport.tls]\ntrusted_root = \"{authority}\"\nhostname = \"{HOST}\"\n\
         [client.services.bulk]\nlocal_addr = \"127.0.0.1:{backend}\"\nnodelay = true\n",
        next = site.reach(control, 1)?,
        authority = keys.path("ca.pem"),
        backend = site.backend,
    );
    let mut proxy = hop(site, "--server", &server)?;
    wait_for_port(control, &mut proxy, 10)?;
    let agent = hop(site, "--client", &client)?;
    wait_for_port(visitors, &mut proxy, 10)?;
    Ok(Started {
        port: site.reach(visitors, 1)?,
        hops: vec![Hop::running(Role::Agent, agent), Hop::running(Role::Proxy, proxy)],
        plane: None,
        version: ("rathole", version),
    })
}

fn export(site: &Site<'_>, to: &std::path::Path) -> anyhow::Result<()> {
    let keys = site.certificates;
    let mut command = Command::new("openssl");
    command.args(["pkcs12", "-export", "-in", &keys.path("server.pem")]);
    command.args(["-inkey", &keys.path("server.key")]);
    command.args(["-passout", &format!("pass:{PASSWORD}"), "-out"]);
    run(command.arg(to)).map(drop)
}

fn hop(site: &Site<'_>, mode: &str, text: &str) -> anyhow::Result<Running> {
    let name = mode.trim_start_matches('-');
    let file = site.file(&format!("{name}.toml"));
    std::fs::write(&file, text)?;
    let log = std::fs::File::create(site.file(&format!("{name}.log")))?;
    let mut command = Command::new(&site.programs.rathole);
    command.arg(mode).arg(&file).env("RUST_LOG", "error");
    command.stdout(log.try_clone()?).stderr(log);
    Running::start(&format!("rathole ({name})"), &mut command)
}
