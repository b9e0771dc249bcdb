//! A development plane under test: the real programs, as a user starts them.

mod annex;
pub mod network;
mod page;
mod sshd;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

pub use annex::Annex;
pub use page::Page;
pub use sshd::Sshd;

/// How long a plane may take to be ready, generous because two run side by side on two cores.
const READY_SECONDS_MAX: u64 = 120;
/// How long anything observed may take to come true.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long a child may take to end when it is asked to.
const ENDING: Duration = Duration::from_secs(3);

/// A running plane; ended, with all its programs, when dropped.
#[derive(Debug)]
pub struct Plane {
    folder: TempDir,
    child: Child,
}

/// What a finished command left behind.
#[derive(Debug)]
pub struct Ran {
    /// Its results.
    pub stdout: String,
    /// Its talk.
    pub stderr: String,
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
}

impl Plane {
    /// `iapctl dev --demo` in a folder of its own.
    ///
    /// # Errors
    /// When the plane is not ready in time; the message ends with what it said.
    pub fn demo() -> anyhow::Result<Self> {
        Self::start(&["--demo"])
    }

    /// `iapctl dev ARGUMENTS` in a folder of its own.
    ///
    /// # Errors
    /// As for [`Plane::demo`].
    pub fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start_by(arguments, |_, command| Ok(command))
    }

    /// The same by the command that `prepare` makes of ours; it is given the plane's folder, which does not exist yet.
    ///
    /// # Errors
    /// As for [`Plane::demo`], and when `prepare` fails.
    pub fn start_by(
        arguments: &[&str],
        prepare: impl FnOnce(&Path, Command) -> anyhow::Result<Command>,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("iap-e2e.").tempdir_in("/tmp")?;
        let said = std::fs::File::create(folder.path().join("dev.log"))?;
        let dir = folder.path().join("plane");
        let mut command = Command::new(program("iapctl")?);
        command.args(["dev", "--dir"]).arg(&dir).args(arguments);
        let child = prepare(&dir, command)?
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .context("cannot start iapctl dev")?;
        let mut plane = Self { folder, child };
        plane.wait_ready()?;
        Ok(plane)
    }

    /// The plane's folder.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("plane")
    }

    /// A folder beside the plane's, gone with it.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// The home of one person's login.
    #[must_use]
    pub fn home(&self, user: &str) -> PathBuf {
        self.folder.path().join("homes").join(user)
    }

    /// What `dev.json` says now.
    ///
    /// # Errors
    /// When it is missing or malformed.
    pub fn descriptor(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(
            self.dir().join("dev.json"),
        )?)?)
    }

    /// The process id of `auth`, `proxy`, `agent` or `dev`.
    ///
    /// # Errors
    /// When `dev.json` does not name it.
    pub fn pid(&self, name: &str) -> anyhow::Result<Pid> {
        let descriptor = self.descriptor()?;
        let pid = descriptor
            .pointer(&format!("/pids/{name}"))
            .and_then(Value::as_i64);
        let pid = pid.with_context(|| format!("no pid for {name}"))?;
        Pid::from_raw(i32::try_from(pid)?).context("no such process id")
    }

    /// Sends a signal to one of the plane's programs.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(self.pid(name)?, signal)?)
    }

    /// Logs a user of the development provider in.
    ///
    /// # Errors
    /// When the login fails.
    pub fn log_in(&self, user: &str) -> anyhow::Result<()> {
        let dir = self.dir().display().to_string();
        self.iapctl(user, &["dev", "login", user, "--dir", &dir])?
            .succeeded()
            .map(|_| ())
    }

    /// `iapctl` in the home of `user`, without a terminal, ready to be started.
    ///
    /// # Errors
    /// When the program is not built.
    pub fn command(&self, user: &str, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(program("iapctl")?);
        command
            .args(arguments)
            .env("IAPCTL_HOME", self.home(user))
            .env("IAPCTL_NONINTERACTIVE", "1")
            .env_remove("PGSSLMODE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// Runs a block of commands as written, as `user` who finds `iapctl` in the path, in `folder`.
    ///
    /// # Errors
    /// When it cannot be run; an exit code other than 0 is no error here.
    pub fn shell(&self, user: &str, folder: &Path, block: &str) -> anyhow::Result<Ran> {
        let iapctl = program("iapctl")?;
        let mut path = iapctl
            .parent()
            .context("no folder of programs")?
            .as_os_str()
            .to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command
            .args(["-euc", block])
            .current_dir(folder)
            .env("PATH", path)
            .env("IAPCTL_HOME", self.home(user))
            .env("IAPCTL_NONINTERACTIVE", "1")
            .env_remove("PGSSLMODE")
            .stdin(Stdio::null());
        Ok(command.output()?.into())
    }

    /// Puts this table in the place of a service's in the agent's own file, and has it taken up without a restart.
    ///
    /// # Errors
    /// When the file has no such service.
    pub fn serve(&self, service: &str, table: &str) -> anyhow::Result<()> {
        const TABLE: &str = "\n[[service]]\n";
        let config = self.dir().join("config/agent.toml");
        let text = std::fs::read_to_string(&config)?;
        let mut tables: Vec<&str> = text.split(TABLE).collect();
        let named = format!("name = \"{service}\"\n");
        let old = tables.iter_mut().find(|old| old.starts_with(&named));
        *old.with_context(|| format!("{service} is not in the agent's file"))? =
            table.strip_prefix("[[service]]\n").unwrap_or(table);
        std::fs::write(&config, tables.join(TABLE))?;
        self.signal("agent", Signal::HUP)
    }

    /// A session to `echo` on standard input and output, known to be live because a line came back.
    ///
    /// # Errors
    /// When it does not open.
    pub fn echo_session(&self, user: &str) -> anyhow::Result<Background> {
        let mut command = self.command(user, &["connect", "echo", "--stdio"])?;
        let mut session = Background(command.stdin(Stdio::piped()).spawn()?);
        session.round_trip(b"ping\n")?;
        Ok(session)
    }

    /// Runs `iapctl` to its end.
    ///
    /// # Errors
    /// When it cannot be run; an exit code other than 0 is no error here.
    pub fn iapctl(&self, user: &str, arguments: &[&str]) -> anyhow::Result<Ran> {
        Ok(self.command(user, arguments)?.output()?.into())
    }

    /// Runs `iapctl … -f json` and parses what it printed.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json(&self, user: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut all = arguments.to_vec();
        all.extend(["-f", "json"]);
        let ran = self.iapctl(user, &all)?;
        let stdout = ran.succeeded()?;
        serde_json::from_str(stdout).with_context(|| format!("not JSON: {stdout}"))
    }

    /// The sessions an auditor (already logged in) sees, once `settled` says that they are complete.
    ///
    /// # Errors
    /// When they are not within [`PATIENCE`].
    pub fn sessions_when(&self, settled: impl Fn(&[Value]) -> bool) -> anyhow::Result<Vec<Value>> {
        let mut seen = Vec::new();
        wait_until("the sessions' records are at the auth server", || {
            // It may just be starting again.
            let Ok(listed) = self.json("auditor", &["sessions", "ls"]) else {
                return Ok(false);
            };
            seen = listed.as_array().cloned().unwrap_or_default();
            Ok(settled(&seen))
        })
        .with_context(|| format!("last seen: {seen:?}"))?;
        Ok(seen)
    }

    /// Every record of a session, through the auditor.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn records(&self, session: &str) -> anyhow::Result<Vec<Value>> {
        let shown = self.json("auditor", &["sessions", "show", session])?;
        let records = shown.get("records").and_then(Value::as_array);
        Ok(records.cloned().unwrap_or_default())
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(READY_SECONDS_MAX);
        while !self.dir().join("dev.json").exists() {
            let said = || std::fs::read_to_string(self.folder.path().join("dev.log")).unwrap_or_default();
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("iapctl dev ended ({status}):\n{}", said());
            }
            ensure!(
                Instant::now() < deadline,
                "the plane was not ready within {READY_SECONDS_MAX} s:\n{}",
                said()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(self.folder.path());
            // For a look at all of it.
            if std::env::var_os("IAP_E2E_KEEP").is_some() {
                self.folder.disable_cleanup(true);
            }
        }
        // A stopped supervisor could not end its programs.
        for signal in [Signal::CONT, Signal::TERM] {
            if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, signal);
            }
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How much of each log belongs to a failure.
const LOG_LINES_SHOWN: usize = 30;

