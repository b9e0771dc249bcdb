//! What outlives a process that is killed: a file in memory of a size that does not change, with the newest of two notes,
//! a mark, and the last bytes of a stream.
//!
//! A process can be killed between any two writes, and within one that crosses a page. So a note is written where the
//! newest is not, and then eight bytes say which it is; bytes count only where somebody else knows that they do.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
#[cfg(unix)]
use std::os::unix::fs::FileExt as _;

const MAGIC: &[u8; 8] = b"IAPLIVE1";
/// Magic, length of a note, length of the ring, the number of the newest note, the mark.
const HEAD_BYTES: u64 = 4096;
const NOTE_BYTES_AT: u64 = 8;
const RING_BYTES_AT: u64 = 16;
const NEWEST_AT: u64 = 24;
const MARK_AT: u64 = 32;
/// The length of a note goes before it.
const LENGTH_BYTES: u64 = 8;

/// Such a file.
#[derive(Debug)]
pub struct LiveMemory {
    file: File,
    note_bytes: u64,
    ring_bytes: u64,
}

impl LiveMemory {
    /// A new one for notes of at most `note_bytes` and the last `ring_bytes` of a stream. Memory is taken as it is written to.
    ///
    /// # Errors
    /// When the system has no such files.
    pub fn create(name: &str, note_bytes: u64, ring_bytes: u64) -> io::Result<Self> {
        let memory = Self {
            file: super::memory::of_size(name, Self::size(note_bytes, ring_bytes))?.into(),
            note_bytes,
            ring_bytes,
        };
        memory.set(NOTE_BYTES_AT, note_bytes)?;
        memory.set(RING_BYTES_AT, ring_bytes)?;
        memory.file.write_all_at(MAGIC, 0)?;
        Ok(memory)
    }

    /// One that another process has made.
    ///
    /// # Errors
    /// When it is none, or larger than these.
    pub fn open(file: OwnedFd, note_bytes_max: u64, ring_bytes_max: u64) -> io::Result<Self> {
        let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        if !super::memory::has_fixed_size(&file) {
            return Err(refused("it is no memory file of a fixed size"));
        }
        let mut memory = Self {
            file: file.into(),
            note_bytes: 0,
            ring_bytes: 0,
        };
        let mut magic = [0; MAGIC.len()];
        memory.file.read_exact_at(&mut magic, 0)?;
        if magic != *MAGIC {
            return Err(refused("it is nothing of ours, or of another version"));
        }
        memory.note_bytes = memory.get(NOTE_BYTES_AT)?;
        memory.ring_bytes = memory.get(RING_BYTES_AT)?;
        let fits = (1..=note_bytes_max).contains(&memory.note_bytes)
            && (1..=ring_bytes_max).contains(&memory.ring_bytes)
            && memory.file.metadata()?.len() == Self::size(memory.note_bytes, memory.ring_bytes);
        match fits {
            true => Ok(memory),
            false => Err(refused("its lengths are not possible")),
        }
    }

    fn size(note_bytes: u64, ring_bytes: u64) -> u64 {
        HEAD_BYTES + 2 * (LENGTH_BYTES + note_bytes) + ring_bytes
    }

    /// How much of the stream it holds.
    #[must_use]
    pub fn ring_bytes(&self) -> u64 {
        self.ring_bytes
    }

    /// Replaces the note: whoever reads finds the one before or this.
    ///
    /// # Errors
    /// When it is too long, or the system has no memory.
    pub fn note(&self, note: &[u8]) -> io::Result<()> {
        if note.len() as u64 > self.note_bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let number = self.get(NEWEST_AT)? + 1;
        let at = self.note_at(number);
        self.set(at, note.len() as u64)?;
        self.file.write_all_at(note, at + LENGTH_BYTES)?;
        self.set(NEWEST_AT, number)
    }

    /// The newest note.
    ///
    /// # Errors
    /// When there is none.
    pub fn noted(&self) -> io::Result<Vec<u8>> {
        let at = match self.get(NEWEST_AT)? {
            0 => return Err(io::ErrorKind::NotFound.into()),
            number => self.note_at(number),
        };
        let length = self.get(at)?.min(self.note_bytes);
        let mut note = vec![0; usize::try_from(length).unwrap_or_default()];
        self.file.read_exact_at(&mut note, at + LENGTH_BYTES)?;
        Ok(note)
    }

    fn note_at(&self, number: u64) -> u64 {
        HEAD_BYTES + (number % 2) * (LENGTH_BYTES + self.note_bytes)
    }

    /// Nobody needs what the stream had before this position.
    ///
    /// # Errors
    /// When the system does not do it.
    pub fn mark(&self, position: u64) -> io::Result<()> {
        self.set(MARK_AT, position)
    }

