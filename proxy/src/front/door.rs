//! Accepting connections and sending each where it belongs.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iap_identity::{Anchor, ServerName, TraceId};
use iap_runtime::net;
use iap_runtime::pump::{Cancellation, Closed};
use iap_runtime::say_seldom;
use iap_runtime::seldom::Seldom;
use iap_runtime::shutdown::Shutdown;
use iap_runtime::tls::AlertDescription;
use iap_runtime::traces::{Kind, Mark, Recorder, Root, Traces};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::data::DataStream;
use super::fetch::{FetchError, Fetched, Fetcher};
use super::forward::AuthDialer;
use super::greet::{Client, Greeting, Refused, Rules};
use super::session;
use crate::admission::{Admission, NotRouted, RoutedPlace, Source, WaitingPlace};
use crate::control::ControlDoor;
use crate::metrics::{Counted, Destination, Metrics, Refusal};
use crate::switchboard::Slot;
use crate::trust::Trust;
use crate::verdict;

/// A connection to an agent, as the proxy sees it: no other span is above it.
const CONNECT: Root = Root {
    anchor: Some(Anchor::Proxy),
    parent: None,
    name: "connect",
    kind: Kind::Server,
};
/// A verdict travels on another connection than the session's last bytes and may come after them.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything behind the public port.
pub(crate) struct Door {
    pub(crate) rules: Rules,
    pub(crate) admission: Admission,
    pub(crate) fetcher: Fetcher,
    pub(crate) auth: AuthDialer,
    pub(crate) control: ControlDoor,
    pub(crate) trust: watch::Receiver<Arc<Trust>>,
    pub(crate) metrics: Metrics,
    /// Whether it is time to say who was.
    pub(crate) turned_away: Seldom,
    pub(crate) traces: Traces,
    /// Cuts every session when the drain's time is over.
    pub(crate) end: Cancellation,
}

