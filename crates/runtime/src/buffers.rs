//! Pools of large buffers, for bytes on their way. Whoever waits for bytes holds none.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Buffers of one size.
pub(crate) struct Pool {
    buffer_bytes: usize,
    /// More than this many unused ones are given back to the allocator.
    unused_max: usize,
    unused: Mutex<Vec<Box<[u8]>>>,
}

/// A buffer that returns to its pool when dropped. Its content is whatever was last in it.
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    pool: &'static Pool,
}

impl Pool {
    /// An empty pool.
    pub(crate) const fn new(buffer_bytes: usize, unused_max: usize) -> Self {
        Self {
            buffer_bytes,
            unused_max,
            unused: Mutex::new(Vec::new()),
        }
    }

    /// An unused buffer, or a new one.
    pub(crate) fn take(&'static self) -> Buffer {
        let pooled = self.unused.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer {
            bytes: pooled.unwrap_or_else(|| vec![0; self.buffer_bytes].into_boxed_slice()),
            pool: self,
        }
    }

    /// One of another size that holds these bytes and no more. It does not come back.
    pub(crate) fn holding(&'static self, bytes: Vec<u8>) -> Buffer {
        Buffer {
            bytes: bytes.into_boxed_slice(),
            pool: self,
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.len() != self.pool.buffer_bytes {
            return;
        }
        let mut unused = self.pool.unused.lock().unwrap_or_else(PoisonError::into_inner);
        if unused.len() < self.pool.unused_max {
            unused.push(bytes);
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

/// What is in it is nobody's affair.
impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Buffer({} bytes)", self.bytes.len())
    }
}
