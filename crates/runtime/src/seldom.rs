//! Saying at most so often what strangers could make a program say at any rate.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// When it was said last, and how often it was left unsaid since.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    /// Nothing was said yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// Whether it is time again: how often it was not.
    pub fn due(&self, now: Instant) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unsaid) = &mut *said;
        if last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            *unsaid = unsaid.saturating_add(1);
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(unsaid))
    }
}

/// Logs an event at a level, as `tracing`'s macros do, when it is time again, and otherwise for debugging alone. `unsaid` is
/// how often it was not said since the last time.
#[macro_export]
macro_rules! say_seldom {
    ($seldom:expr, $level:ident, $($event:tt)+) => {
        match $seldom.due(::std::time::Instant::now()) {
            Some(unsaid) => ::tracing::$level!(unsaid, $($event)+),
            None => ::tracing::debug!($($event)+),
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_one_line_and_a_number() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.due(now), Some(0));
        assert_eq!((seldom.due(now), seldom.due(now)), (None, None));
        assert_eq!(seldom.due(now + INTERVAL), Some(2));
        assert_eq!(seldom.due(now + 2 * INTERVAL), Some(0));
    }
}
