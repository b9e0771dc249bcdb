//! A pool of kernel pipes, through which splice(2) moves bytes between sockets without copying them here.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::pipe::{PipeFlags, pipe_with};

/// The kernel's default pipe capacity; larger ones run into `pipe-user-pages-soft`.
pub(super) const PIPE_BYTES: usize = 64 * 1024;

const UNUSED_MAX: usize = 64;

static UNUSED: Mutex<Vec<Ends>> = Mutex::new(Vec::new());

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe that returns to the pool when dropped empty, and is closed when dropped with bytes in it.
pub(super) struct Pipe {
    ends: Option<Ends>,
    held_bytes: usize,
}

impl Pipe {
    /// Fails when the process is out of file descriptors.
    pub(super) fn take() -> rustix::io::Result<Self> {
        let pooled = UNUSED.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let ends = match pooled {
            Some(ends) => ends,
            None => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
                Ends { read, write }
            }
        };
        Ok(Self {
            ends: Some(ends),
            held_bytes: 0,
        })
    }

    pub(super) fn read_end(&self) -> std::io::Result<&OwnedFd> {
        self.ends.as_ref().map(|ends| &ends.read).ok_or_else(gone)
    }

    pub(super) fn write_end(&self) -> std::io::Result<&OwnedFd> {
        self.ends.as_ref().map(|ends| &ends.write).ok_or_else(gone)
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    pub(super) fn filled(&mut self, bytes: usize) {
        self.held_bytes += bytes;
    }

    pub(super) fn drained(&mut self, bytes: usize) {
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        let mut unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner);
        if self.held_bytes == 0 && unused.len() < UNUSED_MAX {
            unused.push(ends);
        }
    }
}

fn gone() -> std::io::Error {
    std::io::ErrorKind::BrokenPipe.into()
}
