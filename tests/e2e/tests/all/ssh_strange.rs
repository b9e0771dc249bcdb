//! Recorded SSH with clients that do what few do: they give channels up, want terminals that there are not, change files by
//! way of open ones, are refused a file among many, and speak another protocol than they said. What is on record is what
//! was so.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use iap_e2e::{Background, Ran, wait_until};
use serde_json::Value;

use crate::ssh_world::World;

const SERVICE: &str = "shell";

fn world() -> World {
    let world = World::recording();
    world.plane.log_in("auditor").unwrap();
    world
}

impl World {
    /// What it prints, having been given this.
    fn run_with(&self, program: &str, arguments: &[&str], input: &[u8]) -> Ran {
        let mut client = self.client(program, arguments);
        client
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut client = client.spawn().unwrap();
        // One that has ended already takes nothing.
        let _ = client.stdin.take().unwrap().write_all(input);
        client.wait_with_output().unwrap().into()
    }

    /// A connection that others share.
    fn master(&self) -> (String, Background) {
        let control = self.files.path().join("control");
        let path = control.display().to_string();
        let mut master = self.client("ssh", &["-M", "-S", &path, "-N", SERVICE]);
        let master = Background(master.spawn().unwrap());
        wait_until("the master listens", || Ok(control.exists())).unwrap();
        (path, master)
    }

    /// The records of the newest session of this kind, once they are enough.
    fn newest(&self, event: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let mut found = Vec::new();
        let seen = wait_until("it is on record", || {
            let query = format!("event == {event:?}");
            let all = self.plane.json("auditor", &["audit", "search", &query])?;
            let all = all.as_array().cloned().unwrap_or_default();
            let of = |one: &Value| one["session_id"].as_str().map(str::to_owned);
            // Newer ones have a larger id.
            let newest = all.iter().filter_map(of).max();
            found = all.into_iter().filter(|one| of(one) == newest).collect();
            Ok(enough(&found))
        });
        seen.unwrap_or_else(|error| panic!("{error}: {found:?}\n{}", self.sshd.log()));
        found
    }

    fn cast(&self, session: &Value) -> String {
        let mut cast = String::new();
        wait_until("the recording has arrived", || {
            let id = session["session_id"].as_str().unwrap();
            let play = ["sessions", "play", id, "--format", "asciicast"];
            let played = self.iapctl("auditor", &play);
            cast.clone_from(&played.stdout);
            Ok(played.code == 0)
        })
        .unwrap();
        cast
    }
}

