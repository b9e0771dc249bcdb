//! The files, and how much room there is for more.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use iap_identity::SessionId;
use iap_runtime::files::{self, FileError, PRIVATE_FILE_MODE};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

use crate::config::{RecordingsConfig, WhenFull};

const READ_BYTES: usize = 128 * 1024;
/// The longest recording that is taken: weeks of a busy terminal.
pub(super) const RECORDING_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;
/// The longest index of one, which notes its pieces; there is one a second.
const INDEX_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Of a recording that came whole.
const CLOSED_FILE_MODE: u32 = 0o400;

/// Why a recording cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FileError),
    /// A file in it.
    #[error("a recording cannot be kept or read: {0}")]
    Io(#[from] io::Error),
    /// There is no room for more.
    #[error("no more recordings are taken: {0}")]
    NoRoom(String),
}

/// Which recording: the session's, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    /// The session.
    pub session: SessionId,
    /// From 1.
    pub number: u32,
}

/// What is here of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) session: SessionId,
    /// Number and length of each.
    pub(super) recordings: Vec<(u32, u64)>,
}

impl Held {
    pub(super) fn bytes(&self) -> u64 {
        self.recordings.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// What is counted of recordings; clones count into the same.
#[derive(Debug, Clone, Default)]
pub struct RecordingCounts {
    /// How much is here.
    pub bytes: Gauge,
    /// Parts that there was no room for.
    pub refused: Counter,
    /// Recordings that were erased.
    pub erased: Counter,
}

/// All recordings.
#[derive(Debug)]
pub struct Library {
    folder: PathBuf,
    limits: RecordingsConfig,
    /// Those that are being written, and whether they were erased meanwhile.
    busy: Mutex<HashMap<Name, bool>>,
    counts: RecordingCounts,
    is_full: AtomicBool,
    /// There is more than is to be kept.
    grown: Notify,
}

/// One recording that is being written; nobody else writes it meanwhile.
#[derive(Debug)]
pub(super) struct Writing {
    library: Arc<Library>,
    name: Name,
    file: File,
    bytes: u64,
    index_bytes: u64,
}

/// What there is to somebody who has more of a recording.
#[derive(Debug)]
pub(super) enum Place {
    /// It goes on here.
    Open(Writing),
    /// Somebody else writes it.
    Taken,
    /// It came whole: nothing of it changes any more.
    Whole(Name),
}

impl Library {
    /// Opens the folder, making it where it is missing.
    ///
    /// # Errors
    /// When it cannot be used, or others could read it.
    pub fn open(folder: PathBuf, limits: RecordingsConfig) -> Result<Arc<Self>, LibraryError> {
        files::create_private_directory(&folder)?;
        let library = Arc::new(Self {
            folder,
            limits,
            busy: Mutex::default(),
            counts: RecordingCounts::default(),
            is_full: AtomicBool::new(false),
            grown: Notify::new(),
        });
        library.sessions()?;
        Ok(library)
    }

    /// What is counted.
    #[must_use]
    pub fn counts(&self) -> RecordingCounts {
        self.counts.clone()
    }

    /// How much is here in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::try_from(self.counts.bytes.get()).unwrap_or(0)
    }

    /// Returns once there is more than is to be kept.
    pub(super) async fn grown(&self) {
        self.grown.notified().await;
    }

    /// What is here of each session, the oldest first, and counts it anew. Blocks.
    pub(super) fn sessions(&self) -> Result<Vec<Held>, LibraryError> {
        let mut sessions = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let Some(session) = name.to_str().and_then(|name| SessionId::parse(name).ok()) else {
                continue;
            };
            sessions.push(Held {
                session,
                recordings: self.of_session(session),
            });
        }
        // Ids begin with their time.
        sessions.sort_unstable_by_key(|held| *held.session.as_bytes());
        let bytes: u64 = sessions.iter().map(Held::bytes).sum();
        self.counts.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        Ok(sessions)
    }

