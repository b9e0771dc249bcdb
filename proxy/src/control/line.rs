//! One agent's control connection, from its hello to its end.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Instant;

use iap_identity::{AgentId, CaClass, Class, ClassSet, ConnectionId, PeerError, TrustBundle, verify_client};
use iap_proto::{decode_control, encode_control};
use iap_runtime::pump::Cancellation;
use iap_runtime::shutdown::Shutdown;
use iap_tunnel::{
    CONTROL_FRAME_BYTES_MAX, CONTROL_VERSION, ControlMessage, Conversation, DataOffer, LengthPrefixed, RunId,
    Side, Violation,
};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior};
use uuid::Uuid;

use super::announce::{Judged, Offered, judge};
use super::{Agent, ControlDoor};
use crate::admission::WaitingPlace;
use crate::front::fetch::fresh_token;
use crate::switchboard::{ConnectError, LineNumber, REPLACED, Switchboard};
use crate::trust::Trust;

/// What is read at once.
const READ_BYTES: usize = 1024;

/// A tenth of a millisecond each: more are judged on a thread of their own.
const JUDGED_AT_ONCE_MAX: usize = 4;

/// Why a line ended.
#[derive(Debug)]
pub(crate) enum LineEnd {
    Closed,
    Silent,
    Cut(Arc<str>),
    Untrusted(PeerError),
    Locked(String),
    Violation(Violation),
    Malformed(String),
    TooManyLines,
    NotConnected(ConnectError),
    Io(io::Error),
}

impl LineEnd {
    /// The agent has another line now, or wants none.
    pub(crate) fn is_orderly(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Cut(reason) => **reason == *REPLACED,
            Self::Silent
            | Self::Untrusted(_)
            | Self::Locked(_)
            | Self::Violation(_)
            | Self::Malformed(_)
            | Self::TooManyLines
            | Self::NotConnected(_)
            | Self::Io(_) => false,
        }
    }
}

/// What certificates were found good by, and until when they stay so.
struct Settled {
    bundle: Arc<TrustBundle>,
    since: OffsetDateTime,
    until: OffsetDateTime,
}

impl Settled {
    fn holds(&self, bundle: &Arc<TrustBundle>, now: OffsetDateTime) -> bool {
        Arc::ptr_eq(&self.bundle, bundle) && self.since <= now && now <= self.until
    }
}

/// What a line waits for.
enum Event {
    Received,
    Outgoing(Box<ControlMessage>),
    TrustChanged,
    Tick,
    CertificateExpired,
    Cut(Arc<str>),
}

pub(crate) struct Line<'a, S> {
    door: &'a ControlDoor,
    agent: Agent,
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    decoder: LengthPrefixed,
    conversation: Conversation,
    trust: watch::Receiver<Arc<Trust>>,
    cut: Cancellation,
    /// Held until the agent has said hello.
    place: Option<WaitingPlace>,
    /// What the agent serves, with the leaves that prove it.
    offers: Vec<Offered>,
    /// Whether it has said what it serves. Until then it may have the routes of the line it replaced.
    announced: bool,
    /// Nothing has to be verified again before.
    settled: Option<Settled>,
    began: Instant,
    heard_at: Instant,
    pings: u64,
}

