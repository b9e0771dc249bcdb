//! Whether a renewer lives, and what it says of itself.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::home::ClusterHome;

const LOCK: &str = "renewer.lock";
const REPORT: &str = "renewer.json";
/// Somebody who asks whether a renewer lives holds the lock for a moment.
const TAKE_TRIES: u32 = 20;
const TAKE_PAUSE: Duration = Duration::from_millis(25);

/// `renewer.json`. Times are RFC 3339.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Whether a renewer is at work. Not what the file says: what its lock does.
    pub running: bool,
    /// Its process.
    pub pid: Option<u32>,
    /// The login it renews.
    pub login_id: Option<String>,
    /// The newest certificate's generation.
    pub generation: Option<u64>,
    /// Until when that is valid.
    pub valid_until: Option<String>,
    /// When it renews next; none when the certificate lasts as long as the login.
    pub next_renewal: Option<String>,
    /// The login's hard end.
    pub deadline: Option<String>,
    /// What went wrong last; none when all is well.
    pub problem: Option<String>,
    /// Why it ended.
    pub ended: Option<String>,
}

/// The right to be the one renewer of a login, held by a lock.
pub(super) struct Running {
    home: ClusterHome,
    _lock: File,
}

impl Report {
    pub(super) fn of_this_process() -> Self {
        Self {
            pid: Some(std::process::id()),
            ..Self::default()
        }
    }
}

impl Running {
    /// None when another renewer is at work.
    pub(super) async fn take(home: &ClusterHome) -> anyhow::Result<Option<Self>> {
        let mut file = home.open_private(LOCK)?;
        let mut tries = 0;
        while file.try_lock().is_err() {
            tries += 1;
            if tries == TAKE_TRIES {
                return Ok(None);
            }
            tokio::time::sleep(TAKE_PAUSE).await;
        }
        write_pid(&mut file).context("cannot write renewer.lock")?;
        let running = Self {
            home: home.clone(),
            _lock: file,
        };
        running.write(&Report::of_this_process())?;
        Ok(Some(running))
    }

    /// Writes what has changed; says whether anything had.
    pub(super) fn write(&self, report: &Report) -> anyhow::Result<bool> {
        if read(&self.home).as_ref() == Some(report) {
            return Ok(false);
        }
        self.home
            .write_private(REPORT, &serde_json::to_vec_pretty(report)?)?;
        Ok(true)
    }
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.rewind()?;
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

fn read(home: &ClusterHome) -> Option<Report> {
    serde_json::from_slice(&std::fs::read(home.file(REPORT)).ok()?).ok()
}

/// What is known of the cluster's renewer.
pub fn report(home: &ClusterHome) -> Report {
    let mut report = read(home).unwrap_or_default();
    report.running = living(home).is_some();
    if !report.running {
        (report.pid, report.next_renewal) = (None, None);
    }
    report
}

/// The process of the renewer that is at work.
pub(super) fn living(home: &ClusterHome) -> Option<u32> {
    let mut file = File::open(home.file(LOCK)).ok()?;
    if file.try_lock_shared().is_ok() {
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Forgets what an earlier renewer said.
pub(super) fn forget(home: &ClusterHome) {
    let _ = std::fs::remove_file(home.file(REPORT));
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use iap_identity::ClusterName;

    use super::*;
    use crate::home::Home;

    #[tokio::test]
    async fn one_renewer_is_at_work_and_its_report_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path()).cluster(&ClusterName::parse("iap.localhost").unwrap());
        home.make().unwrap();
        assert!(!report(&home).running);
        let running = Running::take(&home).await.unwrap().unwrap();
        let said = Report {
            next_renewal: Some("later".to_owned()),
            ..Report::of_this_process()
        };
        assert!(running.write(&said).unwrap());
        assert!(!running.write(&said).unwrap(), "nothing had changed");
        assert_eq!(living(&home), Some(std::process::id()));
        let seen = report(&home);
        assert!(seen.running && seen.next_renewal.is_some(), "{seen:?}");
        assert!(Running::take(&home).await.unwrap().is_none());
        drop(running);
        let seen = report(&home);
        assert!(
            !seen.running && seen.next_renewal.is_none() && seen.pid.is_none(),
            "{seen:?}"
        );
    }
}
