//! What `/metrics` counts.

use iap_runtime::traces::SpanCounts;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::recordings::RecordingCounts;

/// The counters; clones count into the same.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    connections: Family<[(&'static str, &'static str); 1], Counter>,
    calls: Family<[(&'static str, &'static str); 2], Counter>,
    watchers: Gauge,
    trace_spans: SpanCounts,
    recordings: RecordingCounts,
}

impl Metrics {
    /// Counters that appear in `registry`, those of spans, recordings and alarms among them.
    pub fn register(
        registry: &mut Registry,
        trace_spans: SpanCounts,
        recordings: RecordingCounts,
        alarms: Counter,
    ) -> Self {
        let metrics = Self {
            trace_spans,
            recordings,
            ..Self::default()
        };
        registry.register(
            "iap_auth_connections",
            "Connections by what became of them",
            metrics.connections.clone(),
        );
        registry.register(
            "iap_auth_calls",
            "Calls of the API by outcome at the gate",
            metrics.calls.clone(),
        );
        registry.register(
            "iap_auth_watchers",
            "Agents and proxies on the feed",
            metrics.watchers.clone(),
        );
        registry.register(
            "iap_auth_trace_spans",
            "Spans by what became of them",
            metrics.trace_spans.family(),
        );
        registry.register(
            "iap_auth_audit_alarms",
            "Records of agents that were refused, or fit no chain",
            alarms,
        );
        registry.register(
            "iap_auth_recordings_bytes",
            "Recordings that are kept, in bytes",
            metrics.recordings.bytes.clone(),
        );
        registry.register(
            "iap_auth_recordings_refused",
            "Parts of recordings that there was no room for",
            metrics.recordings.refused.clone(),
        );
        registry.register(
            "iap_auth_recordings_erased",
            "Recordings that were erased",
            metrics.recordings.erased.clone(),
        );
        metrics
    }

    /// A connection came to this.
    pub fn connection(&self, outcome: &'static str) {
        self.connections.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// A call of the table's path came to this at the gate.
    pub fn call(&self, path: &'static str, outcome: &'static str) {
        self.calls
            .get_or_create(&[("call", path), ("outcome", outcome)])
            .inc();
    }

    /// So many follow the feed.
    pub fn watchers(&self, count: usize) {
        self.watchers.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
