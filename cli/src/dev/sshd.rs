//! The demo's SSH server: a real sshd with its own configuration, keys and port, for the person who runs the plane.
//!
//! The agent logs in with certificates of the service's SSH user CA.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use super::layout::{Layout, private_folder};
use super::supervisor::Program;

/// sshd insists on being started by its full path.
const PROGRAMS: [&str; 3] = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"];
/// What a server of root's separates its privileges in; distributions' units make it.
const EMPTY_FOLDER: &str = "/run/sshd";

fn folder(layout: &Layout) -> PathBuf {
    layout.dir.join("sshd")
}

/// Whose certificates this sshd lets in. It is read anew for each connection.
pub(crate) fn user_authority(layout: &Layout) -> PathBuf {
    folder(layout).join("user_ca.pub")
}

/// What the agent knows this sshd by.
pub(crate) fn known_hosts(layout: &Layout) -> PathBuf {
    folder(layout).join("known_hosts")
}

/// As whom one logs in at the demo's sshd: whoever runs the plane, because an sshd of theirs lets nobody else in.
///
/// # Errors
/// When the system does not know who that is.
pub(crate) fn login() -> anyhow::Result<String> {
    let id = Command::new("id").arg("-un").output().context("cannot run id")?;
    let name = String::from_utf8_lossy(&id.stdout).trim().to_owned();
    ensure!(
        iap_identity::LoginName::parse(&name).is_ok(),
        "`id -un` says {name:?}, which is no login"
    );
    Ok(name)
}

/// Makes keys and configuration, and says how to start it.
///
/// # Errors
/// When OpenSSH is not installed, or the folder cannot be written.
pub(crate) fn prepare(layout: &Layout) -> anyhow::Result<Program> {
    let program = PROGRAMS.iter().map(Path::new).find(|path| path.is_file());
    let program = program.context(
        "sshd is not installed: `apt-get install openssh-server` brings it (or start without --demo)",
    )?;
    if rustix::process::geteuid().is_root() {
        std::fs::create_dir_all(EMPTY_FOLDER).with_context(|| format!("cannot make {EMPTY_FOLDER}"))?;
    }
    let folder = folder(layout);
    private_folder(&folder)?;
    let host_key = folder.join("host_key");
    make_key(&host_key)?;
    let port = layout.ports.sshd;
    let public = std::fs::read_to_string(host_key.with_extension("pub"))?;
    write(&known_hosts(layout), &format!("[127.0.0.1]:{port} {public}"))?;
    let text = format!(
        "# The demo's sshd. Written by `iapctl dev` at every start.\n\
         Port {port}\nListenAddress 127.0.0.1\nPidFile none\nHostKey \"{host_key}\"\n\
         TrustedUserCAKeys \"{user_ca}\"\nAuthorizedKeysFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nAcceptEnv LANG LC_* COLORTERM\n\
         Subsystem sftp internal-sftp\n",
        host_key = host_key.display(),
        user_ca = user_authority(layout).display(),
    );
    let config = folder.join("sshd_config");
    write(&config, &text)?;
    let arguments = ["-D", "-e", "-f"].map(str::to_owned).into_iter();
    Ok(Program {
        name: "sshd",
        path: program.to_owned(),
        arguments: arguments.chain([config.display().to_string()]).collect(),
        log: layout.log("sshd"),
        stop_signal: Signal::TERM,
        store: None,
    })
}

/// From now on this authority's certificates are let in.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn trust(layout: &Layout, authority: &str) -> anyhow::Result<()> {
    write(&user_authority(layout), authority)
}

fn make_key(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "iapctl dev", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .context("cannot run ssh-keygen")?;
    ensure!(
        made.status.success(),
        "ssh-keygen: {}",
        String::from_utf8_lossy(&made.stderr).trim()
    );
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
