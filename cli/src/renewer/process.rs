//! The renewer as a process: started beside a login, out of the terminal's reach, and ended by a signal.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use super::state;
use crate::home::{ClusterHome, Home};

/// The hidden command that [`start`] runs.
const COMMAND: &str = "renewer";
/// How long a renewer may take to be at work, or to end.
const WAIT_TRIES: u32 = 120;
const WAIT_PAUSE: Duration = Duration::from_millis(25);

/// What became of a renewer that was to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// There was none.
    NotRunning,
    /// It has ended.
    Ended,
    /// It is in the midst of a renewal, or cannot be reached from here.
    StillRunning,
}

/// Starts a renewer for the cluster's login, in place of one that is at work, and waits until it is.
///
/// # Errors
/// When it cannot be started.
pub async fn start(home: &Home, cluster: &ClusterHome) -> anyhow::Result<()> {
    stop(cluster).await;
    state::forget(cluster);
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut child = Command::new(program)
        .arg("--home")
        .arg(home.path())
        .args(["--cluster", cluster.cluster().as_str(), COMMAND])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // It must not keep a file system in use.
        .current_dir(root())
        .spawn()
        .context("cannot start the renewer")?;
    // Waited for only so that no zombie is left to a command that runs for long.
    std::thread::spawn(move || child.wait());
    for _ in 0..WAIT_TRIES {
        if state::living(cluster).is_some() {
            return Ok(());
        }
        tokio::time::sleep(WAIT_PAUSE).await;
    }
    anyhow::bail!(
        "the renewer did not start; its log is {}",
        cluster.file("renewer.log").display()
    )
}

/// Ends the cluster's renewer.
pub async fn stop(cluster: &ClusterHome) -> Stopped {
    let Some(pid) = state::living(cluster) else {
        return Stopped::NotRunning;
    };
    ask_to_end(pid);
    for _ in 0..WAIT_TRIES {
        if state::living(cluster).is_none() {
            return Stopped::Ended;
        }
        tokio::time::sleep(WAIT_PAUSE).await;
    }
    Stopped::StillRunning
}

fn root() -> &'static str {
    if cfg!(windows) { "C:\\" } else { "/" }
}

/// In a session of its own, it outlives the terminal it was started from.
#[cfg(unix)]
pub(super) fn leave_the_terminal() {
    let _ = rustix::process::setsid();
}

#[cfg(not(unix))]
pub(super) fn leave_the_terminal() {}

#[cfg(unix)]
fn ask_to_end(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid.filter(|pid| is_renewer(*pid)) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// The number in the lock file may be of a moment ago: nobody else is ever signalled.
#[cfg(target_os = "linux")]
fn is_renewer(pid: rustix::process::Pid) -> bool {
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    line.split(|byte| *byte == 0)
        .any(|word| word == COMMAND.as_bytes())
}

#[cfg(all(unix, not(target_os = "linux")))]
fn is_renewer(_pid: rustix::process::Pid) -> bool {
    true
}

/// Without signals the renewer sees by itself that the login is gone.
#[cfg(not(unix))]
fn ask_to_end(_pid: u32) {}

/// The wish of others that this process ends.
#[cfg(unix)]
pub(super) struct Ending(tokio::signal::unix::Signal);

#[cfg(unix)]
impl Ending {
    pub(super) fn listen() -> std::io::Result<Self> {
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map(Self)
    }

    pub(super) async fn asked(&mut self) {
        self.0.recv().await;
    }
}

#[cfg(not(unix))]
pub(super) struct Ending;

#[cfg(not(unix))]
impl Ending {
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self)
    }

    pub(super) async fn asked(&mut self) {
        std::future::pending().await
    }
}
