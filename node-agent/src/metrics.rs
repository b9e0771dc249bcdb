//! Counters for `/metrics`. Labels come from closed lists: no user, service or address is among them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use iap_runtime::pump::Counters;
use iap_runtime::traces::SpanCounts;
use iap_tunnel::{ControlWay, DataWay};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why a connection is not fetched.
pub const OPENS_REFUSED: [&str; 3] = [STOPPING, SESSIONS_MAX, HANDSHAKES_MAX];
/// The agent was asked to end.
pub const STOPPING: &str = "the agent stops";
/// As many sessions live as may.
pub const SESSIONS_MAX: &str = "limits.sessions_max is reached";
/// As many connections wait for their client's proof as may.
pub const HANDSHAKES_MAX: &str = "limits.handshakes_max is reached";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WayLabel {
    way: &'static str,
}

/// The agent's counters. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    sessions: Counter,
    session_resumes: Counter,
    sessions_taken_over: Counter,
    sessions_live: Gauge,
    bytes: Family<DirectionLabel, Counter>,
    denials: Family<Reason, Counter>,
    handshake_failures: Family<Reason, Counter>,
    opens_refused: Family<Reason, Counter>,
    control_connections: Gauge,
    control_ways: Family<WayLabel, Gauge>,
    fetched: Family<WayLabel, Counter>,
    fetch_failures: Family<WayLabel, Counter>,
    pool_used: Counter,
    feed_age_seconds: Gauge<f64, AtomicU64>,
    clock_offset_seconds: Gauge<f64, AtomicU64>,
    spool_records: Gauge,
    audit_gaps: Counter,
    credentials: Gauge,
    credentials_missed: Counter,
    credential_fetch_failures: Counter,
    trace_spans: SpanCounts,
}

