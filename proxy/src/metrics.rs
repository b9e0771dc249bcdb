//! What the proxy counts. Names and reasons here are the interface of `/metrics`.

use std::ops::Deref;
use std::sync::Arc;

use iap_runtime::traces::SpanCounts;
use iap_tunnel::{ControlWay, DataWay};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

type Label = [(&'static str, &'static str); 1];

/// The counters of one proxy. Clones share them; a session holds several, so each is a pointer.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Counters>);

/// What is counted.
#[derive(Debug, Default)]
pub struct Counters {
    routed: Family<Label, Counter>,
    refused: Family<Label, Counter>,
    dial_backs: Family<Label, Counter>,
    verdicts: Family<Label, Counter>,
    bytes: Family<Label, Counter>,
    feed: Family<Label, Counter>,
    /// Connections that have not yet said where they want to go.
    pub waiting: Gauge,
    /// Connections routed to an agent or the auth server.
    pub sessions: Gauge,
    /// Agents with a control connection.
    pub agents: Gauge,
    lines: Family<Label, Gauge>,
    fetched: Family<Label, Counter>,
    pooled: Family<Label, Counter>,
    /// Connections that agents dialled in advance and that wait for a client.
    pub pool_idle: Gauge,
    /// Spans.
    pub trace_spans: SpanCounts,
}

impl Deref for Metrics {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.0
    }
}

/// Where a connection went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To the auth server.
    Auth,
    /// To an agent.
    Agent,
    /// Ended here: a control connection.
    Control,
}

/// Why a connection was turned away. One reason, one count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Too many connections wait, here or from this source.
    TooManyWaiting,
    /// It waited longest when another needed its place.
    GaveWay,
    /// Too many connections are routed, here or from this source.
    TooManyConnections,
    /// The source failed to authenticate too often.
    SourceThrottled,
    /// It said nothing in time.
    TimedOut,
    /// It closed before it said where it wants to go.
    ClosedEarly,
    /// The first byte belongs to no protocol spoken here.
    UnknownProtocol,
    /// A PROXY header from somebody not listed, or malformed.
    ProxyHeader,
    /// A PostgreSQL client that will not speak TLS, or somebody who stuffs bytes.
    PostgresPreamble,
    /// A plaintext request to cancel a query.
    PostgresCancel,
    /// Not a ClientHello, or one that is too long.
    ClientHello,
    /// No server name.
    NoServerName,
    /// A server name that is none of this cluster's.
    UnknownName,
    /// A reserved name.
    ReservedName,
    /// Not a name at all.
    MalformedName,
    /// No connected agent serves the name.
    NoAgent,
    /// Agents serve the name, but none dialled back.
    NoDialBack,
    /// Too many connections wait for an agent.
    TooManyPending,
    /// The auth server cannot be reached.
    AuthUnreachable,
    /// A dial-back that brings no valid token.
    DialBack,
    /// A connection dialled in advance that brings no valid token.
    Pool,
    /// Somebody at `proxy.<cluster>` who is no agent of ours.
    Control,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 21] = [
        Self::TooManyWaiting,
        Self::TooManyConnections,
        Self::SourceThrottled,
        Self::TimedOut,
        Self::ClosedEarly,
        Self::UnknownProtocol,
        Self::ProxyHeader,
        Self::PostgresPreamble,
        Self::PostgresCancel,
        Self::ClientHello,
        Self::NoServerName,
        Self::UnknownName,
        Self::ReservedName,
        Self::MalformedName,
        Self::NoAgent,
        Self::NoDialBack,
        Self::TooManyPending,
        Self::AuthUnreachable,
        Self::DialBack,
        Self::Pool,
        Self::Control,
    ];

    /// The `reason` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooManyWaiting => "too_many_waiting",
            Self::GaveWay => "gave_way",
            Self::TooManyConnections => "too_many_connections",
            Self::SourceThrottled => "source_throttled",
            Self::TimedOut => "timed_out",
            Self::ClosedEarly => "closed_early",
            Self::UnknownProtocol => "unknown_protocol",
            Self::ProxyHeader => "proxy_header",
            Self::PostgresPreamble => "postgres_preamble",
            Self::PostgresCancel => "postgres_cancel",
            Self::ClientHello => "client_hello",
            Self::NoServerName => "no_server_name",
            Self::UnknownName => "unknown_name",
            Self::ReservedName => "reserved_name",
            Self::MalformedName => "malformed_name",
            Self::NoAgent => "no_agent",
            Self::NoDialBack => "no_dial_back",
            Self::TooManyPending => "too_many_pending",
            Self::AuthUnreachable => "auth_unreachable",
            Self::DialBack => "dial_back",
            Self::Pool => "pool",
            Self::Control => "control",
        }
    }
}

/// What became of a request to dial back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialBackOutcome {
    /// The agent came.
    Arrived,
    /// The agent said no.
    Refused,
    /// The agent did not come in time.
    TimedOut,
    /// The agent's control connection ended, or takes no more messages.
    AgentLost,
    /// Another agent, asked later, was there before this one.
    Overtaken,
}

impl DialBackOutcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [
        Self::Arrived,
        Self::Refused,
        Self::TimedOut,
        Self::AgentLost,
        Self::Overtaken,
    ];

    /// The `outcome` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Arrived => "arrived",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::AgentLost => "agent_lost",
            Self::Overtaken => "overtaken",
        }
    }
}

