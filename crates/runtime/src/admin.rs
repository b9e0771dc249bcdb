//! The loopback address operators ask: `/healthz`, `/readyz` and `/metrics`.
//!
//! Readiness fails closed: a program is ready when every condition it named is met, and a condition whose
//! owner has gone is not.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::net;
use crate::shutdown::Shutdown;

const CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Why the admin address could not be served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Metrics and readiness are for this machine alone.
    #[error("admin_listen is {address}: it must be a loopback address such as 127.0.0.1:7480")]
    NotLoopback {
        /// What was configured.
        address: SocketAddr,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// What was configured.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
}

/// The conditions under which a program is ready. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    conditions: Arc<Mutex<BTreeMap<&'static str, Standing>>>,
}

/// How one condition stands.
#[derive(Debug, Clone)]
enum Standing {
    Met,
    /// Unless its holder says so again before then, it no longer counts.
    MetUntil(Instant),
    Unmet(String),
    /// Its holder is gone, and nobody will ever say again how it stands.
    Abandoned,
}

impl Standing {
    /// Why it is not met.
    fn obstacle(&self) -> Option<&str> {
        match self {
            Standing::Met => None,
            Standing::MetUntil(until) if Instant::now() < *until => None,
            Standing::MetUntil(_) => Some("nothing was heard of it for too long"),
            Standing::Unmet(reason) => Some(reason),
            Standing::Abandoned => Some("its task has ended"),
        }
    }
}

/// One condition; whoever holds it says whether it is met. Dropping it leaves the condition unmet.
#[derive(Debug)]
pub struct Condition {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// No conditions yet, which is not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition, unmet until its holder says otherwise.
    pub fn condition(&self, name: &'static str) -> Condition {
        self.set(name, Standing::Unmet("not yet".to_owned()));
        Condition {
            name,
            readiness: self.clone(),
        }
    }

    /// Whether every condition is met, and there is at least one.
    pub fn is_ready(&self) -> bool {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        !conditions.is_empty() && conditions.values().all(|standing| standing.obstacle().is_none())
    }

    /// One line per condition.
    pub fn report(&self) -> String {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        if conditions.is_empty() {
            return "starting\n".to_owned();
        }
        let lines = conditions
            .iter()
            .map(|(name, standing)| match standing.obstacle() {
                None => format!("{name}: ok\n"),
                Some(reason) => format!("{name}: {reason}\n"),
            });
        lines.collect()
    }

    /// Every condition and whether it is met.
    fn conditions(&self) -> Vec<(&'static str, bool)> {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let met = conditions
            .iter()
            .map(|(name, unmet)| (*name, unmet.obstacle().is_none()));
        met.collect()
    }

    /// The conditions whose tasks have ended: what a start anew alone can mend.
    fn abandoned(&self) -> Vec<&'static str> {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let is_abandoned = |standing: &Standing| matches!(standing, Standing::Abandoned);
        let abandoned = conditions.iter().filter(|(_, standing)| is_abandoned(standing));
        abandoned.map(|(name, _)| *name).collect()
    }

    fn set(&self, name: &'static str, standing: Standing) {
        self.conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, standing);
    }
}

impl Condition {
    /// The condition holds.
    pub fn met(&self) {
        self.readiness.set(self.name, Standing::Met);
    }

    /// The condition holds for so long; a holder that hangs does not keep it met.
    pub fn met_for(&self, duration: Duration) {
        let until = Instant::now().checked_add(duration);
        self.readiness
            .set(self.name, until.map_or(Standing::Met, Standing::MetUntil));
    }

    /// The condition does not hold, and why.
    pub fn unmet(&self, reason: &str) {
        self.readiness.set(self.name, Standing::Unmet(reason.to_owned()));
    }
}

impl Drop for Condition {
    fn drop(&mut self) {
        self.readiness.set(self.name, Standing::Abandoned);
    }
}

/// Why a server is not ready, as somebody outside of it sees it.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// Nobody answers, or not as a server of ours does.
    #[error("nothing answers at {address} ({source}): is the server running?")]
    NoAnswer {
        /// `admin_listen`.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The server runs, and waits for something.
    #[error("not ready yet: {0}")]
    Waiting(String),
}

