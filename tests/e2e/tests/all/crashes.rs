//! Programs that end by force lose nothing: every session that reached a backend has its start and its end on record.

use iap_e2e::{Background, Plane, wait_until};
use rustix::process::Signal;

#[test]
fn an_agent_killed_with_live_sessions_writes_their_ends_when_it_is_back() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();
    let sessions: Vec<Background> = (0..3).map(|_| plane.echo_session("alice").unwrap()).collect();
    let agent = plane.pid("agent").unwrap();
    plane.signal("agent", Signal::KILL).unwrap();
    wait_until("the agent is started again", || Ok(plane.pid("agent")? != agent)).unwrap();
    let recorded = plane
        .sessions_when(|all| all.len() == 3 && all.iter().all(|one| !one["end"].is_null()))
        .unwrap();
    for session in &recorded {
        assert_eq!(session["close_reason"], "agent_lost");
    }
    drop(sessions);
    wait_until("a new session opens", || {
        Ok(plane.iapctl("alice", &["connect", "echo", "--", "true"])?.code == 0)
    })
    .unwrap();
}

#[test]
fn an_auth_server_killed_while_records_arrive_has_each_of_them_once() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();
    for round in 0..4 {
        for _ in 0..3 {
            plane
                .iapctl("alice", &["connect", "echo", "--", "true"])
                .unwrap()
                .succeeded()
                .unwrap();
        }
        let auth = plane.pid("auth").unwrap();
        plane.signal("auth", Signal::KILL).unwrap();
        wait_until(&format!("round {round}: it is started again"), || {
            Ok(plane.pid("auth")? != auth)
        })
        .unwrap();
    }
    let sessions = plane
        .sessions_when(|all| all.len() == 12 && all.iter().all(|one| !one["end"].is_null()))
        .unwrap();
    let mut numbers: Vec<u64> = Vec::new();
    for session in &sessions {
        for record in plane.records(session["session_id"].as_str().unwrap()).unwrap() {
            numbers.push(record["agent_seq"].as_u64().unwrap());
        }
    }
    let all = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), all, "a record is in the log twice");
    assert_eq!(all, 24, "a start and an end for each session");
}

#[test]
fn a_proxy_that_is_started_again_serves_within_seconds() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let proxy = plane.pid("proxy").unwrap();
    plane.signal("proxy", Signal::KILL).unwrap();
    wait_until("the proxy is started again", || Ok(plane.pid("proxy")? != proxy)).unwrap();
    wait_until("a new session opens", || {
        Ok(plane.iapctl("alice", &["connect", "echo", "--", "true"])?.code == 0)
    })
    .unwrap();
}
