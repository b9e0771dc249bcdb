//! OTLP traces: what each program did for one connection, sent to a collector beside the work and never on its path.
//!
//! Off unless configured, and then a [`Recorder`] is an empty pointer that reads no clock. On, it notes when each step
//! began and ended; spans are made of that afterwards and put into a bounded queue, from which one task sends them. A
//! span that finds the queue full, or a collector that does not take it, is counted and lost.
//!
//! Trace ids are ids that the plane drew itself ([`TraceId`]); no program takes one from outside, and the share that is
//! recorded is decided from the id's own bits ([`SampleRatio`]).

mod export;
mod settings;
mod span;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use iap_identity::{Anchor, SampleRatio, SpanId, TraceId};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::{mpsc, oneshot};

use export::{Exporter, Order};
pub use export::{QUEUE_SPANS_MAX, SPANS_PER_SECOND_MAX, StartError};
pub use settings::{EnvironmentError, Settings, TracesSection};
pub use span::{Details, Kind, Value};
use span::{Phase, Span};

/// Steps of one trace; what comes later is not noted.
const PHASES_MAX: usize = 32;
/// What `Traces::finish` may take of a server's end.
pub const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Which program the spans are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its name: `iap-proxy`.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The id it goes by, where it has one.
    pub instance: Option<String>,
    /// Its cluster, where there is only one.
    pub cluster: Option<String>,
}

/// How many spans came to what. Clones share the numbers.
#[derive(Debug, Clone)]
pub struct SpanCounts(Family<[(&'static str, &'static str); 1], Counter>);

/// What becomes of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The collector has it.
    Sent,
    /// The queue was full.
    Dropped,
    /// The collector was not reached, or refused it.
    Failed,
}

/// Where spans go. Clones share the queue. The default is off.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Sink>>);

#[derive(Debug)]
struct Sink {
    ratio: SampleRatio,
    orders: mpsc::Sender<Order>,
    counts: SpanCounts,
}

/// Notes the steps of one trace. Clones note into the same. Off, it costs a pointer and reads no clock.
#[derive(Debug, Clone, Default)]
pub struct Recorder(Option<Arc<Recording>>);

/// When something began.
#[derive(Debug, Clone, Copy)]
pub struct Mark(Option<Instant>);

#[derive(Debug)]
struct Recording {
    sink: Arc<Sink>,
    trace: Option<TraceId>,
    began: Instant,
    began_at: SystemTime,
    phases: Mutex<Vec<Phase>>,
}

/// The span that a recorder's steps belong to.
#[derive(Debug, Clone, Copy)]
pub struct Root {
    /// What its id is made of; without one it is drawn.
    pub anchor: Option<Anchor>,
    /// The span above it in the same trace.
    pub parent: Option<Anchor>,
    /// What it is called.
    pub name: &'static str,
    /// Which side of a call it is.
    pub kind: Kind,
}

impl Traces {
    /// No spans.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// Sends spans as `settings` say, from a task of its own; without settings, off. Has to be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// When a file that the settings name cannot be used.
    pub fn start(
        settings: Option<&Settings>,
        program: &Program,
        counts: &SpanCounts,
    ) -> Result<Self, StartError> {
        let Some(settings) = settings else {
            return Ok(Self::off());
        };
        let (orders, queue) = mpsc::channel(QUEUE_SPANS_MAX);
        let exporter = Exporter::new(settings, program, counts.clone(), queue)?;
        tokio::spawn(exporter.run());
        Ok(Self(Some(Arc::new(Sink {
            ratio: settings.ratio(),
            orders,
            counts: counts.clone(),
        }))))
    }

    /// Whether any are sent.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether this trace is recorded: on, and within the share.
    #[must_use]
    pub fn takes(&self, trace: &TraceId) -> bool {
        self.0.as_ref().is_some_and(|sink| sink.ratio.takes(trace))
    }

    /// Records a trace whose id is known, if it is to be.
    #[must_use]
    pub fn follow(&self, trace: Option<TraceId>) -> Recorder {
        self.follow_from(trace, Instant::now)
    }

