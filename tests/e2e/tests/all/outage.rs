//! The auth server is on nobody's path: stopped or frozen, sessions go on and new ones open; afterwards the log is complete.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use iap_e2e::{Background, Plane, wait_until};
use rustix::process::Signal;
use serde_json::Value;

/// psql in place of `cat`: it works while the demo's in-process backends are stopped with their supervisor.
fn live_session(plane: &Plane) -> Background {
    let command = plane.command("alice", &["connect", "db-prod", "--", "psql", "-X", "-At"]);
    Background(command.unwrap().stdin(Stdio::piped()).spawn().unwrap())
}

fn ask(session: &mut Background, number: u32) {
    let input = session.0.stdin.as_mut().unwrap();
    writeln!(input, "select 'n{number}';").unwrap();
    input.flush().unwrap();
    let expected = format!("n{number}\n");
    let mut back = vec![0; expected.len()];
    session.0.stdout.as_mut().unwrap().read_exact(&mut back).unwrap();
    assert_eq!(String::from_utf8_lossy(&back), expected);
}

fn query(plane: &Plane) {
    let answer = plane
        .iapctl(
            "alice",
            &["connect", "db-prod", "--", "psql", "-X", "-Atc", "select 1"],
        )
        .unwrap();
    assert_eq!(answer.succeeded().unwrap().trim(), "1");
}

/// One session before, three while it was away: four starts, four ends, no record twice, each agent's chain unbroken.
fn log_is_complete(plane: &Plane) {
    let sessions = plane
        .sessions_when(|all| all.len() == 4 && all.iter().all(|one| !one["end"].is_null()))
        .unwrap();
    let mut seen = BTreeSet::new();
    for session in &sessions {
        let records = plane.records(session["session_id"].as_str().unwrap()).unwrap();
        let events: Vec<&str> = records
            .iter()
            .filter_map(|record| record["event"].as_str())
            .collect();
        assert_eq!(
            (events.first(), events.last()),
            (Some(&"session.start"), Some(&"session.end"))
        );
        let ends = ["session.start", "session.end"];
        assert_eq!(
            events.iter().filter(|event| ends.contains(event)).count(),
            2,
            "{events:?}"
        );
        assert!(events.contains(&"session.statement"), "{events:?}");
        for record in &records {
            let key = (
                record["agent_id"].to_string(),
                record["agent_seq"].as_u64().unwrap(),
            );
            assert!(seen.insert(key), "a record is in the log twice: {record}");
        }
    }
}

#[test]
fn with_the_auth_server_frozen_sessions_go_on_and_new_ones_open() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();
    let mut live = live_session(&plane);
    ask(&mut live, 1);
    plane.signal("auth", Signal::STOP).unwrap();
    ask(&mut live, 2);
    for _ in 0..3 {
        query(&plane);
    }
    ask(&mut live, 3);
    plane.signal("auth", Signal::CONT).unwrap();
    drop(live.0.stdin.take());
    live.finish().unwrap().succeeded().unwrap();
    log_is_complete(&plane);
}

#[test]
fn with_the_auth_server_stopped_sessions_go_on_and_new_ones_open() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();
    let mut live = live_session(&plane);
    ask(&mut live, 1);
    // The supervisor would start it again at once.
    let auth = plane.pid("auth").unwrap();
    plane.signal("dev", Signal::STOP).unwrap();
    plane.signal("auth", Signal::KILL).unwrap();
    ask(&mut live, 2);
    for _ in 0..3 {
        query(&plane);
    }
    ask(&mut live, 3);
    plane.signal("dev", Signal::CONT).unwrap();
    wait_until("the auth server is started again", || {
        Ok(plane.pid("auth")? != auth)
    })
    .unwrap();
    drop(live.0.stdin.take());
    live.finish().unwrap().succeeded().unwrap();
    log_is_complete(&plane);
}

#[test]
fn a_session_in_both_directions_survives_the_auth_servers_restart() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let mut session = plane.echo_session("alice").unwrap();
    session.round_trip(b"before\n").unwrap();
    let auth = plane.pid("auth").unwrap();
    plane.signal("auth", Signal::KILL).unwrap();
    wait_until("the auth server is started again", || {
        Ok(plane.pid("auth")? != auth)
    })
    .unwrap();
    session.round_trip(b"after\n").unwrap();
}