impl Door {
    /// Accepts until the shutdown. Connections are tracked by `shutdown` and outlive this.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener, shutdown: Shutdown) {
        loop {
            let (stream, peer) = tokio::select! {
                accepted = net::accept(&listener) => accepted,
                () = shutdown.cancelled() => return,
            };
            self.enter(stream, peer, &shutdown);
        }
    }

    fn enter(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, shutdown: &Shutdown) {
        let source = (!self.rules.is_balancer(peer)).then(|| Source::of(peer.ip()));
        let accepted = Instant::now();
        match self.admission.admit(source, accepted) {
            Ok(place) => {
                let door = Arc::clone(self);
                let seen = shutdown.clone();
                // What leads to the two ends is large, and gone before they rest.
                let leading = Box::pin(async move { door.lead(stream, peer, accepted, place, seen).await });
                shutdown.spawn(async move {
                    if let Some(mut joined) = leading.await {
                        let closed = joined.relay().await;
                        Box::pin(joined.conclude(Ok(closed))).await;
                    }
                });
            }
            Err(reason) => self.metrics.refused(reason),
        }
    }

    /// From the first byte to the two ends between which bytes are to move; nothing where there are none.
    async fn lead(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        accepted: Instant,
        place: WaitingPlace,
        shutdown: Shutdown,
    ) -> Option<Box<Joined>> {
        let waiting = Counted::on(&self.metrics.waiting);
        let mut place = place;
        if let Err(error) = net::tune(&stream) {
            tracing::debug!(%peer, %error, "cannot tune the socket");
        }
        let gave_way = place.gave_way();
        let known = |client: SocketAddr| place.attribute(Source::of(client.ip()), Instant::now());
        let greeting = tokio::select! {
            greeting = Box::pin(self.rules.greet(stream, peer, known)) => greeting,
            () = gave_way => {
                self.metrics.refused(Refusal::GaveWay);
                return None;
            }
            _ = self.end.cancelled() => return None,
        };
        drop(waiting);
        match greeting {
            // Boxed, as all that follows: an agent's line rests here.
            Ok(Greeting::Client(client)) => {
                return Box::pin(self.client(client, accepted, place, shutdown)).await;
            }
            Ok(Greeting::DialBack(stream, preface)) => {
                let (now, stream) = (OffsetDateTime::now_utc(), DataStream::Tcp(stream));
                if let Err(error) = self.fetcher.board.redeem(now, &preface, None, stream) {
                    tracing::debug!(%peer, %error, "a dial-back is refused");
                    self.metrics.refused(Refusal::DialBack);
                }
            }
            Ok(Greeting::Pooled(stream, preface)) => {
                let until = OffsetDateTime::now_utc() + self.fetcher.limits.now().pool_idle_seconds_max;
                if let Err(error) = self.fetcher.board.enter_pool(&preface, stream, until) {
                    tracing::debug!(%peer, %error, "a connection dialled in advance is refused");
                    self.metrics.refused(Refusal::Pool);
                }
            }
            // Answered by closing, whatever becomes of it.
            Ok(Greeting::Cancel(stream, request)) => {
                if !self.fetcher.board.cancel(&request) {
                    self.metrics.refused(Refusal::PostgresCancel);
                }
                drop(stream);
            }
            Err(refused) => {
                Box::pin(place.hold_for(self.turn_away(refused, peer))).await;
            }
        }
        None
    }

    async fn client(
        self: Arc<Self>,
        client: Client,
        accepted: Instant,
        place: WaitingPlace,
        shutdown: Shutdown,
    ) -> Option<Box<Joined>> {
        if client.name == ServerName::Proxy {
            // An agent's line is counted by limits.agents_max; it waits until it has said hello.
            let gave_way = place.gave_way();
            tokio::select! {
                () = Box::pin(self.control.serve(client, place, shutdown)) => {}
                () = gave_way => self.metrics.refused(Refusal::GaveWay),
            }
            return None;
        }
        let place = match place.route(Source::of(client.address.ip()), Instant::now()) {
            Ok(routed) => routed,
            Err(NotRouted { reason, place }) => {
                let farewell = self.refuse(client, reason, "limits.connections_max");
                Box::pin(place.hold_for(farewell)).await;
                return None;
            }
        };
        let counted = Counted::on(&self.metrics.sessions);
        match &client.name {
            ServerName::Cluster | ServerName::Auth | ServerName::Proxy => {
                Box::pin(self.to_auth(client, place, counted)).await
            }
            ServerName::Service(_) | ServerName::Agent(_) => {
                let recorder = self.traces.begin(accepted);
                recorder.phase("peek", Mark::at(accepted), |_| {});
                Box::pin(self.to_agent(client, place, counted, recorder)).await
            }
        }
    }

    async fn to_auth(
        self: Arc<Self>,
        client: Client,
        place: RoutedPlace,
        counted: Counted,
    ) -> Option<Box<Joined>> {
        let mut stream = match Box::pin(self.auth.dial(client.address)).await {
            Ok(stream) => stream,
            Err(error) => {
                let detail = error.to_string();
                Box::pin(self.refuse(client, Refusal::AuthUnreachable, &detail)).await;
                return None;
            }
        };
        self.metrics.routed(Destination::Auth);
        let replayed = session::replay(&mut stream, client.hello, &self.end).await;
        let joined = Joined {
            door: self,
            client: client.stream,
            other: Other::Auth(stream),
            name: client.name,
            address: client.address,
            recorder: Recorder::off(),
            relaying_since: Recorder::off().mark(),
            _place: place,
            _counted: counted,
        };
        joined.unless(replayed).await
    }

    async fn to_agent(
        self: Arc<Self>,
        client: Client,
        place: RoutedPlace,
        counted: Counted,
        recorder: Recorder,
    ) -> Option<Box<Joined>> {
        if self.admission.is_throttled(place.source(), Instant::now()) {
            let limit = "limits.failures_per_source_per_minute_max";
            Box::pin(self.refuse(client, Refusal::SourceThrottled, limit)).await;
            return None;
        }
        let fetching = Box::pin(self.fetcher.fetch(&client, place.source(), &recorder));
        let fetched = tokio::select! {
            fetched = fetching => fetched,
            _ = self.end.cancelled() => return None,
        };
        let Fetched {
            mut stream,
            mut slot,
            has_hello,
        } = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                let reason = self.refusal(&client.name, error);
                Box::pin(self.refuse(client, reason, &error.to_string())).await;
                return None;
            }
        };
        self.metrics.routed(Destination::Agent);
        slot.is_joined = true;
        let relaying_since = recorder.mark();
        let replayed = match has_hello {
            true => Ok(()),
            false => session::replay_to_agent(&mut stream, client.hello, &slot).await,
        };
        let joined = Joined {
            door: self,
            client: client.stream,
            other: Other::Agent(stream, slot),
            name: client.name,
            address: client.address,
            recorder,
            relaying_since,
            _place: place,
            _counted: counted,
        };
        joined.unless(replayed).await
    }

    /// Strangers make no spans: only a connection whose client proved who it is becomes a trace. Its id is the
    /// connection's, which the agent was told too.
    async fn trace(&self, recorder: &Recorder, name: &ServerName, slot: &Slot, closed: &io::Result<Closed>) {
        let trace = TraceId::of_connection(slot.connection_id());
        let ended = recorder.mark();
        if !trace.is_some_and(|trace| self.traces.takes(&trace))
            || !slot.verdict.is_proven(VERDICT_TIMEOUT).await
        {
            return;
        }
        recorder.finish_as(trace, CONNECT, ended, |details| {
            if let ServerName::Service(service) = name {
                details.text("iap.service", service);
            }
            details.text("iap.agent", slot.agent());
            match closed {
                Ok(closed) => {
                    details.number("iap.bytes_in", closed.bytes_in);
                    details.number("iap.bytes_out", closed.bytes_out);
                    details.text("iap.close_reason", closed.reason.as_str());
                }
                Err(_) => details.failed("the agent left before the first byte"),
            }
        });
    }

    /// A name that no agent serves is unknown unless the snapshot has such a service.
    fn refusal(&self, name: &ServerName, error: FetchError) -> Refusal {
        let ServerName::Service(service) = name else {
            return error.refusal();
        };
        let trust = self.trust.borrow();
        let known = trust.snapshot.as_ref().map(|snapshot| {
            snapshot
                .services
                .iter()
                .any(|record| record.facts.name == *service)
        });
        match (error, known) {
            (FetchError::NoAgent, Some(false)) => Refusal::UnknownName,
            (error, Some(true | false) | None) => error.refusal(),
        }
    }

    async fn refuse(&self, client: Client, reason: Refusal, detail: &str) {
        let alert = match reason {
            Refusal::UnknownName => AlertDescription::UnrecognisedName,
            _ => AlertDescription::InternalError,
        };
        let (address, name) = (client.address, &client.name);
        say_seldom!(self.turned_away, info, client = %address, ?name, reason = reason.as_str(), detail, "turned away");
        self.metrics.refused(reason);
        Box::pin(session::turn_away(client.stream, Some(alert))).await;
    }

    async fn turn_away(&self, refused: Refused, peer: SocketAddr) {
        let Refused {
            reason,
            detail,
            alert,
            stream,
        } = refused;
        tracing::debug!(%peer, reason = reason.as_str(), detail, "turned away");
        self.metrics.refused(reason);
        if let Some(stream) = stream {
            Box::pin(session::turn_away(stream, alert)).await;
        }
    }
}

