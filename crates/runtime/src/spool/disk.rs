//! The few things the writer asks of a disk, so that tests can have one that fails.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::files::{PRIVATE_FILE_MODE, permissions};

pub(super) trait Disk: Send + fmt::Debug {
    /// Opens a segment for appending, made where it is missing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>>;
    /// Allocates `bytes` at `path`, so that nobody else can take them.
    fn reserve(&self, path: &Path, bytes: u64) -> io::Result<()>;
}

pub(super) trait SegmentFile: Send {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    fn truncate(&mut self, bytes: u64) -> io::Result<()>;
}

/// The real one.
#[derive(Debug)]
pub(super) struct FileDisk;

impl Disk for FileDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        permissions::mode(&mut options, PRIVATE_FILE_MODE);
        Ok(Box::new(options.open(path)?))
    }

    fn reserve(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        permissions::mode(&mut options, PRIVATE_FILE_MODE);
        let file = options.open(path)?;
        if file.metadata()?.len() != bytes {
            file.set_len(0)?;
        }
        allocate(&file, bytes)
    }
}

impl SegmentFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

/// File systems that cannot allocate ahead leave us with the limits alone.
#[cfg(target_os = "linux")]
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    if bytes == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(_file: &File, _bytes: u64) -> io::Result<()> {
    Ok(())
}
