//! The newest lines of a recording for one watcher. Whoever records never waits for it: what is not taken in time is left
//! out, and from then on everything, until the watcher begins anew.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What waits for one watcher.
#[derive(Debug)]
pub(crate) struct Listener {
    bytes_max: usize,
    held: Mutex<Heard>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Heard {
    lines: Vec<u8>,
    is_behind: bool,
    is_over: bool,
}

/// What a watcher hears next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heeded {
    /// Lines, in order.
    Lines(Vec<u8>),
    /// More than would be kept has come, and some of it is lost.
    Behind,
    /// The recording is over.
    Over,
}

impl Listener {
    /// One that keeps `bytes_max` bytes of lines.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            held: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// These were recorded. Never waits.
    pub(crate) fn push(&self, lines: &[u8]) {
        let mut held = self.held();
        if held.is_behind || lines.is_empty() {
            return;
        }
        if held.lines.len().saturating_add(lines.len()) > self.bytes_max {
            held.is_behind = true;
            held.lines = Vec::new();
        } else {
            held.lines.extend_from_slice(lines);
        }
        drop(held);
        self.news.notify_one();
    }

    /// Nothing more comes.
    pub(crate) fn is_over(&self) {
        self.held().is_over = true;
        self.news.notify_one();
    }

    /// What comes next. To be called by one task alone.
    pub(crate) async fn next(&self) -> Heeded {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.news.notified().await;
        }
    }

    fn take(&self) -> Option<Heeded> {
        let mut held = self.held();
        if held.is_behind {
            return Some(Heeded::Behind);
        }
        if !held.lines.is_empty() {
            return Some(Heeded::Lines(std::mem::take(&mut held.lines)));
        }
        held.is_over.then_some(Heeded::Over)
    }

    fn held(&self) -> MutexGuard<'_, Heard> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_in_order_and_the_end_behind_them() {
        let listener = Listener::new(100);
        listener.push(b"a\n");
        listener.push(b"b\n");
        listener.is_over();
        assert_eq!(listener.next().await, Heeded::Lines(b"a\nb\n".to_vec()));
        assert_eq!(listener.next().await, Heeded::Over);
    }

    #[tokio::test]
    async fn whoever_does_not_keep_up_is_behind_for_good_and_keeps_nothing() {
        let listener = Listener::new(3);
        listener.push(b"abc");
        listener.push(b"d");
        listener.push(b"e");
        assert_eq!(listener.held().lines.capacity(), 0);
        listener.is_over();
        assert_eq!(listener.next().await, Heeded::Behind);
    }
}