/// A connection with both its ends, between which bytes move.
struct Joined {
    door: Arc<Door>,
    client: TcpStream,
    other: Other,
    name: ServerName,
    address: SocketAddr,
    recorder: Recorder,
    relaying_since: Mark,
    _place: RoutedPlace,
    _counted: Counted,
}

/// Where a client belongs.
enum Other {
    Auth(TcpStream),
    Agent(DataStream, Slot),
}

impl Joined {
    /// Nothing where the other side left before it had the client's first bytes.
    async fn unless(self, replayed: io::Result<()>) -> Option<Box<Self>> {
        match replayed {
            Ok(()) => Some(Box::new(self)),
            Err(error) => {
                self.conclude(Err(error)).await;
                None
            }
        }
    }

    async fn relay(&mut self) -> Closed {
        match &mut self.other {
            Other::Auth(auth) => {
                Box::pin(session::relay(
                    &mut self.client,
                    auth,
                    &verdict::Unproven,
                    &self.door.end,
                ))
                .await
            }
            Other::Agent(agent, slot) => session::join(&mut self.client, agent, slot).await,
        }
    }

    /// Closes both ends, and says what there was.
    async fn conclude(self, closed: io::Result<Closed>) {
        drop(self.client);
        if let Other::Agent(stream, slot) = self.other {
            drop(stream);
            if self.recorder.is_on() {
                self.recorder.phase("relay", self.relaying_since, |_| {});
                let traced = self.door.trace(&self.recorder, &self.name, &slot, &closed);
                traced.await;
            }
        }
        let (name, client) = (&self.name, self.address);
        match closed {
            Ok(closed) => {
                self.door.metrics.moved(closed.bytes_in, closed.bytes_out);
                tracing::debug!(%client, ?name, closed.bytes_in, closed.bytes_out, reason = ?closed.reason, "closed");
            }
            Err(error) => {
                tracing::debug!(%client, ?name, %error, "the other side left before the first byte")
            }
        }
    }
}
