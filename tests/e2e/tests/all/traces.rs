//! Traces: one id finds what all four programs did for one `connect`, and a collector's trouble is nobody's.

mod collector;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iap_e2e::{Plane, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::monitoring::scrape;
use collector::{Collector, Seen};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// What a session says; no span may.
const SECRET: &[u8] = b"select 'hunter2'\n";
/// Far above what a session takes here, far below the sum of what a hanging collector could hold up.
const HELD_UP: Duration = Duration::from_secs(15);

/// A plane whose servers send spans to `endpoint`.
fn plane(endpoint: &str, sample: &str) -> Plane {
    Plane::start_by(&["--demo"], |_, mut command| {
        for server in ["AUTH", "PROXY", "AGENT"] {
            command.env(format!("IAP_{server}__TRACES__ENDPOINT"), endpoint);
            command.env(format!("IAP_{server}__TRACES__SAMPLE"), sample);
        }
        Ok(command)
    })
    .unwrap()
}

/// One session to `echo` and its end.
fn connect(plane: &Plane, user: &str, collector: Option<&str>) {
    let mut command = plane.command(user, &["connect", "echo", "--stdio"]).unwrap();
    if let Some(endpoint) = collector {
        command.env(ENDPOINT, endpoint);
    }
    let mut session = iap_e2e::Background(command.stdin(Stdio::piped()).spawn().unwrap());
    session.round_trip(SECRET).unwrap();
    drop(session.0.stdin.take());
    assert_eq!(session.finish().unwrap().code, 0);
}

/// The records of the session that began last, once its end is among them.
fn last_session(plane: &Plane, count: usize) -> Vec<Value> {
    let ended = |seen: &[Value]| seen.iter().filter(|one| !one["end"].is_null()).count() >= count;
    let mut seen = plane.sessions_when(ended).unwrap();
    seen.sort_by_key(|one| one["session_id"].as_str().unwrap().to_owned());
    plane
        .records(seen.last().unwrap()["session_id"].as_str().unwrap())
        .unwrap()
}

/// The trace of a session, as docs/tracing.md says to find it.
fn trace_of(records: &[Value]) -> String {
    let ids: BTreeSet<&str> = records
        .iter()
        .map(|record| record["connection_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), 1, "{records:?}");
    ids.first().unwrap().replace('-', "")
}

fn names<'a>(spans: &'a [Seen], program: &str) -> Vec<&'a str> {
    let mut names: Vec<_> = spans
        .iter()
        .filter(|span| span.program == program)
        .map(|span| span.name.as_str())
        .collect();
    names.sort_unstable();
    names
}

fn one<'a>(spans: &'a [Seen], program: &str, name: &str) -> &'a Seen {
    let found: Vec<_> = spans
        .iter()
        .filter(|span| span.program == program && span.name == name)
        .collect();
    assert_eq!(found.len(), 1, "{program} {name}: {spans:#?}");
    found[0]
}

/// The spans of a trace, once `complete` says that all are there.
fn spans_when(collector: &Collector, trace: &str, complete: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
    let mut spans = Vec::new();
    let waited = wait_until("the spans are at the collector", || {
        spans = collector.trace(trace);
        Ok(complete(&spans))
    });
    assert!(waited.is_ok(), "{waited:?}: {spans:#?}");
    spans
}

