//! A pool of kernel pipes, through which splice(2) moves bytes between sockets without copying them here.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// The kernel's default pipe capacity.
const PIPE_BYTES: usize = 64 * 1024;
/// A wide pipe's: each read of a socket wakes its sender, and a quarter as many reads cost a stream a quarter less.
const WIDE_PIPE_BYTES: usize = 256 * 1024;
/// Wide pipes there may be: a quarter of what the kernel lets a user have in all (`pipe-user-pages-soft`, 64 MiB). Beyond
/// that, new pipes of any program of the same user would be small.
const WIDE_PIPES_MAX: usize = 64;

const UNUSED_MAX: usize = 64;

static UNUSED: Mutex<Vec<Ends>> = Mutex::new(Vec::new());
static WIDE: AtomicUsize = AtomicUsize::new(0);

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    /// There for a wide one.
    width: Option<Wide>,
}

/// Counted while it lives.
struct Wide(());

/// A pipe that returns to the pool when dropped empty, and is closed when dropped with bytes in it.
pub(super) struct Pipe {
    ends: Option<Ends>,
    held_bytes: usize,
}

impl Wide {
    /// Makes a pipe wide, if there may be another.
    fn make(pipe: &OwnedFd) -> Option<Self> {
        let wide = Self::one()?;
        // A user who has too many pipes already is refused.
        fcntl_setpipe_size(pipe, WIDE_PIPE_BYTES).ok()?;
        Some(wide)
    }

    fn one() -> Option<Self> {
        let more = |count| (count < WIDE_PIPES_MAX).then_some(count + 1);
        let counted = WIDE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.ok().map(|_| Self(()))
    }
}

impl Drop for Wide {
    fn drop(&mut self) {
        WIDE.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pipe {
    /// Fails when the process is out of file descriptors.
    pub(super) fn take() -> rustix::io::Result<Self> {
        let pooled = UNUSED.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let ends = match pooled {
            Some(ends) => ends,
            None => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
                let width = Wide::make(&write);
                Ends { read, write, width }
            }
        };
        Ok(Self {
            ends: Some(ends),
            held_bytes: 0,
        })
    }

    /// What it is worth asking for at once.
    pub(super) fn capacity_bytes(&self) -> usize {
        match self.ends.as_ref().and_then(|ends| ends.width.as_ref()) {
            Some(Wide(())) => WIDE_PIPE_BYTES,
            None => PIPE_BYTES,
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rustix::pipe::fcntl_getpipe_size;

    use super::*;

    /// Other tests of this process may have some of them.
    #[test]
    fn pipes_are_as_wide_as_they_say_and_only_so_many_are_wide() {
        let pipes: Vec<_> = (0..=WIDE_PIPES_MAX).map(|_| Pipe::take().unwrap()).collect();
        for pipe in &pipes {
            let holds = fcntl_getpipe_size(pipe.read_end().unwrap()).unwrap();
            assert!(holds >= pipe.capacity_bytes(), "{holds}");
        }
        let wide = |pipe: &&Pipe| pipe.capacity_bytes() == WIDE_PIPE_BYTES;
        assert!(pipes.iter().filter(wide).count() <= WIDE_PIPES_MAX);
        drop(pipes);
        let all = || {
            (0..=WIDE_PIPES_MAX)
                .filter_map(|_| Wide::one())
                .collect::<Vec<_>>()
        };
        let (some, rest) = (all(), all());
        assert!(some.len() <= WIDE_PIPES_MAX && rest.is_empty());
    }
}
