//! Log in, connect to a real database, read the record.

use iap_e2e::{Plane, Ran};
use rustix::process::Signal;

const QUERY: [&str; 7] = [
    "connect",
    "db-prod",
    "--",
    "psql",
    "-X",
    "-Atc",
    "select customer from orders order by id limit 1",
];

#[test]
fn alice_queries_the_database_and_the_auditor_reads_her_session() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();

    let answer = plane.iapctl("alice", &QUERY).unwrap();
    assert_eq!(answer.succeeded().unwrap().trim(), "Ada");

    let sessions = plane
        .sessions_when(|all| all.len() == 1 && !all[0]["end"].is_null())
        .unwrap();
    let session = &sessions[0];
    assert_eq!(session["user"], "alice@example.com");
    assert_eq!(session["service"], "db-prod");
    assert_eq!(session["decision"]["effect"], "allow");
    assert_eq!(session["decision"]["rule"], "engineers reach the databases");
    assert!(session["bytes_in"].as_u64().unwrap() > 0 && session["bytes_out"].as_u64().unwrap() > 0);
    for time in ["start", "end"] {
        let text = session[time].as_str().unwrap();
        assert!(
            text.ends_with('Z') && text.len() == "2026-01-01T00:00:00.000Z".len(),
            "{text}"
        );
    }
    let records = plane.records(session["session_id"].as_str().unwrap()).unwrap();
    let events: Vec<&str> = records
        .iter()
        .filter_map(|record| record["event"].as_str())
        .collect();
    let told = [
        "session.start",
        "session.login",
        "session.statement",
        "session.end",
    ];
    assert_eq!(events, told);
    assert_eq!(records[2]["statement"], QUERY[QUERY.len() - 1]);
}

#[test]
fn bob_is_denied_in_one_sentence_with_exit_code_3_and_the_command_never_runs() {
    let plane = Plane::demo().unwrap();
    plane.log_in("bob").unwrap();
    let marker = plane.scratch().join("ran");
    let marker = marker.to_str().unwrap();

    let denied = plane
        .iapctl("bob", &["connect", "db-prod", "--", "touch", marker])
        .unwrap();
    assert_eq!(denied.code, 3, "{denied:?}");
    assert!(!std::path::Path::new(marker).exists());
    assert_eq!(denied.stdout, "");
    assert!(
        denied.stderr.contains("db-prod") && denied.stderr.contains("#databases"),
        "{}",
        denied.stderr
    );
    let Ran { code, .. } = plane.iapctl("bob", &["connect", "web", "--", "true"]).unwrap();
    assert_eq!(code, 0, "bob reaches web");
}

#[test]
fn the_commands_exit_code_is_passed_on_and_ours_is_125() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    assert_eq!(
        plane
            .iapctl("alice", &["connect", "echo", "--", "sh", "-c", "exit 7"])
            .unwrap()
            .code,
        7
    );
    let no_such_program = plane
        .iapctl("alice", &["connect", "echo", "--", "/nonexistent/program"])
        .unwrap();
    assert_eq!(no_such_program.code, 127, "as a shell says it");
    assert_eq!(
        plane
            .iapctl("nobody", &["connect", "echo", "--", "true"])
            .unwrap()
            .code,
        4
    );
    assert_eq!(
        plane
            .iapctl("alice", &["connect", "Not_A_Name", "--", "true"])
            .unwrap()
            .code,
        2
    );
    // The supervisor would start it again at once.
    plane.signal("dev", Signal::STOP).unwrap();
    plane.signal("proxy", Signal::KILL).unwrap();
    assert_eq!(
        plane
            .iapctl("alice", &["connect", "echo", "--", "true"])
            .unwrap()
            .code,
        125
    );
    plane.signal("dev", Signal::CONT).unwrap();
}

#[test]
fn what_a_person_may_reach_is_what_ls_shows() {
    let plane = Plane::demo().unwrap();
    for (user, expected) in [
        ("alice", vec!["db-prod", "echo", "ssh-demo", "web"]),
        ("bob", vec!["web"]),
    ] {
        plane.log_in(user).unwrap();
        let listed = plane.json(user, &["ls"]).unwrap();
        let names: Vec<&str> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, expected, "{user}");
    }
}

#[test]
fn without_audit_read_one_sees_ones_own_sessions_only() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "bob", "auditor"] {
        plane.log_in(user).unwrap();
    }
    plane
        .iapctl("alice", &["connect", "echo", "--", "true"])
        .unwrap()
        .succeeded()
        .unwrap();
    plane
        .iapctl("bob", &["connect", "web", "--", "true"])
        .unwrap()
        .succeeded()
        .unwrap();
    plane.sessions_when(|all| all.len() == 2).unwrap();
    for (user, name) in [("alice", "alice@example.com"), ("bob", "bob@example.com")] {
        let own = plane.json(user, &["sessions", "ls"]).unwrap();
        let users: Vec<&str> = own
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["user"].as_str().unwrap())
            .collect();
        assert_eq!(users, [name]);
    }
}

#[test]
fn explain_names_the_deciding_rule() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("admin").unwrap();
    let explained = plane
        .json("alice", &["policy", "explain", "--service", "db-prod"])
        .unwrap();
    assert!(
        explained.to_string().contains("engineers reach the databases"),
        "{explained}"
    );
    let can = plane
        .iapctl("admin", &["can", "bob@example.com", "db-prod"])
        .unwrap();
    assert_eq!(can.code, 3, "{can:?}");
}
