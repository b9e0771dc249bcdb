//! A stock OpenSSH server as a private service, with a key of its own for whoever runs the tests.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Background, Ran};

/// It insists on being started by its full path.
const SERVER: &str = "/usr/sbin/sshd";
/// What a server of root's chroots into; units make it.
const EMPTY_FOLDER: &str = "/run/sshd";
/// What its log has each time it is ready.
const LISTENS: &str = "Server listening";
const START_SECONDS_MAX: u64 = 10;

/// Ended when dropped.
#[derive(Debug)]
pub struct Sshd {
    /// Where it listens, on the loopback of its host.
    pub port: u16,
    folder: PathBuf,
    server: Background,
}

impl Sshd {
    /// With its files in `folder`, by the command that `place` makes of a program's name.
    ///
    /// # Errors
    /// When OpenSSH is missing or does not start; what it said is in the message.
    pub fn start(folder: &Path, place: impl Fn(&str) -> Command) -> anyhow::Result<Self> {
        let key = format!("AuthorizedKeysFile {}\n", folder.join("user.pub").display());
        Self::start_with(folder, place, &key)
    }

    /// The same with these lines of its own configuration, which say whom it trusts.
    ///
    /// # Errors
    /// As for [`Sshd::start`].
    pub fn start_with(folder: &Path, place: impl Fn(&str) -> Command, trust: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        if rustix::process::geteuid().is_root() {
            std::fs::create_dir_all(EMPTY_FOLDER)?;
        }
        for name in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            Ran::from(keygen.arg(folder.join(name)).output()?).succeeded()?;
        }
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let (config, log) = (folder.join("sshd.conf"), folder.join("sshd.log"));
        let text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nPidFile none\n{trust}\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\nSetEnv HOME={home}\n",
            host = folder.join("host").display(),
            // Shells are nobody's own: what somebody's start does, and says, is none of a test's business.
            home = folder.display(),
        );
        std::fs::write(&config, text)?;
        let mut command = place(SERVER);
        command.args(["-D", "-f"]).arg(&config).arg("-E").arg(&log);
        command.stdin(Stdio::null());
        let server = Background(command.spawn().context(SERVER)?);
        let started = Self {
            port,
            folder: folder.to_owned(),
            server,
        };
        started.wait_until_it_listens(1)?;
        Ok(started)
    }

    /// Has it read its configuration again, with these lines added.
    ///
    /// # Errors
    /// When it does not listen again.
    pub fn reload_with(&self, more: &str) -> anyhow::Result<()> {
        let config = self.folder.join("sshd.conf");
        let text = std::fs::read_to_string(&config)? + more;
        std::fs::write(&config, text)?;
        let before = self.log().matches(LISTENS).count();
        kill_process(Pid::from_child(&self.server.0), Signal::HUP)?;
        self.wait_until_it_listens(before + 1)
    }

    fn wait_until_it_listens(&self, times: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        while self.log().matches(LISTENS).count() < times {
            ensure!(Instant::now() < deadline, "sshd: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("sshd.log")).unwrap_or_default()
    }

    /// A configuration for `ssh -F`, `scp -F` in which `name` is this server by way of `proxy_command`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn client_config(&self, name: &str, proxy_command: &str) -> anyhow::Result<PathBuf> {
        let file = self.folder.join("client.conf");
        let text = format!(
            "Host {name}\nProxyCommand {proxy_command}\nIdentityFile {user}\nIdentitiesOnly yes\nBatchMode yes\n\
             StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n",
            user = self.folder.join("user").display(),
        );
        std::fs::write(&file, text)?;
        Ok(file)
    }
}
