//! A lightweight agent: joined by the real API, with a certificate and a service leaf of its own. It holds what a real one
//! holds, over the real protocols: the feed, the control connection by QUIC, connections dialled in advance, and it
//! reports every 30 s. It compiles no policy and serves nobody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use iap_identity::{ConnectionId, ServerName, ServiceName, certificate_request};
use iap_proto::v1::agent_client::AgentClient;
use iap_proto::v1::feed_event::Event;
use iap_proto::v1::{AgentStatus, ProxyConnection, ServiceLeafRequest, Signed, WatchRequest};
use iap_proto::{LockList, Snapshot, decode_control, encode_control, open_locks, open_snapshot};
use iap_runtime::keys::{KeyKind, generate};
use iap_runtime::quic;
use iap_runtime::tls::{ServerVerifier, client_config};
use iap_tunnel::{
    ALPN_CONTROL, CONTROL_FRAME_BYTES_MAX, CONTROL_VERSION, ControlMessage, LengthPrefixed, PoolPreface,
    Token,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::joined::Joined;

const TIMEOUT: Duration = Duration::from_secs(20);
/// As the real agent: the first retry comes soon, none later than this, and no two at the same moment.
const RETRY_MILLISECONDS_MAX: u64 = 5_000;
const STATUS_EVERY: Duration = Duration::from_secs(30);
const SILENCE_MAX: Duration = Duration::from_secs(35);
const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// What an agent keeps by default.
pub(crate) const POOL: usize = 4;
/// Agents share two cores here, which no fleet does: one in so many verifies what it is sent, the others only read it.
const VERIFIES_ONE_IN: u64 = 10;

/// What all agents together have at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Follow the feed, and have been given the whole state.
    pub(crate) fed: usize,
    /// Their service is routed.
    pub(crate) routed: usize,
    /// Connections dialled in advance.
    pub(crate) pooled: usize,
    /// Feeds that ended, since the beginning.
    pub(crate) feeds_lost: usize,
    /// Control connections that ended, since the beginning.
    pub(crate) routes_lost: usize,
}

/// Something signed that an agent has in full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) what: What,
    pub(crate) version: u64,
    /// Signed.
    pub(crate) bytes: usize,
    pub(crate) at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Snapshot,
    Locks,
}

/// Where agents say how they are.
#[derive(Clone, Debug)]
pub(crate) struct Ear {
    pub(crate) counts: watch::Sender<Counts>,
    pub(crate) heard: mpsc::UnboundedSender<Heard>,
    /// Whether connections are to be dialled in advance by now.
    pub(crate) pooling: watch::Sender<bool>,
}

impl Ear {
    /// Nobody has anything yet; what is heard can be read behind.
    pub(crate) fn new() -> (Self, watch::Receiver<Counts>, mpsc::UnboundedReceiver<Heard>) {
        let (counts, watched) = watch::channel(Counts::default());
        let (heard, hearing) = mpsc::unbounded_channel();
        let ear = Self {
            counts,
            heard,
            pooling: watch::Sender::new(false),
        };
        (ear, watched, hearing)
    }
}

/// What reconnecting takes.
pub(crate) struct Agent {
    joined: Joined,
    service: ServiceName,
    leaf: Vec<u8>,
    number: u64,
}

impl Agent {
    /// Joins and fetches the leaf of its service.
    pub(crate) async fn join(joined: Joined, service: &str, number: u64) -> anyhow::Result<Self> {
        let key = generate(KeyKind::P256)?;
        let request = ServiceLeafRequest {
            service: service.to_owned(),
            csr: certificate_request(&key)?,
        };
        let issued = AgentClient::new(joined.channel.clone())
            .service_leaf(request)
            .await?
            .into_inner();
        let leaf = issued.chain.into_iter().next().context("no leaf")?;
        Ok(Self::with_leaf(
            joined,
            ServiceName::parse(service)?,
            leaf,
            number,
        ))
    }

    /// The same with a leaf that is there already.
    pub(crate) fn with_leaf(joined: Joined, service: ServiceName, leaf: Vec<u8>, number: u64) -> Self {
        Self {
            joined,
            service,
            leaf,
            number,
        }
    }

