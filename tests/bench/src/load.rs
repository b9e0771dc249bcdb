//! The backend every system leads to, and the clients that load it.
//!
//! A connection begins with one byte and eight more: `S` and a big-endian count asks for that many bytes back.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

const CHUNK_BYTES: usize = 256 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves on a free port, one thread a connection, until the process ends.
///
/// # Errors
/// When no port is free.
pub(crate) fn serve_backend() -> anyhow::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        let chunk: Arc<[u8]> = vec![0x5a; CHUNK_BYTES].into();
        for stream in listener.incoming().flatten() {
            let chunk = chunk.clone();
            std::thread::spawn(move || answer(stream, &chunk));
        }
    });
    Ok(port)
}

fn answer(mut stream: TcpStream, chunk: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; 9];
    stream.read_exact(&mut request)?;
    let [_, count @ ..] = request;
    let mut left = usize::try_from(u64::from_be_bytes(count)).unwrap_or(usize::MAX);
    while left > 0 {
        let piece = chunk.get(..left.min(chunk.len())).unwrap_or(chunk);
        stream.write_all(piece)?;
        left -= piece.len();
    }
    stream.shutdown(std::net::Shutdown::Write)
}

/// Fetches `bytes` over one connection and checks that all of them came.
///
/// # Errors
/// When the connection fails or ends early.
pub(crate) fn fetch(port: u16, bytes: u64) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("cannot connect to the connector")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut request = [b'S'; 9];
    for (slot, byte) in request.iter_mut().skip(1).zip(bytes.to_be_bytes()) {
        *slot = byte;
    }
    stream.write_all(&request)?;
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

/// Opens sessions one after another on `parallel` threads for `duration`; how many were opened, and in how many seconds.
///
/// # Errors
/// The first session that failed.
pub(crate) fn sessions(port: u16, parallel: usize, duration: Duration) -> anyhow::Result<(u64, f64)> {
    let stop = Arc::new(AtomicBool::new(false));
    let opened = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let threads: Vec<_> = (0..parallel)
        .map(|_| {
            let (stop, opened) = (stop.clone(), opened.clone());
            std::thread::spawn(move || -> anyhow::Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    fetch(port, 1)?;
                    opened.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        })
        .collect();
    std::thread::sleep(duration);
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("a client thread failed"))??;
    }
    Ok((opened.load(Ordering::Relaxed), begun.elapsed().as_secs_f64()))
}