#[test]
fn one_id_finds_what_all_four_programs_did_for_a_connect() {
    let collector = Collector::start();
    let plane = plane(&collector.endpoint(), "1");
    plane.log_in("auditor").unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("bob").unwrap();

    connect(&plane, "alice", Some(&collector.endpoint()));
    let records = last_session(&plane, 1);
    let trace = trace_of(&records);
    let spans = spans_when(&collector, &trace, |spans| {
        names(spans, "iapctl").contains(&"iapctl connect")
            && names(spans, "iap-proxy").contains(&"connect")
            && names(spans, "iap-agent").contains(&"session")
            && names(spans, "iap-auth").len() == 2
    });
    assert_eq!(
        names(&spans, "iapctl"),
        ["ask", "dial", "iapctl connect", "login", "tls"]
    );
    assert_eq!(
        names(&spans, "iap-proxy"),
        ["ask agent", "connect", "peek", "relay"]
    );
    assert_eq!(
        names(&spans, "iap-agent"),
        [
            "decide",
            "dial backend",
            "fetch",
            "greet",
            "handshake",
            "hello",
            "record",
            "relay",
            "session"
        ]
    );
    let events: BTreeSet<_> = spans
        .iter()
        .filter(|span| span.program == "iap-auth")
        .map(|span| (span.name.as_str(), span.text("iap.event")))
        .collect();
    let wanted = ["session.end", "session.start"].map(|event| ("audit append", event.to_owned()));
    assert_eq!(events, BTreeSet::from(wanted));

    the_spans_hang_together(&spans);
    let session = one(&spans, "iap-agent", "session");
    let id = records[0]["session_id"].as_str().unwrap();
    assert_eq!(session.text("iap.session_id"), id);
    assert_eq!(session.text("iap.close_reason"), "client_closed");
    assert_eq!(session.text("iap.bytes_in"), SECRET.len().to_string());
    assert_eq!(one(&spans, "iapctl", "iapctl connect").text("iap.session_id"), id);

    a_login_has_a_trace_of_its_own(&collector, &records);
    a_denial_is_found_by_its_id_too(&plane, &collector);
    without_the_variable_iapctl_sends_nothing(&plane, &collector);
    strangers_make_no_spans(&plane, &collector);

    let everything = collector.everything();
    for word in ["alice", "bob", "hunter2", "127.0.0.1:"] {
        assert!(!everything.contains(word), "a span says {word}");
    }
    for server in ["auth", "proxy", "agent"] {
        let (_, text) = scrape(&plane, server);
        let lost: Vec<_> = text
            .lines()
            .filter(|line| line.contains("_trace_spans_total{") && !line.contains("\"sent\""))
            .filter(|line| !line.ends_with(" 0"))
            .collect();
        assert!(lost.is_empty(), "{lost:?}");
    }
}

/// A reader of the trace sees steps below the program they belong to, and the programs below each other.
fn the_spans_hang_together(spans: &[Seen]) {
    let proxy = one(spans, "iap-proxy", "connect");
    let agent = one(spans, "iap-agent", "session");
    let client = one(spans, "iapctl", "iapctl connect");
    assert_eq!((proxy.parent.as_str(), client.parent.as_str()), ("", ""));
    assert_eq!(agent.parent, proxy.id);
    assert_eq!(client.links, [(client.trace.clone(), proxy.id.clone())]);
    for span in spans {
        assert!(span.began > 0 && span.began <= span.ended, "{span:?}");
        let above = match span.program.as_str() {
            "iapctl" => client,
            "iap-proxy" => proxy,
            _ => agent,
        };
        if ![&proxy.id, &agent.id, &client.id].contains(&&span.id) {
            assert_eq!(span.parent, above.id, "{span:?}");
        }
        if span.program != "iap-auth" && span.id != above.id {
            assert!(
                span.began >= above.began && span.ended <= above.ended,
                "{span:?} in {above:?}"
            );
        }
    }
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.id).collect();
    assert_eq!(ids.len(), spans.len());
}

fn a_login_has_a_trace_of_its_own(collector: &Collector, records: &[Value]) {
    let login = records[0]["login_id"].as_str().unwrap();
    let spans = spans_when(collector, &login.replace('-', ""), |spans| {
        names(spans, "iap-auth").contains(&"login")
    });
    assert_eq!(names(&spans, "iap-auth"), ["identity provider", "issue", "login"]);
    let root = one(&spans, "iap-auth", "login");
    assert_eq!(one(&spans, "iap-auth", "issue").parent, root.id);
    let session = collector.trace(&trace_of(records));
    let linked = &one(&session, "iap-agent", "session").links;
    assert_eq!(linked, &[(root.trace.clone(), root.id.clone())]);
}

fn a_denial_is_found_by_its_id_too(plane: &Plane, collector: &Collector) {
    let mut command = plane.command("bob", &["connect", "echo", "--stdio"]).unwrap();
    let ran = command.env(ENDPOINT, collector.endpoint()).output().unwrap();
    assert_eq!(ran.status.code(), Some(3));
    let mut denied = None;
    wait_until("the denial's span of iapctl is there", || {
        denied = collector
            .all()
            .into_iter()
            .find(|span| span.program == "iapctl" && span.text("iap.outcome") == "denied");
        Ok(denied.is_some())
    })
    .unwrap();
    let trace = denied.unwrap().trace;
    let spans = spans_when(collector, &trace, |spans| {
        names(spans, "iap-proxy").contains(&"connect")
            && names(spans, "iap-agent").contains(&"session")
            && names(spans, "iap-auth").contains(&"audit append")
    });
    let session = one(&spans, "iap-agent", "session");
    assert_eq!(session.text("iap.outcome"), "denied");
    assert_eq!(session.failure, "denied");
    let record = one(&spans, "iap-auth", "audit append");
    assert_eq!(record.text("iap.event"), "session.denied");
    assert_eq!(record.text("iap.session_id"), session.text("iap.session_id"));
}