    /// Follows the feed for ever, and reports.
    pub(crate) async fn listen(self: Arc<Self>, ear: Ear) {
        let reporting = tokio::spawn(Arc::clone(&self).report());
        let mut failures = 0;
        loop {
            let mut fed = false;
            let _ended = self.follow(&ear, &mut fed).await;
            if fed {
                failures = 0;
                ear.counts.send_modify(|counts| {
                    counts.fed -= 1;
                    counts.feeds_lost += 1;
                });
            }
            if ear.heard.is_closed() {
                reporting.abort();
                return;
            }
            self.pause(&mut failures).await;
        }
    }

    async fn follow(&self, ear: &Ear, fed: &mut bool) -> anyhow::Result<()> {
        let request = WatchRequest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            services: vec![self.service.to_string()],
        };
        let mut stream = self.client().watch(request).await?.into_inner();
        loop {
            let message = tokio::time::timeout(SILENCE_MAX, stream.message()).await??;
            let (what, version, bytes) = match message.context("the stream ended")?.event {
                Some(Event::Snapshot(signed)) => (
                    What::Snapshot,
                    self.snapshot_version(&signed)?,
                    signed.payload.len(),
                ),
                Some(Event::Locks(signed)) => {
                    (What::Locks, self.lock_version(&signed)?, signed.payload.len())
                }
                Some(Event::Beat(_)) if !*fed => {
                    *fed = true;
                    ear.counts.send_modify(|counts| counts.fed += 1);
                    continue;
                }
                Some(Event::Beat(_) | Event::Bundle(_)) | None => continue,
            };
            let at = Instant::now();
            ear.heard.send(Heard {
                what,
                version,
                bytes,
                at,
            })?;
        }
    }

    fn snapshot_version(&self, signed: &Signed) -> anyhow::Result<u64> {
        Ok(match self.verifies() {
            true => open_snapshot(signed, &self.joined.material.bundle())?.version,
            false => Snapshot::decode(&signed.payload)?.version,
        })
    }

    fn lock_version(&self, signed: &Signed) -> anyhow::Result<u64> {
        Ok(match self.verifies() {
            true => open_locks(signed, &self.joined.material.bundle())?.version,
            false => LockList::decode(&signed.payload)?.version,
        })
    }

    fn verifies(&self) -> bool {
        self.number.is_multiple_of(VERIFIES_ONE_IN)
    }

    fn client(&self) -> AgentClient<tonic::transport::Channel> {
        AgentClient::new(self.joined.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    async fn report(self: Arc<Self>) {
        let address = self.joined.address.to_string();
        let status = AgentStatus {
            connected_proxies: vec![address.clone()],
            proxies: vec![ProxyConnection {
                address,
                control: "quic".to_owned(),
                data: "tcp".to_owned(),
            }],
            services: vec![self.service.to_string()],
            ..AgentStatus::default()
        };
        tokio::time::sleep(STATUS_EVERY.mul_f64(spread(self.number))).await;
        loop {
            // The next one tells as much.
            let _lost = self.client().status(status.clone()).await;
            tokio::time::sleep(STATUS_EVERY).await;
        }
    }

    /// Holds the control connection for ever, and the pool when it is time.
    pub(crate) async fn stay(self: Arc<Self>, ear: Ear) {
        let mut failures = 0;
        while !ear.heard.is_closed() {
            if let Ok(line) = self.connect().await {
                failures = 0;
                ear.counts.send_modify(|counts| counts.routed += 1);
                let _ended = line.hold(&ear).await;
                ear.counts.send_modify(|counts| {
                    counts.routed -= 1;
                    counts.routes_lost += 1;
                });
            }
            self.pause(&mut failures).await;
        }
    }

    async fn pause(&self, failures: &mut u32) {
        let most = (200_u64 << (*failures).min(5)).min(RETRY_MILLISECONDS_MAX);
        *failures += 1;
        let most = Duration::from_millis(most);
        // Spread by number in place of chance.
        tokio::time::sleep(most / 2 + (most / 2).mul_f64(spread(self.number))).await;
    }

    async fn connect(&self) -> anyhow::Result<Line> {
        let address = self.joined.address.to_string();
        let material = &self.joined.material;
        let verifier = Arc::new(ServerVerifier::new(material.clone()));
        let config = client_config(verifier, Some(material.clone()), &[ALPN_CONTROL])?;
        let host = ServerName::Proxy.host(&self.joined.cluster);
        let connection = quic::connect(address.parse()?, &host, config, TIMEOUT).await?;
        let (send, recv) = connection.open_bi().await?;
        let mut line = Line {
            stream: quic::urgent(send, recv),
            decoder: LengthPrefixed::new(CONTROL_FRAME_BYTES_MAX),
            proxy: address,
            _connection: connection,
        };
        tokio::time::timeout(TIMEOUT, line.announce(&self.service, &self.leaf)).await??;
        Ok(line)
    }
}

/// A place in [0, 1) for each number, neighbours far apart.
fn spread(number: u64) -> f64 {
    f64::from(u32::try_from(number.wrapping_mul(7919) % 1009).unwrap_or_default()) / 1009.0
}

/// A connection whose service the proxy routes.
struct Line {
    stream: quic::Stream,
    decoder: LengthPrefixed,
    proxy: String,
    _connection: quic::Connection,
}

impl Line {
    async fn announce(&mut self, service: &ServiceName, leaf: &[u8]) -> anyhow::Result<()> {
        self.send(ControlMessage::Hello {
            version: CONTROL_VERSION,
            software: concat!("iap-bench ", env!("CARGO_PKG_VERSION")).to_owned(),
            data: "tcp".to_owned(),
            run: None,
        })
        .await?;
        self.send(ControlMessage::Announce {
            services: vec![(service.clone(), leaf.to_vec())],
        })
        .await?;
        loop {
            match self.next().await? {
                ControlMessage::Announced { accepted, refused } => {
                    ensure!(accepted.contains(service), "{refused:?}");
                    return Ok(());
                }
                ControlMessage::Ping(nonce) => self.send(ControlMessage::Pong(nonce)).await?,
                _ => {}
            }
        }
    }

    async fn hold(mut self, ear: &Ear) -> anyhow::Result<()> {
        let mut pooling = ear.pooling.subscribe();
        let mut pool = JoinSet::new();
        if *pooling.borrow_and_update() {
            self.ask(POOL).await?;
        }
        loop {
            tokio::select! {
                message = self.next() => match message? {
                    ControlMessage::Ping(nonce) => self.send(ControlMessage::Pong(nonce)).await?,
                    ControlMessage::PoolTokens { tokens, idle_seconds } => {
                        let idle = Duration::from_secs(idle_seconds.into());
                        for (id, token) in tokens {
                            pool.spawn(wait_in_pool(self.proxy.clone(), id, token, idle, ear.counts.clone()));
                        }
                    }
                    _ => {}
                },
                _ = pooling.changed() => self.ask(POOL).await?,
                Some(_ended) = pool.join_next() => self.ask(1).await?,
            }
        }
    }

    async fn ask(&mut self, connections: usize) -> anyhow::Result<()> {
        let connections = u32::try_from(connections)?;
        self.send(ControlMessage::PoolAsk { connections }).await
    }

    async fn send(&mut self, message: ControlMessage) -> anyhow::Result<()> {
        self.stream.write_all(&encode_control(message)?).await?;
        Ok(self.stream.flush().await?)
    }

    /// Safe to drop and call again: what was read is in the decoder.
    async fn next(&mut self) -> anyhow::Result<ControlMessage> {
        let mut buffer = [0; 2048];
        loop {
            while let Some(frame) = self.decoder.next_frame()? {
                if let Some(message) = decode_control(&frame)? {
                    return Ok(message);
                }
            }
            match self.stream.read(&mut buffer).await? {
                0 => bail!("the proxy closed"),
                length => self.decoder.push(buffer.get(..length).unwrap_or_default()),
            }
        }
    }
}

/// Counted while it waits, however that ends.
struct Pooled(watch::Sender<Counts>);

impl Pooled {
    fn enter(counts: watch::Sender<Counts>) -> Self {
        counts.send_modify(|counts| counts.pooled += 1);
        Self(counts)
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.0.send_modify(|counts| counts.pooled -= 1);
    }
}

async fn wait_in_pool(
    proxy: String,
    id: ConnectionId,
    token: Token,
    idle: Duration,
    counts: watch::Sender<Counts>,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_all(&PoolPreface { id, token }.encode()).await?;
    let _pooled = Pooled::enter(counts);
    // Nobody asks for the service: whatever happens on it is its end.
    let _ended = tokio::time::timeout(idle, stream.ready(Interest::READABLE)).await;
    Ok(())
}
