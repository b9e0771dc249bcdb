//! Private directories and files: their permissions are checked before use, and replacements are atomic.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Mode of files with secrets.
pub const PRIVATE_FILE_MODE: u32 = 0o600;
/// Mode of directories with secrets.
pub const PRIVATE_DIRECTORY_MODE: u32 = 0o700;
/// Files read whole into memory are refused beyond this size.
pub const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why a file or directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Others could read or change it.
    #[error("{path} has mode {mode:04o}, which lets others in: run `chmod {wanted:04o} {path}`", path = .path.display())]
    TooLoose {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The loosest permissions allowed.
        wanted: u32,
    },
    /// A directory was expected.
    #[error("{path} is not a directory", path = .path.display())]
    NotADirectory {
        /// What is not one.
        path: PathBuf,
    },
    /// A regular file was expected.
    #[error("{path} is not a regular file", path = .path.display())]
    NotAFile {
        /// What is not one.
        path: PathBuf,
    },
    /// The file is larger than anything this program writes there.
    #[error("{path} is larger than {bytes_max} bytes", path = .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        bytes_max: u64,
    },
    /// The system refused.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// A verb: what was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl FileError {
    /// Whether the file simply is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A directory of ours (0700, every file in it 0600) and the only door to what lies in it.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
}

impl DataDir {
    /// Creates the directory where it is missing; refuses it, or anything below it, with looser permissions.
    pub fn open_or_create(path: &Path) -> Result<Self, FileError> {
        create_private_directory(path)?;
        check_tree(path)?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside the directory; nothing is checked or created.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A directory inside, created where it is missing.
    pub fn subdirectory(&self, name: &str) -> Result<Self, FileError> {
        Self::open_or_create(&self.join(name))
    }

    /// The content of a file inside; `None` when it does not exist.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        match read_private(&self.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces a file inside, durably and in one step.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        write_atomic(&self.join(name), bytes, PRIVATE_FILE_MODE)
    }
}

/// Creates `path` (0700) where it is missing, parents included; refuses an existing one that is looser.
pub fn create_private_directory(path: &Path) -> Result<(), FileError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    permissions::private_directory(&mut builder);
    builder
        .create(path)
        .map_err(|source| io_error("create directory", path, source))?;
    check_private_directory(path)
}

/// Refuses a directory that others may enter.
pub fn check_private_directory(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(|source| io_error("inspect", path, source))?;
    if !metadata.is_dir() {
        return Err(FileError::NotADirectory {
            path: path.to_owned(),
        });
    }
    permissions::refuse_looser(path, &metadata, PRIVATE_DIRECTORY_MODE)
}

/// Refuses a file that others may read.
pub fn check_private_file(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(|source| io_error("inspect", path, source))?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile {
            path: path.to_owned(),
        });
    }
    permissions::refuse_looser(path, &metadata, PRIVATE_FILE_MODE)
}

/// Reads a file with a secret, after checking on the opened file that nobody else can.
///
/// A file of root's that our own group may read (0440 or 0640) counts as private too: that is how Kubernetes hands over
/// secrets and how Debian keeps them from the services that use them.
pub fn read_private(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(|source| io_error("open", path, source))?;
    let metadata = file
        .metadata()
        .map_err(|source| io_error("inspect", path, source))?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile {
            path: path.to_owned(),
        });
    }
    if !permissions::is_roots_for_our_group(&metadata) {
        permissions::refuse_looser(path, &metadata, PRIVATE_FILE_MODE)?;
    }
    read_limited(path, file)
}

/// Replaces `path` by `bytes` with `mode`: readers see the old content or the new, also after a power cut.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = temporary_path(path);
    let written = write_new(&temporary, bytes, mode)
        .and_then(|()| fs::rename(&temporary, path).map_err(|source| io_error("replace", path, source)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_directory(parent_of(path))
}

/// Makes created, renamed and removed entries of a directory durable.
pub fn sync_directory(path: &Path) -> Result<(), FileError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|source| io_error("sync directory", path, source))
}

fn check_tree(directory: &Path) -> Result<(), FileError> {
    let entries = fs::read_dir(directory).map_err(|source| io_error("list", directory, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| io_error("list", directory, source))?;
        let kind = entry
            .file_type()
            .map_err(|source| io_error("inspect", &entry.path(), source))?;
        if kind.is_dir() {
            check_private_directory(&entry.path())?;
            check_tree(&entry.path())?;
        } else if kind.is_file() {
            ignore_vanished(check_private_file(&entry.path()))?;
        }
    }
    Ok(())
}

/// A temporary file of another process may go between listing and looking.
fn ignore_vanished(checked: Result<(), FileError>) -> Result<(), FileError> {
    match checked {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

fn read_limited(path: &Path, file: File) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let mut limited = file.take(FILE_BYTES_MAX + 1);
    limited
        .read_to_end(&mut bytes)
        .map_err(|source| io_error("read", path, source))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            bytes_max: FILE_BYTES_MAX,
        });
    }
    Ok(bytes)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    permissions::mode(&mut options, mode);
    let mut file = options
        .open(path)
        .map_err(|source| io_error("create", path, source))?;
    permissions::set(&file, mode).map_err(|source| io_error("set the mode of", path, source))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|source| io_error("write", path, source))
}

