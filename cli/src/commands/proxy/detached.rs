//! `iapctl proxy --detach`: the same command once more, in the background, without a terminal.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::context::NONINTERACTIVE;
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::home::ClusterHome;

/// What the one in the background says once it is there, in the folder of the cluster.
pub(super) const LOG: &str = "proxy.log";
/// The auth server may be asked for the services first.
const START_SECONDS_MAX: u64 = 30;
/// The most lines of its list.
const LINES_MAX: usize = 20_000;

/// One in the background.
pub(super) struct Detached {
    /// Its process.
    pub(super) pid: u32,
    /// The listeners, as it printed them.
    pub(super) listeners: Vec<Value>,
}

/// Starts `iapctl proxy` with these arguments and waits until it listens.
pub(super) async fn start(arguments: &[String], home: &ClusterHome) -> anyhow::Result<Detached> {
    let log = &home.file(LOG);
    // What one that still runs says stays its own.
    let _ = std::fs::rename(log, log.with_extension("log.1"));
    let said = home.open_private(LOG)?;
    let mut child = command(arguments)?
        .stderr(Stdio::from(said))
        .spawn()
        .context("cannot start iapctl in the background")?;
    let output = child.stdout.take().context("no output to wait for")?;
    let waiting = tokio::time::timeout(Duration::from_secs(START_SECONDS_MAX), listening(output));
    match waiting.await {
        Ok(Some(listeners)) => Ok(Detached {
            pid: child.id().context("it has ended")?,
            listeners,
        }),
        Ok(None) => Err(ended(&mut child, log).await.into()),
        Err(_) => {
            let _ = child.kill().await;
            Err(Failure::failed(format!(
                "the listeners were not there within {START_SECONDS_MAX} s"
            ))
            .because(words(log))
            .into())
        }
    }
}

fn command(arguments: &[String]) -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("cannot tell which program this is")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env(NONINTERACTIVE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    Ok(command)
}

/// The list, once it is whole; nothing if the output ended before.
async fn listening(output: ChildStdout) -> Option<Vec<Value>> {
    let mut lines = BufReader::new(output).lines();
    let mut text = String::new();
    for _ in 0..LINES_MAX {
        text += &lines.next_line().await.ok()??;
        if let Ok(Value::Array(listeners)) = serde_json::from_str(&text) {
            return Some(listeners);
        }
    }
    None
}

/// It ended instead: what it said, with its status.
async fn ended(child: &mut Child, log: &Path) -> Failure {
    let failure = Failure::failed("the listeners could not be started").because(words(log));
    match child.wait().await.ok().map(ExitStatus::of_command) {
        Some(ExitStatus::Command(code)) => failure.with_status(match code {
            2 => ExitStatus::Usage,
            3 => ExitStatus::Denied,
            4 => ExitStatus::LoginNeeded,
            _ => ExitStatus::Failed,
        }),
        Some(_) | None => failure,
    }
}

fn words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ")
}
