//! PostgreSQL, inspected: real clients at a real server, and what is on record of them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};

use iap_e2e::{Background, Plane, Ran, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::stock_clients::environment;

mod by_certificate;
pub(crate) mod clients;
mod faults;
mod guide;
mod in_between;
mod server;

fn plane() -> Plane {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "auditor"] {
        plane.log_in(user).unwrap();
    }
    plane
}

fn psql(settings: &BTreeMap<String, String>, arguments: &[&str]) -> Command {
    let mut command = Command::new("psql");
    command
        .args(["-X", "-At"])
        .args(arguments)
        .envs(settings)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(command: &mut Command) -> Ran {
    command.output().unwrap().into()
}

/// What the demo's PostgreSQL answers its owner.
fn superuser(plane: &Plane, statement: &str) -> String {
    let server = plane.dir().join("postgres");
    let ran = run(Command::new("psql")
        .args(["-X", "-At", "-U", "postgres", "-d", "app", "-c", statement, "-h"])
        .arg(&server)
        .env_remove("PGSSLMODE"));
    ran.succeeded().unwrap().trim().to_owned()
}

/// The records of statements that match, once `enough` says that they are all there.
fn statements(plane: &Plane, expression: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let mut found = Vec::new();
    wait_until("the statements are on record", || {
        let all = plane.json("auditor", &["audit", "search", expression])?;
        found = all.as_array().cloned().unwrap_or_default();
        Ok(enough(&found))
    })
    .unwrap_or_else(|error| panic!("{error}: {found:#?}"));
    found
}

fn said(record: &Value) -> (&str, &str, &str) {
    let text = |field: &str| record[field].as_str().unwrap_or_default();
    (text("statement"), text("outcome"), text("command"))
}

#[test]
fn an_auditor_finds_who_deleted_and_what_failed_and_no_password() {
    let plane = plane();
    let connect = ["connect", "db-prod", "--", "psql", "-X", "-At"];
    let job = [
        "-c",
        "create table gone (id int)",
        "-c",
        "insert into gone select generate_series(1, 7)",
        "-c",
        "DELETE FROM gone WHERE id < 4",
        "-c",
        "alter role app password 's3cret' nonsense",
        "-c",
        "select current_user || ' ' || current_setting('application_name')",
    ];
    let ran = plane.iapctl("alice", &[&connect[..], &job].concat()).unwrap();
    assert!(ran.stdout.contains("app psql (alice@example.com)"), "{ran:?}");
    let found = statements(&plane, r#"statement.contains("DELETE")"#, |all| !all.is_empty());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["user"]["name"], "alice@example.com");
    assert_eq!(
        said(&found[0]),
        ("DELETE FROM gone WHERE id < 4", "done", "DELETE 3")
    );
    assert_eq!(
        (&found[0]["rows"], &found[0]["login"]),
        (&3.into(), &"app".into())
    );
    let failed = statements(&plane, r#"outcome == "failed""#, |all| !all.is_empty());
    assert_eq!(failed[0]["sqlstate"], "42601");
    assert_eq!(failed[0]["statement"], "alter role app password '***' nonsense");
    let session = found[0]["session_id"].as_str().unwrap();
    let mut events = Vec::new();
    wait_until("the session is on record as a whole", || {
        let records = plane.records(session)?;
        events = records
            .iter()
            .map(|record| record["event"].as_str().unwrap().to_owned())
            .collect();
        Ok(events.last().is_some_and(|last| last == "session.end"))
    })
    .unwrap();
    // The database was named after the session had begun; the end comes behind the last statement.
    assert_eq!(events[..2], ["session.start", "session.login"]);
    assert_eq!(
        events
            .iter()
            .filter(|event| *event == "session.statement")
            .count(),
        5
    );
    let shown = plane.iapctl("auditor", &["sessions", "show", session]).unwrap();
    let shown = shown.succeeded().unwrap();
    assert!(shown.contains("Observed   statements"), "{shown}");
    assert!(
        shown.contains("statement=\"DELETE FROM gone WHERE id < 4\""),
        "{shown}"
    );
    assert!(!shown.contains("s3cret"));
}

#[test]
fn copy_goes_both_ways_whole_and_is_counted() {
    let plane = plane();
    let settings = environment(&plane, "alice", "db-prod");
    let (source, back) = (plane.scratch().join("in.txt"), plane.scratch().join("out.txt"));
    let lines: String = (0..200_000)
        .map(|line| format!("{line}\tline {line}\n"))
        .collect();
    std::fs::write(&source, &lines).unwrap();
    let copy_in = format!("\\copy moved from '{}'", source.display());
    let copy_out = format!("\\copy (select * from moved order by id) to '{}'", back.display());
    let job = [
        "-c",
        "create table moved (id int, text text)",
        "-c",
        &copy_in,
        "-c",
        &copy_out,
    ];
    run(&mut psql(&settings, &job)).succeeded().unwrap();
    assert!(
        std::fs::read_to_string(&back).unwrap() == lines,
        "the data that came back is other data"
    );
    let found = statements(&plane, r#"command == "COPY 200000""#, |all| all.len() == 2);
    for (record, direction) in found.iter().zip(["in", "out"]) {
        assert_eq!(record["copy"]["direction"], direction);
        assert_eq!(record["copy"]["bytes"], lines.len());
        assert_eq!(record["rows"], 200_000);
    }
}

#[test]
fn an_interrupted_statement_ends_by_way_of_iapctl_and_without_it() {
    let plane = plane();
    let statement = ["-c", "select 'begun'", "-c", "select pg_sleep(600)"];
    let own = environment(&plane, "alice", "db-prod");
    let by_iapctl = plane.command(
        "alice",
        &[&["connect", "db-prod", "--", "psql", "-X", "-At"][..], &statement].concat(),
    );
    for mut command in [by_iapctl.unwrap(), psql(&own, &statement)] {
        // Ctrl-C reaches everything in the foreground.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = Background(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "begun\n");
        let sleeping = || {
            let ask = run(&mut psql(
                &own,
                &[
                    "-c",
                    "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'",
                ],
            ));
            Ok(ask.stdout.trim() == "1")
        };
        wait_until("the statement runs", sleeping).unwrap();
        rustix::process::kill_process_group(Pid::from_child(&child.0), Signal::INT).unwrap();
        let ended = child.finish().unwrap();
        assert!(
            ended.stderr.contains("canceling statement due to user request"),
            "{ended:?}"
        );
    }
    let found = statements(&plane, r#"sqlstate == "57014""#, |all| all.len() == 2);
    assert!(
        found
            .iter()
            .all(|record| record["statement"] == "select pg_sleep(600)")
    );
}

/// Whoever shows a number that was given, with another key, or without one, ends nothing.
#[test]
fn the_key_of_another_session_ends_nothing() {
    let plane = plane();
    let own = environment(&plane, "alice", "db-prod");
    let mut live = psql(&own, &[]);
    let mut live = Background(live.stdin(Stdio::piped()).spawn().unwrap());
    let mut input = live.0.stdin.take().unwrap();
    writeln!(input, "select pg_backend_pid(), pg_sleep(1);").unwrap();
    let agent = plane.descriptor().unwrap()["proxy_addr"]
        .as_str()
        .unwrap()
        .to_owned();
    for number in [0u32, 1, u32::MAX] {
        let request = [16u32, 80_877_102, number, 7].map(u32::to_be_bytes).concat();
        let mut stranger = std::net::TcpStream::connect(&agent).unwrap();
        stranger.write_all(&request).unwrap();
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut stranger, &mut answer).unwrap();
        assert!(answer.is_empty());
    }
    writeln!(input, "select 'still here';").unwrap();
    drop(input);
    let ended = live.finish().unwrap();
    assert!(ended.succeeded().unwrap().contains("still here"));
}

#[test]
fn logins_that_policy_does_not_give_are_refused_by_name_and_recorded() {
    let plane = plane();
    let own = environment(&plane, "alice", "db-prod");
    let denied = run(&mut psql(&own, &["-U", "postgres", "-c", "select 1"]));
    for said in [
        "FATAL:  Policy does not allow alice@example.com to reach db-prod as postgres",
        "DETAIL:  Session ",
    ] {
        assert!(denied.stderr.contains(said), "{denied:?}");
    }
    let chosen = [
        "connect", "db-prod", "--login", "readonly", "--", "psql", "-X", "-Atc",
    ];
    let ran = plane
        .iapctl("alice", &[&chosen[..], &["select current_user"]].concat())
        .unwrap();
    assert_eq!(ran.succeeded().unwrap().trim(), "readonly");
    // By iapctl the login is settled before the client speaks.
    let other = [
        "connect", "db-prod", "--login", "readonly", "--", "psql", "-X", "-U", "app", "-c", "select 1",
    ];
    let refused = plane.iapctl("alice", &other).unwrap();
    assert!(
        refused.stderr.contains("opened for login readonly, not app"),
        "{refused:?}"
    );
    let default = [
        "connect", "db-prod", "--", "psql", "-X", "-U", "postgres", "-c", "select 1",
    ];
    let refused = plane.iapctl("alice", &default).unwrap();
    assert!(
        refused.stderr.contains("to reach db-prod as postgres"),
        "{refused:?}"
    );
    for (arguments, said) in [
        (["replication=database", "select 1"], "replication is not allowed"),
        (
            ["options='-c work_mem=1MB'", "select 1"],
            "startup options are not allowed",
        ),
        (
            ["dbname=nowhere", "select 1"],
            "database \"nowhere\" does not exist",
        ),
    ] {
        let refused = run(&mut psql(&own, &["-d", arguments[0], "-c", arguments[1]]));
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
}

#[test]
fn a_backend_that_asks_for_a_password_gets_it_from_the_agent() {
    let plane = plane();
    superuser(&plane, "alter role readonly password 'pencil'");
    let rules = superuser(&plane, "show hba_file");
    std::fs::write(&rules, "local all readonly scram-sha-256\nlocal all all trust\n").unwrap();
    superuser(&plane, "select pg_reload_conf()");
    let query = [
        "connect",
        "db-prod",
        "--login",
        "readonly",
        "--",
        "psql",
        "-X",
        "-Atc",
        "select current_user",
    ];
    let refused = plane.iapctl("alice", &query).unwrap();
    assert!(
        refused
            .stderr
            .contains("the agent cannot log in to the service's backend"),
        "{refused:?}"
    );
    let secret = plane.scratch().join("readonly.password");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&secret)
        .unwrap();
    file.write_all(b"pencil\n").unwrap();
    let table = format!(
        "name = \"db-prod\"\nbackend = \"unix:{}/postgres/.s.PGSQL.5432\"\n\n[service.postgres]\n\
         password_files = {{ readonly = \"{}\" }}\n",
        plane.dir().display(),
        secret.display()
    );
    plane.serve("db-prod", &table).unwrap();
    wait_until("the agent logs in", || {
        Ok(plane.iapctl("alice", &query)?.stdout.trim() == "readonly")
    })
    .unwrap();
    // A secret that is none any more is nobody's to see.
    std::fs::write(&secret, "stencil\n").unwrap();
    let refused = plane.iapctl("alice", &query).unwrap();
    assert!(
        refused.stderr.contains("password authentication failed"),
        "{refused:?}"
    );
    assert!(!refused.stderr.contains("stencil"));
}

#[test]
fn an_agent_that_is_told_to_stop_ends_inspected_sessions_with_a_word() {
    let plane = plane();
    let own = environment(&plane, "alice", "db-prod");
    let mut command = psql(&own, &["-c", "select 'begun'", "-c", "select pg_sleep(600)"]);
    let mut child = Background(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "begun\n");
    plane.signal("agent", Signal::TERM).unwrap();
    let ended = child.finish().unwrap();
    assert!(
        ended.stderr.contains("FATAL:  The agent is stopping."),
        "{ended:?}"
    );
    let found = statements(&plane, r#"outcome == "unanswered""#, |all| !all.is_empty());
    assert_eq!(found[0]["statement"], "select pg_sleep(600)");
}

/// With an agent that is killed a session ends; what it had answered is on record.
#[test]
fn statements_that_were_answered_are_on_record_when_the_agent_is_killed() {
    let plane = plane();
    let own = environment(&plane, "alice", "db-prod");
    let mut child = Background(psql(&own, &[]).stdin(Stdio::piped()).spawn().unwrap());
    let mut input = child.0.stdin.take().unwrap();
    let mut output = BufReader::new(child.0.stdout.take().unwrap());
    for number in 0..100 {
        writeln!(input, "select 'answer {number}';").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, format!("answer {number}\n"));
    }
    let pid = plane.pid("agent").unwrap();
    // All that was answered a moment ago is on its way to the disk or there.
    let spooled = || {
        let mut found = 0;
        for entry in std::fs::read_dir(plane.dir().join("agent/spool"))?.flatten() {
            let bytes = std::fs::read(entry.path()).unwrap_or_default();
            found += bytes
                .windows(9)
                .filter(|window| window.starts_with(b"answer 99"))
                .count();
        }
        Ok(found == 1)
    };
    wait_until("the last is on disk", spooled).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let found = statements(&plane, r#"statement.startsWith("select 'answer")"#, |all| {
        all.len() >= 100
    });
    assert_eq!(found.len(), 100);
}
