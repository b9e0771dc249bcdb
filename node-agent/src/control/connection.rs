//! One control connection: dial, TLS to `proxy.<cluster>`, hellos, then messages until something ends it.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use iap_identity::{ProxyId, ServiceName};
use iap_proto::{ControlDecodeError, decode_control, encode_control};
use iap_runtime::config::InForce;
use iap_runtime::net::HostPort;
use iap_runtime::quic::{Connection, QuicError};
use iap_runtime::shutdown::Shutdown;
use iap_tunnel::control::CONTROL_VERSION;
use iap_tunnel::{
    CONTROL_FRAME_BYTES_MAX, ControlMessage, Conversation, DataOffer, DataWay, FrameError, LengthPrefixed,
    RunId, Side, Violation,
};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

use super::data::{DataMemory, Ways};
use super::dial::{Line, Memory};
use super::pool::{PoolEvent, PoolKeeper};
use super::{Connected, Link, drain};
use crate::config::{ControlChoice, DataChoice};
use crate::dialback::{Entrance, Open};
use crate::identity::OwnIdentity;
use crate::leaves::Offer;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::session::Through;
use crate::view::View;

const PING_EVERY: Duration = Duration::from_secs(10);
const SILENCE_MAX: Duration = Duration::from_secs(30);
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 16 * 1024;

/// Why a control connection ended or never began.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// No TCP connection.
    #[error("cannot connect: {0}")]
    Dial(io::Error),
    /// No QUIC connection.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// No TLS: the proxy is not one of this cluster, or refuses this agent.
    #[error("TLS failed: {0}")]
    Tls(io::Error),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    /// The proxy closed it.
    #[error("the proxy closed the connection")]
    Closed,
    /// Nothing was heard for too long.
    #[error("nothing was heard for {} s", SILENCE_MAX.as_secs())]
    Silent,
    /// The proxy does not take what it is sent.
    #[error("the proxy does not take messages")]
    Stuck,
    /// No complete hello in time.
    #[error("no hello within {} s", HELLO_TIMEOUT.as_secs())]
    NoHello,
    /// A frame that is none.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that is no message.
    #[error(transparent)]
    Message(#[from] ControlDecodeError),
    /// A message out of place.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The same proxy is connected by another address.
    #[error("proxy {proxy} is connected already")]
    Duplicate {
        /// Which.
        proxy: ProxyId,
    },
    /// The proxy is locked.
    #[error("proxy {proxy} is locked: {reason}")]
    Locked {
        /// Which.
        proxy: ProxyId,
        /// Why.
        reason: String,
    },
}

/// Everything a control connection needs.
#[derive(Debug)]
pub struct Connector {
    /// Who the agent is.
    pub identity: Arc<OwnIdentity>,
    /// Which run of its program this is.
    pub run: RunId,
    /// What it offers.
    pub offers: watch::Receiver<Arc<Offer>>,
    /// Where `Open` leads.
    pub entrance: Arc<Entrance>,
    /// Which proxies are locked.
    pub views: watch::Receiver<Option<Arc<View>>>,
    /// Who is connected.
    pub connected: Arc<Connected>,
    /// The bounds.
    pub limits: InForce<Limits>,
    /// How proxies may be reached.
    pub choice: ControlChoice,
    /// What sessions may run over.
    pub data_choice: DataChoice,
    /// The counters.
    pub metrics: Metrics,
    /// When to stop.
    pub shutdown: Shutdown,
}

