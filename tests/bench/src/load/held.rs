//! Sessions that are open and do nothing.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};

use super::{Request, ask};

/// Opened at once.
const PARALLEL: usize = 16;

/// Held until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<Vec<TcpStream>>);

impl Held {
    /// Opens sessions until there are `count`; each has had a byte from the backend.
    ///
    /// # Errors
    /// The first session that failed.
    pub(crate) fn open(&self, port: u16, count: usize) -> anyhow::Result<()> {
        let missing = count.saturating_sub(self.len());
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..PARALLEL)
                .map(|number| scope.spawn(move || self.open_some(port, share(missing, number))))
                .collect();
            for thread in threads {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a client thread failed"))??;
            }
            Ok(())
        })
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn open_some(&self, port: u16, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            let mut stream = ask(port, Request::Hold)?;
            stream.read_exact(&mut [0])?;
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        }
        Ok(())
    }
}

/// What the thread of this number opens of `all`.
fn share(all: usize, number: usize) -> usize {
    all / PARALLEL + usize::from(number < all % PARALLEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_all_of_it() {
        for all in [0, 1, 15, 16, 3_001] {
            assert_eq!((0..PARALLEL).map(|number| share(all, number)).sum::<usize>(), all);
        }
    }
}