/// Asks the server whose `admin_listen` is `address`: a line for each condition, all of them met.
///
/// Blocks for five seconds at most. For probes and scripts on machines without an HTTP client.
pub fn ask_readiness(address: SocketAddr) -> Result<String, NotReady> {
    let answer = ask(address).map_err(|source| NotReady::NoAnswer { address, source })?;
    let (head, report) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let report = report.trim_end();
    if head.starts_with("HTTP/1.1 200") {
        return Ok(report.to_owned());
    }
    Err(NotReady::Waiting(report.replace('\n', "; ")))
}

fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = std::net::TcpStream::connect_timeout(&address, HEAD_TIMEOUT)?;
    stream.set_read_timeout(Some(HEAD_TIMEOUT))?;
    stream.set_write_timeout(Some(HEAD_TIMEOUT))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Starts serving on `address` (loopback only) until `shutdown`. Returns the address bound.
pub async fn serve(
    address: SocketAddr,
    readiness: Readiness,
    metrics: Arc<Registry>,
    shutdown: Shutdown,
) -> Result<SocketAddr, AdminError> {
    if !address.ip().to_canonical().is_loopback() {
        return Err(AdminError::NotLoopback { address });
    }
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| AdminError::Listen { address, source })?;
    let bound = listener
        .local_addr()
        .map_err(|source| AdminError::Listen { address, source })?;
    tokio::spawn(accept_until_shutdown(
        listener,
        Pages {
            readiness,
            metrics,
            shutdown: shutdown.clone(),
        },
        shutdown,
    ));
    Ok(bound)
}

#[derive(Clone)]
struct Pages {
    readiness: Readiness,
    metrics: Arc<Registry>,
    shutdown: Shutdown,
}

/// Keeps answering while the program drains, so that a balancer sees it leave: ends at process exit or when the
/// runtime goes.
async fn accept_until_shutdown(listener: TcpListener, pages: Pages, shutdown: Shutdown) {
    let draining = pages.readiness.condition("running");
    draining.met();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut told = false;
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = net::accept(&listener) => accepted,
            () = shutdown.cancelled(), if !told => {
                draining.unmet("shutting down");
                told = true;
                continue;
            }
        };
        let ((stream, _), pages) = (accepted, pages.clone());
        tokio::spawn(async move {
            serve_connection(stream, pages).await;
            drop(slot);
        });
    }
}

async fn serve_connection(stream: TcpStream, pages: Pages) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = pages.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

