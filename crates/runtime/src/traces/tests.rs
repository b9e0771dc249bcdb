//! Spans as a collector receives them, and what its trouble costs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
use super::*;

use std::collections::BTreeSet;

use iap_identity::ConnectionId;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span as WireSpan;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

const ROOT: Root = Root {
    anchor: Some(Anchor::Proxy),
    parent: None,
    name: "connect",
    kind: Kind::Server,
};

fn program() -> Program {
    Program {
        name: "iap-test",
        version: "1.2.3",
        instance: Some("seven".to_owned()),
        cluster: None,
    }
}

fn trace() -> TraceId {
    TraceId::of_connection(&ConnectionId::from_uuid(Uuid::now_v7())).unwrap()
}

fn settings(listener: &TcpListener) -> Settings {
    let section = TracesSection {
        endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
        ..TracesSection::default()
    };
    let mut errors = crate::config::ConfigErrors::none("x");
    section.check(&mut errors).unwrap()
}

async fn on(listener: &TcpListener) -> (Traces, SpanCounts) {
    crate::tls::install_provider();
    let counts = SpanCounts::default();
    let traces = Traces::start(Some(&settings(listener)), &program(), &counts).unwrap();
    (traces, counts)
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// One request: its head in lower case, and its body.
async fn request(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        let count = stream.read_buf(&mut bytes).await.unwrap();
        assert_ne!(count, 0, "the request ends early");
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse::<usize>().unwrap());
        if bytes.len() >= end + 4 + length {
            return (head, bytes[end + 4..].to_vec());
        }
    }
}

/// Takes one request and says yes.
async fn collected(listener: &TcpListener) -> (String, ExportTraceServiceRequest) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let (head, body) = request(&mut stream).await;
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await
        .unwrap();
    (head, ExportTraceServiceRequest::decode(body.as_slice()).unwrap())
}

fn spans(request: &ExportTraceServiceRequest) -> &[WireSpan] {
    &request.resource_spans[0].scope_spans[0].spans
}

#[tokio::test]
async fn what_was_noted_arrives_as_spans_of_the_ids_own_trace() {
    let listener = listener().await;
    let (traces, counts) = on(&listener).await;
    let trace = trace();
    let recorder = traces.follow(Some(trace));
    assert_eq!(recorder.trace(), Some(trace));
    let mark = recorder.mark();
    recorder.phase("peek", mark, |details| details.number("iap.bytes", 7));
    recorder.finish(ROOT, |details| {
        details.text("iap.service", "db");
        details.failed("denied");
        details.link(trace, Anchor::Client);
    });
    let collecting = tokio::spawn(async move { collected(&listener).await });
    traces.finish(Duration::from_secs(20)).await;
    let (head, request) = collecting.await.unwrap();
    assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
    assert!(head.contains("content-type: application/x-protobuf"), "{head}");
    let resource = request.resource_spans[0].resource.as_ref().unwrap();
    assert_eq!(resource.attributes[0].key, "service.name");
    let [peek, root] = spans(&request) else {
        panic!("{request:?}")
    };
    for span in [peek, root] {
        assert_eq!(span.trace_id, trace.as_bytes());
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
    }
    assert_eq!(peek.parent_span_id, root.span_id);
    assert_eq!(root.span_id, trace.span(Anchor::Proxy).as_bytes());
    assert!(root.parent_span_id.is_empty());
    assert!(root.start_time_unix_nano <= peek.start_time_unix_nano);
    assert_eq!(root.status.as_ref().unwrap().message, "denied");
    assert_eq!(root.links[0].span_id, trace.span(Anchor::Client).as_bytes());
    assert_eq!(
        (
            counts.of(Outcome::Sent),
            counts.of(Outcome::Failed),
            counts.of(Outcome::Dropped)
        ),
        (2, 0, 0)
    );
}

#[tokio::test]
async fn off_nothing_is_noted_and_no_clock_is_read() {
    let traces = Traces::start(None, &program(), &SpanCounts::default()).unwrap();
    assert!(!traces.is_on());
    for recorder in [traces.begin(Instant::now()), traces.follow(Some(trace()))] {
        assert!(!recorder.is_on());
        let mark = recorder.mark();
        assert!(mark.0.is_none());
        recorder.phase("peek", mark, |_| panic!("nobody asks"));
        recorder.finish(ROOT, |_| panic!("nobody asks"));
        recorder.finish_as(Some(trace()), ROOT, recorder.mark(), |_| panic!("nobody asks"));
    }
    traces.finish(Duration::from_secs(20)).await;
    assert_eq!(size_of::<Recorder>(), size_of::<usize>());
}

#[tokio::test]
async fn a_trace_outside_the_share_is_not_recorded() {
    let listener = listener().await;
    let mut errors = crate::config::ConfigErrors::none("x");
    let section = TracesSection {
        endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
        sample: 0.0,
        ..TracesSection::default()
    };
    crate::tls::install_provider();
    let settings = section.check(&mut errors).unwrap();
    let counts = SpanCounts::default();
    let traces = Traces::start(Some(&settings), &program(), &counts).unwrap();
    assert!(!traces.follow(Some(trace())).is_on());
    let recorder = traces.begin(Instant::now());
    recorder.finish_as(Some(trace()), ROOT, recorder.mark(), |_| panic!("nobody asks"));
    traces.finish(Duration::from_secs(20)).await;
    let nobody = tokio::time::timeout(Duration::from_millis(20), listener.accept()).await;
    assert!(nobody.is_err(), "a request came");
}