    /// The same for one that began at `began`.
    #[must_use]
    pub fn follow_since(&self, trace: Option<TraceId>, began: Instant) -> Recorder {
        self.follow_from(trace, || began)
    }

    fn follow_from(&self, trace: Option<TraceId>, began: impl FnOnce() -> Instant) -> Recorder {
        match (&self.0, trace) {
            (Some(sink), Some(trace)) if sink.ratio.takes(&trace) => {
                Recorder::new(sink, Some(trace), began())
            }
            (Some(_) | None, _) => Recorder::off(),
        }
    }

    /// Begins to record a trace whose id comes later, with [`Recorder::finish_as`]; it began at `began`.
    #[must_use]
    pub fn begin(&self, began: Instant) -> Recorder {
        match &self.0 {
            Some(sink) => Recorder::new(sink, None, began),
            None => Recorder::off(),
        }
    }

    /// Sends what is still in the queue, for as long as `patience` lasts. What comes later may be lost.
    pub async fn finish(&self, patience: Duration) {
        let Some(sink) = &self.0 else { return };
        let (done, sent) = oneshot::channel();
        let finishing = async {
            if sink.orders.send(Order::Flush(done)).await.is_ok() {
                let _ = sent.await;
            }
        };
        if tokio::time::timeout(patience, finishing).await.is_err() {
            tracing::debug!("spans are left behind");
        }
    }
}

impl Sink {
    fn put(&self, span: Span) {
        if self.orders.try_send(Order::Span(Box::new(span))).is_err() {
            self.counts.add(Outcome::Dropped, 1);
        }
    }
}

impl Recorder {
    /// One that notes nothing.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    fn new(sink: &Arc<Sink>, trace: Option<TraceId>, began: Instant) -> Self {
        let now = SystemTime::now();
        Self(Some(Arc::new(Recording {
            sink: Arc::clone(sink),
            trace,
            began,
            began_at: now.checked_sub(began.elapsed()).unwrap_or(now),
            phases: Mutex::new(Vec::new()),
        })))
    }

    /// The trace that is recorded, when one is and its id is known.
    #[must_use]
    pub fn trace(&self) -> Option<TraceId> {
        self.0.as_ref()?.trace
    }

    /// Whether anything is noted.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Now, where anything is noted.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.0.as_ref().map(|_| Instant::now()))
    }

    /// Notes a step that began at `since` and ends now. `describe` runs only where anything is noted.
    pub fn phase(&self, name: &'static str, since: Mark, describe: impl FnOnce(&mut Details)) {
        let (Some(recording), Mark(Some(began))) = (&self.0, since) else {
            return;
        };
        let ended = Instant::now();
        let mut details = Details::default();
        describe(&mut details);
        recording.note(Phase {
            name,
            began,
            ended,
            details,
        });
    }

    /// Notes a step that ended before it was known that it was one.
    pub fn phase_until(&self, name: &'static str, since: Mark, until: Mark) {
        if let (Some(recording), Mark(Some(began)), Mark(Some(ended))) = (&self.0, since, until) {
            let details = Details::default();
            recording.note(Phase {
                name,
                began,
                ended,
                details,
            });
        }
    }

    /// Sends the steps noted so far, as children of that span: of a session that lasts, its beginning can then be seen.
    pub fn send_phases(&self, root: Root) {
        self.send_phases_as(self.trace(), root);
    }

    /// The same under an id that became known in the meantime, if that is within the share.
    pub fn send_phases_as(&self, trace: Option<TraceId>, root: Root) {
        if let (Some(recording), Some(trace)) = (&self.0, trace)
            && recording.sink.ratio.takes(&trace)
        {
            recording.send(trace, root.anchor.map(|anchor| trace.span(anchor)));
        }
    }

    /// Ends the trace: sends the steps that are left, and the span they belong to, from the recorder's beginning to now.
    pub fn finish(&self, root: Root, describe: impl FnOnce(&mut Details)) {
        let Some(recording) = &self.0 else { return };
        let Some(trace) = recording.trace else { return };
        recording.finish(trace, root, Duration::ZERO, Instant::now(), describe);
    }

    /// The same for a trace that began, by the system's clock, `before` the recorder did.
    pub fn finish_with_lead(&self, root: Root, before: Duration, describe: impl FnOnce(&mut Details)) {
        let Some(recording) = &self.0 else { return };
        let Some(trace) = recording.trace else { return };
        recording.finish(trace, root, before, Instant::now(), describe);
    }

    /// Ends a trace that ended at `ended`, under an id that became known in the meantime, if that is within the
    /// share.
    pub fn finish_as(
        &self,
        trace: Option<TraceId>,
        root: Root,
        ended: Mark,
        describe: impl FnOnce(&mut Details),
    ) {
        if let (Some(recording), Some(trace), Mark(Some(ended))) = (&self.0, trace, ended)
            && recording.sink.ratio.takes(&trace)
        {
            recording.finish(trace, root, Duration::ZERO, ended, describe);
        }
    }
}

