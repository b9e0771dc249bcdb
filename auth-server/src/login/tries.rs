//! Counts what a source may do only so often.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The most sources remembered at a time; beyond it new ones are refused until old ones are forgotten.
const SOURCES_MAX: usize = 65_536;

/// Tries by source, each source's counted from its first one for the length of a window.
#[derive(Debug)]
pub(crate) struct Tries {
    tries_max: u32,
    window: Duration,
    sources: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

/// No try is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Tries {
    pub(crate) fn new(tries_max: u32, window: Duration) -> Self {
        Self {
            tries_max,
            window,
            sources: Mutex::default(),
        }
    }

    /// Whether the source has a try left.
    ///
    /// # Errors
    /// When it has none.
    pub(crate) fn check(&self, source: IpAddr, now: Instant) -> Result<(), Exhausted> {
        self.with(source, now, |tries| *tries).and_then(|tries| {
            if tries < self.tries_max {
                Ok(())
            } else {
                Err(Exhausted)
            }
        })
    }

    /// Uses up one of the source's tries.
    ///
    /// # Errors
    /// When it had none.
    pub(crate) fn count(&self, source: IpAddr, now: Instant) -> Result<(), Exhausted> {
        self.with(source, now, |tries| {
            *tries = tries.saturating_add(1);
            *tries
        })
        .and_then(|tries| {
            if tries <= self.tries_max {
                Ok(())
            } else {
                Err(Exhausted)
            }
        })
    }

    fn with(
        &self,
        source: IpAddr,
        now: Instant,
        act: impl FnOnce(&mut u32) -> u32,
    ) -> Result<u32, Exhausted> {
        let Ok(mut sources) = self.sources.lock() else {
            return Err(Exhausted);
        };
        let current = |since: &Instant| now.saturating_duration_since(*since) < self.window;
        if sources.len() >= SOURCES_MAX && !sources.contains_key(&source) {
            sources.retain(|_, (since, _)| current(since));
            if sources.len() >= SOURCES_MAX {
                return Err(Exhausted);
            }
        }
        let entry = sources.entry(source).or_insert((now, 0));
        if !current(&entry.0) {
            *entry = (now, 0);
        }
        Ok(act(&mut entry.1))
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use std::net::Ipv4Addr;

    const WINDOW: Duration = Duration::from_secs(300);

    #[test]
    fn a_source_has_so_many_tries_in_a_window() {
        let tries = Tries::new(2, WINDOW);
        let (source, start) = (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), Instant::now());
        assert_eq!(tries.check(source, start), Ok(()));
        assert_eq!(tries.count(source, start), Ok(()));
        assert_eq!(tries.count(source, start), Ok(()));
        assert_eq!(tries.check(source, start), Err(Exhausted));
        assert_eq!(tries.count(source, start), Err(Exhausted));
        assert_eq!(
            tries.check(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), start),
            Ok(())
        );
        assert_eq!(tries.check(source, start + WINDOW), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let tries = Tries::new(1, WINDOW);
        let start = Instant::now();
        for index in 0..SOURCES_MAX {
            let source = IpAddr::V4(Ipv4Addr::from(u32::try_from(index).unwrap()));
            assert_eq!(tries.count(source, start), Ok(()));
        }
        let newcomer = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(tries.check(newcomer, start), Err(Exhausted));
        assert_eq!(tries.check(newcomer, start + WINDOW), Ok(()));
    }
}
