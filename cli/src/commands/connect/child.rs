//! The command that runs in our place: found, started, signalled, waited for.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::process::{Child as Process, Command};
#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::LocalEnvironment;
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::printer::Printer;

/// The exit codes shells, `env` and `timeout` use for a command that cannot be run.
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// A command that cannot be run.
#[derive(Debug)]
pub(super) struct Missing {
    program: OsString,
    code: u8,
}

/// The running command.
pub(super) struct Child {
    process: Process,
    #[cfg(unix)]
    signals: Signals,
}

/// Signals that end programs, heard from before the command starts: it would go on without us otherwise.
#[cfg(unix)]
struct Signals {
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    hang_up: Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

impl Missing {
    /// Says so; the status to end with.
    pub(super) fn report(&self, printer: &Printer) -> ExitStatus {
        let why = if self.code == NOT_FOUND {
            "not found"
        } else {
            "not executable"
        };
        let failure =
            Failure::failed(format!("cannot run '{}'", self.program.to_string_lossy())).because(why);
        crate::failure::report(printer, &failure.into());
        ExitStatus::Command(self.code)
    }
}

/// The file a command name stands for, looked for before any session is opened.
pub(super) fn find(program: &OsStr) -> Result<PathBuf, Missing> {
    let missing = |code| Missing {
        program: program.to_owned(),
        code,
    };
    if Path::new(program).components().count() > 1 {
        let path = PathBuf::from(program);
        return match (path.is_file(), is_executable(&path)) {
            (true, true) => Ok(path),
            (true, false) => Err(missing(CANNOT_EXECUTE)),
            (false, _) => Err(missing(NOT_FOUND)),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|folder| folder.join(program));
    candidates
        .into_iter()
        .find(|file| is_executable(file))
        .ok_or_else(|| missing(NOT_FOUND))
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(path: &Path) -> bool {
    path.is_file() || path.with_extension("exe").is_file()
}

impl Child {
    /// Starts the command.
    pub(super) fn start(
        program: &Path,
        arguments: &[OsString],
        environment: &LocalEnvironment,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).kill_on_drop(true);
        for name in environment.removed(std::env::vars_os().map(|(name, _)| name)) {
            command.env_remove(name);
        }
        command.envs(environment.set());
        #[cfg(unix)]
        let signals = Signals::listen()?;
        let process = command
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        Ok(Self {
            process,
            #[cfg(unix)]
            signals,
        })
    }

    /// Waits for the command and passes on what we are asked: Ctrl-C reaches it from the terminal as it
    /// reaches us, and only the command decides what that means; a request to end is passed on.
    #[cfg(unix)]
    pub(super) async fn wait(mut self) -> anyhow::Result<ExitStatus> {
        use rustix::process::Signal;
        loop {
            tokio::select! {
                ended = self.process.wait() => return Ok(ExitStatus::of_command(ended?)),
                _ = self.signals.interrupt.recv() => {}
                _ = self.signals.quit.recv() => {}
                _ = self.signals.terminate.recv() => self.pass_on(Signal::TERM),
                _ = self.signals.hang_up.recv() => self.pass_on(Signal::HUP),
            }
        }
    }

    /// Waits for the command.
    #[cfg(not(unix))]
    pub(super) async fn wait(mut self) -> anyhow::Result<ExitStatus> {
        Ok(ExitStatus::of_command(self.process.wait().await?))
    }

    #[cfg(unix)]
    fn pass_on(&self, signal: rustix::process::Signal) {
        let pid = self
            .process
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended just now, and then there is nobody to tell.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_command_is_found_on_the_path_or_by_its_own() {
        assert!(find("sh".as_ref()).unwrap().is_absolute());
        assert_eq!(find("/bin/sh".as_ref()).unwrap(), Path::new("/bin/sh"));
        assert_eq!(
            find("no-such-command-anywhere".as_ref()).unwrap_err().code,
            NOT_FOUND
        );
        let plain = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(find(plain.path().as_os_str()).unwrap_err().code, CANNOT_EXECUTE);
    }
}