    /// Number and length of each recording that is here of a session. Blocks.
    #[must_use]
    pub fn of_session(&self, session: SessionId) -> Vec<(u32, u64)> {
        let entries = std::fs::read_dir(self.folder_of(session)).into_iter().flatten();
        let number = |entry: io::Result<std::fs::DirEntry>| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_suffix(".cast")?.parse::<u32>().ok()
        };
        let mut numbers: Vec<u32> = entries.filter_map(number).collect();
        numbers.sort_unstable();
        let length = |number| (number, self.length(Name { session, number }));
        numbers.into_iter().map(length).collect()
    }

    /// Removes recordings; one that is being written goes for good when its writer has ended. Blocks.
    pub(super) fn erase(&self, session: SessionId, numbers: &[u32]) -> Result<(), LibraryError> {
        for number in numbers {
            let name = Name {
                session,
                number: *number,
            };
            if let Some(is_erased) = self.busy().get_mut(&name) {
                *is_erased = true;
            }
            let bytes = self.length(name);
            if self.remove(name)? {
                self.counts.bytes.dec_by(i64::try_from(bytes).unwrap_or(i64::MAX));
                self.counts.erased.inc();
            }
        }
        self.sync_removed(session)
    }

    /// Whether there was one.
    fn remove(&self, name: Name) -> Result<bool, LibraryError> {
        let mut was_here = false;
        for ending in ["index", "cast"] {
            match std::fs::remove_file(self.path(name, ending)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                removed => was_here = removed.is_ok(),
            }
        }
        Ok(was_here)
    }

    /// What was removed of a session does not come back with a power cut.
    fn sync_removed(&self, session: SessionId) -> Result<(), LibraryError> {
        let folder = self.folder_of(session);
        // Others of the session may be left.
        let _ = std::fs::remove_dir(&folder);
        if folder.exists() {
            File::open(&folder)?.sync_all()?;
        }
        Ok(File::open(&self.folder)?.sync_all()?)
    }

    /// Whether so much more may be written.
    fn check_room(&self, more: u64) -> Result<(), LibraryError> {
        let checked = self.room_for(more);
        let was_full = self.is_full.swap(checked.is_err(), Ordering::Relaxed);
        match &checked {
            Err(error) => {
                self.counts.refused.inc();
                if !was_full {
                    tracing::error!(%error, "recordings wait at their agents");
                }
            }
            Ok(()) if was_full => tracing::info!("recordings are taken again"),
            Ok(()) => {}
        }
        checked
    }

    fn note_written(&self, length: u64) {
        self.counts
            .bytes
            .inc_by(i64::try_from(length).unwrap_or(i64::MAX));
        if self
            .limits
            .bytes_max
            .is_some_and(|bytes_max| self.bytes() > bytes_max)
        {
            self.grown.notify_one();
        }
    }

    fn room_for(&self, more: u64) -> Result<(), LibraryError> {
        let total = self.bytes().saturating_add(more);
        let bytes_max = self.limits.bytes_max.filter(|bytes_max| total > *bytes_max);
        if let (Some(bytes_max), WhenFull::Refuse) = (bytes_max, self.limits.when_full) {
            let why = format!("recordings.bytes_max, {bytes_max} bytes, is reached");
            return Err(LibraryError::NoRoom(why));
        }
        let disk = rustix::fs::statvfs(&self.folder).map_err(io::Error::from)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let least = self.limits.disk_free_bytes_min;
        match free >= least.saturating_add(more) {
            true => Ok(()),
            false => Err(LibraryError::NoRoom(format!(
                "the disk has {free} bytes left, and recordings.disk_free_bytes_min is {least}"
            ))),
        }
    }

    /// Goes on with a recording. Blocks.
    pub(super) fn write(self: &Arc<Self>, name: Name) -> Result<Place, LibraryError> {
        match self.busy().entry(name) {
            Entry::Occupied(_) => return Ok(Place::Taken),
            Entry::Vacant(place) => drop(place.insert(false)),
        }
        let opened = match self.is_whole(name) {
            true => Ok(None),
            false => self.open_to_write(name).map(Some),
        };
        if !matches!(opened, Ok(Some(_))) {
            self.busy().remove(&name);
        }
        let Some(file) = opened? else {
            return Ok(Place::Whole(name));
        };
        let mut writing = Writing {
            library: Arc::clone(self),
            name,
            file,
            bytes: 0,
            index_bytes: std::fs::metadata(self.path(name, "index")).map_or(0, |index| index.len()),
        };
        writing.bytes = writing.file.seek(SeekFrom::End(0))?;
        Ok(Place::Open(writing))
    }

    /// Whoever closes a recording takes its permission to be written.
    fn is_whole(&self, name: Name) -> bool {
        let metadata = std::fs::metadata(self.path(name, "cast"));
        metadata.is_ok_and(|metadata| metadata.permissions().mode() & 0o200 == 0)
    }

    fn open_to_write(&self, name: Name) -> Result<File, LibraryError> {
        let folder = self.folder_of(name.session);
        files::create_private_directory(&folder)?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        Ok(options.mode(PRIVATE_FILE_MODE).open(self.path(name, "cast"))?)
    }

    /// The hash of all that is here of a recording. Blocks.
    pub(super) fn sha256(&self, name: Name) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.path(name, "cast"))?;
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

    fn busy(&self) -> MutexGuard<'_, HashMap<Name, bool>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writing {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes what is not here yet of bytes that belong at `offset`; whether nothing is missing before them. Blocks.
    pub(super) fn append(&mut self, offset: u64, data: &[u8]) -> Result<bool, LibraryError> {
        let Some(known) = self.bytes.checked_sub(offset) else {
            return Ok(false);
        };
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let new = data.get(known..).unwrap_or_default();
        if new.is_empty() {
            return Ok(true);
        }
        let length = new.len() as u64;
        self.library.check_room(length)?;
        self.file.write_all(new)?;
        self.bytes += length;
        self.library.note_written(length);
        Ok(true)
    }

    /// Notes where pieces begin. Beyond the limit nothing is noted, and one seeks in larger steps. Blocks.
    pub(super) fn index(&mut self, places: impl Iterator<Item = (u64, u64)>) -> Result<(), LibraryError> {
        let text: String = places.map(|(offset, at)| format!("{offset} {at}\n")).collect();
        let length = text.len() as u64;
        if text.is_empty() || self.index_bytes + length > INDEX_BYTES_MAX {
            return Ok(());
        }
        self.library.check_room(length)?;
        let mut options = OpenOptions::new();
        let path = self.library.path(self.name, "index");
        let mut file = options
            .create(true)
            .append(true)
            .mode(PRIVATE_FILE_MODE)
            .open(path)?;
        file.write_all(text.as_bytes())?;
        self.index_bytes += length;
        Ok(())
    }

    /// Everything taken so far is durable. Blocks.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        let folder: &Path = &self.library.folder_of(self.name.session);
        File::open(folder)?.sync_all()
    }

    /// The hash of all of it. Blocks.
    pub(super) fn sha256(&self) -> io::Result<Vec<u8>> {
        self.library.sha256(self.name)
    }

    /// It came whole, and stays as it is. Blocks.
    pub(super) fn close(&self) -> io::Result<()> {
        self.file
            .set_permissions(Permissions::from_mode(CLOSED_FILE_MODE))?;
        self.sync()
    }

    /// What arrived is not what was sent: it is to come again. Blocks.
    pub(super) fn start_anew(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        let before = i64::try_from(std::mem::take(&mut self.bytes)).unwrap_or(i64::MAX);
        self.library.counts.bytes.dec_by(before);
        self.index_bytes = 0;
        match std::fs::remove_file(self.library.path(self.name, "index")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let was_erased = self.library.busy().remove(&self.name).unwrap_or(false);
        if !was_erased {
            return;
        }
        let removed = self.library.remove(self.name);
        if let Err(error) = removed.and_then(|_| self.library.sync_removed(self.name.session)) {
            tracing::error!(session = %self.name.session, %error, "what came of an erased recording is left");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use uuid::Uuid;

    fn name() -> Name {
        Name {
            session: SessionId::from_uuid(Uuid::from_u128(7)),
            number: 1,
        }
    }

    fn library() -> (tempfile::TempDir, Arc<Library>) {
        library_with(RecordingsConfig::default())
    }

    fn library_with(limits: RecordingsConfig) -> (tempfile::TempDir, Arc<Library>) {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::open(folder.path().join("recordings"), limits).unwrap();
        (folder, library)
    }

    fn open(library: &Arc<Library>, name: Name) -> Writing {
        match library.write(name).unwrap() {
            Place::Open(writing) => writing,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_here_is_counted_also_after_a_restart_and_an_erasure() {
        let (folder, library) = library();
        open(&library, name()).append(0, b"abcd").unwrap();
        let second = Name { number: 2, ..name() };
        open(&library, second).append(0, b"ef").unwrap();
        assert_eq!(library.bytes(), 6);
        let again = Library::open(folder.path().join("recordings"), RecordingsConfig::default()).unwrap();
        assert_eq!(again.bytes(), 6);
        assert_eq!(again.of_session(name().session), [(1, 4), (2, 2)]);
        again.erase(name().session, &[1]).unwrap();
        assert_eq!(
            (again.bytes(), again.of_session(name().session)),
            (2, vec![(2, 2)])
        );
        again.erase(name().session, &[2, 3]).unwrap();
        assert_eq!(again.counts().erased.get(), 2, "the third was never here");
        assert!(again.sessions().unwrap().is_empty());
    }

    #[test]
    fn one_that_is_erased_while_it_is_written_is_gone_when_its_writer_is() {
        let (_folder, library) = library();
        let mut writing = open(&library, name());
        writing.append(0, b"abcd").unwrap();
        library.erase(name().session, &[1]).unwrap();
        writing.append(4, b"ef").unwrap();
        let _ = writing.index([(0, 0)].into_iter());
        drop(writing);
        assert!(library.of_session(name().session).is_empty());
        assert!(!library.folder_of(name().session).exists());
    }

    #[test]
    fn beyond_the_total_nothing_new_is_taken_and_what_is_here_stays() {
        let (_folder, library) = library_with(RecordingsConfig {
            bytes_max: Some(5),
            ..RecordingsConfig::default()
        });
        let mut writing = open(&library, name());
        assert!(writing.append(0, b"abcd").unwrap());
        assert!(matches!(writing.append(4, b"ef"), Err(LibraryError::NoRoom(_))));
        assert!(
            writing.append(0, b"abcd").unwrap(),
            "sent again it is no more than before"
        );
        assert_eq!((writing.bytes(), library.counts().refused.get()), (4, 1));
        writing.start_anew().unwrap();
        assert!(writing.append(0, b"abcde").unwrap());
    }

    #[test]
    fn a_disk_that_is_nearly_full_takes_nothing() {
        let (_folder, library) = library_with(RecordingsConfig {
            disk_free_bytes_min: u64::MAX,
            ..RecordingsConfig::default()
        });
        let mut writing = open(&library, name());
        assert!(matches!(writing.append(0, b"a"), Err(LibraryError::NoRoom(_))));
    }

    #[test]
    fn what_comes_twice_is_kept_once_and_a_gap_is_noticed() {
        let (_folder, library) = library();
        let mut writing = open(&library, name());
        assert!(writing.append(0, b"abcd").unwrap());
        assert!(writing.append(2, b"cdef").unwrap());
        assert!(writing.append(1, b"bc").unwrap());
        assert!(!writing.append(7, b"h").unwrap());
        assert_eq!(writing.bytes(), 6);
        drop(writing);
        // As after a restart.
        let mut writing = open(&library, name());
        assert!(writing.append(6, b"g").unwrap());
        let mut text = String::new();
        let (mut file, _) = library.read_from(name(), 0).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcdefg");
    }

    #[test]
    fn two_do_not_write_one_recording() {
        let (_folder, library) = library();
        let writing = open(&library, name());
        assert!(matches!(library.write(name()).unwrap(), Place::Taken));
        drop(writing);
        open(&library, name()).close().unwrap();
        for _ in 0..2 {
            assert!(matches!(library.write(name()).unwrap(), Place::Whole(_)));
        }
    }

    #[test]
    fn one_reads_from_the_piece_that_shows_the_time() {
        let (_folder, library) = library();
        let mut writing = open(&library, name());
        writing.append(0, b"0123456789").unwrap();
        writing.index([(3, 1_000), (6, 2_000)].into_iter()).unwrap();
        for (micros, offset) in [(0, 0), (999, 0), (1_000, 3), (1_999, 3), (9_999, 6)] {
            assert_eq!(library.read_from(name(), micros).unwrap().1, offset, "{micros}");
        }
    }
}
