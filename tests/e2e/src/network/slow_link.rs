//! A link that keeps every packet for a while and drops some: a small C program between two TUN devices.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/network/slow_link.c");

/// The running program; ended when dropped, if its devices are not gone before.
#[derive(Debug)]
pub(super) struct SlowLink(Child);

impl SlowLink {
    /// Makes the devices `names`; each packet takes `delay` from one to the other.
    pub(super) fn between(
        names: [&str; 2],
        delay: Duration,
        loss_percent: u32,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let program = folder.join("slow_link");
        let compiled = Command::new("cc")
            .args(["-O1", "-o"])
            .arg(&program)
            .arg(SOURCE)
            .status()
            .context("cc is needed for slow links")?;
        ensure!(compiled.success(), "{SOURCE} does not compile");
        let mut child = Command::new(&program)
            .args(names)
            .arg(delay.as_millis().to_string())
            .arg(loss_percent.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        let output = child.stdout.take().context("no output")?;
        let link = Self(child);
        BufReader::new(output).read_line(&mut said)?;
        ensure!(
            said == "ready\n",
            "the slow link did not start (is /dev/net/tun there?)"
        );
        Ok(link)
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
