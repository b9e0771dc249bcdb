//! The one task that sends spans: OTLP over HTTP, a bounded batch at a time, as often as a collector may be asked.

use std::time::Duration;

use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use reqwest::{Certificate, Client, Url, redirect};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::settings::HeadersError;
use super::span::Span;
use super::{Outcome, Program, Settings, SpanCounts, wire};

/// Spans that wait; the next is dropped.
pub const QUEUE_SPANS_MAX: usize = 4096;
/// What one program sends at most, whatever happens to it.
pub const SPANS_PER_SECOND_MAX: usize = BATCH_SPANS_MAX * 1000 / BATCH_MILLISECONDS;
/// Spans in one request.
const BATCH_SPANS_MAX: usize = 512;
/// The time between two requests.
const BATCH_MILLISECONDS: usize = 500;
const BATCH_EVERY: Duration = Duration::from_millis(BATCH_MILLISECONDS as u64);
/// The longest a collector may take for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause after a request that failed; what comes meanwhile waits, what finds no room is dropped, and what has to go
/// at once is lost.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// What is read of an answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why no spans can be sent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file of headers.
    #[error("traces.headers_file: {0}")]
    Headers(#[from] HeadersError),
    /// The file of authorities.
    #[error("traces.ca_file: {0}")]
    Authorities(String),
    /// The HTTP client could not be set up.
    #[error("no HTTP client for traces: {0}")]
    Client(#[source] reqwest::Error),
}

/// What the task is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Send this, with others.
    Span(Box<Span>),
    /// Send what came before, now, and say so.
    Flush(oneshot::Sender<()>),
}

/// Why a batch did not arrive.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Request(#[from] reqwest::Error),
    #[error("the collector answered {0}")]
    Status(http::StatusCode),
}

/// The task.
pub(super) struct Exporter {
    client: Client,
    url: Url,
    headers: HeaderMap,
    resource: Resource,
    counts: SpanCounts,
    queue: mpsc::Receiver<Order>,
    /// The last request failed, which is logged once: until then the collector is left alone.
    failing_until: Option<Instant>,
}

/// What has been gathered for one request, and who waits for it.
#[derive(Default)]
struct Batch {
    spans: Vec<Span>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Exporter {
    pub(super) fn new(
        settings: &Settings,
        program: &Program,
        counts: SpanCounts,
        queue: mpsc::Receiver<Order>,
    ) -> Result<Self, StartError> {
        let mut headers = settings.headers()?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        Ok(Self {
            client: client(settings, program)?,
            url: settings.url().clone(),
            headers,
            resource: wire::resource(program),
            counts,
            queue,
            failing_until: None,
        })
    }

    /// Until nobody can put spans into the queue any more.
    pub(super) async fn run(mut self) {
        while let Some(order) = self.queue.recv().await {
            let mut batch = Batch::default();
            batch.take(order);
            self.gather(&mut batch).await;
            self.send(batch).await;
        }
    }

    /// Adds what comes until it is time for the next request; at once where somebody waits for it.
    async fn gather(&mut self, batch: &mut Batch) {
        let next = Instant::now() + BATCH_EVERY;
        let until = self.failing_until.map_or(next, |until| until.max(next));
        while batch.waiting.is_empty() {
            let has_room = batch.spans.len() < BATCH_SPANS_MAX;
            tokio::select! {
                order = self.queue.recv(), if has_room => match order {
                    Some(order) => batch.take(order),
                    None => return,
                },
                () = tokio::time::sleep_until(until) => return,
            }
        }
    }

    async fn send(&mut self, batch: Batch) {
        let Batch { spans, waiting } = batch;
        let count = spans.len();
        if self.failing_until.is_some_and(|until| Instant::now() < until) {
            // Nobody shall wait for a collector that was not there a moment ago.
            self.counts.add(Outcome::Failed, count);
        } else if count > 0 {
            let body = wire::encode(&self.resource, spans);
            match self.post(body).await {
                Ok(rejected) => self.arrived(count, rejected),
                Err(error) => self.failed(count, &error),
            }
        }
        for done in waiting {
            let _ = done.send(());
        }
    }

    /// Returns how many of the spans the collector did not take.
    async fn post(&self, body: Vec<u8>) -> Result<usize, ExportError> {
        let request = self.client.post(self.url.clone()).headers(self.headers.clone());
        let mut response = request.body(body).send().await?;
        let status = response.status();
        if !status.is_success() {
            return Err(ExportError::Status(status));
        }
        // Read to its end, or the connection could not be used again.
        let mut answer = Vec::new();
        while let Some(piece) = response.chunk().await? {
            if answer.len() + piece.len() > ANSWER_BYTES_MAX {
                return Ok(0);
            }
            answer.extend_from_slice(&piece);
        }
        let answer = ExportTraceServiceResponse::decode(answer.as_slice()).unwrap_or_default();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(usize::try_from(rejected).unwrap_or(0))
    }

    fn arrived(&mut self, count: usize, rejected: usize) {
        let rejected = rejected.min(count);
        self.counts.add(Outcome::Sent, count - rejected);
        self.counts.add(Outcome::Failed, rejected);
        if self.failing_until.take().is_some() {
            tracing::info!("the collector takes spans again");
        }
    }

    fn failed(&mut self, count: usize, error: &ExportError) {
        self.counts.add(Outcome::Failed, count);
        let again = Instant::now() + PAUSE_AFTER_FAILURE;
        if self.failing_until.replace(again).is_none() {
            let error = causes(error);
            tracing::warn!(error, "the collector takes no spans");
        }
    }
}

impl Batch {
    fn take(&mut self, order: Order) {
        match order {
            Order::Span(span) => self.spans.push(*span),
            Order::Flush(done) => self.waiting.push(done),
        }
    }
}

fn client(settings: &Settings, program: &Program) -> Result<Client, StartError> {
    let builder = Client::builder()
        .redirect(redirect::Policy::none())
        .timeout(REQUEST_TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
        // A collector is dialled directly, as everything is that is not the plane's own.
        .no_proxy()
        .referer(false)
        .http1_only()
        .user_agent(format!("{}/{}", program.name, program.version));
    let builder = match (settings.url().scheme(), settings.ca_file()) {
        // No authority is needed, and a container may have none.
        ("http", _) => builder.tls_certs_only([]),
        (_, None) => builder,
        (_, Some(path)) => {
            let named = |why: String| StartError::Authorities(format!("{}: {why}", path.display()));
            let pem = std::fs::read(path).map_err(|error| named(error.to_string()))?;
            let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| named(error.to_string()))?;
            if authorities.is_empty() {
                return Err(named("holds no certificate".to_owned()));
            }
            builder.tls_certs_only(authorities)
        }
    };
    builder.build().map_err(StartError::Client)
}

/// An error and what is behind it; the innermost says most.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