impl Pages {
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
        }
        match request.uri().path() {
            "/healthz" => self.health_page(),
            "/readyz" => self.readiness_page(),
            "/metrics" => self.metrics_page(),
            _ => plain(
                StatusCode::NOT_FOUND,
                "/healthz, /readyz or /metrics\n".to_owned(),
            ),
        }
    }

    /// Whether a start anew would help: a program that drains is healthy, one that has lost a task is not.
    fn health_page(&self) -> Response<Full<Bytes>> {
        let abandoned = self.readiness.abandoned();
        if abandoned.is_empty() || self.shutdown.is_triggered() {
            return plain(StatusCode::OK, "ok\n".to_owned());
        }
        let names = abandoned.join(", ");
        plain(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the task of {names} has ended: start the program again\n"),
        )
    }

    fn readiness_page(&self) -> Response<Full<Bytes>> {
        let status = if self.readiness.is_ready() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        plain(status, self.readiness.report())
    }

    /// The program's own metrics, and readiness, so that one scrape says whether anybody should be woken.
    fn encode(&self, text: &mut String) -> std::fmt::Result {
        encode_registry(text, &self.metrics)?;
        let mut registry = Registry::default();
        let ready = Family::<[(&'static str, &'static str); 1], Gauge>::default();
        registry.register(
            "iap_ready",
            "Whether a condition of readiness is met, 1 or 0",
            ready.clone(),
        );
        for (condition, met) in self.readiness.conditions() {
            ready.get_or_create(&[("condition", condition)]).set(met.into());
        }
        encode_registry(text, &registry)?;
        encode_eof(text)
    }

    fn metrics_page(&self) -> Response<Full<Bytes>> {
        let mut text = String::new();
        if self.encode(&mut text).is_err() {
            return plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "metrics cannot be encoded\n".to_owned(),
            );
        }
        let mut response = plain(StatusCode::OK, text);
        let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    async fn start(readiness: &Readiness, metrics: Registry, shutdown: &Shutdown) -> SocketAddr {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        serve(address, readiness.clone(), Arc::new(metrics), shutdown.clone())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn only_loopback_is_served() {
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        let served = serve(
            address,
            Readiness::new(),
            Arc::new(Registry::default()),
            Shutdown::new(),
        )
        .await;
        assert!(matches!(served, Err(AdminError::NotLoopback { .. })));
    }

    #[tokio::test]
    async fn readiness_follows_its_conditions_and_fails_when_their_owner_goes() {
        let readiness = Readiness::new();
        assert!(!readiness.is_ready(), "no condition is not readiness");
        let snapshot = readiness.condition("snapshot");
        let address = start(&readiness, Registry::default(), &Shutdown::new()).await;
        let response = fetch(address, "/readyz").await;
        assert!(
            response.starts_with("HTTP/1.1 503") && response.contains("snapshot: not yet"),
            "{response}"
        );
        snapshot.met();
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        drop(snapshot);
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        let health = fetch(address, "/healthz").await;
        assert!(
            health.starts_with("HTTP/1.1 503") && health.contains("snapshot"),
            "{health}"
        );
    }

    #[test]
    fn a_condition_that_nobody_confirms_in_time_is_no_longer_met() {
        let readiness = Readiness::new();
        let feed = readiness.condition("feed");
        feed.met_for(Duration::from_secs(60));
        assert!(readiness.is_ready());
        feed.met_for(Duration::ZERO);
        assert!(!readiness.is_ready());
        assert_eq!(readiness.report(), "feed: nothing was heard of it for too long\n");
    }

    #[tokio::test]
    async fn somebody_who_asks_hears_what_a_server_waits_for() {
        let readiness = Readiness::new();
        let snapshot = readiness.condition("snapshot");
        let shutdown = Shutdown::new();
        let address = start(&readiness, Registry::default(), &shutdown).await;
        let ask = move || {
            tokio::task::spawn_blocking(move || ask_readiness(address).map_err(|error| error.to_string()))
        };
        let waiting = ask().await.unwrap().unwrap_err();
        assert!(
            waiting.contains("not ready yet") && waiting.contains("snapshot: not yet"),
            "{waiting}"
        );
        snapshot.met();
        assert!(ask().await.unwrap().unwrap().contains("snapshot: ok"));
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        let nobody = tokio::task::spawn_blocking(move || ask_readiness(nobody))
            .await
            .unwrap();
        assert!(matches!(nobody, Err(NotReady::NoAnswer { .. })));
    }

    #[tokio::test]
    async fn a_draining_program_still_answers_and_is_not_ready() {
        let readiness = Readiness::new();
        let shutdown = Shutdown::new();
        let address = start(&readiness, Registry::default(), &shutdown).await;
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        shutdown.trigger("test");
        while readiness.is_ready() {
            tokio::task::yield_now().await;
        }
        assert!(fetch(address, "/readyz").await.contains("running: shutting down"));
    }

    #[tokio::test]
    async fn metrics_are_openmetrics_text_and_say_what_readiness_waits_for() {
        let mut metrics = Registry::default();
        let sessions = Counter::<u64>::default();
        sessions.inc_by(3);
        metrics.register("sessions", "Sessions so far", sessions);
        let readiness = Readiness::new();
        let snapshot = readiness.condition("snapshot");
        let address = start(&readiness, metrics, &Shutdown::new()).await;
        let response = fetch(address, "/metrics").await;
        assert!(
            response.contains("sessions_total 3") && response.ends_with("# EOF\n"),
            "{response}"
        );
        assert!(
            response.contains("iap_ready{condition=\"snapshot\"} 0\n"),
            "{response}"
        );
        snapshot.met();
        let response = fetch(address, "/metrics").await;
        assert!(
            response.contains("iap_ready{condition=\"snapshot\"} 1\n"),
            "{response}"
        );
    }
}
