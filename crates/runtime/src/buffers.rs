//! Pools of large buffers, for bytes on their way. Whoever waits for bytes holds none.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Buffers of two sizes: small ones as many as are asked for, and large ones, of which there is a number.
pub(crate) struct Pool {
    small_bytes: usize,
    /// More than this many unused ones are given back to the allocator.
    small_unused_max: usize,
    small: Mutex<Vec<Box<[u8]>>>,
    large_bytes: usize,
    large: Mutex<Large>,
}

struct Large {
    unused: Vec<Box<[u8]>>,
    /// So many more may be made.
    unmade: usize,
}

/// A buffer that returns to its pool when dropped. Its content is whatever was last in it.
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    /// None for one that holds somebody's own bytes.
    pool: Option<&'static Pool>,
}

impl Pool {
    /// An empty pool.
    pub(crate) const fn new(
        small_bytes: usize,
        small_unused_max: usize,
        large_bytes: usize,
        large_max: usize,
    ) -> Self {
        Self {
            small_bytes,
            small_unused_max,
            small: Mutex::new(Vec::new()),
            large_bytes,
            large: Mutex::new(Large {
                unused: Vec::new(),
                unmade: large_max,
            }),
        }
    }

    /// The size of a small one.
    pub(crate) fn small_bytes(&self) -> usize {
        self.small_bytes
    }

    /// An unused buffer, or a new one: for those who are busy a large one, while there are any.
    pub(crate) fn take(&'static self, is_busy: bool) -> Buffer {
        let large = if is_busy { self.take_large() } else { None };
        let bytes = large.unwrap_or_else(|| {
            let pooled = self.small.lock().unwrap_or_else(PoisonError::into_inner).pop();
            pooled.unwrap_or_else(|| vec![0; self.small_bytes].into_boxed_slice())
        });
        Buffer {
            bytes,
            pool: Some(self),
        }
    }

    fn take_large(&self) -> Option<Box<[u8]>> {
        let mut large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unused) = large.unused.pop() {
            return Some(unused);
        }
        large.unmade = large.unmade.checked_sub(1)?;
        drop(large);
        Some(vec![0; self.large_bytes].into_boxed_slice())
    }
}

impl Buffer {
    /// One that holds these bytes and no more, and is no pool's.
    pub(crate) fn holding(bytes: Vec<u8>) -> Self {
        Self {
            bytes: bytes.into_boxed_slice(),
            pool: None,
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let Some(pool) = self.pool else { return };
        if bytes.len() > pool.small_bytes {
            let mut large = pool.large.lock().unwrap_or_else(PoisonError::into_inner);
            large.unused.push(bytes);
            return;
        }
        let mut unused = pool.small.lock().unwrap_or_else(PoisonError::into_inner);
        if unused.len() < pool.small_unused_max {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_large_buffers_and_no_more_and_they_come_back() {
        static POOL: Pool = Pool::new(10, 1, 100, 2);
        for _ in 0..3 {
            let all = [
                POOL.take(true),
                POOL.take(true),
                POOL.take(true),
                POOL.take(false),
            ];
            assert_eq!(all.map(|buffer| buffer.len()), [100, 100, 10, 10]);
        }
        let unused = POOL.small.lock().unwrap_or_else(PoisonError::into_inner).len();
        assert_eq!(unused, 1, "the rest is given back to the allocator");
    }
}