    /// The position that was marked last.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn marked(&self) -> io::Result<u64> {
        self.get(MARK_AT)
    }

    /// Holds bytes of the stream from `position` on, in place of those that are a ring before them.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn write(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut position, mut rest) = (position, bytes);
        while !rest.is_empty() {
            let (at, room) = self.place(position);
            let (piece, behind) = rest.split_at(rest.len().min(room));
            self.file.write_all_at(piece, at)?;
            position += piece.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    /// The stream's bytes from one position to another.
    ///
    /// # Errors
    /// When those are more than it holds.
    pub fn read(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let length = to.checked_sub(from).filter(|length| *length <= self.ring_bytes);
        let length = length.and_then(|length| usize::try_from(length).ok());
        let mut bytes = vec![0; length.ok_or(io::ErrorKind::InvalidInput)?];
        let (mut position, mut rest) = (from, &mut bytes[..]);
        while !rest.is_empty() {
            let (at, room) = self.place(position);
            let (piece, behind) = rest.split_at_mut(rest.len().min(room));
            self.file.read_exact_at(piece, at)?;
            position += piece.len() as u64;
            rest = behind;
        }
        Ok(bytes)
    }

    /// Where in the file a position of the stream is, and how much goes there before the ring begins anew.
    fn place(&self, position: u64) -> (u64, usize) {
        let in_ring = position % self.ring_bytes;
        let room = usize::try_from(self.ring_bytes - in_ring).unwrap_or(usize::MAX);
        (Self::size(self.note_bytes, 0) + in_ring, room)
    }

    fn get(&self, at: u64) -> io::Result<u64> {
        let mut number = [0; 8];
        self.file.read_exact_at(&mut number, at)?;
        Ok(u64::from_ne_bytes(number))
    }

    fn set(&self, at: u64, number: u64) -> io::Result<()> {
        self.file.write_all_at(&number.to_ne_bytes(), at)
    }
}

impl AsFd for LiveMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use super::super::sealed;
    use super::*;

    /// As another process finds it.
    fn found(memory: &LiveMemory) -> LiveMemory {
        let file = memory.file.try_clone().unwrap();
        LiveMemory::open(file.into(), 100, 1000).unwrap()
    }

    #[test]
    fn another_process_finds_the_newest_note_and_the_mark() {
        let memory = LiveMemory::create("test", 100, 1000).unwrap();
        assert!(found(&memory).noted().is_err());
        for note in [&b"one"[..], b"", b"three", &[7; 100]] {
            memory.note(note).unwrap();
            assert_eq!(found(&memory).noted().unwrap(), note);
        }
        assert!(memory.note(&[7; 101]).is_err());
        assert_eq!(found(&memory).noted().unwrap(), [7; 100]);
        memory.mark(12).unwrap();
        assert_eq!(found(&memory).marked().unwrap(), 12);
    }

    #[test]
    fn a_note_that_was_begun_and_not_finished_leaves_the_one_before() {
        let memory = LiveMemory::create("test", 100, 1000).unwrap();
        memory.note(b"before").unwrap();
        // Whoever was to write it was killed before it said that this is the newest.
        let at = memory.note_at(memory.get(NEWEST_AT).unwrap() + 1);
        memory.set(at, 90).unwrap();
        memory.file.write_all_at(b"half of", at + LENGTH_BYTES).unwrap();
        assert_eq!(found(&memory).noted().unwrap(), b"before");
    }

    #[test]
    fn the_last_bytes_of_a_stream_are_there_wherever_it_has_come_to() {
        let memory = LiveMemory::create("test", 100, 1000).unwrap();
        let byte = |position: u64| (position ^ (position >> 8)) as u8;
        let mut end = 0;
        for count in [0, 1, 400, 599, 1, 999, 1000, 1000, 37, 963] {
            let bytes: Vec<u8> = (end..end + count).map(byte).collect();
            memory.write(end, &bytes).unwrap();
            end += count;
            for start in [end.saturating_sub(1000), end.saturating_sub(10), end] {
                let expected: Vec<u8> = (start..end).map(byte).collect();
                assert_eq!(found(&memory).read(start, end).unwrap(), expected);
            }
        }
        assert!(memory.read(end - 1001, end).is_err() && memory.read(end, end - 1).is_err());
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        let other = sealed("test", &[b"something else of more than eight bytes"]).unwrap();
        assert!(LiveMemory::open(other, 100, 1000).is_err());
        assert!(LiveMemory::open(tempfile::tempfile().unwrap().into(), 100, 1000).is_err());
        let memory = LiveMemory::create("test", 100, 1000).unwrap();
        assert!(memory.file.set_len(10).is_err(), "its size does not change");
        for (note_bytes_max, ring_bytes_max) in [(99, 1000), (100, 999)] {
            let file = memory.file.try_clone().unwrap();
            assert!(LiveMemory::open(file.into(), note_bytes_max, ring_bytes_max).is_err());
        }
        for (at, number) in [
            (0, 0),
            (NOTE_BYTES_AT, 0),
            (RING_BYTES_AT, 0),
            (RING_BYTES_AT, 999),
        ] {
            let memory = LiveMemory::create("test", 100, 1000).unwrap();
            memory.set(at, number).unwrap();
            assert!(LiveMemory::open(memory.file.into(), 100, 1000).is_err());
        }
    }
}