impl<'a, S: AsyncRead + AsyncWrite> Line<'a, S> {
    pub(crate) fn new(agent: Agent, stream: S, place: WaitingPlace, door: &'a ControlDoor) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            door,
            agent,
            reader,
            writer,
            decoder: LengthPrefixed::new(CONTROL_FRAME_BYTES_MAX),
            conversation: Conversation::with(Side::Agent),
            trust: door.trust.clone(),
            cut: Cancellation::new(),
            place: Some(place),
            offers: Vec::new(),
            announced: false,
            settled: None,
            began: Instant::now(),
            heard_at: Instant::now(),
            pings: 0,
        }
    }

    /// Runs until something ends it. The agent is on the switchboard from its hello to the end.
    #[expect(
        clippy::manual_async_fn,
        reason = "the future of an async fn holds its arguments twice"
    )]
    pub(crate) fn run(mut self, shutdown: Shutdown) -> impl Future<Output = LineEnd> {
        async move {
            let (run, offer) = match Box::pin(self.exchange_hellos()).await {
                Ok(said) => said,
                Err(end) => return end,
            };
            self.place = None;
            let (sender, mut outbox) = mpsc::channel(self.door.limits.now().control_queue_messages_max);
            let peer = &self.agent.peer;
            let connected = self
                .door
                .board
                .connect(peer.id, &peer.serial, run, sender, self.cut.clone());
            let number = match connected {
                Ok(number) => number,
                Err(error) => return LineEnd::NotConnected(error),
            };
            if offer.takes_cancels() {
                self.door.board.takes_cancels(&peer.id, number);
            }
            let on_line = OnLine {
                board: &self.door.board,
                agent: self.agent.peer.id,
                number,
            };
            let end = self.converse(number, &mut outbox, &shutdown).await;
            if end.is_orderly() {
                Box::pin(self.finish(&mut outbox)).await;
            }
            drop(on_line);
            // The peer may be gone already; it learns the end either way.
            let _ = tokio::time::timeout(
                self.door.limits.now().control_handshake_seconds_max,
                self.writer.shutdown(),
            )
            .await;
            end
        }
    }

    /// What was asked of the agent on this line before it had another. Nothing is added any more.
    async fn finish(&mut self, outbox: &mut mpsc::Receiver<Box<ControlMessage>>) {
        while let Ok(message) = outbox.try_recv() {
            if self.deliver(*message).await.is_err() {
                return;
            }
        }
    }

    /// Which run of the agent's program this is, where it says so, and what it can do.
    async fn exchange_hellos(&mut self) -> Result<(Option<RunId>, DataOffer), LineEnd> {
        let hello = ControlMessage::Hello {
            version: CONTROL_VERSION,
            software: concat!("iap-proxy ", env!("CARGO_PKG_VERSION")).to_owned(),
            data: DataOffer::OWN.to_string(),
            run: None,
        };
        self.send(hello).await?;
        let wait = self.door.limits.now().control_handshake_seconds_max;
        let first = tokio::time::timeout(wait, self.first_message())
            .await
            .map_err(|_| LineEnd::Silent)??;
        match self.conversation.accept(first).map_err(LineEnd::Violation)? {
            ControlMessage::Hello { run, data, .. } => Ok((run, DataOffer::parse(&data))),
            // The conversation begins with nothing else.
            _ => Ok((None, DataOffer::parse(""))),
        }
    }

    async fn first_message(&mut self) -> Result<ControlMessage, LineEnd> {
        loop {
            if let Some(message) = self.next_message()? {
                return Ok(message);
            }
            read_some(&mut self.reader, &mut self.decoder).await?;
        }
    }

    async fn converse(
        &mut self,
        number: LineNumber,
        outbox: &mut mpsc::Receiver<Box<ControlMessage>>,
        shutdown: &Shutdown,
    ) -> LineEnd {
        let period = self.door.limits.now().control_ping_seconds;
        // Not at once: everything was judged just now, and many may come together.
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if shutdown.is_triggered() {
            let deadline_seconds = self.door.drain_seconds();
            let drain = self.send(ControlMessage::Drain { deadline_seconds });
            if let Err(end) = Box::pin(drain).await {
                return end;
            }
        }
        // What came along with the hello.
        if let Err(end) = Box::pin(self.obey_all(number)).await {
            return end;
        }
        loop {
            let event = match self.next_event(outbox, &mut ticks).await {
                Ok(event) => event,
                Err(end) => return end,
            };
            // Boxed, as all that a line does now and then: it rests in its wait for what is next.
            if let Err(end) = Box::pin(self.handle(event, number)).await {
                return end;
            }
        }
    }

    async fn next_event(
        &mut self,
        outbox: &mut mpsc::Receiver<Box<ControlMessage>>,
        ticks: &mut Interval,
    ) -> Result<Event, LineEnd> {
        let expiry = until(self.agent.peer.not_after);
        tokio::select! {
            biased;
            reason = self.cut.cancelled() => Ok(Event::Cut(reason)),
            reason = self.door.end.cancelled() => Ok(Event::Cut(reason)),
            () = tokio::time::sleep(expiry) => Ok(Event::CertificateExpired),
            changed = self.trust.changed() => match changed {
                Ok(()) => Ok(Event::TrustChanged),
                Err(_) => Ok(Event::Cut(Arc::from("the proxy is stopping"))),
            },
            Some(message) = outbox.recv() => Ok(Event::Outgoing(message)),
            read = read_some(&mut self.reader, &mut self.decoder) => read.map(|()| Event::Received),
            _ = ticks.tick() => Ok(Event::Tick),
        }
    }

    async fn handle(&mut self, event: Event, number: LineNumber) -> Result<(), LineEnd> {
        match event {
            Event::Received => {
                self.heard_at = Instant::now();
                self.obey_all(number).await
            }
            Event::Outgoing(message) => self.send(*message).await,
            Event::TrustChanged => self.reconsider(number).await,
            Event::Tick => {
                if self.heard_at.elapsed() > self.door.limits.now().control_silence_seconds_max {
                    return Err(LineEnd::Silent);
                }
                self.door
                    .board
                    .pool_room(OffsetDateTime::now_utc(), &self.agent.peer.id);
                self.give_up_inherited_routes(number);
                self.reconsider(number).await?;
                self.pings += 1;
                self.send(ControlMessage::Ping(self.pings)).await
            }
            Event::CertificateExpired => self.reconsider(number).await,
            Event::Cut(reason) => Err(LineEnd::Cut(reason)),
        }
    }

    /// Every message that is there.
    async fn obey_all(&mut self, number: LineNumber) -> Result<(), LineEnd> {
        while let Some(message) = self.next_message()? {
            let message = self.conversation.accept(message).map_err(LineEnd::Violation)?;
            self.obey(message, number).await?;
        }
        Ok(())
    }

    async fn obey(&mut self, message: ControlMessage, number: LineNumber) -> Result<(), LineEnd> {
        match message {
            ControlMessage::Announce { services } => self.announced(services, number).await,
            ControlMessage::PoolAsk { connections } => self.invite(connections, number).await,
            ControlMessage::OpenRefused {
                connection_id,
                reason,
            } => {
                self.door
                    .board
                    .refuse(&self.agent.peer.id, &connection_id, reason);
                Ok(())
            }
            ControlMessage::Verdict {
                connection_id,
                authenticated,
            } => {
                self.judged(&connection_id, authenticated);
                Ok(())
            }
            ControlMessage::Resumable { connection_id } => {
                self.door.board.resumable(&self.agent.peer.id, &connection_id);
                Ok(())
            }
            ControlMessage::Ping(nonce) => self.send(ControlMessage::Pong(nonce)).await,
            ControlMessage::Pong(_) => Ok(()),
            // The conversation lets none of these through from an agent.
            ControlMessage::Hello { .. }
            | ControlMessage::Announced { .. }
            | ControlMessage::Open { .. }
            | ControlMessage::PoolTokens { .. }
            | ControlMessage::Cancel(_)
            | ControlMessage::Drain { .. } => Ok(()),
        }
    }

    /// Lets the agent dial connections in advance, as many as there is room for.
    async fn invite(&mut self, connections: u32, number: LineNumber) -> Result<(), LineEnd> {
        let (now, agent) = (OffsetDateTime::now_utc(), self.agent.peer.id);
        let wanted = usize::try_from(connections).unwrap_or(usize::MAX);
        let count = wanted.min(self.door.board.pool_room(now, &agent));
        let mut tokens = Vec::with_capacity(count);
        for _ in 0..count {
            let Ok(token) = fresh_token() else { break };
            tokens.push((ConnectionId::from_uuid(Uuid::now_v7()), token));
        }
        let limits = self.door.limits.now();
        let deadline = now + limits.dial_back_seconds_max;
        let tokens = self.door.board.invite(agent, number, tokens, deadline);
        let idle = limits.pool_idle_seconds_max.as_secs();
        let idle_seconds = u32::try_from(idle).unwrap_or(u32::MAX);
        self.send(ControlMessage::PoolTokens { tokens, idle_seconds })
            .await
    }

    /// An agent that moved says at once what it serves; one that does not has no claim to routes it had before.
    fn give_up_inherited_routes(&mut self, number: LineNumber) {
        if !self.announced && self.began.elapsed() > self.door.limits.now().control_handshake_seconds_max {
            self.announced = true;
            self.door.board.announce(self.agent.peer.id, number, Vec::new());
        }
    }

    fn judged(&self, connection_id: &ConnectionId, authenticated: bool) {
        let agent = &self.agent.peer.id;
        if let Some(source) = self.door.board.judge(agent, connection_id, authenticated) {
            self.door.metrics.verdict(authenticated);
            self.door.admission.judged(source, authenticated, Instant::now());
        }
    }

    async fn announced(&mut self, services: Vec<Offered>, number: LineNumber) -> Result<(), LineEnd> {
        let judged = self.judge(services).await?;
        (self.announced, self.settled) = (true, None);
        let accepted = judged.names();
        tracing::info!(agent = %self.agent.peer.id, ?accepted, refused = ?judged.refused, "announced");
        self.door
            .board
            .announce(self.agent.peer.id, number, accepted.clone());
        self.offers = judged.accepted;
        self.send(ControlMessage::Announced {
            accepted,
            refused: judged.refused,
        })
        .await
    }

    /// Everything that was once accepted, against the trust and the time of now.
    async fn reconsider(&mut self, number: LineNumber) -> Result<(), LineEnd> {
        let now = OffsetDateTime::now_utc();
        let trust = Arc::clone(&self.trust.borrow_and_update());
        let peer = &self.agent.peer;
        if let Some(lock) = trust.lock_on(&peer.id, &peer.serial, now) {
            return Err(LineEnd::Locked(lock.reason.clone()));
        }
        if (self.settled.as_ref()).is_some_and(|settled| settled.holds(&trust.bundle, now)) {
            return Ok(());
        }
        verify_client(
            std::slice::from_ref(&self.agent.leaf),
            ClassSet::of(&[Class::Agent]),
            &trust.bundle,
            now,
        )
        .map_err(LineEnd::Untrusted)?;
        let held = self.offers.clone();
        let judged = self.judge(held).await?;
        let until = self
            .agent
            .peer
            .not_after
            .min(trust.bundle.valid_until(CaClass::System, now));
        self.settled = Some(Settled {
            until: judged.until.map_or(until, |judged| judged.min(until)),
            since: now,
            bundle: Arc::clone(&trust.bundle),
        });
        if judged.refused.is_empty() {
            return Ok(());
        }
        let accepted = judged.names();
        tracing::info!(agent = %self.agent.peer.id, refused = ?judged.refused, "no longer served");
        self.door
            .board
            .announce(self.agent.peer.id, number, accepted.clone());
        self.offers = judged.accepted;
        self.send(ControlMessage::Announced {
            accepted,
            refused: judged.refused,
        })
        .await
    }

    /// On a blocking thread, unless they are few: a full announcement is a thousand signatures.
    async fn judge(&self, offers: Vec<Offered>) -> Result<Judged, LineEnd> {
        let bundle = Arc::clone(&self.trust.borrow().bundle);
        let (agent, services_max) = (self.agent.peer.id, self.door.limits.now().services_per_agent_max);
        let now = OffsetDateTime::now_utc();
        if offers.len() <= JUDGED_AT_ONCE_MAX {
            return Ok(judge(offers, &agent, &bundle, services_max, now));
        }
        let judging = tokio::task::spawn_blocking(move || judge(offers, &agent, &bundle, services_max, now));
        judging
            .await
            .map_err(|error| LineEnd::Io(io::Error::other(error)))
    }

    /// The next message that this build knows; others are skipped.
    fn next_message(&mut self) -> Result<Option<ControlMessage>, LineEnd> {
        loop {
            let frame = self
                .decoder
                .next_frame()
                .map_err(|error| LineEnd::Malformed(error.to_string()))?;
            let Some(frame) = frame else { return Ok(None) };
            match decode_control(&frame).map_err(|error| LineEnd::Malformed(error.to_string()))? {
                Some(message) => return Ok(Some(message)),
                None => {
                    tracing::debug!(agent = %self.agent.peer.id, "a message of an unknown kind is skipped")
                }
            }
        }
    }

    /// An agent that does not read holds up nothing but itself: a cut does not wait for it. A line that was replaced
    /// finishes its message, because more may follow.
    async fn send(&mut self, message: ControlMessage) -> Result<(), LineEnd> {
        let (cut, end) = (self.cut.clone(), self.door.end.clone());
        let cut = async {
            let reason = cut.cancelled().await;
            if *reason == *REPLACED {
                std::future::pending::<()>().await;
            }
            reason
        };
        tokio::select! {
            biased;
            reason = cut => Err(LineEnd::Cut(reason)),
            reason = end.cancelled() => Err(LineEnd::Cut(reason)),
            delivered = self.deliver(message) => delivered,
        }
    }

    async fn deliver(&mut self, message: ControlMessage) -> Result<(), LineEnd> {
        let frame = encode_control(message).map_err(|error| LineEnd::Malformed(error.to_string()))?;
        let write = async {
            self.writer.write_all(&frame).await?;
            self.writer.flush().await
        };
        match tokio::time::timeout(self.door.limits.now().control_silence_seconds_max, write).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(LineEnd::Silent),
        }
    }
}

