//! Keeps child processes running: one that has *exited* is started again, one merely silent or stopped is left alone.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use iap_runtime::handover::{Keeper, Lent};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Constant on purpose: a development plane should be back at once, however often a program is killed.
const RESTART_DELAY: Duration = Duration::from_millis(200);
/// How long a program may take to end after being asked.
const STOP_SECONDS_MAX: u64 = 6;

/// How to start a program, again and again.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) log: PathBuf,
    /// What asks it to end: SIGTERM, and for PostgreSQL SIGINT ("fast shutdown").
    pub(crate) stop_signal: Signal,
    /// What it leaves there it has again when it is started again.
    pub(crate) store: Option<Arc<Keeper>>,
}

/// Everything that runs for one plane, so that it can be ended whatever state the plane is in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Supervisor {
    pub(crate) stop: CancellationToken,
    running: TaskTracker,
}

/// A program under supervision.
#[derive(Debug)]
pub(crate) struct Supervised {
    pid: watch::Receiver<u32>,
}

impl Supervisor {
    /// Starts the program and keeps it running until everything ends.
    ///
    /// # Errors
    /// When it cannot be started the first time.
    pub(crate) fn start(&self, program: Program) -> anyhow::Result<Supervised> {
        let child = program.spawn()?;
        let (sender, pid) = watch::channel(child.id().unwrap_or_default());
        self.running
            .spawn(keep_running(program, child, sender, self.stop.clone()));
        Ok(Supervised { pid })
    }

    /// Work that starts programs itself, and is waited for like them.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.running.spawn(work)
    }

    /// Asks every program to end and waits until all have.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

impl Supervised {
    pub(crate) fn pid(&self) -> u32 {
        *self.pid.borrow()
    }

    /// Follows the process id through restarts.
    pub(crate) fn pid_changes(&self) -> watch::Receiver<u32> {
        self.pid.clone()
    }
}

impl Program {
    fn spawn(&self) -> anyhow::Result<Child> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot open {}", self.log.display()))?;
        // Held until the program runs.
        let lent = self.store.as_ref().map(|store| store.lend()).transpose()?;
        let environment = lent.as_ref().map(Lent::environment).unwrap_or_default();
        Command::new(&self.path)
            .args(&self.arguments)
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A terminal's Ctrl-C reaches the supervisor alone, which then ends the programs in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.path.display()))
    }
}

async fn keep_running(
    mut program: Program,
    mut child: Child,
    pid: watch::Sender<u32>,
    stop: CancellationToken,
) {
    loop {
        let status = tokio::select! {
            () = stop.cancelled() => {
                // There will be nobody to leave anything to.
                program.store = None;
                return end(&program, child).await;
            }
            status = child.wait() => status,
        };
        tracing::warn!(program = program.name, status = %describe(&status), "a program ended; starting it again");
        child = match start_again(&program, &stop).await {
            Some(child) => child,
            None => return,
        };
        pid.send_replace(child.id().unwrap_or_default());
    }
}

async fn start_again(program: &Program, stop: &CancellationToken) -> Option<Child> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(RESTART_DELAY) => {}
        }
        match program.spawn() {
            Ok(child) => return Some(child),
            Err(error) => tracing::error!(program = program.name, %error, "cannot start it again"),
        }
    }
}

async fn end(program: &Program, mut child: Child) {
    signal(child.id(), program.stop_signal);
    // A program that was stopped (SIGSTOP) cannot act on the request before it goes on.
    signal(child.id(), Signal::CONT);
    let patience = Duration::from_secs(STOP_SECONDS_MAX);
    if tokio::time::timeout(patience, child.wait()).await.is_err() {
        tracing::warn!(
            program = program.name,
            "it did not end within {STOP_SECONDS_MAX} s; ending it by force"
        );
        if let Err(error) = child.kill().await {
            tracing::error!(program = program.name, %error, "cannot end it");
        }
    }
}

fn signal(pid: Option<u32>, signal: Signal) {
    let Some(pid) = pid
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw)
    else {
        return;
    };
    if let Err(error) = kill_process(pid, signal) {
        tracing::debug!(%error, "no process to signal");
    }
}

fn describe(status: &std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

/// The programs that stand beside this one, as built or installed together.
///
/// # Errors
/// When one is missing; the message says how to build it.
pub(crate) fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find my own file")?;
    let path = own.with_file_name(name);
    anyhow::ensure!(
        path.is_file(),
        "{name} is not beside {}: build it with `cargo build --workspace --bins`",
        own.display()
    );
    Ok(path)
}

/// Ends programs that an earlier supervisor, itself ended by force, left behind in this folder.
///
/// A process is only touched when its executable is the expected one and its command line names `dir`.
pub(crate) fn end_leftovers(dir: &Path, pids: &[(u32, &str)]) {
    for (pid, name) in pids {
        if is_ours(*pid, name, dir) {
            tracing::warn!(pid, name, "ending a program an earlier run left behind");
            // PostgreSQL ends its own children only if it may do it itself ("immediate shutdown").
            let how = if *name == "postgres" {
                Signal::QUIT
            } else {
                Signal::KILL
            };
            signal(Some(*pid), how);
            wait_gone(*pid);
        }
    }
}

fn is_ours(pid: u32, name: &str, dir: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let same_program = std::fs::read_link(process.join("exe")).is_ok_and(|path| {
        path.file_name()
            .is_some_and(|file| file.to_string_lossy().starts_with(name))
    });
    let names_folder = std::fs::read(process.join("cmdline"))
        .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&*dir.to_string_lossy()));
    same_program && names_folder
}

fn wait_gone(pid: u32) {
    for _ in 0..50 {
        if !is_running(pid) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that has ended may stay listed for as long as nobody asks how (state Z).
fn is_running(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// The end of a program's log, for an error message.
pub(crate) fn log_tail(path: &Path) -> String {
    const LINES: usize = 12;
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(LINES)..)
        .unwrap_or_default()
        .join("\n")
}
