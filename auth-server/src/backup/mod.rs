//! Backups: one tar file (0600) with the database and every file beside it, keys included, so that a cluster can
//! be brought back from it alone. The last entry is a manifest with the hash of each other one: a file without it
//! was cut short.

mod make;
mod restore;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use iap_identity::{ClusterName, Pin};
use iap_runtime::files::FileError;
use serde::{Deserialize, Serialize};

pub use make::{Made, make};
pub use restore::{RestoreReport, restore};

use crate::audit::RecordError;
use crate::authority::{DATABASE_FILE, KeysError};
use crate::context::{LOCK_FILE, NoRandomness, OpenError};
use crate::local::SOCKET_FILE;
use crate::store::StoreError;

const MANIFEST_FILE: &str = "manifest.json";
const MANIFEST_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The layout described here.
const FORMAT: u32 = 1;

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is no server to back up.
    #[error("{} holds no auth server yet: start `iap-auth --config FILE` once", .0.display())]
    NothingThere(PathBuf),
    /// A restore overwrites nothing.
    #[error(
        "{path} is not empty ({found}): a restore needs an empty data_dir; move the old one away first",
        path = .path.display()
    )]
    NotEmpty {
        /// `data_dir`.
        path: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// A backup overwrites nothing.
    #[error("{} exists already: choose another name, or remove it", .0.display())]
    OutputExists(PathBuf),
    /// The backup would be part of what it backs up, and grow for ever.
    #[error("{} is inside data_dir, which the backup is of: choose a place outside", .0.display())]
    OutputInside(PathBuf),
    /// Something in `data_dir` that no backup can hold.
    #[error("{} is neither a file nor a directory and cannot be backed up", .0.display())]
    NotAFile(PathBuf),
    /// The backup is damaged, cut short, or none of ours.
    #[error("{path} cannot be restored: {why}", path = .path.display())]
    Unsound {
        /// The backup.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The backup is another cluster's.
    #[error("this is a backup of {found}, and the configuration says cluster = \"{configured}\"")]
    OtherCluster {
        /// The backup's.
        found: ClusterName,
        /// The configuration's.
        configured: ClusterName,
    },
    /// A file failed.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// A verb: what was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file or directory is open to others, or cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// `data_dir` is in use.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keys do not belong together, or not to this cluster.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// It could not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No new id could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The running server did not record the backup.
    #[error("the running auth server did not record the backup: {0}")]
    NotRecorded(String),
}

impl BackupError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| BackupError::Io { action, path, source }
    }
}

/// What a backup says about itself.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    cluster: ClusterName,
    pin: Pin,
    /// RFC 3339, UTC.
    made: String,
    /// Of the program that made it.
    version: String,
    files: BTreeMap<String, FileEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileEntry {
    bytes: u64,
    /// Lower-case hex.
    sha256: String,
}

/// Made anew by every start, or copied by other means than as a file.
fn is_left_out(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_half_written = name.starts_with('.') && name.ends_with(".new");
    let is_database = |name: &str| {
        let rest = name.strip_prefix(DATABASE_FILE);
        rest.is_some_and(|rest| matches!(rest, "" | "-wal" | "-shm" | "-journal"))
    };
    let at_top = path.to_str().unwrap_or_default();
    is_half_written || is_database(at_top) || at_top == LOCK_FILE || at_top == SOCKET_FILE
}

/// A path as it may stand in a backup: relative, without detours.
fn is_plain(path: &Path) -> bool {
    let normal = |component: Component<'_>| matches!(component, Component::Normal(_));
    path.components().next().is_some() && path.components().all(normal)
}

/// Counts and hashes what passes through.
struct Hashing<R> {
    inner: R,
    context: Context,
    bytes: u64,
}

impl<R: Read> Hashing<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            context: Context::new(&SHA256),
            bytes: 0,
        }
    }

    fn finish(self) -> FileEntry {
        let digest = self.context.finish();
        FileEntry {
            bytes: self.bytes,
            sha256: iap_identity::hex(digest.as_ref()),
        }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.context.update(buffer.get(..count).unwrap_or_default());
        self.bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
