//! Strangers who hold connections half open beside honest sessions: what 10,000 of them cost those.
//!
//! Half of them say nothing, a quarter one byte of a ClientHello, a quarter a whole one and then nothing, which an
//! agent fetches. Whatever is sent away comes back, from many addresses, for as long as it is measured.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::load;
use crate::ours::Plane;
use crate::report::Results;

const STRANGERS: usize = 10_000;
/// Addresses in 127.1.0.0/16 they come from.
const SOURCES: usize = 500;
const THREADS: usize = 4;
/// New honest sessions in each of the two measurements.
const SESSIONS: usize = 1_000;
/// Between two looks at who was sent away.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Measures without them, with them, and reports both.
pub(crate) fn measure(plane: &Plane, port: u16, results: &mut Results) -> anyhow::Result<()> {
    let allowed = iap_runtime::descriptors::raise_limit();
    let wanted = u64::try_from(STRANGERS + 1_000)?;
    ensure!(
        allowed >= wanted,
        "{wanted} descriptors are needed, {allowed} are allowed"
    );
    let proxy: SocketAddr = plane.text("proxy_addr")?.parse()?;
    let hello = client_hello("bulk.iap.localhost")?;
    latencies(port, SESSIONS / 4)?;
    let before = latencies(port, SESSIONS)?;
    let crowd = Crowd::gather(proxy, &hello)?;
    let among = latencies(port, SESSIONS)?;
    let (held, came_back) = crowd.end();
    for (name, sorted) in [("before", &before), ("among", &among)] {
        for (percent, label) in [(50, "p50"), (99, "p99")] {
            let value = percentile(sorted, percent) * 1e3;
            results.add(
                &format!("new_session_ms_{label}_{name}_10k_half_open"),
                "iap",
                value,
                "ms",
            );
        }
    }
    let ratio = percentile(&among, 99) / percentile(&before, 99);
    results.add("new_session_p99_ratio_10k_half_open", "iap", ratio, "×");
    results.add("half_open_held", "iap", crate::whole(u64::try_from(held)?), "");
    results.add(
        "half_open_came_back",
        "iap",
        crate::whole(u64::try_from(came_back)?),
        "",
    );
    Ok(())
}

/// Seconds from the first byte sent to the first byte received of new sessions, sorted.
fn latencies(port: u16, count: usize) -> anyhow::Result<Vec<f64>> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        load::fetch(port, 1)?;
        all.push(begun.elapsed().as_secs_f64());
    }
    all.sort_by(f64::total_cmp);
    Ok(all)
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or(f64::NAN)
}

/// What a stock client sends first.
fn client_hello(name: &str) -> anyhow::Result<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &listener.local_addr()?.to_string(),
            "-servername",
            name,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run openssl")?;
    let (mut stream, _) = listener.accept()?;
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [_, _, _, high, low] = head;
    let mut body = vec![0; usize::from(u16::from_be_bytes([high, low]))];
    stream.read_exact(&mut body)?;
    client.kill()?;
    client.wait()?;
    Ok([head.to_vec(), body].concat())
}

/// The strangers; they leave when it ends.
struct Crowd {
    stop: Arc<AtomicBool>,
    held: Arc<AtomicUsize>,
    came_back: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Crowd {
    /// Returns once all have connected for the first time.
    fn gather(proxy: SocketAddr, hello: &[u8]) -> anyhow::Result<Self> {
        let crowd = Self {
            stop: Arc::default(),
            held: Arc::default(),
            came_back: Arc::default(),
            threads: Vec::new(),
        };
        let ready = Arc::new(AtomicUsize::new(0));
        let mut threads = Vec::new();
        for thread in 0..THREADS {
            let (stop, held, came_back) = (
                Arc::clone(&crowd.stop),
                Arc::clone(&crowd.held),
                Arc::clone(&crowd.came_back),
            );
            let (hello, ready) = (hello.to_vec(), Arc::clone(&ready));
            threads.push(std::thread::spawn(move || {
                let numbers = (0..STRANGERS).filter(|number| number % THREADS == thread);
                let numbers: Vec<_> = numbers.collect();
                let mut streams: Vec<_> = numbers
                    .iter()
                    .map(|number| stranger(proxy, *number, &hello))
                    .collect();
                ready.fetch_add(1, Ordering::Release);
                while !stop.load(Ordering::Acquire) {
                    std::thread::sleep(LOOK_EVERY);
                    let mut alive = 0;
                    for (number, stream) in numbers.iter().zip(&mut streams) {
                        match stream {
                            Ok(open) if is_open(open) => alive += 1,
                            Ok(_) | Err(_) => {
                                came_back.fetch_add(1, Ordering::Relaxed);
                                *stream = stranger(proxy, *number, &hello);
                            }
                        }
                    }
                    held.fetch_max(alive * THREADS, Ordering::Relaxed);
                }
            }));
        }
        while ready.load(Ordering::Acquire) < THREADS {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { threads, ..crowd })
    }

    /// How many were held at once, and how often one came back.
    fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads {
            let _ = thread.join();
        }
        (
            self.held.load(Ordering::Relaxed),
            self.came_back.load(Ordering::Relaxed),
        )
    }
}

fn stranger(proxy: SocketAddr, number: usize, hello: &[u8]) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    let source = number % SOURCES;
    let [high, low] = [source / 250, source % 250 + 1].map(|part| u8::try_from(part).unwrap_or(1));
    let from = SocketAddr::from((Ipv4Addr::new(127, 1, high, low), 0));
    socket.bind(&SockAddr::from(from))?;
    socket.connect(&SockAddr::from(proxy))?;
    let mut stream = TcpStream::from(socket);
    let said = match number % 4 {
        0 | 1 => &[][..],
        2 => hello.get(..1).unwrap_or_default(),
        _ => hello,
    };
    stream.write_all(said)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn is_open(mut stream: &TcpStream) -> bool {
    let mut bytes = [0; 2048];
    match stream.read(&mut bytes) {
        Ok(count) => count > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}