impl Connector {
    /// Connects to the proxy at `address` and stays until something ends the connection. One over TCP, where
    /// QUIC is allowed, moves over to QUIC as soon as that gets through; one made with a certificate that was
    /// renewed since moves over to another. Until the new one is there, the old one serves.
    ///
    /// # Errors
    /// Always: what ended it.
    pub async fn converse(
        &self,
        address: &HostPort,
        memory: &mut Memory,
    ) -> Result<Infallible, ConnectionError> {
        let mut certificate = self.identity.changes();
        certificate.mark_unchanged();
        let line = self.dial(address, memory).await?;
        let (proxy, mut way) = (line.proxy, line.way);
        let mut through = line.through();
        let data = self.data_choice.only().unwrap_or(DataWay::Tcp);
        let Some(place) = self.connected.enter(proxy, address, way, data) else {
            return Err(ConnectionError::Duplicate { proxy });
        };
        let remembered = Arc::clone(&memory.data);
        let mut current = Box::pin(self.speak(line, Arc::clone(&remembered)));
        let (mut replaced, mut outdated) = (None, false);
        loop {
            let line = tokio::select! {
                // First: a locked proxy is not even told what this agent serves.
                biased;
                reason = until_locked(self.views.clone(), &through, || self.entrance.now()) => {
                    // Before the connection goes, and sessions on its streams with it: their records say why.
                    self.entrance.cut_through(&through);
                    return Err(ConnectionError::Locked { proxy, reason });
                }
                ended = &mut current => return ended,
                line = self.better(address, proxy), if self.may_improve(address, way) => {
                    memory.quic_worked();
                    line
                }
                line = self.again(address, proxy, memory), if outdated => line,
                () = ended(&mut replaced), if replaced.is_some() => {
                    replaced = None;
                    continue;
                }
                Ok(()) = certificate.changed() => {
                    outdated = true;
                    continue;
                }
            };
            // Dialled behind the newest change, or the branch of that change comes next.
            outdated = false;
            (through, way) = (line.through(), line.way);
            place.moved(way);
            // The old one hears what the proxy had asked of it, until the proxy closes it.
            let next = Box::pin(self.speak(line, Arc::clone(&remembered)));
            replaced = Some(std::mem::replace(&mut current, next));
        }
    }

    async fn speak(&self, line: Line, memory: Arc<DataMemory>) -> Result<Infallible, ConnectionError> {
        let Line {
            stream,
            proxy,
            serial,
            route,
            way,
            quic,
        } = line;
        let via = route.to_string();
        let through = Through {
            proxy,
            serial: serial.into(),
        };
        let ways = Arc::new(self.ways(proxy, quic, memory));
        let (link, outbox) = Link::new(through, route, Arc::clone(&ways));
        let (reader, writer) = tokio::io::split(stream);
        let mut writing = AbortOnDropHandle::new(tokio::spawn(write_messages(writer, outbox)));
        link.send(hello(self.run));
        let mut ear = Ear::new(reader);
        let ControlMessage::Hello { software, data, .. } = ear.hear_hello().await? else {
            return Err(ConnectionError::NoHello);
        };
        let _ = ways.offered.set(DataOffer::parse(&data));
        tracing::info!(%proxy, via, %way, %software, "control connection established");
        let mut pool = self.pool(&link);
        let mut offers = self.offers.clone();
        offers.mark_changed();
        let mut ping = tokio::time::interval(PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut nonce, mut withdrawn, mut leaving) = (0, false, None);
        loop {
            tokio::select! {
                message = ear.hear() => match message? {
                    ControlMessage::PoolTokens { tokens, idle_seconds } => {
                        pool.invited(tokens, Duration::from_secs(idle_seconds.into()));
                    }
                    ControlMessage::Drain { deadline_seconds } if leaving.is_none() => {
                        leaving = Some(self.leave(proxy, deadline_seconds));
                    }
                    message => self.handle(message, &link)?,
                },
                event = pool.next(), if !withdrawn => match event {
                    PoolEvent::Ask(connections) => deliver(&link, ControlMessage::PoolAsk { connections })?,
                    // Over QUIC a proxy that was killed is noticed when something is sent to it.
                    PoolEvent::Lost => {
                        nonce += 1;
                        deliver(&link, ControlMessage::Ping(nonce))?;
                    }
                },
                Ok(()) = offers.changed(), if !withdrawn => {
                    let offer = Arc::clone(&offers.borrow_and_update());
                    deliver(&link, announcement(&offer))?;
                }
                _ = ping.tick() => {
                    nonce += 1;
                    deliver(&link, ControlMessage::Ping(nonce))?;
                }
                ended = &mut writing => return Err(ended.unwrap_or(ConnectionError::Closed)),
                // From here on no session comes this way; the connection stays for the verdicts of those
                // under way and goes with the program.
                () = self.shutdown.cancelled(), if !withdrawn => {
                    withdrawn = true;
                    deliver(&link, ControlMessage::Announce { services: Vec::new() })?;
                }
            }
        }
    }

