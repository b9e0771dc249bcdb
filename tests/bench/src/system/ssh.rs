//! `ssh -L`: a port forwarded to a server beside the backend, directly or through a bastion (`-J`). Servers and client
//! run as the current user, with keys and configuration of their own. All sessions are channels of one connection.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Hop, Role, Site, Started};
use crate::process::{Running, free_ports, line_with, run, wait_for_port};

/// It insists on being started by its full path.
const SERVER: &str = "/usr/sbin/sshd";
/// What a server of root's chroots into; units make it.
const EMPTY_FOLDER: &str = "/run/sshd";
/// The same cipher and exchange as everywhere here. The exchange happens once, not for each session.
const ALGORITHMS: &str = "Ciphers aes128-gcm@openssh.com\nKexAlgorithms curve25519-sha256\n";

/// Without a bastion.
pub(super) fn start(site: &Site<'_>) -> anyhow::Result<Started> {
    let [client, target] = free_ports()?;
    make_keys(&site.folder)?;
    let server = server(site, Role::Agent, target)?;
    let hosts = host("target", site.reach(target, 2)?, "");
    forward(site, client, &hosts, vec![server])
}

/// Through a bastion: TLS's place is taken twice, once to the bastion and once to the target, as `-J` does it.
pub(super) fn start_jump(site: &Site<'_>) -> anyhow::Result<Started> {
    let [client, bastion, target] = free_ports()?;
    make_keys(&site.folder)?;
    let servers = vec![
        server(site, Role::Agent, target)?,
        server(site, Role::Proxy, bastion)?,
    ];
    let hosts = [
        host("bastion", site.reach(bastion, 1)?, ""),
        host("target", site.reach(target, 1)?, "ProxyJump bastion\n"),
    ];
    forward(site, client, &hosts.concat(), servers)
}

fn make_keys(folder: &Path) -> anyhow::Result<()> {
    for name in ["host", "user"] {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ecdsa", "-b", "256", "-N", "", "-f"]);
        run(command.arg(folder.join(name)))?;
    }
    Ok(())
}

fn server(site: &Site<'_>, role: Role, port: u16) -> anyhow::Result<Hop> {
    if rustix::process::geteuid().is_root() {
        std::fs::create_dir_all(EMPTY_FOLDER)?;
    }
    let word = role.word();
    let file = site.file(&format!("{word}.conf"));
    let text = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nPidFile none\nAuthorizedKeysFile {user}\n\
         StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         PermitRootLogin prohibit-password\n{ALGORITHMS}",
        host = site.file("host").display(),
        user = site.file("user.pub").display(),
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new(SERVER);
    command.args(["-D", "-f"]).arg(&file);
    command.arg("-E").arg(site.file(&format!("{word}.log")));
    let mut running = Running::start(&format!("sshd ({word})"), &mut command)?;
    wait_for_port(port, &mut running, 10)?;
    Ok(Hop::running(role, running))
}

fn host(name: &str, port: u16, more: &str) -> String {
    format!("Host {name}\nHostName 127.0.0.1\nPort {port}\n{more}\n")
}

fn forward(site: &Site<'_>, port: u16, hosts: &str, mut hops: Vec<Hop>) -> anyhow::Result<Started> {
    let file = site.file("client.conf");
    let text = format!(
        "{hosts}Host *\nIdentityFile {user}\nIdentitiesOnly yes\nBatchMode yes\nStrictHostKeyChecking no\n\
         UserKnownHostsFile /dev/null\nExitOnForwardFailure yes\nLogLevel ERROR\n{ALGORITHMS}",
        user = site.file("user").display(),
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new("ssh");
    command.arg("-F").arg(&file).args(["-N", "-L"]);
    command.arg(format!("127.0.0.1:{port}:127.0.0.1:{}", site.backend));
    command.arg("target").stdout(Stdio::null());
    command.stderr(std::fs::File::create(site.file("client.log"))?);
    let mut running = Running::start("ssh", &mut command)?;
    wait_for_port(port, &mut running, 20)?;
    hops.push(Hop::running(Role::Connector, running));
    Ok(Started {
        port,
        hops,
        plane: None,
        version: ("ssh", line_with(Command::new("ssh").arg("-V"), "OpenSSH")),
    })
}
