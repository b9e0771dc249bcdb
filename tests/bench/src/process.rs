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

/// User and system seconds a process has used.
///
/// # Errors
/// When the process is gone.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
    cpu_seconds_in(&stat).with_context(|| format!("/proc/{pid}/stat is not as proc(5) has it"))
}

/// `utime` and `stime`, fields 14 and 15 (proc(5)).
fn cpu_seconds_in(stat: &str) -> Option<f64> {
    // The name in parentheses may hold anything; behind the last of them comes field 3.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_SECOND)
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
    kib_in(&status, field).with_context(|| format!("no {field} in /proc/{pid}/status"))
}

fn kib_in(status: &str, field: &str) -> Option<f64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(field))?;
    rest.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// The process and everything below it: nginx and sshd work in children.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    // A child is listed under the thread that made it.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    for thread in threads.into_iter().flatten().flatten() {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            found.extend(family(child));
        }
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

/// Ports of 127.0.0.1 that nobody has.
///
/// # Errors
/// When there are none.
pub(crate) fn free_ports<const COUNT: usize>() -> anyhow::Result<[u16; COUNT]> {
    let mut held = Vec::with_capacity(COUNT);
    let mut ports = [0; COUNT];
    for port in &mut ports {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        *port = listener.local_addr()?.port();
        // All at once, so that none comes twice.
        held.push(listener);
    }
    Ok(ports)
}

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be run, or fails; what it said is in the message.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{name}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first line of what a program says about itself, wherever it says it, that has `word` in it.
pub(crate) fn line_with(command: &mut Command, word: &str) -> String {
    let output = command.stdin(Stdio::null()).output();
    let said = output.map(|output| [output.stdout, output.stderr].concat());
    let said = said.unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().map(str::trim).find(|line| line.contains(word));
    line.unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn user_and_system_time_are_found_behind_any_name() {
        let stat = "12 (a ) b (c) S 1 12 12 0 -1 4194304 10 20 0 0 150 50 7 9 20 0 4 0 100 1 2";
        assert_eq!(cpu_seconds_in(stat), Some(2.0));
        assert_eq!(cpu_seconds_in("12 (cut) S 1 12"), None);
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
    }

    #[test]
    fn a_field_of_the_status_is_read_in_kib() {
        let status = "Name:\tx\nVmHWM:\t    2000 kB\nVmRSS:\t    1234 kB\n";
        assert_eq!(kib_in(status, "VmRSS:"), Some(1234.0));
        assert_eq!(kib_in(status, "VmSwap:"), None);
    }

    #[test]
    fn free_ports_are_different_ones() {
        let [first, second, third] = free_ports::<3>().unwrap();
        assert!(first != second && second != third && first != third);
    }

    #[test]
    fn a_process_has_its_children_in_its_family() {
        let child = Running::start("sleep", Command::new("sleep").arg("60")).unwrap();
        assert!(family(std::process::id()).contains(&child.id()));
        assert_eq!(family(child.id()), [child.id()]);
    }
}