impl Recording {
    fn note(&self, phase: Phase) {
        let mut phases = self.phases();
        if phases.len() < PHASES_MAX {
            phases.push(phase);
        }
    }

    fn finish(
        &self,
        trace: TraceId,
        root: Root,
        before: Duration,
        ended: Instant,
        describe: impl FnOnce(&mut Details),
    ) {
        let mut details = Details::default();
        describe(&mut details);
        let id = root.id(&trace);
        self.send(trace, Some(id));
        self.sink.put(Span {
            trace,
            id,
            parent: root.parent.map(|parent| trace.span(parent)),
            name: root.name,
            kind: root.kind,
            began: self.began_at.checked_sub(before).unwrap_or(self.began_at),
            ended: self.at(ended),
            details,
        });
    }

    fn send(&self, trace: TraceId, parent: Option<SpanId>) {
        let phases = std::mem::take(&mut *self.phases());
        for phase in phases {
            self.sink.put(Span {
                trace,
                id: span::drawn(),
                parent,
                name: phase.name,
                kind: Kind::Internal,
                began: self.at(phase.began),
                ended: self.at(phase.ended),
                details: phase.details,
            });
        }
    }

    /// By one clock that does not jump, however the system's is set meanwhile.
    fn at(&self, instant: Instant) -> SystemTime {
        match instant.checked_duration_since(self.began) {
            Some(after) => self.began_at + after,
            None => self.began_at - self.began.duration_since(instant),
        }
    }

    fn phases(&self) -> MutexGuard<'_, Vec<Phase>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Root {
    fn id(&self, trace: &TraceId) -> SpanId {
        self.anchor.map_or_else(span::drawn, |anchor| trace.span(anchor))
    }
}

impl Mark {
    /// A moment that was taken elsewhere.
    #[must_use]
    pub fn at(instant: Instant) -> Self {
        Self(Some(instant))
    }
}

impl SpanCounts {
    /// For `/metrics`.
    #[must_use]
    pub fn family(&self) -> Family<[(&'static str, &'static str); 1], Counter> {
        self.0.clone()
    }

    fn add(&self, outcome: Outcome, spans: usize) {
        let spans = u64::try_from(spans).unwrap_or(u64::MAX);
        self.0
            .get_or_create(&[("outcome", outcome.as_str())])
            .inc_by(spans);
    }

    #[cfg(test)]
    fn of(&self, outcome: Outcome) -> u64 {
        self.0.get_or_create(&[("outcome", outcome.as_str())]).get()
    }
}

impl Default for SpanCounts {
    fn default() -> Self {
        let counts = Self(Family::default());
        // A counter that appears with its first event hides that event from `increase()`.
        for outcome in [Outcome::Sent, Outcome::Dropped, Outcome::Failed] {
            counts.add(outcome, 0);
        }
        counts
    }
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }
}

#[cfg(test)]
mod tests;
