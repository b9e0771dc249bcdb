//! Strangers who hold connections half open beside honest sessions: what 10,000 of them cost those.
//!
//! Half of them say nothing, a quarter one byte of a ClientHello, a quarter a whole one and then nothing, which an
//! agent fetches. Whatever is sent away comes back, from many addresses, for as long as it is measured.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::load;
use crate::plane::Plane;
use crate::report::Results;
use crate::stats::{count_of, quantile, sorted};

const STRANGERS: usize = 10_000;
/// Addresses in 127.1.0.0/16 they come from.
const SOURCES: usize = 500;
/// Times that it is measured without them and with them, in turn.
const ROUNDS: usize = 5;
/// New honest sessions in each half of a round.
const SESSIONS: usize = 500;
/// Who is sent away comes back.
const BACK_AFTER: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);
/// They come one after the other in so long, which is as long as a stranger may stay, so that those who are sent away
/// come back in a steady stream.
const ARRIVING: Duration = Duration::from_secs(6);
/// Until those that the programs send away have come back for the first time, or all have been forgotten.
const SETTLING: Duration = Duration::from_secs(8);

/// Measures without them and with them in turn, and reports both. `port` is where sessions through `plane` begin.
pub(crate) fn measure(plane: &Plane, port: u16, results: &mut Results) -> anyhow::Result<()> {
    let allowed = iap_runtime::descriptors::raise_limit();
    let wanted = u64::try_from(STRANGERS + 1_000)?;
    ensure!(
        allowed >= wanted,
        "{wanted} descriptors are needed, {allowed} are allowed"
    );
    let proxy: SocketAddr = plane.text("proxy_addr")?.parse()?;
    let hello = client_hello("bulk.iap.localhost")?;
    latencies(port, SESSIONS, || ())?;
    let (mut before, mut among) = (Vec::new(), Vec::new());
    let mut seen = Seen::default();
    for round in 1..=ROUNDS {
        let alone = latencies(port, SESSIONS, || ())?;
        let crowd = Crowd::gather(proxy, &hello)?;
        std::thread::sleep(SETTLING);
        seen.begin(&crowd);
        let with = latencies(port, SESSIONS, || seen.look(&crowd))?;
        seen.end(&crowd);
        drop(crowd);
        std::thread::sleep(SETTLING);
        eprintln!(
            "half open, round {round}: p50 {:.2} and {:.2} ms, p99 {:.2} and {:.2} ms, {:.0} held",
            quantile(&alone, 0.5) * 1e3,
            quantile(&with, 0.5) * 1e3,
            quantile(&alone, 0.99) * 1e3,
            quantile(&with, 0.99) * 1e3,
            seen.held(),
        );
        before.extend(alone);
        among.extend(with);
    }
    let (before, among) = (sorted(before), sorted(among));
    for (percent, share) in [("p50", 0.5), ("p99", 0.99)] {
        let [before, among] = [&before, &among].map(|sorted| quantile(sorted, share));
        for (name, value) in [("before", before), ("among", among)] {
            let figure = format!("new_session_ms_{percent}_{name}_10k_half_open");
            results.add(&figure, "iap", value * 1e3, "ms");
        }
        let figure = format!("new_session_{percent}_ratio_10k_half_open");
        results.add(&figure, "iap", among / before, "×");
    }
    results.add("half_open_held", "iap", seen.held(), "");
    results.add("half_open_held_least", "iap", seen.least(), "");
    results.add("half_open_renewed_per_s", "iap", seen.renewed_per_second(), "1/s");
    Ok(())
}

/// What was seen of the crowd while it was measured.
#[derive(Default)]
struct Seen {
    held: Vec<usize>,
    began: Option<(Instant, usize)>,
    renewed: usize,
    seconds: f64,
}

impl Seen {
    fn begin(&mut self, crowd: &Crowd) {
        self.began = Some((Instant::now(), crowd.came()));
    }

