//! Several proxies of one cluster: people and agents know all of them, and the loss of one costs nobody a session
//! that did not run through it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iap_e2e::{Annex, Background, Plane, wait_until};
use iap_testkit::free_port;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::stock_clients::environment;

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()))
}

fn proxy_of(plane: &Plane) -> String {
    plane.descriptor().unwrap()["proxy_addr"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn file_of(plane: &Plane, user: &str) -> std::path::PathBuf {
    plane.home(user).join("clusters/iap.localhost/cluster.json")
}

fn addresses(plane: &Plane, user: &str) -> Vec<String> {
    let record: Value = serde_json::from_slice(&std::fs::read(file_of(plane, user)).unwrap()).unwrap();
    serde_json::from_value(record["addresses"].clone()).unwrap()
}

fn choose(plane: &Plane, user: &str, addresses: &[&str]) {
    let mut record: Value = serde_json::from_slice(&std::fs::read(file_of(plane, user)).unwrap()).unwrap();
    record["addresses"] = json!(addresses);
    std::fs::write(file_of(plane, user), record.to_string()).unwrap();
}

/// A session that began at the proxy of this address.
fn session_by(plane: &Plane, address: &str) -> Background {
    choose(plane, "alice", &[address]);
    let mut session = None;
    wait_until("a session opens", || {
        session = plane.echo_session("alice").ok();
        Ok(session.is_some())
    })
    .unwrap();
    session.unwrap()
}

fn plane_with_two(more: &str) -> (Plane, Annex, String, String) {
    let plane = Plane::demo().unwrap();
    for person in ["alice", "admin"] {
        plane.log_in(person).unwrap();
    }
    let second = local();
    let annex = Annex::proxy(&plane, "second", second, more).unwrap();
    let first = proxy_of(&plane);
    (plane, annex, first, second.to_string())
}

#[test]
fn everybody_learns_of_a_second_proxy_and_its_loss_leaves_the_first_ones_sessions_alone() {
    let (plane, mut annex, first, second) = plane_with_two("");
    wait_until("people learn of both", || {
        plane.iapctl("alice", &["ls"])?.succeeded()?;
        Ok(addresses(&plane, "alice").contains(&second))
    })
    .unwrap();
    let port = first.rsplit(':').next().unwrap();
    let logged_in_at = format!("iap.localhost:{port}");
    assert_eq!(
        addresses(&plane, "alice"),
        [&logged_in_at, &first, &second].map(String::as_str)
    );
    let mut by_first = session_by(&plane, &first);
    let mut by_second = session_by(&plane, &second);

    annex.kill();
    by_first.round_trip(b"goes on\n").unwrap();
    choose(&plane, "alice", &[&second, &first]);
    by_second.round_trip(b"goes on by the first\n").unwrap();
    let mut by_the_next = plane.echo_session("alice").unwrap();
    by_the_next.round_trip(b"opened at once\n").unwrap();
    assert_eq!(
        plane.iapctl("alice", &["ls"]).unwrap().code,
        0,
        "the auth server is asked through the other one"
    );

    annex.start().unwrap();
    session_by(&plane, &second)
        .round_trip(b"the agent is back at it\n")
        .unwrap();
    by_first.round_trip(b"still\n").unwrap();
}

#[test]
fn a_proxy_that_hangs_holds_nobody_up_where_there_is_another() {
    let (plane, annex, first, second) = plane_with_two("");
    drop(session_by(&plane, &second));
    annex.signal(Signal::STOP).unwrap();
    choose(&plane, "alice", &[&second, &first]);
    let mut session = plane.echo_session("alice").unwrap();
    session.round_trip(b"by the other\n").unwrap();
    assert_eq!(plane.iapctl("alice", &["ls"]).unwrap().code, 0);
    annex.signal(Signal::CONT).unwrap();
}

/// `openssl` through the proxy of this address, which knows of no second connection.
fn stock_session_by(plane: &Plane, address: &str) -> Background {
    let v = environment(plane, "alice", "echo");
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-verify_return_error"]);
    for (option, value) in [
        ("-connect", address),
        ("-servername", &v["IAP_SERVER_NAME"]),
        ("-CAfile", &v["IAP_CA"]),
        ("-cert", &v["IAP_CERT"]),
        ("-key", &v["IAP_KEY"]),
    ] {
        command.args([option, value]);
    }
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut session = Background(piped.spawn().unwrap());
    session.round_trip(b"by openssl\n").unwrap();
    session
}

#[test]
fn a_drained_proxy_keeps_stock_sessions_until_the_deadline_and_those_of_iapctl_move_at_once() {
    let (plane, mut annex, first, second) = plane_with_two("[limits]\ndrain_seconds_max = 8\n");
    drop(session_by(&plane, &second));
    let mut command = plane
        .command("alice", &["-v", "connect", "echo", "--stdio"])
        .unwrap();
    let piped = command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut by_iapctl = Background(piped.spawn().unwrap());
    by_iapctl.round_trip(b"before\n").unwrap();
    let mut by_openssl = stock_session_by(&plane, &second);
    choose(&plane, "alice", &[&second, &first]);

    let drained = Instant::now();
    annex.signal(Signal::TERM).unwrap();
    let mut said = BufReader::new(by_iapctl.0.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().ends_with("goes on")));
    assert!(
        drained.elapsed() < Duration::from_secs(3),
        "{:?}",
        drained.elapsed()
    );
    by_iapctl.round_trip(b"by the other\n").unwrap();
    plane
        .echo_session("alice")
        .unwrap()
        .round_trip(b"new ones open\n")
        .unwrap();
    by_openssl.round_trip(b"goes on where it is\n").unwrap();
    assert_eq!(annex.ended().unwrap(), None);

    wait_until("it has ended", || Ok(annex.ended()?.is_some())).unwrap();
    assert_eq!(annex.ended().unwrap(), Some(0));
    assert!(
        drained.elapsed() >= Duration::from_secs(8),
        "{:?}",
        drained.elapsed()
    );
    assert_eq!(by_openssl.0.stdout.as_mut().unwrap().read(&mut [0]).unwrap(), 0);
    by_iapctl.round_trip(b"and still\n").unwrap();
}

#[test]
fn a_proxy_starts_from_its_disk_while_the_auth_server_is_down() {
    let (plane, mut annex, _, second) = plane_with_two("");
    drop(session_by(&plane, &second));
    // The supervisor would start the auth server again at once; psql's backend does not live in it.
    plane.signal("dev", Signal::STOP).unwrap();
    plane.signal("auth", Signal::KILL).unwrap();
    annex.kill();
    annex.start().unwrap();
    choose(&plane, "alice", &[&second]);
    wait_until("sessions open through it", || {
        let query = ["connect", "db-prod", "--", "psql", "-X", "-Atc", "select 1"];
        Ok(plane.iapctl("alice", &query)?.stdout.trim() == "1")
    })
    .unwrap();
    plane.signal("dev", Signal::CONT).unwrap();
}

/// Locks a proxy that says who it is in its log.
fn lock(plane: &Plane, annex: &Annex, reason: &str) {
    let log = annex.log();
    let id = log
        .split("proxy=")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap();
    let locking = ["lock", "add", "--proxy", id, "--reason", reason];
    plane.iapctl("admin", &locking).unwrap().succeeded().unwrap();
}

#[test]
fn a_lock_on_a_proxy_cuts_the_sessions_that_run_through_it_and_no_others_with_its_reason_on_record() {
    let (plane, annex, first, second) = plane_with_two("");
    plane.log_in("auditor").unwrap();
    let mut by_first = session_by(&plane, &first);
    let mut by_second = session_by(&plane, &second);
    lock(&plane, &annex, "its host was broken into");
    let sessions = plane
        .sessions_when(|all| all.iter().any(|one| one["close_reason"] == "lock"))
        .unwrap();
    assert!(by_second.round_trip(b"is cut\n").is_err());
    by_first.round_trip(b"goes on\n").unwrap();
    let cut: Vec<&Value> = sessions.iter().filter(|one| !one["end"].is_null()).collect();
    assert_eq!(cut.len(), 1, "{sessions:?}");
    let records = plane.records(cut[0]["session_id"].as_str().unwrap()).unwrap();
    let detail = records.last().unwrap()["close_detail"].as_str().unwrap();
    assert!(
        detail.starts_with("proxy lock ") && detail.ends_with(": its host was broken into"),
        "{detail}"
    );
}

#[test]
fn a_locked_proxy_gets_no_feed_is_left_by_agents_and_named_to_nobody() {
    let (plane, annex, first, second) = plane_with_two("");
    drop(session_by(&plane, &second));
    lock(&plane, &annex, "its host was broken into");
    choose(&plane, "alice", &[&second]);
    wait_until("no session opens through it", || {
        Ok(plane.echo_session("alice").is_err())
    })
    .unwrap();
    assert!(
        plane
            .iapctl("alice", &["connect", "echo", "--stdio"])
            .unwrap()
            .stderr
            .contains("is not available")
    );
    choose(&plane, "alice", &[&first, &second]);
    plane
        .echo_session("alice")
        .unwrap()
        .round_trip(b"by the other\n")
        .unwrap();
    plane.iapctl("alice", &["ls"]).unwrap().succeeded().unwrap();
    assert_eq!(addresses(&plane, "alice"), [first.as_str()]);
    wait_until("it hears why", || {
        Ok(annex.log().contains("its host was broken into"))
    })
    .unwrap();
}

#[test]
fn a_proxy_at_an_ipv6_address_serves_people_agents_and_backends_over_ipv6() {
    let plane = Plane::demo().unwrap();
    for person in ["alice", "admin", "auditor"] {
        plane.log_in(person).unwrap();
    }
    let six: SocketAddr = format!("[::1]:{}", free_port().unwrap()).parse().unwrap();
    let _annex = Annex::proxy(&plane, "six", six, "").unwrap();
    let backend = std::net::TcpListener::bind("[::1]:0").unwrap();
    let keys = format!("backend = \"{}\"", backend.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in backend.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut stream, b"over IPv6\n");
        }
    });
    let _agent = Annex::agent(&plane, "far", &six.to_string(), &[("six", &keys)], "", &[]).unwrap();
    choose(&plane, "alice", &[&six.to_string()]);
    wait_until("the service answers", || {
        Ok(plane.iapctl("alice", &["connect", "six", "--stdio"])?.stdout == "over IPv6\n")
    })
    .unwrap();
    let sessions = plane
        .sessions_when(|all| all.iter().any(|one| one["service"] == "six"))
        .unwrap();
    let session = sessions.iter().find(|one| one["service"] == "six").unwrap();
    let records = plane.records(session["session_id"].as_str().unwrap()).unwrap();
    assert_eq!(records[0]["client_ip"], "::1", "{records:?}");
}

#[test]
fn a_proxy_on_all_addresses_sees_ipv4_clients_as_such() {
    let plane = Plane::demo().unwrap();
    for person in ["alice", "admin", "auditor"] {
        plane.log_in(person).unwrap();
    }
    let port = free_port().unwrap();
    let any: SocketAddr = format!("[::]:{port}").parse().unwrap();
    let _annex = Annex::proxy(&plane, "any", any, "").unwrap();
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        drop(session_by(&plane, &address));
    }
    let sessions = plane.sessions_when(|all| all.len() >= 2).unwrap();
    let mut clients = Vec::new();
    for session in &sessions {
        let records = plane.records(session["session_id"].as_str().unwrap()).unwrap();
        clients.push(records[0]["client_ip"].as_str().unwrap().to_owned());
    }
    clients.sort();
    clients.dedup();
    assert_eq!(clients, ["127.0.0.1", "::1"]);
}