    /// The proxy takes nobody any more; whoever can leaves it, until the handle is dropped.
    fn leave(&self, proxy: ProxyId, deadline_seconds: u32) -> AbortOnDropHandle<()> {
        tracing::info!(%proxy, deadline_seconds, "the proxy drains");
        self.connected.drains(proxy);
        let (connected, entrance) = (Arc::clone(&self.connected), Arc::clone(&self.entrance));
        let deadline = Duration::from_secs(deadline_seconds.into());
        AbortOnDropHandle::new(tokio::spawn(drain::leave(connected, entrance, proxy, deadline)))
    }

    fn ways(&self, proxy: ProxyId, quic: Option<Connection>, memory: Arc<DataMemory>) -> Ways {
        Ways {
            proxy,
            choice: self.data_choice,
            offered: OnceLock::new(),
            quic,
            pool: Arc::default(),
            memory,
            connected: Arc::clone(&self.connected),
            identity: Arc::clone(&self.identity),
            metrics: self.metrics.clone(),
            limits: self.limits.clone(),
        }
    }

    fn pool(&self, link: &Link) -> PoolKeeper {
        let ways = link.ways();
        let limits = self.limits.now();
        let size = ways.pool_size(limits.pool_connections_per_proxy);
        let (pool, metrics) = (Arc::clone(&ways.pool), self.metrics.clone());
        PoolKeeper::new(pool, link.route.clone(), size, limits.dial(), metrics)
    }

    fn handle(&self, message: ControlMessage, link: &Link) -> Result<(), ConnectionError> {
        match message {
            ControlMessage::Open {
                connection_id,
                token,
                service,
                client_address,
                pooled,
            } => {
                let open = Open {
                    connection_id,
                    token,
                    service,
                    client_address,
                    pooled,
                };
                Arc::clone(&self.entrance).open(open, link.clone());
                Ok(())
            }
            ControlMessage::Announced { accepted, refused } => {
                log_announced(link.through.proxy, &accepted, &refused);
                Ok(())
            }
            ControlMessage::Ping(nonce) => deliver(link, ControlMessage::Pong(nonce)),
            ControlMessage::Cancel(request) => {
                Arc::clone(&self.entrance).cancel(request);
                Ok(())
            }
            // The pool's keeper has taken the tokens before, and nobody has to be told twice to leave.
            ControlMessage::Pong(_) | ControlMessage::PoolTokens { .. } | ControlMessage::Drain { .. } => {
                Ok(())
            }
            // The conversation has refused these already: only an agent sends them.
            ControlMessage::Hello { .. }
            | ControlMessage::Announce { .. }
            | ControlMessage::PoolAsk { .. }
            | ControlMessage::OpenRefused { .. }
            | ControlMessage::Verdict { .. }
            | ControlMessage::Resumable { .. } => Ok(()),
        }
    }
}

/// Waits for the end of a conversation that another has replaced.
async fn ended<F: Future<Output = Result<Infallible, ConnectionError>> + Unpin>(replaced: &mut Option<F>) {
    if let Some(conversation) = replaced {
        let Err(error) = conversation.await;
        tracing::debug!(%error, "the replaced control connection ended");
    }
}