    fn look(&mut self, crowd: &Crowd) {
        self.held.push(crowd.held());
    }

    fn end(&mut self, crowd: &Crowd) {
        if let Some((began, came)) = self.began.take() {
            self.renewed += crowd.came() - came;
            self.seconds += began.elapsed().as_secs_f64();
        }
    }

    /// On average.
    fn held(&self) -> f64 {
        let sum: f64 = self.held.iter().copied().map(count_of).sum();
        sum / count_of(self.held.len())
    }

    fn least(&self) -> f64 {
        self.held.iter().min().copied().map_or(f64::NAN, count_of)
    }

    fn renewed_per_second(&self) -> f64 {
        count_of(self.renewed) / self.seconds
    }
}

/// Seconds from the first byte sent to the first byte received of new sessions, sorted; `between` is called between two.
fn latencies(port: u16, count: usize, mut between: impl FnMut()) -> anyhow::Result<Vec<f64>> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(load::first_byte(port)?);
        between();
    }
    Ok(sorted(all))
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

/// The strangers; they leave when it is dropped.
struct Crowd {
    counts: Arc<Counts>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Default)]
struct Counts {
    held: AtomicUsize,
    came: AtomicUsize,
}

impl Crowd {
    /// Returns once each has come, or tried to.
    fn gather(proxy: SocketAddr, hello: &[u8]) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .worker_threads(2)
            .on_thread_start(give_way)
            .build()?;
        let counts = Arc::new(Counts::default());
        let hello: Arc<[u8]> = hello.into();
        for number in 0..STRANGERS {
            let stranger = Stranger {
                proxy,
                number,
                hello: Arc::clone(&hello),
                counts: Arc::clone(&counts),
            };
            runtime.spawn(stranger.stay());
        }
        let crowd = Self {
            counts,
            runtime: Some(runtime),
        };
        let begun = Instant::now();
        while crowd.came() < STRANGERS && begun.elapsed() < SETTLING {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(crowd)
    }

    /// How many are connected.
    fn held(&self) -> usize {
        self.counts.held.load(Ordering::Relaxed)
    }

    /// How often one came, for the first time or again.
    fn came(&self) -> usize {
        self.counts.came.load(Ordering::Relaxed)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(PATIENCE);
        }
    }
}

struct Stranger {
    proxy: SocketAddr,
    number: usize,
    hello: Arc<[u8]>,
    counts: Arc<Counts>,
}

impl Stranger {
    async fn stay(self) {
        tokio::time::sleep(ARRIVING.mul_f64(count_of(self.number) / count_of(STRANGERS))).await;
        loop {
            // Refused or cut: it is over, and the next one begins.
            let _over = self.visit().await;
            tokio::time::sleep(BACK_AFTER).await;
        }
    }

    async fn visit(&self) -> std::io::Result<()> {
        let source = self.number % SOURCES;
        let [high, low] = [source / 250, source % 250 + 1].map(|part| u8::try_from(part).unwrap_or(1));
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 1, high, low), 0)))?;
        self.counts.came.fetch_add(1, Ordering::Relaxed);
        let mut stream = socket.connect(self.proxy).await?;
        let said = match self.number % 4 {
            0 | 1 => &[][..],
            2 => self.hello.get(..1).unwrap_or_default(),
            _ => &self.hello,
        };
        stream.write_all(said).await?;
        let _held = Held::enter(&self.counts.held);
        let mut bytes = [0; 2048];
        while stream.read(&mut bytes).await? > 0 {}
        Ok(())
    }
}

/// The thread runs when nothing else wants to: strangers bring their own processors, and here they have ours.
fn give_way() {
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        eprintln!("half open: the strangers take as much of the processors as the programs: {error}");
    }
}

/// Counted while it lasts.
struct Held<'a>(&'a AtomicUsize);

impl<'a> Held<'a> {
    fn enter(held: &'a AtomicUsize) -> Self {
        held.fetch_add(1, Ordering::Relaxed);
        Self(held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
