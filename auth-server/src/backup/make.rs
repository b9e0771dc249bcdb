//! Makes a backup while the server runs.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use iap_runtime::files::{DataDir, PRIVATE_FILE_MODE, sync_directory};
use time::OffsetDateTime;

use super::{BackupError, FORMAT, FileEntry, Hashing, MANIFEST_FILE, Manifest, is_left_out};
use crate::authority::{AuthorityKeys, DATABASE_FILE, format_time};
use crate::config::Config;
use crate::local::{self, LocalError};
use crate::store::sqlite::SqliteStore;

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// Where it is.
    pub output: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// How many files of `data_dir` it holds, the database included.
    pub files: usize,
    /// Whether a running server has it in its audit log.
    pub recorded: bool,
}

/// Copies everything in `data_dir` to a new file, which others cannot read: it holds the cluster's keys. A running
/// server records it first, so that the record is in the copy.
///
/// # Errors
/// When anything cannot be read, written or recorded; then no file is left.
pub async fn make(config: &Config, output: &Path, now: OffsetDateTime) -> Result<Made, BackupError> {
    let source = DataDir::open_or_create(&config.data_dir)?;
    if AuthorityKeys::is_first_start(&source)? {
        return Err(BackupError::NothingThere(config.data_dir.clone()));
    }
    if output.exists() {
        return Err(BackupError::OutputExists(output.to_owned()));
    }
    refuse_inside(source.path(), output)?;
    let keys = AuthorityKeys::load(&source, &config.cluster, now)?;
    let recorded = match local::record_backup(&config.data_dir, output).await {
        Ok(()) => true,
        Err(LocalError::NotRunning { .. }) => false,
        Err(error @ (LocalError::Exchange(_) | LocalError::Refused(_))) => {
            return Err(BackupError::NotRecorded(error.to_string()));
        }
    };
    let database = Partial::beside(output, "database");
    SqliteStore::copy(&source.join(DATABASE_FILE), &database.0).await?;
    let mut manifest = Manifest {
        format: FORMAT,
        cluster: config.cluster.clone(),
        pin: keys.pin(),
        made: format_time(now),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        files: BTreeMap::new(),
    };
    let whole = Partial::beside(output, "partial");
    write_tar(&whole.0, &source, &database.0, &mut manifest)?;
    // Links instead of renaming: a file that came into being meanwhile is not replaced.
    fs::hard_link(&whole.0, output).map_err(BackupError::io("create", output))?;
    sync_directory(parent_of(output))?;
    let bytes = fs::metadata(output)
        .map_err(BackupError::io("inspect", output))?
        .len();
    Ok(Made {
        output: output.to_owned(),
        bytes,
        files: manifest.files.len(),
        recorded,
    })
}

/// However it is named: by links, or from the working directory.
fn refuse_inside(data_dir: &Path, output: &Path) -> Result<(), BackupError> {
    let canonical = |path: &Path| fs::canonicalize(path).map_err(BackupError::io("find", path));
    match canonical(parent_of(output))?.starts_with(canonical(data_dir)?) {
        true => Err(BackupError::OutputInside(output.to_owned())),
        false => Ok(()),
    }
}

fn write_tar(
    path: &Path,
    source: &DataDir,
    database: &Path,
    manifest: &mut Manifest,
) -> Result<(), BackupError> {
    let failed = || BackupError::io("write", path);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(PRIVATE_FILE_MODE);
    let file = options.open(path).map_err(failed())?;
    let mut archive = tar::Builder::new(file);
    let mut names = Vec::new();
    list(source.path(), Path::new(""), &mut names)?;
    let files = names.into_iter().map(|name| (source.path().join(&name), name));
    let database = (database.to_owned(), PathBuf::from(DATABASE_FILE));
    for (from, name) in files.chain([database]) {
        let entry = append(&mut archive, &from, &name)?;
        manifest.files.insert(name.display().to_string(), entry);
    }
    let text = serde_json::to_vec_pretty(manifest).map_err(|error| failed()(error.into()))?;
    let mut header = header(text.len() as u64);
    archive
        .append_data(&mut header, MANIFEST_FILE, text.as_slice())
        .map_err(failed())?;
    let file = archive.into_inner().map_err(failed())?;
    file.sync_all().map_err(failed())
}

fn append(archive: &mut tar::Builder<File>, from: &Path, name: &Path) -> Result<FileEntry, BackupError> {
    let failed = || BackupError::io("back up", from);
    let file = File::open(from).map_err(failed())?;
    let bytes = file.metadata().map_err(failed())?.len();
    // What is appended meanwhile is not in it.
    let mut content = Hashing::new(file.take(bytes));
    archive
        .append_data(&mut header(bytes), name, &mut content)
        .map_err(failed())?;
    let entry = content.finish();
    match entry.bytes == bytes {
        true => Ok(entry),
        false => Err(failed()(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it became shorter while it was read",
        ))),
    }
}

fn header(bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(PRIVATE_FILE_MODE);
    header.set_size(bytes);
    header
}

fn list(root: &Path, below: &Path, names: &mut Vec<PathBuf>) -> Result<(), BackupError> {
    let folder = root.join(below);
    let failed = || BackupError::io("list", &folder);
    for entry in fs::read_dir(&folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let name = below.join(entry.file_name());
        let kind = entry.file_type().map_err(failed())?;
        if kind.is_dir() {
            list(root, &name, names)?;
        } else if kind.is_file() {
            if !is_left_out(&name) {
                names.push(name);
            }
        } else if !kind.is_socket() {
            return Err(BackupError::NotAFile(entry.path()));
        }
    }
    Ok(())
}

/// A file that goes when it is dropped.
struct Partial(PathBuf);

impl Partial {
    fn beside(output: &Path, what: &str) -> Self {
        let mut name = std::ffi::OsString::from(".");
        name.push(output.file_name().unwrap_or_default());
        name.push(format!(".{}.{what}", std::process::id()));
        Self(output.with_file_name(name))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}
