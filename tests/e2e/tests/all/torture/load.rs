//! What keeps the plane busy while its programs are killed: a backend that counts who reached it, and clients that
//! open sessions, move bytes and compare what comes back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iap_identity::SessionId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::dialler::{Corrupt, Dialler};
use super::random::Random;

const BUFFER_BYTES: usize = 32 * 1024;
const PAYLOAD_BYTES_MAX: u64 = 48 * 1024;
/// A session in this many is held open for seconds, so that every kill finds live ones.
const HELD_ONE_IN: u64 = 3;
const HELD_MILLISECONDS_MAX: u64 = 4000;
const PAUSE_MILLISECONDS_MAX: u64 = 300;

/// Sent in place of an id by clients that are not told theirs.
pub(super) const NO_ID: Uuid = Uuid::nil();

/// Who reached the backend, by the id each session sends first.
#[derive(Default)]
pub(super) struct Reached {
    /// Connections accepted, whether or not an id came.
    pub(super) accepted: AtomicU64,
    sessions: Mutex<BTreeMap<SessionId, u64>>,
}

impl Reached {
    /// Every session that sent its id, and how many connections did so.
    pub(super) fn sessions(&self) -> BTreeMap<SessionId, u64> {
        self.sessions.lock().unwrap().clone()
    }
}

/// An echoing backend on a free port.
pub(super) async fn serve_backend(reached: Arc<Reached>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            reached.accepted.fetch_add(1, Ordering::Relaxed);
            let reached = Arc::clone(&reached);
            // A session that a kill breaks ends with an error here.
            tokio::spawn(async move { drop(answer(stream, &reached).await) });
        }
    });
    address
}

async fn answer(mut stream: TcpStream, reached: &Reached) -> std::io::Result<()> {
    let mut id = [0; 16];
    stream.read_exact(&mut id).await?;
    let id = Uuid::from_bytes(id);
    if id != NO_ID {
        let mut sessions = reached.sessions.lock().unwrap();
        *sessions.entry(SessionId::from_uuid(id)).or_default() += 1;
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..count]).await?;
    }
}

/// What became of the sessions.
#[derive(Default)]
pub(super) struct Tally {
    /// Ended in order, every byte compared.
    pub(super) whole: AtomicU64,
    /// Granted, and broken before their end.
    pub(super) broken: AtomicU64,
    /// Not granted.
    pub(super) refused: AtomicU64,
    /// Answered with bytes that nobody sent, or other ones.
    pub(super) corrupt: AtomicU64,
    granted: Mutex<Vec<SessionId>>,
}

impl Tally {
    /// Every session a client was told of.
    pub(super) fn granted(&self) -> Vec<SessionId> {
        self.granted.lock().unwrap().clone()
    }

    pub(super) fn add_granted(&self, id: SessionId) {
        self.granted.lock().unwrap().push(id);
    }
}

/// Where sessions go, and as whom.
#[derive(Clone)]
pub(super) struct Targets {
    pub(super) dialler: Arc<Mutex<Dialler>>,
    pub(super) proxies: Vec<SocketAddr>,
    pub(super) services: Vec<&'static str>,
}

/// Clients at work until told to stop.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    workers: JoinSet<()>,
    pub(super) tally: Arc<Tally>,
}

impl Load {
    pub(super) fn start(targets: &Targets, workers: u64, random: &mut Random) -> Self {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
        let mut set = JoinSet::new();
        for _ in 0..workers {
            let (stop, tally, targets) = (Arc::clone(&stop), Arc::clone(&tally), targets.clone());
            let mut random = random.split();
            set.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    one_session(&targets, &tally, &mut random).await;
                    let pause = random.below(PAUSE_MILLISECONDS_MAX);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            });
        }
        Self {
            stop,
            workers: set,
            tally,
        }
    }

    /// Lets every client finish its session.
    pub(super) async fn finish(mut self) -> Arc<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        self.tally
    }
}

async fn one_session(targets: &Targets, tally: &Tally, random: &mut Random) {
    let proxy = *random.pick(&targets.proxies);
    let service = *random.pick(&targets.services);
    let dialler = targets.dialler.lock().unwrap().clone();
    let Ok(mut session) = dialler.open(proxy, service).await else {
        tally.refused.fetch_add(1, Ordering::Relaxed);
        return;
    };
    tally.add_granted(session.id);
    let length = random.below(PAYLOAD_BYTES_MAX) + 1;
    let payload = random.bytes(length);
    let held = random.below(HELD_ONE_IN) == 0;
    let hold = Duration::from_millis(random.below(HELD_MILLISECONDS_MAX));
    let talk = async {
        session.exchange(&payload).await?;
        if held {
            tokio::time::sleep(hold).await;
            session.round_trip(&payload).await?;
        }
        session.close().await
    };
    match talk.await {
        Ok(()) => tally.whole.fetch_add(1, Ordering::Relaxed),
        Err(error) if error.is::<Corrupt>() => tally.corrupt.fetch_add(1, Ordering::Relaxed),
        Err(_) => tally.broken.fetch_add(1, Ordering::Relaxed),
    };
}
