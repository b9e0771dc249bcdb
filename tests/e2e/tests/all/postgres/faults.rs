//! Backends that restart, and transfers that never end: what the client reads, what stays at the backend, and what is on record.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Stdio};

use iap_e2e::{Background, Plane, Ran, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{plane, psql, statements, superuser};
use crate::stock_clients::environment;

/// A `psql` that is told line by line.
struct Dialogue {
    child: Background,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Dialogue {
    fn open(plane: &Plane) -> Self {
        let settings = environment(plane, "alice", "db-prod");
        let mut child = Background(psql(&settings, &["-q"]).stdin(Stdio::piped()).spawn().unwrap());
        let input = child.0.stdin.take().unwrap();
        let output = BufReader::new(child.0.stdout.take().unwrap());
        Self { child, input, output }
    }

    fn say(&mut self, statement: &str) {
        writeln!(self.input, "{statement}").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Begins a `COPY` and sends so many lines of it.
    fn copy_in(&mut self, lines: usize) {
        self.say("copy opened from stdin;");
        for line in 0..lines {
            writeln!(self.input, "{line}").unwrap();
        }
    }

    /// Once it has ended by itself.
    fn end(self) -> Ran {
        let Self { child, input, .. } = self;
        // It reads its input to the end before it leaves.
        drop(input);
        child.finish().unwrap()
    }
}

/// Waits until so many backends run a `COPY`.
fn copies(plane: &Plane, count: usize) {
    let ask = "select count(*) from pg_stat_activity where query ilike 'copy %' and state = 'active' \
               and backend_type = 'client backend'";
    wait_until("backends that copy", || {
        Ok(superuser(plane, ask) == count.to_string())
    })
    .unwrap();
}

/// The end of the newest session, once so many are over.
fn newest_end(plane: &Plane, count: usize) -> Value {
    let is_over = |all: &[Value]| all.iter().filter(|one| !one["end"].is_null()).count() >= count;
    let all = plane.sessions_when(is_over).unwrap();
    all.into_iter()
        .max_by_key(|one| one["start"].as_str().unwrap().to_owned())
        .unwrap()
}

#[test]
fn a_backend_that_restarts_ends_transactions_in_its_own_words_on_record_and_the_next_session_works() {
    let plane = plane();
    superuser(&plane, "create table kept (id int); grant all on kept to public");
    let mut waiting = Dialogue::open(&plane);
    waiting.say("begin; insert into kept values (1); select 'open';");
    assert_eq!(waiting.answer(), "open");
    let mut running = Dialogue::open(&plane);
    running.say("begin; insert into kept values (2); select 'open';");
    assert_eq!(running.answer(), "open");
    running.say("select pg_sleep(600);");
    let asleep =
        "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'";
    wait_until("the statement runs", || Ok(superuser(&plane, asleep) == "1")).unwrap();
    let file = plane.dir().join("postgres/data/postmaster.pid");
    let pid = std::fs::read_to_string(&file)
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    // A restart as `systemctl restart postgresql` does it.
    kill_process(Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
    for (dialogue, statement) in [(running, ""), (waiting, "select 1;")] {
        let mut dialogue = dialogue;
        if !statement.is_empty() {
            // Its program may be gone before it is told.
            let _ = writeln!(dialogue.input, "{statement}");
        }
        let ended = dialogue.end();
        let said = "FATAL:  terminating connection due to administrator command";
        assert!(ended.stderr.contains(said), "{ended:?}");
        assert_eq!(ended.code, 2);
    }
    let cut = statements(&plane, r#"sqlstate == "57P01""#, |all| !all.is_empty());
    assert_eq!(
        (cut.len(), &cut[0]["statement"]),
        (1, &"select pg_sleep(600);".into())
    );
    assert_eq!(cut[0]["outcome"], "failed");
    let ended = plane.sessions_when(|all| all.len() == 2 && all.iter().all(|one| !one["end"].is_null()));
    for session in ended.unwrap() {
        assert_eq!(session["close_reason"], "backend_closed", "{session}");
    }
    // Nothing of either transaction is there, and whoever comes next gets in.
    let count = [
        "connect",
        "db-prod",
        "--",
        "psql",
        "-X",
        "-Atc",
        "select count(*) from kept",
    ];
    let mut last = None;
    wait_until("the backend is back", || {
        let ran = plane.iapctl("alice", &count)?;
        let is_back = ran.code == 0;
        last = Some(ran);
        Ok(is_back)
    })
    .unwrap_or_else(|error| panic!("{error}: {last:?}"));
    assert_eq!(last.unwrap().stdout.trim(), "0");
}

#[test]
fn a_backend_process_that_is_killed_takes_its_session_with_it_and_the_record_says_so() {
    let plane = plane();
    let mut victim = Dialogue::open(&plane);
    victim.say("begin; select pg_backend_pid();");
    let pid = victim.answer().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let end = newest_end(&plane, 1);
    assert!(
        ["backend_closed", "backend_lost"].contains(&end["close_reason"].as_str().unwrap()),
        "{end}"
    );
    let _ = writeln!(victim.input, "select 1;");
    let ended = victim.end();
    assert!(
        ended.stderr.contains("connection to server was lost"),
        "{ended:?}"
    );
}

#[test]
fn a_copy_whose_client_leaves_it_open_ends_with_the_client_the_idle_limit_and_a_lock() {
    let plane = plane();
    plane.log_in("admin").unwrap();
    superuser(
        &plane,
        "create table opened (id int); grant all on opened to public",
    );
    let open = || {
        let mut client = Dialogue::open(&plane);
        client.copy_in(50_000);
        copies(&plane, 1);
        client
    };
    // The client is gone without a word.
    let client = open();
    kill_process(Pid::from_child(&client.child.0), Signal::KILL).unwrap();
    copies(&plane, 0);
    let reason = newest_end(&plane, 1)["close_reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("client_"), "{reason}");
    drop(client);
    // It says nothing for longer than its rule allows.
    let policy = plane.iapctl("admin", &["policy", "get"]).unwrap();
    let policy = policy.succeeded().unwrap().to_owned();
    let file = plane.scratch().join("policy.toml");
    let apply = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let applied = plane.iapctl("admin", &["policy", "apply", file.to_str().unwrap()]);
        applied.unwrap().succeeded().unwrap();
    };
    let rule = "logins = [\"app\", \"readonly\", \"{{user.local}}\"]";
    let client = open();
    apply(&policy.replace(rule, &format!("{rule}\nlimits = {{ idle = \"1s\" }}")));
    copies(&plane, 0);
    let end = newest_end(&plane, 2);
    assert_eq!(end["close_reason"], "idle_limit", "{end}");
    let ended = client.end();
    assert!(ended.stderr.contains("Session "), "{ended:?}");
    // Somebody locks the user out.
    apply(&policy);
    let client = open();
    let lock = ["lock", "add", "--user", "alice@example.com", "--reason", "left"];
    plane.iapctl("admin", &lock).unwrap().succeeded().unwrap();
    copies(&plane, 0);
    assert_eq!(newest_end(&plane, 3)["close_reason"], "lock");
    let ended = client.end();
    assert!(ended.stderr.contains("Access is locked."), "{ended:?}");
    assert_eq!(superuser(&plane, "select count(*) from opened"), "0");

    let cut = statements(&plane, r#"copy.direction == "in""#, |all| all.len() == 3);
    for record in cut {
        assert_eq!(
            (&record["statement"], &record["outcome"]),
            (&"copy opened from stdin;".into(), &"unanswered".into())
        );
        assert!(record["copy"]["bytes"].as_u64().unwrap() > 200_000, "{record}");
    }
}

#[test]
fn a_copy_without_an_end_is_cut_when_its_session_is_killed() {
    let plane = plane();
    plane.log_in("admin").unwrap();
    let endless = "copy (select generate_series(1, 1000000000000)) to stdout";
    let arguments = ["connect", "db-prod", "--", "psql", "-X", "-c", endless];
    let mut command = plane.command("alice", &arguments).unwrap();
    let mut client = Background(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut output = BufReader::new(client.0.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "1\n");
    // It reads on, as fast as it can.
    let reading = std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()).unwrap());
    copies(&plane, 1);
    let live = plane.sessions_when(|all| all.len() == 1).unwrap();
    let session = live[0]["session_id"].as_str().unwrap();
    plane
        .iapctl("admin", &["sessions", "kill", session])
        .unwrap()
        .succeeded()
        .unwrap();
    copies(&plane, 0);
    let ended = client.finish().unwrap();
    assert!(ended.code != 0, "{ended:?}");
    assert!(
        ended.stderr.contains("An administrator ended this session."),
        "{ended:?}"
    );
    let read = reading.join().unwrap();
    let cut = statements(&plane, r#"copy.direction == "out""#, |all| !all.is_empty());
    assert_eq!(
        (&cut[0]["statement"], &cut[0]["outcome"]),
        (&endless.into(), &"unanswered".into())
    );
    let counted = cut[0]["copy"]["bytes"].as_u64().unwrap();
    assert!(
        counted >= read,
        "{counted} bytes are on record, and {read} were read"
    );
    let end = newest_end(&plane, 1);
    assert!(
        end["close_reason"] == "lock" || end["close_reason"] == "killed",
        "{end}"
    );
}
