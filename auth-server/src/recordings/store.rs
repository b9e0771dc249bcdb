//! The files.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use iap_identity::SessionId;
use iap_runtime::files::{self, FileError, PRIVATE_FILE_MODE};

const READ_BYTES: usize = 128 * 1024;
/// The longest recording that is taken: weeks of a busy terminal.
pub(super) const RECORDING_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;

/// Why a recording cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FileError),
    /// A file in it.
    #[error("a recording cannot be kept or read: {0}")]
    Io(#[from] io::Error),
}

/// Which recording: the session's, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    /// The session.
    pub session: SessionId,
    /// From 1.
    pub number: u32,
}

/// All recordings.
#[derive(Debug)]
pub struct Library {
    folder: PathBuf,
    /// Those that are being written.
    busy: Mutex<HashSet<Name>>,
}

/// One recording that is being written; nobody else writes it meanwhile.
#[derive(Debug)]
pub(super) struct Writing {
    library: Arc<Library>,
    name: Name,
    file: File,
    bytes: u64,
}

impl Library {
    /// Opens the folder, making it where it is missing.
    ///
    /// # Errors
    /// When it cannot be used, or others could read it.
    pub fn open(folder: PathBuf) -> Result<Arc<Self>, LibraryError> {
        files::create_private_directory(&folder)?;
        Ok(Arc::new(Self {
            folder,
            busy: Mutex::default(),
        }))
    }

    /// Goes on with a recording; nothing where somebody else does. Blocks.
    pub(super) fn write(self: &Arc<Self>, name: Name) -> Result<Option<Writing>, LibraryError> {
        if !self.busy().insert(name) {
            return Ok(None);
        }
        let opened = self.open_to_write(name);
        if opened.is_err() {
            self.busy().remove(&name);
        }
        let file = opened?;
        let mut writing = Writing {
            library: Arc::clone(self),
            name,
            file,
            bytes: 0,
        };
        writing.bytes = writing.file.seek(SeekFrom::End(0))?;
        Ok(Some(writing))
    }

    fn open_to_write(&self, name: Name) -> Result<File, LibraryError> {
        let folder = self.folder_of(name.session);
        files::create_private_directory(&folder)?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        Ok(options.mode(PRIVATE_FILE_MODE).open(self.path(name, "cast"))?)
    }

    /// How much of a recording is here. Blocks.
    #[must_use]
    pub fn length(&self, name: Name) -> u64 {
        std::fs::metadata(self.path(name, "cast")).map_or(0, |metadata| metadata.len())
    }

    /// Opens a recording where the piece begins that shows `micros`, with the place. Blocks.
    ///
    /// # Errors
    /// When it is not here.
    pub(super) fn read_from(&self, name: Name, micros: u64) -> Result<(File, u64), LibraryError> {
        let mut file = File::open(self.path(name, "cast"))?;
        let offset = match micros {
            0 => 0,
            micros => self.place(name, micros),
        };
        file.seek(SeekFrom::Start(offset))?;
        Ok((file, offset))
    }

    /// The last piece that begins before.
    fn place(&self, name: Name, micros: u64) -> u64 {
        let text = std::fs::read_to_string(self.path(name, "index")).unwrap_or_default();
        let places = text.lines().filter_map(|line| {
            let (offset, at) = line.split_once(' ')?;
            Some((offset.parse::<u64>().ok()?, at.parse::<u64>().ok()?))
        });
        let before = places.filter(|(_, at)| *at <= micros);
        before.map(|(offset, _)| offset).max().unwrap_or(0)
    }

    fn folder_of(&self, session: SessionId) -> PathBuf {
        self.folder.join(session.to_string())
    }

    fn path(&self, name: Name, ending: &str) -> PathBuf {
        self.folder_of(name.session)
            .join(format!("{}.{ending}", name.number))
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<Name>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writing {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes what is not here yet of bytes that belong at `offset`; whether nothing is missing before them. Blocks.
    pub(super) fn append(&mut self, offset: u64, data: &[u8]) -> io::Result<bool> {
        let Some(known) = self.bytes.checked_sub(offset) else {
            return Ok(false);
        };
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let new = data.get(known..).unwrap_or_default();
        self.file.write_all(new)?;
        self.bytes += new.len() as u64;
        Ok(true)
    }

    /// Notes where pieces begin. Blocks.
    pub(super) fn index(&self, places: impl Iterator<Item = (u64, u64)>) -> io::Result<()> {
        let text: String = places.map(|(offset, at)| format!("{offset} {at}\n")).collect();
        if text.is_empty() {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        let path = self.library.path(self.name, "index");
        let mut file = options
            .create(true)
            .append(true)
            .mode(PRIVATE_FILE_MODE)
            .open(path)?;
        file.write_all(text.as_bytes())
    }

    /// Everything taken so far is durable. Blocks.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        let folder: &Path = &self.library.folder_of(self.name.session);
        File::open(folder)?.sync_all()
    }

    /// The hash of all of it. Blocks.
    pub(super) fn sha256(&self) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.library.path(self.name, "cast"))?;
        let (mut digest, mut buffer) = (Context::new(&SHA256), vec![0; READ_BYTES]);
        loop {
            let read = file.read(&mut buffer)?;
            let piece = buffer.get(..read).unwrap_or_default();
            if piece.is_empty() {
                return Ok(digest.finish().as_ref().to_vec());
            }
            digest.update(piece);
        }
    }

    /// What arrived is not what was sent: it is to come again. Blocks.
    pub(super) fn start_anew(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.bytes = 0;
        match std::fs::remove_file(self.library.path(self.name, "index")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.library.busy().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use uuid::Uuid;

    fn name() -> Name {
        Name {
            session: SessionId::from_uuid(Uuid::from_u128(7)),
            number: 1,
        }
    }

    fn library() -> (tempfile::TempDir, Arc<Library>) {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::open(folder.path().join("recordings")).unwrap();
        (folder, library)
    }

    #[test]
    fn what_comes_twice_is_kept_once_and_a_gap_is_noticed() {
        let (_folder, library) = library();
        let mut writing = library.write(name()).unwrap().unwrap();
        assert!(writing.append(0, b"abcd").unwrap());
        assert!(writing.append(2, b"cdef").unwrap());
        assert!(writing.append(1, b"bc").unwrap());
        assert!(!writing.append(7, b"h").unwrap());
        assert_eq!(writing.bytes(), 6);
        drop(writing);
        // As after a restart.
        let mut writing = library.write(name()).unwrap().unwrap();
        assert!(writing.append(6, b"g").unwrap());
        let mut text = String::new();
        let (mut file, _) = library.read_from(name(), 0).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcdefg");
    }

    #[test]
    fn two_do_not_write_one_recording() {
        let (_folder, library) = library();
        let writing = library.write(name()).unwrap();
        assert!(library.write(name()).unwrap().is_none());
        drop(writing);
        assert!(library.write(name()).unwrap().is_some());
    }

    #[test]
    fn one_reads_from_the_piece_that_shows_the_time() {
        let (_folder, library) = library();
        let mut writing = library.write(name()).unwrap().unwrap();
        writing.append(0, b"0123456789").unwrap();
        writing.index([(3, 1_000), (6, 2_000)].into_iter()).unwrap();
        for (micros, offset) in [(0, 0), (999, 0), (1_000, 3), (1_999, 3), (9_999, 6)] {
            assert_eq!(library.read_from(name(), micros).unwrap().1, offset, "{micros}");
        }
    }
}