fn log_of(plane: &Plane, program: &str) -> String {
    std::fs::read_to_string(plane.dir().join(format!("logs/{program}.log"))).unwrap()
}

#[test]
fn an_orderly_end_of_the_auth_server_is_no_error_and_its_agents_say_once_what_they_miss() {
    let plane = Plane::demo().unwrap();
    let auth = plane.pid("auth").unwrap();
    plane.signal("dev", Signal::STOP).unwrap();
    plane.signal("auth", Signal::TERM).unwrap();
    // Each attempt of the agent is turned away by the proxy.
    wait_until("the agent has tried several times", || {
        let attempts = log_of(&plane, "proxy")
            .lines()
            .filter(|line| line.contains("turned away"))
            .count();
        Ok(attempts > 5)
    })
    .unwrap();
    let said = log_of(&plane, "agent");
    let reason = "the proxy cannot reach the auth server";
    let feed =
        |line: &&str| line.contains("the feed of the auth server is interrupted") && line.contains(reason);
    assert_eq!(said.lines().filter(feed).count(), 1, "{said}");
    assert!(!said.contains("InternalError"), "{said}");
    let said = log_of(&plane, "auth");
    assert!(said.contains("shutting down"), "{said}");
    assert!(!said.contains("ERROR"), "{said}");

    plane.signal("dev", Signal::CONT).unwrap();
    wait_until("the agent listens again", || {
        let opened = log_of(&plane, "agent").matches("listening to the feed").count();
        Ok(plane.pid("auth")? != auth && opened > 1)
    })
    .unwrap();
}

/// Stricter than any default, so that its rows of the table can be waited for.
const STRICT: &str = r#"
[[service]]
name = "echo"
labels = { env = "dev" }
lock_feed_max_age = "30s"
grace = "2s"
[[service]]
name = "web"
labels = { env = "dev" }
snapshot_max_age = "30s"
"#;

#[test]
fn services_stricter_than_the_rest_close_when_the_auth_server_is_out_of_reach_and_open_when_it_is_back() {
    let plane = Plane::demo().unwrap();
    for user in ["admin", "alice", "auditor"] {
        plane.log_in(user).unwrap();
    }
    let file = plane.scratch().join("strict.toml");
    std::fs::write(&file, STRICT).unwrap();
    let applied = plane
        .iapctl("admin", &["services", "apply", file.to_str().unwrap()])
        .unwrap();
    applied.succeeded().unwrap();
    let mut live = live_session(&plane);
    ask(&mut live, 1);
    let mut strict = plane.echo_session("alice").unwrap();
    plane.signal("auth", Signal::STOP).unwrap();
    strict.round_trip(b"still\n").unwrap();
    let deadline = Instant::now() + Duration::from_secs(90);
    while strict.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the strict service's session goes on");
        std::thread::sleep(Duration::from_millis(100));
    }
    for (service, why) in [("echo", "out of reach for longer"), ("web", "has not confirmed")] {
        let refused = plane
            .iapctl("alice", &["connect", service, "--", "true"])
            .unwrap();
        assert_ne!(refused.code, 0, "{service}");
        assert!(refused.stderr.contains(why), "{service}: {}", refused.stderr);
    }
    query(&plane);
    ask(&mut live, 2);

    plane.signal("auth", Signal::CONT).unwrap();
    for service in ["echo", "web"] {
        wait_until(&format!("{service} opens again"), || {
            let opened = plane.iapctl("alice", &["connect", service, "--", "true"])?;
            Ok(opened.code == 0)
        })
        .unwrap();
    }
    let ended = |all: &[Value]| all.iter().any(|one| one["close_reason"] == "feed_too_old");
    plane.sessions_when(ended).unwrap();
    let denied = plane
        .json("auditor", &["audit", "search", "denial == \"outage\""])
        .unwrap();
    assert!(denied.to_string().contains("out of reach for longer"), "{denied}");
}