/// A collector that accepts and says nothing: whoever records never waits, and the memory is bounded.
#[tokio::test]
async fn a_collector_that_hangs_costs_spans_and_nothing_else() {
    let listener = listener().await;
    let (traces, counts) = on(&listener).await;
    let recorder = traces.follow(Some(trace()));
    for _ in 0..QUEUE_SPANS_MAX + 100 {
        recorder.finish(ROOT, |_| {});
    }
    // The task has not run: nothing here waited for it.
    assert_eq!(counts.of(Outcome::Dropped), 100);
    let began = Instant::now();
    traces.finish(Duration::from_millis(50)).await;
    assert!(began.elapsed() < REQUEST_PATIENCE, "the end was held up");
}

/// Less than a request may take, more than a busy machine needs for nothing.
const REQUEST_PATIENCE: Duration = Duration::from_secs(4);

#[tokio::test]
async fn a_collector_that_is_not_there_or_refuses_is_counted() {
    let listener = listener().await;
    let (traces, counts) = on(&listener).await;
    let refusing = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    });
    traces.follow(Some(trace())).finish(ROOT, |_| {});
    traces.finish(Duration::from_secs(20)).await;
    refusing.await.unwrap();
    assert_eq!(counts.of(Outcome::Failed), 1);
    // It is left alone for a while, and whoever is about to end does not wait for that.
    traces.follow(Some(trace())).finish(ROOT, |_| {});
    let began = Instant::now();
    traces.finish(Duration::from_secs(20)).await;
    assert_eq!(counts.of(Outcome::Failed), 2);
    assert!(began.elapsed() < REQUEST_PATIENCE, "the end was held up");
}

#[tokio::test]
async fn a_collector_that_is_gone_is_noticed_at_once() {
    let listener = listener().await;
    let (traces, counts) = on(&listener).await;
    drop(listener);
    traces.follow(Some(trace())).finish(ROOT, |_| {});
    traces.finish(Duration::from_secs(20)).await;
    assert_eq!(counts.of(Outcome::Failed), 1);
}

/// A collector behind a certificate of an authority of its own.
#[tokio::test]
async fn an_https_collector_is_believed_by_its_authority_alone() {
    crate::tls::install_provider();
    let listener = listener().await;
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut bytes = vec![0; 64 * 1024];
            assert_ne!(stream.read(&mut bytes).await.unwrap(), 0);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let [own, other] = ["own.pem", "other.pem"].map(|name| folder.path().join(name));
    std::fs::write(&own, cert.pem()).unwrap();
    let stranger = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&other, stranger.cert.pem()).unwrap();
    for (ca_file, outcome) in [(own, Outcome::Sent), (other, Outcome::Failed)] {
        let section = TracesSection {
            endpoint: Some(format!("https://localhost:{port}")),
            ca_file: Some(ca_file),
            ..TracesSection::default()
        };
        let settings = section
            .check(&mut crate::config::ConfigErrors::none("x"))
            .unwrap();
        let counts = SpanCounts::default();
        let traces = Traces::start(Some(&settings), &program(), &counts).unwrap();
        traces.follow(Some(trace())).finish(ROOT, |_| {});
        traces.finish(Duration::from_secs(20)).await;
        assert_eq!(counts.of(outcome), 1, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_at_the_start() {
    crate::tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("headers");
    std::fs::write(&open, "authorization: Bearer abc\n").unwrap();
    let section = TracesSection {
        endpoint: Some("https://localhost:1".to_owned()),
        headers_file: Some(open.clone()),
        ..TracesSection::default()
    };
    let settings = section
        .check(&mut crate::config::ConfigErrors::none("x"))
        .unwrap();
    let start = || Traces::start(Some(&settings), &program(), &SpanCounts::default());
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = start().unwrap_err().to_string();
    assert!(
        refused.contains("traces.headers_file"),
        "others may read it: {refused}"
    );
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(start().is_ok());
}

#[tokio::test]
async fn steps_of_one_trace_are_bounded() {
    let listener = listener().await;
    let (traces, _) = on(&listener).await;
    let recorder = traces.follow(Some(trace()));
    for _ in 0..2 * PHASES_MAX {
        recorder.phase("ask agent", recorder.mark(), |_| {});
    }
    recorder.finish(ROOT, |_| {});
    let collecting = tokio::spawn(async move { collected(&listener).await });
    traces.finish(Duration::from_secs(20)).await;
    let (_, request) = collecting.await.unwrap();
    assert_eq!(spans(&request).len(), PHASES_MAX + 1);
    let ids: BTreeSet<_> = spans(&request).iter().map(|span| span.span_id.clone()).collect();
    assert_eq!(ids.len(), PHASES_MAX + 1);
}

/// The other bits of a UUIDv7 count up within a millisecond and would take all of a burst, or none.
#[test]
fn connections_of_one_burst_are_taken_by_their_share() {
    let half = SampleRatio::new(0.5).unwrap();
    let taken = (0..4_000).filter(|_| half.takes(&trace())).count();
    assert!((1_700..=2_300).contains(&taken), "{taken}");
}