/// Beside the target (rename does not cross file systems) and unique, so that two writers cannot mix.
fn temporary_path(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.new", uuid::Uuid::now_v7().simple()));
    path.with_file_name(name)
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error) -> FileError {
    FileError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(unix)]
pub(crate) mod permissions {
    use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
    use std::path::Path;

    use super::{FileError, PRIVATE_DIRECTORY_MODE};

    pub(crate) fn private_directory(builder: &mut DirBuilder) {
        builder.mode(PRIVATE_DIRECTORY_MODE);
    }

    pub(crate) fn mode(options: &mut OpenOptions, mode: u32) {
        options.mode(mode);
    }

    pub(crate) fn set(file: &File, mode: u32) -> std::io::Result<()> {
        file.set_permissions(Permissions::from_mode(mode))
    }

    pub(crate) fn is_roots_for_our_group(metadata: &Metadata) -> bool {
        // Root can give its own files the mode they should have.
        let is_root = rustix::process::geteuid().is_root();
        !is_root
            && is_handed_over(
                metadata.permissions().mode(),
                metadata.uid(),
                metadata.gid(),
                rustix::process::getegid().as_raw(),
            )
    }

    /// Root owns it, the group is ours, the group may do nothing but read, and others nothing at all.
    pub(crate) const fn is_handed_over(mode: u32, owner: u32, group: u32, own_group: u32) -> bool {
        owner == 0 && group == own_group && mode & 0o037 == 0
    }

    pub(crate) fn refuse_looser(path: &Path, metadata: &Metadata, wanted: u32) -> Result<(), FileError> {
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o777 & !wanted != 0 {
            return Err(FileError::TooLoose {
                path: path.to_owned(),
                mode,
                wanted,
            });
        }
        Ok(())
    }
}

#[cfg(not(unix))]
pub(crate) mod permissions {
    use std::fs::{DirBuilder, File, Metadata, OpenOptions};
    use std::path::Path;

    use super::FileError;

    pub(crate) fn private_directory(_builder: &mut DirBuilder) {}

    pub(crate) fn mode(_options: &mut OpenOptions, _mode: u32) {}

    pub(crate) fn set(_file: &File, _mode: u32) -> std::io::Result<()> {
        Ok(())
    }

    pub(crate) fn is_roots_for_our_group(_metadata: &Metadata) -> bool {
        false
    }

    pub(crate) fn refuse_looser(_path: &Path, _metadata: &Metadata, _wanted: u32) -> Result<(), FileError> {
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_new_data_directory_is_0700_and_its_files_are_0600() {
        let root = tempfile::tempdir().unwrap();
        let data = DataDir::open_or_create(&root.path().join("a/b")).unwrap();
        data.write("key", b"secret").unwrap();
        assert_eq!(mode_of(data.path()), 0o700);
        assert_eq!(mode_of(&data.join("key")), 0o600);
        assert_eq!(data.read("key").unwrap().unwrap(), b"secret");
        assert!(data.read("other").unwrap().is_none());
    }

    #[test]
    fn a_directory_others_may_enter_is_refused_with_the_command_that_repairs_it() {
        let root = tempfile::tempdir().unwrap();
        chmod(root.path(), 0o750);
        let error = DataDir::open_or_create(root.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("chmod 0700 {}", root.path().display())),
            "{error}"
        );
    }

    #[test]
    fn a_loose_file_deep_in_the_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let data = DataDir::open_or_create(&root.path().join("data")).unwrap();
        let leaves = data.subdirectory("leaves").unwrap();
        leaves.write("web.key.pem", b"secret").unwrap();
        chmod(&leaves.join("web.key.pem"), 0o640);
        let error = DataDir::open_or_create(data.path()).unwrap_err().to_string();
        assert!(
            error.contains("chmod 0600") && error.contains("web.key.pem"),
            "{error}"
        );
        assert!(leaves.read("web.key.pem").is_err());
    }

    #[test]
    fn a_replaced_file_gets_the_new_mode_and_leaves_no_temporary_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, b"old").unwrap();
        chmod(&path, 0o644);
        write_atomic(&path, b"new", PRIVATE_FILE_MODE).unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), mode_of(&path)),
            (b"new".to_vec(), 0o600)
        );
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_in_place_of_the_file_is_refused_and_leaves_no_temporary_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(write_atomic(&path, b"new", PRIVATE_FILE_MODE).is_err());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_secret_of_roots_is_private_to_the_group_that_is_ours_and_to_no_other() {
        let handed_over = permissions::is_handed_over;
        assert!(handed_over(0o100_440, 0, 65532, 65532));
        assert!(handed_over(0o100_640, 0, 65532, 65532));
        assert!(!handed_over(0o100_440, 0, 100, 65532), "another group's");
        assert!(!handed_over(0o100_440, 1000, 65532, 65532), "not root's");
        assert!(!handed_over(0o100_444, 0, 65532, 65532), "everybody's");
        assert!(!handed_over(0o100_660, 0, 65532, 65532), "the group may write");
    }
}