/// Waits until a lock hits the proxy; its reason.
async fn until_locked(
    mut views: watch::Receiver<Option<Arc<View>>>,
    through: &Through,
    now: impl Fn() -> OffsetDateTime,
) -> String {
    let lock_in = |view: &Option<Arc<View>>| {
        let locks = view.as_ref()?.locks();
        let lock = locks.matching_proxy(&through.proxy, &through.serial, now())?;
        Some(lock.reason.clone())
    };
    loop {
        if let Some(reason) = lock_in(&views.borrow_and_update()) {
            return reason;
        }
        if views.changed().await.is_err() {
            // The program ends.
            return std::future::pending().await;
        }
    }
}

/// The reading half: frames, messages, their order, and the limit on silence.
struct Ear<R> {
    reader: R,
    frames: LengthPrefixed,
    conversation: Conversation,
    heard: Instant,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Ear<R> {
    fn new(reader: R) -> Self {
        Self {
            reader,
            frames: LengthPrefixed::new(CONTROL_FRAME_BYTES_MAX),
            conversation: Conversation::with(Side::Proxy),
            heard: Instant::now(),
            buffer: vec![0; READ_BYTES],
        }
    }

    async fn hear_hello(&mut self) -> Result<ControlMessage, ConnectionError> {
        match tokio::time::timeout(HELLO_TIMEOUT, self.hear()).await {
            Ok(heard) => heard,
            Err(_elapsed) => Err(ConnectionError::NoHello),
        }
    }

    /// The next message. Safe to drop and call again: what was read stays in the decoder.
    async fn hear(&mut self) -> Result<ControlMessage, ConnectionError> {
        loop {
            if let Some(frame) = self.frames.next_frame()? {
                match decode_control(&frame)? {
                    Some(message) => return Ok(self.conversation.accept(message)?),
                    None => continue,
                }
            }
            let reading = self.reader.read(&mut self.buffer);
            match tokio::time::timeout_at(self.heard + SILENCE_MAX, reading).await {
                Ok(Ok(0)) => return Err(ConnectionError::Closed),
                Ok(Ok(count)) => {
                    self.heard = Instant::now();
                    self.frames.push(self.buffer.get(..count).unwrap_or_default());
                }
                Ok(Err(error)) => return Err(ConnectionError::Broken(error)),
                Err(_elapsed) => return Err(ConnectionError::Silent),
            }
        }
    }
}

async fn write_messages<W>(mut writer: W, mut outbox: mpsc::Receiver<ControlMessage>) -> ConnectionError
where
    W: AsyncWrite + Unpin,
{
    while let Some(message) = outbox.recv().await {
        let frame = match encode_control(message) {
            Ok(frame) => frame,
            Err(error) => return ConnectionError::Frame(error),
        };
        let writing = async {
            writer.write_all(&frame).await?;
            writer.flush().await
        };
        match tokio::time::timeout(WRITE_TIMEOUT, writing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return ConnectionError::Broken(error),
            Err(_elapsed) => return ConnectionError::Stuck,
        }
    }
    let _ = writer.shutdown().await;
    ConnectionError::Closed
}

fn hello(run: RunId) -> ControlMessage {
    ControlMessage::Hello {
        version: CONTROL_VERSION,
        software: concat!("iap-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
        data: DataOffer::OWN.to_string(),
        run: Some(run),
    }
}

fn announcement(offer: &Offer) -> ControlMessage {
    ControlMessage::Announce {
        services: offer.announced(),
    }
}

fn deliver(link: &Link, message: ControlMessage) -> Result<(), ConnectionError> {
    if link.send(message) {
        Ok(())
    } else {
        Err(ConnectionError::Stuck)
    }
}

fn log_announced(proxy: ProxyId, accepted: &[ServiceName], refused: &[iap_tunnel::RefusedService]) {
    let names: Vec<_> = accepted.iter().map(ServiceName::as_str).collect();
    tracing::info!(%proxy, services = names.join(","), "services announced");
    for service in refused {
        tracing::warn!(%proxy, service = %service.name, reason = service.reason, "the proxy does not route a service");
    }
}
