//! Policy and locks reach live sessions: cut within a second, and the record says why.

use std::io::{BufRead as _, BufReader};
use std::time::{Duration, Instant};

use iap_e2e::{Background, Plane, wait_until};

/// Removing a rule or adding a lock ends live sessions within this time. Contract of the product, not a benchmark:
/// a slower cut leaves somebody inside who may no longer be there.
const CUT_SECONDS_MAX: Duration = Duration::from_secs(1);

/// The moment the session's output ends.
fn wait_for_the_cut(session: &mut Background) -> Instant {
    let mut rest = Vec::new();
    BufReader::new(session.0.stdout.as_mut().unwrap())
        .read_until(0, &mut rest)
        .unwrap();
    Instant::now()
}

fn close_reason(plane: &Plane) -> String {
    let ended = plane
        .sessions_when(|all| all.len() == 1 && !all[0]["end"].is_null())
        .unwrap();
    ended[0]["close_reason"].as_str().unwrap().to_owned()
}

fn policy_without_development_services(plane: &Plane) -> String {
    let policy = std::fs::read_to_string(plane.dir().join("config/policy.toml")).unwrap();
    let removed = "engineers reach development services";
    let begin = policy.find(&format!("[[rule]]\nname = \"{removed}\"")).unwrap();
    let end = begin + policy[begin + 1..].find("[[rule]]").unwrap() + 1;
    let path = plane.scratch().join("policy.toml");
    std::fs::write(&path, format!("{}{}", &policy[..begin], &policy[end..])).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn removing_a_rule_cuts_its_sessions_and_the_record_names_it() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin", "auditor"] {
        plane.log_in(user).unwrap();
    }
    let mut session = plane.echo_session("alice").unwrap();
    let file = policy_without_development_services(&plane);
    plane
        .iapctl("admin", &["policy", "apply", &file])
        .unwrap()
        .succeeded()
        .unwrap();
    let applied = Instant::now();
    let cut = wait_for_the_cut(&mut session);
    assert!(
        cut.saturating_duration_since(applied) < CUT_SECONDS_MAX,
        "cut after {:?}",
        cut - applied
    );
    let reason = close_reason(&plane);
    assert!(
        reason.contains("engineers reach development services") || reason.contains("policy"),
        "{reason}"
    );
    assert!(
        plane
            .records(
                plane.json("auditor", &["sessions", "ls"]).unwrap()[0]["session_id"]
                    .as_str()
                    .unwrap()
            )
            .unwrap()
            .last()
            .unwrap()
            .to_string()
            .contains("engineers reach development services")
    );
    assert_eq!(
        plane
            .iapctl("alice", &["connect", "echo", "--", "true"])
            .unwrap()
            .code,
        3
    );
}

#[test]
fn a_lock_cuts_live_sessions_and_the_record_names_it() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin", "auditor"] {
        plane.log_in(user).unwrap();
    }
    let mut session = plane.echo_session("alice").unwrap();
    let lock = [
        "lock",
        "add",
        "--user",
        "alice@example.com",
        "--reason",
        "stolen laptop",
    ];
    plane.iapctl("admin", &lock).unwrap().succeeded().unwrap();
    let added = Instant::now();
    let cut = wait_for_the_cut(&mut session);
    assert!(
        cut.saturating_duration_since(added) < CUT_SECONDS_MAX,
        "cut after {:?}",
        cut - added
    );
    let reason = close_reason(&plane);
    assert!(reason.contains("lock"), "{reason}");
    let session = plane.json("auditor", &["sessions", "ls"]).unwrap()[0]["session_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let last = plane.records(&session).unwrap().pop().unwrap().to_string();
    assert!(
        last.contains("stolen laptop"),
        "the record names the lock: {last}"
    );
    assert_eq!(
        plane
            .iapctl("alice", &["connect", "echo", "--", "true"])
            .unwrap()
            .code,
        3
    );
}

#[test]
fn a_killed_session_ends_and_others_go_on() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin", "auditor"] {
        plane.log_in(user).unwrap();
    }
    let mut victim = plane.echo_session("alice").unwrap();
    let first = plane.sessions_when(|all| all.len() == 1).unwrap();
    let mut other = plane.echo_session("alice").unwrap();
    let id = first[0]["session_id"].as_str().unwrap();
    plane
        .iapctl("admin", &["sessions", "kill", id])
        .unwrap()
        .succeeded()
        .unwrap();
    wait_for_the_cut(&mut victim);
    other.round_trip(b"still\n").unwrap();
    wait_until("the record says that it was killed", || {
        let all = plane.json("auditor", &["sessions", "ls"])?;
        let ended = all
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["session_id"] == id)
            .unwrap()
            .clone();
        Ok(ended["close_reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("lock") || reason.contains("kill")))
    })
    .unwrap();
}
