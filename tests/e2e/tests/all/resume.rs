//! Sessions that outlive their connections (`iap-resume/1`): a proxy that is killed, one of two that stays away, a
//! certificate that ends meanwhile; and what does not come back.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use iap_e2e::{Background, Plane, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::survival::psql::Psql;

/// Kills the proxy and waits until another is at its place.
pub(crate) fn kill_proxy(plane: &Plane) {
    let proxy = plane.pid("proxy").unwrap();
    plane.signal("proxy", Signal::KILL).unwrap();
    wait_until("the proxy is started again", || Ok(plane.pid("proxy")? != proxy)).unwrap();
}

pub(crate) fn only_session(plane: &Plane) -> Value {
    plane
        .sessions_when(|all| all.len() == 1 && !all[0]["end"].is_null())
        .unwrap()
        .remove(0)
}

pub(crate) fn events(plane: &Plane, session: &Value) -> Vec<String> {
    let records = plane.records(session["session_id"].as_str().unwrap()).unwrap();
    let event = |record: &Value| record["event"].as_str().unwrap().to_owned();
    records.iter().map(event).collect()
}

#[test]
fn a_session_outlives_a_proxy_that_is_killed_twice_and_its_records_tell() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();
    let mut session = plane.echo_session("alice").unwrap();
    session.round_trip(b"before\n").unwrap();
    for round in ["once", "twice"] {
        kill_proxy(&plane);
        session.round_trip(round.as_bytes()).unwrap();
    }
    drop(session.0.stdin.take());
    assert_eq!(session.finish().unwrap().code, 0);
    let session = only_session(&plane);
    assert_eq!(session["close_reason"], "client_closed");
    let told = events(&plane, &session);
    assert_eq!(
        told,
        ["session.start", "session.resume", "session.resume", "session.end"]
    );
    let records = plane.records(session["session_id"].as_str().unwrap()).unwrap();
    let end = records.last().unwrap();
    assert_eq!(end["resumes"], 2, "{end}");
    let said = "before\noncetwice".len() as u64;
    assert!(
        end["bytes_in"].as_u64() >= Some(said) && end["bytes_in"] == end["bytes_out"],
        "{end}"
    );
    assert_ne!(records[1]["connection_id"], records[0]["connection_id"]);
}

/// Its successor begins when it has ended: it does not sit its time out for a session that waits for just that.
#[test]
fn a_lone_proxy_that_is_stopped_ends_at_once_and_the_session_goes_on_at_its_successor() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let mut session = plane.echo_session("alice").unwrap();
    let (proxy, stopped) = (plane.pid("proxy").unwrap(), Instant::now());
    plane.signal("proxy", Signal::TERM).unwrap();
    wait_until("the proxy is started again", || Ok(plane.pid("proxy")? != proxy)).unwrap();
    assert!(
        stopped.elapsed() < Duration::from_secs(8),
        "{:?}",
        stopped.elapsed()
    );
    session.round_trip(b"by its successor\n").unwrap();
    drop(session.0.stdin.take());
    assert_eq!(session.finish().unwrap().code, 0);
}

/// How much goes there and back in [`transfer_through`].
pub(crate) const TRANSFER_BYTES: usize = 64 << 20;

/// Sends bytes both ways while `disturbance` happens up to so many times: none is lost, doubled or changed. Ends the session.
pub(crate) fn transfer_through(mut session: Background, times_max: usize, disturbance: impl Fn()) {
    let byte = |number: usize| u8::try_from((number ^ (number >> 8) ^ (number >> 16)) & 0xff).unwrap();
    let mut input = session.0.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let mut number = 0;
        while number < TRANSFER_BYTES {
            let piece: Vec<u8> = (number..(number + 64 * 1024).min(TRANSFER_BYTES))
                .map(byte)
                .collect();
            input.write_all(&piece).unwrap();
            number += piece.len();
        }
    });
    let mut output = session.0.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut number, mut piece) = (0, vec![0; 64 * 1024]);
        while number < TRANSFER_BYTES {
            let count = output.read(&mut piece).unwrap();
            assert!(count > 0, "the end after {number} bytes");
            for (at, got) in piece.iter().take(count).enumerate() {
                assert_eq!(*got, byte(number + at), "at {}", number + at);
            }
            number += count;
        }
        let rest = output.read(&mut piece).unwrap();
        assert_eq!(rest, 0, "more than was sent");
    });
    let mut times = 0;
    while !writer.is_finished() && times < times_max {
        std::thread::sleep(Duration::from_millis(300));
        disturbance();
        times += 1;
    }
    assert!(times > 0, "it was over before anything happened");
    writer.join().unwrap();
    reader.join().unwrap();
    assert_eq!(session.finish().unwrap().code, 0);
}

#[test]
fn a_transfer_arrives_whole_through_a_proxy_that_is_killed_again_and_again() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let session = plane.echo_session("alice").unwrap();
    transfer_through(session, 5, || kill_proxy(&plane));
}

#[test]
fn an_open_transaction_in_psql_outlives_a_proxy_that_is_killed() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let command = plane.command("alice", &[&["connect", "db-prod", "--"], Psql::COMMAND].concat());
    let mut psql = Psql::start(command.unwrap());
    kill_proxy(&plane);
    psql.is_as_it_was("behind the kill");
    psql.finish();
}

/// Whoever was locked while their connection was lost is told so, and the session is over.
#[test]
fn a_lock_is_final() {
    let plane = Plane::demo().unwrap();
    for person in ["alice", "admin", "auditor"] {
        plane.log_in(person).unwrap();
    }
    let mut session = plane.echo_session("alice").unwrap();
    session.round_trip(b"before\n").unwrap();
    let locked = [
        "lock",
        "add",
        "--user",
        "alice@example.com",
        "--reason",
        "a drill",
    ];
    plane.iapctl("admin", &locked).unwrap().succeeded().unwrap();
    let cut = Instant::now();
    let ran = session.finish().unwrap();
    assert!(cut.elapsed() < Duration::from_secs(5), "{:?}", cut.elapsed());
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("Access is locked."), "{}", ran.stderr);
    let session = only_session(&plane);
    assert_eq!(session["close_reason"], "lock");
}

/// A program that ends by itself leaves nothing behind that waits for it.
#[test]
fn an_interrupted_client_ends_its_session_at_once() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();
    let mut command = plane
        .command("alice", &["connect", "echo", "--listen", "127.0.0.1:0"])
        .unwrap();
    command.stdout(Stdio::piped());
    let mut listening = Background(command.spawn().unwrap());
    let mut address = String::new();
    BufReader::new(listening.0.stdout.take().unwrap())
        .read_line(&mut address)
        .unwrap();
    let mut local = std::net::TcpStream::connect(address.trim()).unwrap();
    local.write_all(b"hello").unwrap();
    local.read_exact(&mut [0; 5]).unwrap();
    let interrupted = Instant::now();
    listening.interrupt().unwrap();
    let session = only_session(&plane);
    assert!(interrupted.elapsed() < Duration::from_secs(20));
    assert_eq!(session["close_reason"], "client_closed");
}
