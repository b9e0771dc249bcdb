//! Watching a recorded SSH session while it runs: `iapctl sessions watch` through the proxy to the agent that holds it.

use std::io::{Read, Write as _};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use iap_audit::asciicast::{Code, Entry, Header};
use iap_e2e::{Background, Plane, Ran, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::ssh::{SERVICE, Shell, of};

/// How much of what a program prints is looked through.
const PRINTED_BYTES_MAX: usize = 1024 * 1024;

/// A program, and the newest of what it has printed.
struct Seen {
    child: Background,
    printed: Arc<Mutex<Vec<u8>>>,
    reader: std::thread::JoinHandle<()>,
}

impl Seen {
    fn of(mut command: std::process::Command) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = Background(command.spawn().unwrap());
        let printed = Arc::new(Mutex::new(Vec::new()));
        let (mut pipe, held) = (child.0.stdout.take().unwrap(), Arc::clone(&printed));
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                let mut held = held.lock().unwrap();
                let much = held.len().saturating_sub(PRINTED_BYTES_MAX);
                held.drain(..much);
                held.extend_from_slice(&buffer[..read]);
            }
        });
        Self {
            child,
            printed,
            reader,
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.printed.lock().unwrap()).into_owned()
    }

    fn sees(&self, text: &str) {
        wait_until(&format!("{text:?} is seen"), || Ok(self.text().contains(text)))
            .unwrap_or_else(|error| panic!("{error:#}: {:?}", self.text()));
    }

    fn types(&mut self, keys: &str) {
        self.child
            .0
            .stdin
            .as_mut()
            .unwrap()
            .write_all(keys.as_bytes())
            .unwrap();
    }

    fn finish(self) -> Ran {
        let Self {
            child,
            printed,
            reader,
        } = self;
        let ran = child.finish().unwrap();
        reader.join().unwrap();
        Ran {
            stdout: String::from_utf8_lossy(&printed.lock().unwrap()).into_owned(),
            ..ran
        }
    }
}

impl Shell {
    /// Alice at a terminal of a shell that does what it is told and has no prompt.
    fn at_work(&self) -> Seen {
        let mut ssh = self.client("ssh");
        ssh.args(["-tt", SERVICE, "stty rows 24 cols 80; exec cat"]);
        let mut ssh = Seen::of(ssh);
        ssh.types("first-mark\n");
        ssh.sees("first-mark\r\nfirst-mark");
        ssh
    }

    fn live(&self) -> Value {
        let sessions = self.plane.sessions_when(|all| !all.is_empty()).unwrap();
        sessions[0].clone()
    }

    fn watch(&self, user: &str, arguments: &[&str]) -> Seen {
        let arguments = [&["sessions", "watch"], arguments].concat();
        Seen::of(self.plane.command(user, &arguments).unwrap())
    }