impl Metrics {
    /// Counters, registered under their names.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("iap_proxy");
        registry.register(
            "connections_routed",
            "Connections routed, by destination",
            metrics.routed.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections turned away, by reason",
            metrics.refused.clone(),
        );
        registry.register(
            "dial_backs",
            "Requests to agents to dial back, by outcome",
            metrics.dial_backs.clone(),
        );
        registry.register(
            "verdicts",
            "Agents' verdicts on clients, by outcome",
            metrics.verdicts.clone(),
        );
        let bytes = "Bytes moved; in is client to agent";
        registry.register_with_unit("moved", bytes, Unit::Bytes, metrics.bytes.clone());
        registry.register(
            "feed_events",
            "Objects received from the auth server, by outcome",
            metrics.feed.clone(),
        );
        registry.register(
            "connections_waiting",
            "Connections not yet routed",
            metrics.waiting.clone(),
        );
        registry.register("sessions", "Connections routed now", metrics.sessions.clone());
        registry.register("agents", "Agents connected now", metrics.agents.clone());
        registry.register(
            "control_connections",
            "Control connections of agents now, by what they run over",
            metrics.lines.clone(),
        );
        registry.register(
            "sessions_fetched",
            "Clients that an agent came for, by what it came over",
            metrics.fetched.clone(),
        );
        registry.register(
            "pool",
            "Clients that were put on a connection dialled in advance, by outcome",
            metrics.pooled.clone(),
        );
        registry.register(
            "pool_connections",
            "Connections dialled in advance that wait for a client",
            metrics.pool_idle.clone(),
        );
        registry.register(
            "trace_spans",
            "Spans by what became of them",
            metrics.trace_spans.family(),
        );
        metrics.begin_at_zero();
        metrics
    }

    /// A counter that appears with its first event hides that event from `increase()`, on which alerts are built.
    fn begin_at_zero(&self) {
        for reason in Refusal::ALL {
            drop(self.refused.get_or_create(&[("reason", reason.as_str())]));
        }
        for outcome in DialBackOutcome::ALL {
            drop(self.dial_backs.get_or_create(&[("outcome", outcome.as_str())]));
        }
        for accepted in [true, false] {
            drop(self.feed.get_or_create(&feed_label(accepted)));
            drop(self.verdicts.get_or_create(&verdict_label(accepted)));
        }
        for way in ControlWay::ALL {
            self.control_connections(way);
        }
        for way in DataWay::ALL {
            drop(self.fetched.get_or_create(&[("way", way.as_str())]));
        }
        for answered in [true, false] {
            drop(self.pooled.get_or_create(&pool_label(answered)));
        }
    }

    /// Control connections over `way` now.
    pub fn control_connections(&self, way: ControlWay) -> Gauge {
        self.lines.get_or_create(&[("way", way.as_str())]).clone()
    }

    /// A connection found its way.
    pub fn routed(&self, destination: Destination) {
        let destination = match destination {
            Destination::Auth => "auth",
            Destination::Agent => "agent",
            Destination::Control => "control",
        };
        self.routed.get_or_create(&[("destination", destination)]).inc();
    }

    /// A connection was turned away.
    pub fn refused(&self, reason: Refusal) {
        self.refused.get_or_create(&[("reason", reason.as_str())]).inc();
    }

    /// How often connections were turned away for this reason.
    pub fn refusals(&self, reason: Refusal) -> u64 {
        self.refused.get_or_create(&[("reason", reason.as_str())]).get()
    }

    /// A request to dial back came to its end.
    pub fn dial_back(&self, outcome: DialBackOutcome) {
        self.dial_backs
            .get_or_create(&[("outcome", outcome.as_str())])
            .inc();
    }

    /// An agent came for a client.
    pub fn fetched(&self, way: DataWay) {
        self.fetched.get_or_create(&[("way", way.as_str())]).inc();
    }

    /// How often agents came for clients over `way`.
    pub fn fetches(&self, way: DataWay) -> u64 {
        self.fetched.get_or_create(&[("way", way.as_str())]).get()
    }

    /// A client was put on a connection dialled in advance, and its agent was there or was not.
    pub fn pooled(&self, answered: bool) {
        self.pooled.get_or_create(&pool_label(answered)).inc();
    }

    /// How often that was.
    pub fn pool_outcomes(&self, answered: bool) -> u64 {
        self.pooled.get_or_create(&pool_label(answered)).get()
    }

    /// An agent judged a client.
    pub fn verdict(&self, authenticated: bool) {
        self.verdicts.get_or_create(&verdict_label(authenticated)).inc();
    }

    /// A session ended.
    pub fn moved(&self, bytes_in: u64, bytes_out: u64) {
        self.bytes.get_or_create(&[("direction", "in")]).inc_by(bytes_in);
        self.bytes
            .get_or_create(&[("direction", "out")])
            .inc_by(bytes_out);
    }

    /// Something came from the auth server.
    pub fn feed(&self, accepted: bool) {
        self.feed.get_or_create(&feed_label(accepted)).inc();
    }

    /// How often something came from the auth server that was believed, or was not.
    pub fn feed_events(&self, accepted: bool) -> u64 {
        self.feed.get_or_create(&feed_label(accepted)).get()
    }
}

fn pool_label(answered: bool) -> Label {
    [("outcome", if answered { "answered" } else { "missed" })]
}

fn verdict_label(authenticated: bool) -> Label {
    [("outcome", if authenticated { "authenticated" } else { "failed" })]
}

fn feed_label(accepted: bool) -> Label {
    [("outcome", if accepted { "accepted" } else { "refused" })]
}

/// Counts one while it lives.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    /// Adds one to the gauge.
    pub fn on(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