fn without_the_variable_iapctl_sends_nothing(plane: &Plane, collector: &Collector) {
    connect(plane, "alice", None);
    let trace = trace_of(&last_session(plane, 2));
    let spans = spans_when(collector, &trace, |spans| {
        names(spans, "iap-proxy").contains(&"connect") && names(spans, "iap-auth").len() == 2
    });
    assert!(names(&spans, "iapctl").is_empty(), "{spans:#?}");
}

/// Somebody without a certificate reaches an agent, and is nobody's trace.
fn strangers_make_no_spans(plane: &Plane, collector: &Collector) {
    let before: BTreeSet<String> = collector.all().into_iter().map(|span| span.trace).collect();
    let address = plane.descriptor().unwrap()["proxy_addr"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut stranger = Command::new("openssl");
    stranger
        .args([
            "s_client",
            "-connect",
            &address,
            "-servername",
            "echo.iap.localhost",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let turned_away = || {
        let (_, text) = scrape(plane, "proxy");
        let verdicts = "iap_proxy_verdicts_total{outcome=\"failed\"} ";
        let count = text.lines().find_map(|line| line.strip_prefix(verdicts));
        count.unwrap().parse::<u64>().unwrap()
    };
    let earlier = turned_away();
    for _ in 0..3 {
        stranger.status().unwrap();
    }
    wait_until("the agent has turned them away", || {
        Ok(turned_away() == earlier + 3)
    })
    .unwrap();
    // What comes after them arrives after them.
    connect(plane, "alice", None);
    let trace = trace_of(&last_session(plane, 3));
    spans_when(collector, &trace, |spans| {
        names(spans, "iap-proxy").contains(&"connect") && names(spans, "iap-agent").contains(&"session")
    });
    let after: BTreeSet<String> = collector.all().into_iter().map(|span| span.trace).collect();
    let new: Vec<_> = after.difference(&before).collect();
    assert_eq!(new, [&trace]);
}

#[test]
fn a_collector_that_hangs_or_goes_away_holds_up_nothing() {
    let collector = Collector::that_hangs();
    let plane = plane(&collector.endpoint(), "1");
    plane.log_in("auditor").unwrap();
    plane.log_in("alice").unwrap();
    let began = Instant::now();
    for _ in 0..3 {
        connect(&plane, "alice", Some(&collector.endpoint()));
    }
    assert!(began.elapsed() < HELD_UP, "{:?}", began.elapsed());
    last_session(&plane, 3);
    wait_until("each server has given up on a batch", || {
        Ok(["auth", "proxy", "agent"].into_iter().all(|server| {
            let (_, text) = scrape(&plane, server);
            let failed = format!("iap_{server}_trace_spans_total{{outcome=\"failed\"}} ");
            text.lines()
                .any(|line| line.starts_with(&failed) && !line.ends_with(" 0"))
        }))
    })
    .unwrap();
    let endpoint = collector.endpoint();
    drop(collector);
    connect(&plane, "alice", Some(&endpoint));
    last_session(&plane, 4);
    // The end is not held up either: each server has spans that nobody takes.
    let stopping = Instant::now();
    plane.signal("dev", Signal::TERM).unwrap();
    wait_until("the plane has ended", || Ok(!is_there(&plane, "proxy"))).unwrap();
    assert!(stopping.elapsed() < HELD_UP, "{:?}", stopping.elapsed());
}

fn is_there(plane: &Plane, name: &str) -> bool {
    plane
        .pid(name)
        .is_ok_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

#[test]
fn nothing_is_sent_of_what_is_not_sampled_or_not_switched_on() {
    let collector = Collector::start();
    let unsampled = plane(&collector.endpoint(), "0");
    unsampled.log_in("auditor").unwrap();
    unsampled.log_in("alice").unwrap();
    connect(&unsampled, "alice", Some(&collector.endpoint()));
    let records = last_session(&unsampled, 1);
    // The id is in the record all the same.
    assert_eq!(trace_of(&records).len(), 32);
    drop(unsampled);
    let off = Plane::demo().unwrap();
    off.log_in("auditor").unwrap();
    off.log_in("alice").unwrap();
    connect(&off, "alice", Some(&collector.endpoint()));
    last_session(&off, 1);
    drop(off);
    assert_eq!(collector.connections(), 0);
}