    fn records_when(&self, session: &str, settled: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let mut records = Vec::new();
        wait_until("the records are there", || {
            records = self.plane.records(session)?;
            Ok(settled(&records))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {records:?}"));
        records
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn an_auditor_watches_from_the_screen_of_now_to_the_end_and_the_record_and_the_person_know() {
    let shell = Shell::start();
    let mut alice = shell.at_work();
    let session = shell.live();
    let (id, agent) = (text(&session["session_id"]), text(&session["agent"]));

    let watcher = shell.watch("auditor", &[id]);
    watcher.sees("first-mark");
    alice.sees("[auditor@example.com watches this session.]");
    watcher.sees("watches this session");
    alice.types("second-mark\n");
    watcher.sees("second-mark\r\nsecond-mark");
    // Her own session is hers to see, and there may be several. The agent asks nobody.
    shell.plane.signal("auth", Signal::STOP).unwrap();
    let own = shell.watch("alice", &[id, "--agent", agent, "--format", "asciicast"]);
    own.sees("second-mark");
    shell.plane.signal("auth", Signal::CONT).unwrap();
    alice.sees("auditor@example.com, alice@example.com watch this session.");
    alice.types("\u{4}");
    assert_eq!(alice.finish().code, 0);

    let watched = watcher.finish();
    assert_eq!(watched.code, 0, "{}", watched.stderr);
    let said = [
        "Watching session",
        "alice@example.com on ssh-demo as ",
        "is over: client_",
        "iapctl sessions play",
    ];
    for said in said {
        assert!(watched.stderr.contains(said), "{said}: {}", watched.stderr);
    }
    let cast = own.finish();
    assert_eq!(cast.code, 0, "{}", cast.stderr);
    let mut lines = cast.stdout.lines();
    let header = Header::parse(lines.next().unwrap().as_bytes()).unwrap();
    assert_eq!(header.term.as_deref(), Some("xterm"));
    let entries: Vec<_> = lines.map(|line| Entry::parse(line.as_bytes()).unwrap()).collect();
    assert!(entries.iter().all(|entry| entry.code != Code::Input));
    assert!(entries.is_sorted_by_key(|entry| entry.at));

    let over = |records: &[Value]| of(records, "session.watch_end").len() == 2;
    let records = shell.records_when(id, over);
    let begun = of(&records, "session.watch");
    assert_eq!(begun.len(), 2);
    for (record, user, basis) in [
        (begun[0], "auditor@example.com", "recording.read"),
        (begun[1], "alice@example.com", "own_session"),
    ] {
        assert_eq!(record["user"]["name"], user);
        assert_eq!(record["watched_user"], "alice@example.com");
        assert_eq!(record["basis"], basis);
    }
    for end in of(&records, "session.watch_end") {
        assert_eq!(end["ended"], "session_over");
        assert!(end["shown_bytes"].as_u64().unwrap() > 0);
        assert_eq!(end["missed_bytes"], 0);
    }
    // What whoever sat there was told is part of what was shown.
    let replayed = shell.replayed(id, &[]);
    assert!(
        replayed
            .stdout
            .contains("[auditor@example.com watches this session.]")
    );

    let late = shell.watch("auditor", &[id]).finish();
    assert_eq!(late.code, 2, "{}", late.stderr);
    assert!(late.stderr.contains("is over"), "{}", late.stderr);
    assert!(late.stderr.contains("iapctl sessions play"), "{}", late.stderr);
}

#[test]
fn whoever_may_not_watch_hears_what_they_would_hear_if_there_were_nothing() {
    let shell = Shell::start();
    shell.plane.log_in("bob").unwrap();
    let alice = shell.at_work();
    let session = shell.live();
    let (id, agent) = (text(&session["session_id"]), text(&session["agent"]));
    let unknown = "01a21942-3fd0-7002-9ffd-982c03abf1b7";
    for at in [&["--agent", agent][..], &[]] {
        let refused = |user: &str, id: &str| {
            let refused = shell.watch(user, &[&[id], at].concat()).finish();
            assert_eq!(refused.code, 2, "{refused:?}");
            assert_eq!(refused.stdout, "");
            refused.stderr.replace(id, "ID")
        };
        let said = refused("bob", id);
        assert!(said.to_lowercase().contains("there is no session id"), "{said}");
        assert_eq!(said, refused("bob", unknown));
        assert_eq!(said, refused("auditor", unknown));
    }
    // One that the auditor may watch, but that has no terminal.
    let echo = shell.plane.echo_session("alice").unwrap();
    let sessions = shell.plane.sessions_when(|all| all.len() == 2).unwrap();
    let bytes = sessions.iter().find(|session| session["service"] == "echo");
    let bytes = text(&bytes.unwrap()["session_id"]);
    let refused = shell.watch("auditor", &[bytes]).finish();
    assert_eq!(refused.code, 2);
    assert!(
        refused.stderr.contains("is not one whose terminal is recorded"),
        "{}",
        refused.stderr
    );
    let records = shell.records_when(id, |records| !of(records, "session.watch_refused").is_empty());
    let refused = of(&records, "session.watch_refused")[0];
    assert_eq!(refused["user"]["name"], "bob@example.com");
    assert!(text(&refused["reason"]).contains("recording.read"), "{refused}");
    assert!(of(&records, "session.watch").is_empty());
    drop((alice, echo));
}

#[test]
fn a_lock_on_the_watcher_ends_the_watching_and_not_the_session() {
    let plane = Plane::start_by(&["--demo"], |_, mut command| {
        command.env("IAP_AGENT__LIMITS__WATCHERS_PER_SESSION_MAX", "1");
        Ok(command)
    });
    let shell = Shell::on(plane.unwrap());
    shell.plane.log_in("admin").unwrap();
    let mut alice = shell.at_work();
    let session = shell.live();
    let id = text(&session["session_id"]);
    let watcher = shell.watch("auditor", &[id]);
    watcher.sees("first-mark");
    let full = shell.watch("alice", &[id]).finish();
    assert_eq!(full.code, 1, "{}", full.stderr);
    assert!(full.stderr.contains("as many watch as may"), "{}", full.stderr);
    let lock = ["lock", "add", "--user", "auditor@example.com", "--reason", "left"];
    shell.plane.iapctl("admin", &lock).unwrap().succeeded().unwrap();
    let cut = watcher.finish();
    assert_eq!(cut.code, 3, "{}", cut.stderr);
    assert!(cut.stderr.contains("access is locked"), "{}", cut.stderr);
    alice.types("goes-on\n");
    alice.sees("goes-on\r\ngoes-on");
    alice.sees("[Nobody watches this session now.]");
    // And the seat is free again.
    let own = shell.watch("alice", &[id]);
    own.sees("goes-on");
    let left = own.child.interrupt().unwrap();
    assert_eq!(left.code, 0, "{}", left.stderr);
}

#[test]
fn whoever_watches_slowly_slows_nobody_and_is_told_what_they_missed() {
    let shell = Shell::start();
    let mut ssh = shell.client("ssh");
    let command = "stty rows 24 cols 80; echo here; read go; seq 1 1000000; echo all-shown; exec cat";
    ssh.args(["-q", "-tt", SERVICE, command]);
    let mut alice = Seen::of(ssh);
    alice.sees("here");
    let id = text(&shell.live()["session_id"]).to_owned();
    let mut watching = shell
        .plane
        .command("auditor", &["sessions", "watch", &id, "--format", "asciicast"])
        .unwrap();
    let watching = watching.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut watching = Background(watching.spawn().unwrap());
    alice.sees("watches this session");
    // It takes nothing from here on, and alice's terminal does not wait for it.
    alice.types("\n");
    alice.sees("all-shown");
    let mut cast = Vec::new();
    let mut pipe = watching.0.stdout.take().unwrap();
    let mut buffer = vec![0; 64 * 1024];
    // The header names the command, too.
    let end = |cast: &[u8]| {
        let newest = String::from_utf8_lossy(&cast[cast.len().saturating_sub(1 << 17)..]).into_owned();
        let behind = newest.split_once("not shown in time");
        behind.is_some_and(|(_, behind)| behind.contains("all-shown"))
    };
    while !end(&cast) {
        let read = pipe.read(&mut buffer).unwrap();
        assert!(read > 0, "it ended early");
        cast.extend_from_slice(&buffer[..read]);
    }
    alice.types("\u{4}");
    assert_eq!(alice.finish().code, 0);
    pipe.read_to_end(&mut cast).unwrap();
    let ran = watching.finish().unwrap();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("were not shown"), "{}", ran.stderr);
    let cast = String::from_utf8(cast).unwrap();
    let entries = cast
        .lines()
        .skip(1)
        .map(|line| Entry::parse(line.as_bytes()).unwrap());
    let marked = |entry: &Entry| entry.code == Code::Marker && entry.text.contains("not shown in time");
    assert!(entries.clone().any(|entry| marked(&entry)));
    // What the screen shows at the end is there, right behind the gap.
    let behind: String = entries
        .skip_while(|entry| !marked(entry))
        .map(|entry| entry.text)
        .collect();
    assert!(
        behind.contains("1000000 ") && behind.contains("\r\nall-shown"),
        "{} bytes",
        behind.len()
    );
    let records = shell.records_when(&id, |records| !of(records, "session.watch_end").is_empty());
    let end = of(&records, "session.watch_end")[0];
    assert!(end["missed_bytes"].as_u64().unwrap() > 1_000_000, "{end}");
    let recording = of(&records, "session.recording")[0];
    assert_eq!(recording["complete"], true);
}
