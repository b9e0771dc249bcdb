//! A collector of OTLP over HTTP, small enough for a test: it reads requests as HTTP/1.1 has them and decodes them by
//! the messages of OTLP's own project.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

/// A span, and whose it is.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) program: String,
    pub(super) trace: String,
    pub(super) id: String,
    pub(super) parent: String,
    pub(super) name: String,
    pub(super) began: u64,
    pub(super) ended: u64,
    pub(super) attributes: Vec<(String, String)>,
    pub(super) links: Vec<(String, String)>,
    /// Empty where it came to what it was for.
    pub(super) failure: String,
}

/// Listens until dropped.
pub(super) struct Collector {
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    hangs: bool,
    is_over: std::sync::atomic::AtomicBool,
}

impl Collector {
    /// One that takes everything.
    pub(super) fn start() -> Self {
        Self::with(Shared::default())
    }

    /// One that accepts, reads, and never answers.
    pub(super) fn that_hangs() -> Self {
        Self::with(Shared {
            hangs: true,
            ..Shared::default()
        })
    }

    fn with(shared: Shared) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(shared);
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.is_over.load(Ordering::Relaxed) {
                    return;
                }
                serving.connections.fetch_add(1, Ordering::Relaxed);
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || serve(&shared, stream));
            }
        });
        Self { shared, address }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    pub(super) fn all(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub(super) fn trace(&self, id: &str) -> Vec<Seen> {
        let mut spans = self.all();
        spans.retain(|span| span.trace == id);
        spans
    }

    /// Every word of every span.
    pub(super) fn everything(&self) -> String {
        format!("{:?}", self.all())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // Wakes the listener, which closes itself.
        let _ = TcpStream::connect(self.address);
    }
}

impl Seen {
    /// An attribute as text; empty where there is none.
    pub(super) fn text(&self, name: &str) -> String {
        let found = self.attributes.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    }
}

/// One connection's requests, until it closes or is not HTTP.
fn serve(shared: &Shared, mut stream: TcpStream) {
    let mut bytes = Vec::new();
    while let Some((head, body)) = request(&mut stream, &mut bytes) {
        if shared.hangs {
            continue;
        }
        let is_ours = head.starts_with("POST /v1/traces HTTP/1.1\r\n")
            && head
                .to_lowercase()
                .contains("content-type: application/x-protobuf");
        let decoded = ExportTraceServiceRequest::decode(body.as_slice());
        let (Ok(request), true) = (decoded, is_ours) else {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
            continue;
        };
        shared.seen.lock().unwrap().extend(spans(request));
        if stream
            .write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n",
            )
            .is_err()
        {
            return;
        }
    }
}

fn request(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let mut buffer = [0; 16 * 1024];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end + 2]).into_owned();
            let lower = head.to_lowercase();
            let length = lower
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length?.trim().parse().ok()?;
            if bytes.len() >= end + 4 + length {
                let body = bytes[end + 4..end + 4 + length].to_vec();
                bytes.drain(..end + 4 + length);
                return Some((head, body));
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

fn spans(request: ExportTraceServiceRequest) -> Vec<Seen> {
    let mut seen = Vec::new();
    for resource in request.resource_spans {
        let of = attributes(resource.resource.unwrap_or_default().attributes);
        let program = of
            .iter()
            .find(|(key, _)| key == "service.name")
            .unwrap()
            .1
            .clone();
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            seen.push(one(&program, span));
        }
    }
    seen
}

fn one(program: &str, span: Span) -> Seen {
    // Any other length is malformed (OTLP, `Span`).
    assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
    Seen {
        program: program.to_owned(),
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name,
        began: span.start_time_unix_nano,
        ended: span.end_time_unix_nano,
        attributes: attributes(span.attributes),
        links: span
            .links
            .iter()
            .map(|link| (hex(&link.trace_id), hex(&link.span_id)))
            .collect(),
        failure: span.status.map(|status| status.message).unwrap_or_default(),
    }
}

fn attributes(pairs: Vec<KeyValue>) -> Vec<(String, String)> {
    let pairs = pairs.into_iter().map(|pair| {
        let value = match pair.value.and_then(|value| value.value) {
            Some(any_value::Value::StringValue(text)) => text,
            Some(any_value::Value::IntValue(number)) => number.to_string(),
            Some(any_value::Value::BoolValue(truth)) => truth.to_string(),
            other => panic!("{}: {other:?}", pair.key),
        };
        (pair.key, value)
    });
    pairs.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
