//! Folders, ports, and waiting for something to become true.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

const POLL: Duration = Duration::from_millis(5);

/// A private folder (0700) that disappears with the value.
pub fn temp() -> anyhow::Result<TempDir> {
    tempfile::Builder::new()
        .prefix("iap-test-")
        .tempdir()
        .context("no temporary folder")
}

/// A loopback TCP port that was free a moment ago, for programs that cannot be given a listener.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}

/// Returns as soon as `condition` holds, or fails at the deadline.
pub fn wait_until(mut condition: impl FnMut() -> bool, deadline: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > deadline {
            bail!("the condition did not come true within {deadline:?}");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// The same for conditions that have to be awaited.
pub async fn wait_until_async(
    mut condition: impl AsyncFnMut() -> bool,
    deadline: Duration,
) -> anyhow::Result<()> {
    let start = Instant::now();
    while !condition().await {
        if start.elapsed() > deadline {
            bail!("the condition did not come true within {deadline:?}");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