/// `operation`, the ends of both names, and whether it was done.
fn files(records: &[Value]) -> Vec<(String, String, String, bool)> {
    let last = |name: &Value| {
        let name = name.as_str().unwrap_or_default();
        name.rsplit('/').next().unwrap_or_default().to_owned()
    };
    let mut files: Vec<_> = records
        .iter()
        .map(|one| {
            (
                one["operation"].as_str().unwrap().to_owned(),
                last(&one["path"]),
                last(&one["target"]),
                one["ok"] == true,
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_channel_that_its_client_gives_up_is_put_on_record_while_the_session_goes_on() {
    let world = world();
    let (control, _master) = world.master();
    for _ in 0..3 {
        let mut client = world.client("ssh", &["-S", &control, SERVICE, "echo begun; exec sleep 600"]);
        let mut client = Background(client.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        let mut output = BufReader::new(client.0.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "begun\n");
        client.0.kill().unwrap();
    }
    let recordings = world.newest("session.recording", |found| found.len() == 3);
    assert!(
        recordings.iter().all(|one| one["complete"] == true),
        "{recordings:?}"
    );
}

#[test]
fn a_client_that_closes_a_channel_early_gets_the_exit_status_all_the_same() {
    let world = world();
    let (control, _master) = world.master();
    // With its output at its end and its input too, ssh closes the channel before the program has ended.
    let command = "exec >&- 2>&-; sleep 0.3; exit 3";
    let ran = world.run("ssh", &["-S", &control, SERVICE, command]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let killed = "exec >&- 2>&-; sleep 0.3; kill -TERM $$";
    let ran = world.run("ssh", &["-S", &control, SERVICE, killed]);
    assert_eq!(ran.code, 255, "{ran:?}");
    let recordings = world.newest("session.recording", |found| found.len() == 2);
    let mut exits: Vec<_> = recordings
        .iter()
        .map(|one| one["exit"].as_str().unwrap())
        .collect();
    exits.sort_unstable();
    assert_eq!(exits, ["3", "TERM"]);
}

#[test]
fn where_sshd_gives_no_terminal_what_is_typed_is_on_record() {
    let world = world();
    world.sshd.reload_with("PermitTTY no\n").unwrap();
    // Stock ssh gives up then, but not where it shares a connection.
    let (control, _master) = world.master();
    let ran = world.run_with(
        "ssh",
        &["-S", &control, "-tt", SERVICE, "cat"],
        b"typed without a terminal\n",
    );
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "typed without a terminal\n"),
        "{ran:?}"
    );
    let recordings = world.newest("session.recording", |found| {
        found.len() == 1 && found[0]["command"] == "cat"
    });
    assert_eq!(recordings[0]["terminal"], false);
    let cast = world.cast(&recordings[0]);
    assert!(cast.contains("\"i\", \"typed without a terminal"), "{cast}");
}

#[test]
fn files_that_are_changed_by_way_of_open_ones_are_on_record() {
    let world = world();
    let (here, there) = (world.files.path().join("here"), world.files.path().join("there"));
    std::fs::write(&here, b"contents").unwrap();
    let batch = format!("put -p {} {}\n", here.display(), there.display());
    let ran = world.run_with("sftp", &["-b", "-", SERVICE], batch.as_bytes());
    assert_eq!(ran.code, 0, "{ran:?}");
    let seen = world.newest("session.file", |found| found.len() == 2);
    let told = |operation: &str| (operation.to_owned(), "there".to_owned(), String::new(), true);
    assert_eq!(files(&seen), [told("attributes"), told("transfer")]);
}

#[test]
fn of_many_files_those_that_are_refused_are_told_from_those_that_are_taken() {
    let world = world();
    let (from, to) = (world.files.path().join("from"), world.files.path().join("to"));
    // Where a file is to go there is a folder of that name.
    std::fs::create_dir_all(to.join("a")).unwrap();
    std::fs::create_dir_all(&from).unwrap();
    std::fs::write(from.join("a"), vec![b'a'; 100_000]).unwrap();
    std::fs::write(from.join("b"), b"taken").unwrap();
    let name = |file: &str| from.join(file).display().to_string();
    let target = format!("{SERVICE}:{}", to.display());
    let ran = world.run("scp", &["-O", &name("a"), &name("b"), &target]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(std::fs::read(to.join("b")).unwrap(), b"taken");
    let seen = world.newest("session.file", |found| found.len() == 2);
    let told = |name: &str, ok| ("transfer".to_owned(), name.to_owned(), String::new(), ok);
    assert_eq!(files(&seen), [told("a", false), told("b", true)]);
    let written = |ok: bool| seen.iter().find(|one| one["ok"] == ok).unwrap()["bytes_written"].clone();
    assert_eq!((written(false), written(true)), (0.into(), 5.into()));
}

#[test]
fn a_transfer_that_is_none_is_recorded_as_what_it_is() {
    let world = world();
    let target = world.files.path().join("target");
    let command = format!("scp -t {}", target.display());
    world.run_with("ssh", &[SERVICE, &command], b"something else\n");
    let seen = world.newest("session.file", |found| found.len() == 1);
    assert_eq!(seen[0]["operation"], "not_understood");
    let recordings = world.newest("session.recording", |found| {
        found
            .first()
            .is_some_and(|one| one["session_id"] == seen[0]["session_id"])
    });
    let cast = world.cast(&recordings[0]);
    assert!(cast.contains("\"i\", \"something else"), "{cast}");
}

#[test]
fn what_is_refused_besides_is_on_record_with_its_kind() {
    let world = world();
    let socket = world.files.path().join("socket");
    let there = format!("{}:/run/other.sock", socket.display());
    let forwarded = [
        "-o",
        "ExitOnForwardFailure=no",
        "-R",
        "127.0.0.1:4711:127.0.0.1:22",
        "-R",
        "/tmp/remote.sock:127.0.0.1:22",
        SERVICE,
        "true",
    ];
    assert_eq!(world.run("ssh", &forwarded).code, 0);
    let seen = world.newest("session.forward", |found| found.len() == 2);
    let mut kinds: Vec<_> = seen
        .iter()
        .map(|one| (one["kind"].as_str().unwrap(), one["forward"].as_str().unwrap()))
        .collect();
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [("remote", "/tmp/remote.sock"), ("remote", "127.0.0.1:4711")]
    );
    assert!(seen.iter().all(|one| one["allowed"] == false), "{seen:?}");
    // A socket at the server's side.
    let mut client = world.client("ssh", &["-N", "-L", &there, SERVICE]);
    let _client = Background(client.spawn().unwrap());
    wait_until("it listens", || Ok(socket.exists())).unwrap();
    let mut connection = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let read = std::io::Read::read(&mut connection, &mut [0]);
    assert!(!read.is_ok_and(|read| read > 0));
    let seen = world.newest("session.forward", |found| {
        found.first().is_some_and(|one| one["kind"] == "local")
    });
    assert_eq!(seen[0]["forward"], "/run/other.sock");
}
