//! Round trips: each session sends a message, waits until it is back, and sends the next.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::{PATIENCE, Request};

/// Open sessions whose messages come back. One thread carries all of them: 64 threads would measure the scheduler.
pub(crate) struct Echoes {
    runtime: Runtime,
    sessions: Vec<Session>,
}

struct Session {
    stream: TcpStream,
    message: Vec<u8>,
}

impl Echoes {
    /// Opens `count` sessions of messages of `bytes` and lets each make a round trip.
    ///
    /// # Errors
    /// The first session that failed.
    pub(crate) fn open(port: u16, count: usize, bytes: usize) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut sessions = Vec::with_capacity(count);
        for _ in 0..count {
            let opened =
                runtime.block_on(async { tokio::time::timeout(PATIENCE, Session::open(port, bytes)).await });
            sessions.push(opened.context("no round trip in time")??);
        }
        Ok(Self { runtime, sessions })
    }

    /// One message on each session: the seconds of the slowest round trip.
    ///
    /// # Errors
    /// The first session that failed.
    pub(crate) fn longest_trip(&mut self) -> anyhow::Result<f64> {
        let trips = self.run(Duration::ZERO)?;
        trips.into_iter().reduce(f64::max).context("no session")
    }

    /// All sessions at once for `duration`, and at least once: the seconds of each round trip.
    ///
    /// # Errors
    /// The first session that failed.
    pub(crate) fn run(&mut self, duration: Duration) -> anyhow::Result<Vec<f64>> {
        let until = Instant::now() + duration;
        let sessions = &mut self.sessions;
        self.runtime.block_on(async {
            let running: Vec<_> = sessions
                .drain(..)
                .map(|session| tokio::spawn(tokio::time::timeout(PATIENCE, session.run(until))))
                .collect();
            let mut all = Vec::new();
            for session in running {
                let (session, seconds) = session.await?.context("a round trip got stuck")??;
                sessions.push(session);
                all.extend(seconds);
            }
            Ok(all)
        })
    }
}

impl Session {
    async fn open(port: u16, bytes: usize) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let request = Request::Echo(u64::try_from(bytes)?);
        stream.write_all(&request.encode()).await?;
        let mut session = Self {
            stream,
            message: vec![0x5a; bytes],
        };
        session.trip().await?;
        Ok(session)
    }

    async fn run(mut self, until: Instant) -> anyhow::Result<(Self, Vec<f64>)> {
        let mut seconds = Vec::new();
        loop {
            let begun = Instant::now();
            self.trip().await?;
            seconds.push(begun.elapsed().as_secs_f64());
            if Instant::now() >= until {
                return Ok((self, seconds));
            }
        }
    }

    async fn trip(&mut self) -> std::io::Result<()> {
        self.stream.write_all(&self.message).await?;
        self.stream.read_exact(&mut self.message).await.map(drop)
    }
}
