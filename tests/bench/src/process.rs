//! Processes the harness starts, and what the kernel says they used.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// `USER_HZ`: the unit of the times in `/proc/PID/stat` on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A child that ends with its owner.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    name: String,
}

impl Running {
    pub(crate) fn start(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).spawn().with_context(|| {
            format!(
                "cannot start {name} ({})",
                command.get_program().to_string_lossy()
            )
        })?;
        Ok(Self {
            child,
            name: name.to_owned(),
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// An error when it has ended already.
    pub(crate) fn still_runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended early: {status}", self.name),
        }
    }

    /// Asks it to end and waits.
    pub(crate) fn end(mut self) {
        self.terminate();
    }

    fn terminate(&mut self) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let patience = Instant::now() + Duration::from_secs(12);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > patience {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.terminate();
    }
}

/// User and system seconds a process and its children have used.
///
/// # Errors
/// When the process is gone.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
    // The name in parentheses may hold spaces; fields are counted from behind it, the first being field 3.
    let rest = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<f64>().unwrap_or_default());
    Ok(ticks.sum::<f64>() / TICKS_PER_SECOND)
}

/// KiB of memory the process holds.
///
/// # Errors
/// When the process is gone.
pub(crate) fn resident_kib(pid: u32) -> anyhow::Result<f64> {
    status_kib(pid, "VmRSS:")
}

/// The most KiB it has held since the last [`forget_peak`].
///
/// # Errors
/// When the process is gone.
pub(crate) fn peak_kib(pid: u32) -> anyhow::Result<f64> {
    status_kib(pid, "VmHWM:")
}

/// Lets the peak begin anew (proc(5), `clear_refs`).
///
/// # Errors
/// When the process is gone or another user's.
pub(crate) fn forget_peak(pid: u32) -> anyhow::Result<()> {
    Ok(std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

fn status_kib(pid: u32, field: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("no process {pid}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let kib = kib.with_context(|| format!("no {field}"))?;
    Ok(kib.trim().parse()?)
}

/// The process and everything below it (nginx works in children).
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        found.extend(family(child));
    }
    found
}

/// Waits for a file to appear.
///
/// # Errors
/// When it does not within `seconds`, or the process that should write it ends.
pub(crate) fn wait_for_file(path: &Path, running: &mut Running, seconds: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !path.exists() {
        running.still_runs()?;
        anyhow::ensure!(
            Instant::now() < deadline,
            "{} did not appear within {seconds} s",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Waits until something accepts connections there.
///
/// # Errors
/// When nothing does within `seconds`.
pub(crate) fn wait_for_port(port: u16, running: &mut Running, seconds: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        running.still_runs()?;
        anyhow::ensure!(
            Instant::now() < deadline,
            "nothing listened on port {port} within {seconds} s"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
