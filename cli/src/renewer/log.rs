//! `renewer.log` in the cluster's folder: what the renewer did, at most twice [`LOG_BYTES_MAX`].

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use time::OffsetDateTime;

use crate::duration::rfc3339;
use crate::home::ClusterHome;

/// A file that has grown beyond this becomes `renewer.log.1`, in place of the one before it.
const LOG_BYTES_MAX: u64 = 64 * 1024;
const LINE_CHARS_MAX: usize = 1000;

pub(super) struct Log {
    path: PathBuf,
}

impl Log {
    pub(super) fn open(home: &ClusterHome) -> Self {
        Self {
            path: home.file("renewer.log"),
        }
    }

    /// Adds a line. A log that cannot be written is nobody's to tell.
    pub(super) fn line(&self, text: &str) {
        let is_full = std::fs::metadata(&self.path).is_ok_and(|metadata| metadata.len() >= LOG_BYTES_MAX);
        if is_full {
            let _ = std::fs::rename(&self.path, self.path.with_extension("log.1"));
        }
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let plain: String = text
            .chars()
            .map(|letter| if letter.is_control() { ' ' } else { letter })
            .take(LINE_CHARS_MAX)
            .collect();
        if let Ok(mut file) = options.open(&self.path) {
            let _ = writeln!(file, "{} {plain}", rfc3339(OffsetDateTime::now_utc()));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_log_is_one_line_for_each_event_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log {
            path: folder.path().join("renewer.log"),
        };
        log.line("one\nline");
        assert!(
            std::fs::read_to_string(&log.path)
                .unwrap()
                .ends_with(" one line\n")
        );
        for _ in 0..300 {
            log.line(&"x".repeat(5000));
        }
        let entries = std::fs::read_dir(folder.path()).unwrap();
        let sizes: Vec<u64> = entries
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().sum::<u64>() < 3 * LOG_BYTES_MAX, "{sizes:?}");
    }
}