impl Metrics {
    /// Counters at zero, registered.
    #[must_use]
    pub fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let inner = &metrics.0;
        let all = registry.sub_registry_with_prefix("iap_agent");
        all.register("sessions", "Sessions started", inner.sessions.clone());
        all.register(
            "session_resumes",
            "Clients that came back to their session over another connection",
            inner.session_resumes.clone(),
        );
        all.register(
            "sessions_taken_over",
            "Sessions of the agent's predecessor that go on",
            inner.sessions_taken_over.clone(),
        );
        all.register(
            "sessions_live",
            "Sessions running now",
            inner.sessions_live.clone(),
        );
        all.register(
            "session_bytes",
            "Bytes of ended sessions; in is client to backend",
            inner.bytes.clone(),
        );
        all.register(
            "denials",
            "Sessions refused to proven callers",
            inner.denials.clone(),
        );
        all.register(
            "handshake_failures",
            "Connections that ended before a caller was proven, or were refused by an alert",
            inner.handshake_failures.clone(),
        );
        all.register(
            "opens_refused",
            "Connections not fetched for a limit",
            inner.opens_refused.clone(),
        );
        all.register(
            "control_connections",
            "Proxies connected now",
            inner.control_connections.clone(),
        );
        all.register(
            "control_ways",
            "Proxies connected now, by what their control connection runs over",
            inner.control_ways.clone(),
        );
        all.register(
            "fetched",
            "Clients fetched from proxies, by what they came over",
            inner.fetched.clone(),
        );
        all.register(
            "fetch_failures",
            "Attempts to fetch a client that failed, by what it was to come over",
            inner.fetch_failures.clone(),
        );
        all.register(
            "pool_used",
            "Clients that came on a connection dialled in advance",
            inner.pool_used.clone(),
        );
        all.register(
            "feed_age_seconds",
            "Time since the newest beat",
            inner.feed_age_seconds.clone(),
        );
        all.register(
            "clock_offset_seconds",
            "This host's clock minus the auth server's, at the newest beat",
            inner.clock_offset_seconds.clone(),
        );
        all.register(
            "spool_records",
            "Audit records not yet acknowledged",
            inner.spool_records.clone(),
        );
        all.register(
            "audit_gaps",
            "Audit records that could not be written",
            inner.audit_gaps.clone(),
        );
        all.register(
            "credentials",
            "Certificates held for logins to backends",
            inner.credentials.clone(),
        );
        all.register(
            "credentials_missed",
            "Logins to backends for which no certificate was held when one was wanted",
            inner.credentials_missed.clone(),
        );
        all.register(
            "credential_fetch_failures",
            "Attempts to get certificates for backends that failed",
            inner.credential_fetch_failures.clone(),
        );
        all.register(
            "trace_spans",
            "Spans by what became of them",
            inner.trace_spans.family(),
        );
        // A counter that appears with its first event hides that event from `increase()`.
        for reason in OPENS_REFUSED {
            drop(inner.opens_refused.get_or_create(&Reason { reason }));
        }
        for way in DataWay::ALL {
            let label = WayLabel { way: way.as_str() };
            drop(inner.fetched.get_or_create(&label));
            drop(inner.fetch_failures.get_or_create(&label));
        }
        metrics
    }

    /// A session is recorded and about to dial.
    pub fn session_started(&self) {
        self.0.sessions.inc();
        self.0.sessions_live.inc();
    }

    /// A session of the predecessor goes on.
    pub fn session_taken_over(&self) {
        self.0.sessions_taken_over.inc();
        self.0.sessions_live.inc();
    }

    /// A session's client came back.
    pub fn session_resumed(&self) {
        self.0.session_resumes.inc();
    }

    /// A session is over.
    pub fn session_ended(&self, counters: &Counters) {
        self.0.sessions_live.dec();
        self.bytes("in").inc_by(counters.bytes_in());
        self.bytes("out").inc_by(counters.bytes_out());
    }

    /// A proven caller was refused.
    pub fn denied(&self, reason: &'static str) {
        self.0.denials.get_or_create(&Reason { reason }).inc();
    }

    /// A connection ended before its session.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.0.handshake_failures.get_or_create(&Reason { reason }).inc();
    }

    /// A connection was not fetched.
    pub fn open_refused(&self, reason: &'static str) {
        self.0.opens_refused.get_or_create(&Reason { reason }).inc();
    }

    /// How many proxies are connected.
    pub fn control_connections(&self, count: usize) {
        self.0
            .control_connections
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How many of them over `way`.
    pub fn control_way(&self, way: ControlWay, count: usize) {
        let label = WayLabel { way: way.as_str() };
        let gauge = self.0.control_ways.get_or_create(&label).clone();
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A client came over `way`.
    pub fn fetched(&self, way: DataWay) {
        let label = WayLabel { way: way.as_str() };
        self.0.fetched.get_or_create(&label).inc();
    }

    /// A client did not come over `way`.
    pub fn not_fetched(&self, way: DataWay) {
        let label = WayLabel { way: way.as_str() };
        self.0.fetch_failures.get_or_create(&label).inc();
    }

    /// A client came on a connection dialled in advance.
    pub fn pool_used(&self) {
        self.0.pool_used.inc();
    }

    /// How old the feed is.
    pub fn feed_age(&self, age: std::time::Duration) {
        self.0.feed_age_seconds.set(age.as_secs_f64());
    }

    /// This host's clock minus the auth server's.
    pub fn clock_offset(&self, offset: time::Duration) {
        self.0.clock_offset_seconds.set(offset.as_seconds_f64());
    }

    /// How many records wait.
    pub fn spool_records(&self, count: u64) {
        self.0.spool_records.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How many certificates for logins to backends are held.
    pub fn credentials_held(&self, count: usize) {
        self.0.credentials.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// None was held for a login that was wanted.
    pub fn credential_missed(&self) {
        self.0.credentials_missed.inc();
    }

    /// Certificates for backends did not come.
    pub fn credential_fetch_failed(&self) {
        self.0.credential_fetch_failures.inc();
    }

    /// The counters of spans.
    #[must_use]
    pub fn trace_spans(&self) -> &SpanCounts {
        &self.0.trace_spans
    }

    /// Records that could not be written.
    pub fn audit_gaps(&self, count: u64) {
        self.0.audit_gaps.inc_by(count);
    }

    fn bytes(&self, direction: &'static str) -> Counter {
        self.0.bytes.get_or_create(&DirectionLabel { direction }).clone()
    }
}