/// An agent on the switchboard. Dropping it takes the agent off, also where its line's task ends before its time.
struct OnLine<'a> {
    board: &'a Switchboard,
    agent: AgentId,
    number: LineNumber,
}

impl Drop for OnLine<'_> {
    fn drop(&mut self) {
        self.board.disconnect(&self.agent, self.number);
    }
}

/// Loses nothing when it is dropped half-way: bytes are in the decoder or still in the socket. A line is idle nearly
/// always, and waits without a buffer.
async fn read_some<S: AsyncRead>(
    reader: &mut ReadHalf<S>,
    decoder: &mut LengthPrefixed,
) -> Result<(), LineEnd> {
    poll_fn(|context| {
        let mut bytes = [0; READ_BYTES];
        let mut space = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut *reader).poll_read(context, &mut space))?;
        match space.filled() {
            [] => Poll::Ready(Err(LineEnd::Closed)),
            some => {
                decoder.push(some);
                Poll::Ready(Ok(()))
            }
        }
    })
    .await
}

/// A moment longer than the certificate lives, so that it has expired when the sleep is over.
fn until(not_after: OffsetDateTime) -> std::time::Duration {
    let left = not_after - OffsetDateTime::now_utc() + time::Duration::seconds(1);
    std::time::Duration::try_from(left).unwrap_or_default()
}