/// The newest lines of a plane's logs: of its own programs and of those a test started beside it. Captured by the
/// test runner like everything a failing test says.
fn show_logs(scratch: &Path) {
    let mut logs: Vec<PathBuf> = [scratch.to_owned(), scratch.join("plane/logs")]
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    logs.iter().for_each(|log| show_log(log));
}

#[allow(clippy::print_stderr)]
fn show_log(file: &Path) {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines = without_repetition(&text);
    let newest = lines.get(lines.len().saturating_sub(LOG_LINES_SHOWN)..);
    eprintln!(
        "--- {}\n{}",
        file.display(),
        newest.unwrap_or_default().join("\n")
    );
}

/// Of lines that differ from the one before in numbers alone, the first; how many came after it.
fn without_repetition(text: &str) -> Vec<String> {
    let mut lines: Vec<(String, String, usize)> = Vec::new();
    for line in text.lines() {
        let shape: String = line.chars().filter(|one| !one.is_ascii_hexdigit()).collect();
        match lines.last_mut() {
            Some((_, before, again)) if *before == shape => *again += 1,
            _ => lines.push((line.to_owned(), shape, 0)),
        }
    }
    let shown = lines.into_iter().map(|(line, _, again)| match again {
        0 => line,
        again => format!("{line} [and {again} more like it]"),
    });
    shown.collect()
}

