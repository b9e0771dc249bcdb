//! Many bytes over few streams.

use std::io::Read as _;
use std::time::Instant;

use anyhow::ensure;

use super::{CHUNK_BYTES, Request, ask};

/// Fetches `bytes` over one connection and checks that all of them came.
///
/// # Errors
/// When the connection fails or ends early.
fn fetch(port: u16, bytes: u64) -> anyhow::Result<()> {
    let mut stream = ask(port, Request::Send(bytes))?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut received = 0_u64;
    while received < bytes {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the stream ended after {received} of {bytes} bytes");
        received += u64::try_from(read)?;
    }
    Ok(())
}

/// Fetches `bytes` in all over `streams` connections at once; the seconds it took.
///
/// # Errors
/// The first stream that failed.
pub(crate) fn bulk(port: u16, streams: u64, bytes: u64) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let each = bytes / streams;
    let threads: Vec<_> = (0..streams)
        .map(|_| std::thread::spawn(move || fetch(port, each)))
        .collect();
    for thread in threads {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("a client thread failed"))??;
    }
    Ok(begun.elapsed().as_secs_f64())
}
