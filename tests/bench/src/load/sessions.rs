//! New sessions: opened, asked for one byte, closed.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Request, ask};
use crate::stats::count_of;

/// What opening sessions one after another came to.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Seconds from connecting until the backend's first byte, of each session.
    pub(crate) first_byte: Vec<f64>,
    /// Seconds it took altogether.
    pub(crate) seconds: f64,
}

impl Opened {
    /// How many there were.
    pub(crate) fn count(&self) -> f64 {
        count_of(self.first_byte.len())
    }
}

/// Opens a session: the seconds from connecting until the backend's first byte.
///
/// # Errors
/// When the session fails.
pub(crate) fn first_byte(port: u16) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut stream = ask(port, Request::Send(1))?;
    stream.read_exact(&mut [0])?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Opens sessions one after another on `parallel` threads for `duration`.
///
/// # Errors
/// The first session that failed.
pub(crate) fn sessions(port: u16, parallel: usize, duration: Duration) -> anyhow::Result<Opened> {
    let stop = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let threads: Vec<_> = (0..parallel)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || until_stopped(port, &stop))
        })
        .collect();
    std::thread::sleep(duration);
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for thread in threads {
        let opened = thread
            .join()
            .map_err(|_| anyhow::anyhow!("a client thread failed"))?;
        all.extend(opened?);
    }
    Ok(Opened {
        first_byte: all,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

fn until_stopped(port: u16, stop: &AtomicBool) -> anyhow::Result<Vec<f64>> {
    let mut seconds = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        seconds.push(first_byte(port)?);
    }
    Ok(seconds)
}