impl Ran {
    /// Its results, when it ended with 0.
    ///
    /// # Errors
    /// With everything it said, when it did not.
    pub fn succeeded(&self) -> anyhow::Result<&str> {
        ensure!(
            self.code == 0,
            "exit code {}\n{}\n{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(&self.stdout)
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }
}

/// A child that is ended when dropped.
#[derive(Debug)]
pub struct Background(pub Child);

impl Background {
    /// Writes to the child and waits until the same bytes have come back.
    ///
    /// # Errors
    /// When they do not.
    pub fn round_trip(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.0
            .stdin
            .as_mut()
            .context("no pipe to write to")?
            .write_all(bytes)?;
        let mut back = vec![0; bytes.len()];
        self.0
            .stdout
            .as_mut()
            .context("no pipe to read from")?
            .read_exact(&mut back)?;
        ensure!(back == bytes, "{:?} came back", String::from_utf8_lossy(&back));
        Ok(())
    }

    /// Asks the child to end, and waits until it has. One that is killed leaves its sessions waiting for it.
    ///
    /// # Errors
    /// When it does not end within [`PATIENCE`].
    pub fn interrupt(self) -> anyhow::Result<Ran> {
        kill_process(Pid::from_child(&self.0), Signal::INT)?;
        self.finish()
    }

    /// Everything it printed, after its end.
    ///
    /// # Errors
    /// When it does not end within [`PATIENCE`].
    pub fn finish(mut self) -> anyhow::Result<Ran> {
        let mut code = None;
        wait_until("the command ends", || {
            code = self.0.try_wait()?.map(|status| status.code().unwrap_or(-1));
            Ok(code.is_some())
        })?;
        let (mut stdout, mut stderr) = (String::new(), String::new());
        if let Some(mut pipe) = self.0.stdout.take() {
            pipe.read_to_string(&mut stdout)?;
        }
        if let Some(mut pipe) = self.0.stderr.take() {
            pipe.read_to_string(&mut stderr)?;
        }
        Ok(Ran {
            stdout,
            stderr,
            code: code.unwrap_or(-1),
        })
    }
}

impl Drop for Background {
    /// Asks first: a client that is killed leaves its session waiting for it.
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
            let asked = Instant::now();
            while matches!(self.0.try_wait(), Ok(None)) && asked.elapsed() < ENDING {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Polls until `condition` holds.
///
/// # Errors
/// When it does not within [`PATIENCE`], or the condition itself fails.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        ensure!(
            Instant::now() < deadline,
            "{what}: not within {} s",
            PATIENCE.as_secs()
        );
        std::thread::sleep(Duration::from_millis(25));
    }
    Ok(())
}

/// A program of ours, as built beside the tests.
///
/// # Errors
/// When it is not built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own
        .ancestors()
        .nth(2)
        .context("no folder above the tests")?
        .join(name);
    ensure!(
        path.is_file(),
        "{} is missing: `make test` builds it first",
        path.display()
    );
    Ok(path)
}
