//! Sessions that go on while their agent is started anew: told to stop, it leaves them to the next (`iapctl dev` keeps a
//! descriptor store for it, as systemd does).

use std::process::Stdio;
use std::time::{Duration, Instant};

use iap_e2e::{Background, Plane, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::resume::{TRANSFER_BYTES, events, only_session, transfer_through};
use crate::survival::Relay;
use crate::survival::psql::Psql;

/// Ends the agent by a signal and waits until another is at its place.
pub(crate) fn restart_agent(plane: &Plane, signal: Signal) {
    let agent = plane.pid("agent").unwrap();
    plane.signal("agent", signal).unwrap();
    wait_until("the agent is started again", || Ok(plane.pid("agent")? != agent)).unwrap();
}

#[test]
fn an_open_transaction_in_psql_outlives_two_restarts_of_its_agent_and_the_records_tell() {
    let database = Relay::start();
    let service = format!("db=127.0.0.1:{}", database.port);
    let plane = Plane::start(&["--demo", "--service", &service]).unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();
    database.serves_unread(&plane);
    let command = plane.command("alice", &[&["connect", "db", "--"], Psql::COMMAND].concat());
    let mut psql = Psql::start(command.unwrap());
    for round in ["the first restart", "the second"] {
        restart_agent(&plane, Signal::TERM);
        psql.is_as_it_was(round);
    }
    psql.finish();
    let session = only_session(&plane);
    // psql says goodbye, and who hangs up first is between it and the backend.
    let closed = session["close_reason"].as_str().unwrap();
    assert!(["client_closed", "backend_closed"].contains(&closed), "{closed}");
    let round = ["session.handover", "session.resume"];
    let told = [
        &["session.start"][..],
        &round[..],
        &round[..],
        &["session.end"][..],
    ]
    .concat();
    assert_eq!(events(&plane, &session), told);
}

#[test]
fn a_transfer_arrives_whole_through_an_agent_that_is_started_anew_again_and_again() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();
    let session = plane.echo_session("alice").unwrap();
    transfer_through(session, 4, || restart_agent(&plane, Signal::TERM));
    let session = only_session(&plane);
    let records = plane.records(session["session_id"].as_str().unwrap()).unwrap();
    let end = records.last().unwrap();
    let moved = (TRANSFER_BYTES + b"ping\n".len()) as u64;
    assert_eq!(
        (end["bytes_in"].as_u64(), end["bytes_out"].as_u64()),
        (Some(moved), Some(moved))
    );
    let handovers = events(&plane, &session);
    let handovers = handovers.iter().filter(|event| *event == "session.handover");
    assert!(handovers.count() > 0);
}

/// A plane whose agent keeps sessions for the case that it is killed.
pub(crate) fn plane_surviving_kills(arguments: &[&str]) -> Plane {
    let plane = Plane::start_by(arguments, |_, mut command| {
        command.env("IAP_AGENT__SESSIONS__SURVIVE_KILL", "true");
        Ok(command)
    });
    plane.unwrap()
}

#[test]
fn a_transfer_arrives_whole_through_an_agent_that_is_killed_and_stopped_in_turn() {
    let plane = plane_surviving_kills(&["--demo"]);
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();
    let session = plane.echo_session("alice").unwrap();
    let times = std::cell::Cell::new(0);
    transfer_through(session, 6, || {
        times.set(times.get() + 1);
        let signal = if times.get() % 3 == 0 {
            Signal::TERM
        } else {
            Signal::KILL
        };
        restart_agent(&plane, signal);
    });
    let session = only_session(&plane);
    let records = plane.records(session["session_id"].as_str().unwrap()).unwrap();
    let end = records.last().unwrap();
    let moved = (TRANSFER_BYTES + b"ping\n".len()) as u64;
    assert_eq!(
        (end["bytes_in"].as_u64(), end["bytes_out"].as_u64()),
        (Some(moved), Some(moved))
    );
    let causes = records
        .iter()
        .filter(|record| record["event"] == "session.handover");
    let causes: Vec<_> = causes.map(|record| record["cause"].as_str().unwrap()).collect();
    assert!(causes.contains(&"killed"), "{causes:?}");
}

/// Of what comes by a Unix socket nobody counts the bytes.
#[test]
fn a_session_by_a_unix_socket_is_lost_with_an_agent_that_is_killed() {
    let plane = plane_surviving_kills(&["--demo"]);
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();
    let mut command = plane
        .command("alice", &["connect", "db-prod", "--stdio"])
        .unwrap();
    let session = Background(
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let has_begun = |all: &[Value]| all.len() == 1 && all[0]["end"].is_null();
    plane.sessions_when(has_begun).unwrap();
    restart_agent(&plane, Signal::KILL);
    assert_ne!(session.finish().unwrap().code, 0);
    assert_eq!(only_session(&plane)["close_reason"], "agent_lost");
}

/// Whoever is locked while there is no agent to hear of it does not go on.
#[test]
fn a_lock_that_comes_while_the_agent_is_away_counts() {
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
    let mut lock = plane.command("admin", &locked).unwrap();
    let agent = plane.pid("agent").unwrap();
    plane.signal("agent", Signal::TERM).unwrap();
    let mut lock = Background(lock.spawn().unwrap());
    let ended = Instant::now();
    wait_until("the agent is started again", || Ok(plane.pid("agent")? != agent)).unwrap();
    assert!(lock.0.wait().unwrap().success());
    let ran = session.finish().unwrap();
    assert!(ended.elapsed() < Duration::from_secs(15), "{:?}", ended.elapsed());
    assert_ne!(ran.code, 0);
    let session = only_session(&plane);
    assert_eq!(session["close_reason"], "lock");
}

/// Whoever interrupts an agent wants its sessions to end, and their clients hear so.
#[test]
fn an_agent_that_is_interrupted_ends_its_sessions() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();
    let mut session = plane.echo_session("alice").unwrap();
    session.round_trip(b"before\n").unwrap();
    restart_agent(&plane, Signal::INT);
    let ran = session.finish().unwrap();
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("The agent is stopping."), "{}", ran.stderr);
    let session = only_session(&plane);
    assert_eq!(session["close_reason"], "shutdown");
}
