//! Recorded SSH as `docs/ssh-recording.md` sets it up, and what it meets: servers that are others than the one meant, servers
//! that die, and clients that want what is not theirs.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use iap_e2e::{Background, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::ssh_world::{World, output};

const SERVICE: &str = "shell";

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// A key of its own.
    fn key(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let mut keygen = Command::new("ssh-keygen");
        output(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path));
        path
    }

    fn agent_log(&self) -> String {
        std::fs::read_to_string(self.plane.dir().join("logs/agent.log")).unwrap()
    }

    /// The newest session, once so many are over.
    fn session(&self, count: usize) -> Value {
        let is_over = |all: &[Value]| all.len() == count && all.iter().all(|one| !one["end"].is_null());
        let all = self.plane.sessions_when(is_over).unwrap();
        all.into_iter()
            .max_by_key(|one| one["start"].as_str().unwrap().to_owned())
            .unwrap()
    }

    fn count(&self) -> usize {
        self.plane
            .json("auditor", &["sessions", "ls"])
            .unwrap()
            .as_array()
            .unwrap()
            .len()
    }

    fn gets_in(&self) {
        let ran = self.run("ssh", &[SERVICE, "echo in"]);
        assert_eq!(
            (ran.code, ran.stdout.trim()),
            (0, "in"),
            "{}\n{}",
            ran.stderr,
            self.agent_log()
        );
    }

    /// A client is told that there is no way in, the record says so, and the agent's log why.
    fn is_kept_out(&self, said: &str, why: &str) {
        let ran = self.run("ssh", &[SERVICE, "echo in"]);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (255, ""),
            "{why}: {}",
            ran.stderr
        );
        assert!(ran.stderr.contains(said), "{why}: {}", ran.stderr);
        let log = self.agent_log();
        let last = log
            .lines()
            .rfind(|line| line.contains("not logged in at sshd"))
            .unwrap_or_default();
        assert!(last.contains(why), "{why}: {last}");
        // By its own name: records of those before may still be on their way.
        let (_, id) = ran.stderr.rsplit_once("Session ").unwrap();
        let id = id.split('.').next().unwrap();
        let is_it = |one: &&Value| one["session_id"] == id && !one["end"].is_null();
        let all = self
            .plane
            .sessions_when(|all| all.iter().any(|one| is_it(&one)))
            .unwrap();
        let session = all.iter().find(is_it).unwrap();
        assert_eq!(session["close_reason"], "backend_refused", "{session}");
        let records = self
            .plane
            .records(session["session_id"].as_str().unwrap())
            .unwrap();
        assert!(
            records
                .iter()
                .any(|record| record["event"] == "session.connect_failed"),
            "{records:?}"
        );
    }
}

/// `ssh-keygen -s` of a public key.
fn certify(authority: &Path, key: &Path, arguments: &[&str]) {
    let mut keygen = Command::new("ssh-keygen");
    keygen
        .arg("-q")
        .arg("-s")
        .arg(authority)
        .args(["-I", "e2e"])
        .args(arguments);
    output(keygen.arg(key.with_extension("pub")));
}

fn world() -> World {
    let world = World::recording();
    world.plane.log_in("auditor").unwrap();
    world
}

#[test]
fn a_server_that_is_known_by_a_certificate_has_to_show_a_good_one() {
    const ANOTHER: &str = "The service's sshd is not the one its agent knows";
    let world = world();
    let (authority, other) = (world.key("host_ca"), world.key("other_ca"));
    let host = world.path("host");
    // Its name has an ending already, where ssh-keygen puts its own.
    let certificate = world.path("host-cert.pub");
    world
        .sshd
        .reload_with(&format!("HostCertificate {}\n", certificate.display()))
        .unwrap();
    let renewed = |authority: &Path, arguments: &[&str]| {
        let _ = std::fs::remove_file(&certificate);
        certify(authority, &host, arguments);
        world.sshd.reload_with("").unwrap();
    };
    let named = ["-h", "-n", "shell.internal"];
    renewed(&authority, &[&named[..], &["-V", "-1h:+1h"]].concat());
    world.serve(&world.block("toml", "host_ca_file"));
    wait_until("the agent knows it by its certificate", || {
        Ok(world.run("ssh", &[SERVICE, "true"]).code == 0)
    })
    .unwrap();
    let invalid = "sshd's certificate is not valid now under host_ca_file";
    let cases: [(&Path, &[&str], &str); 7] = [
        (&other, &["-h", "-n", "shell.internal"], invalid),
        (
            &authority,
            &["-h", "-n", "shell.internal", "-V", "20200101:20200102"],
            invalid,
        ),
        (
            &authority,
            &["-h", "-n", "shell.internal", "-V", "+1d:+2d"],
            invalid,
        ),
        (
            &authority,
            &["-h", "-n", "web.internal"],
            "sshd's certificate is not for shell.internal",
        ),
        (
            &authority,
            &["-h"],
            "sshd's certificate is not for shell.internal",
        ),
        (
            &authority,
            &[
                "-h",
                "-n",
                "shell.internal",
                "-O",
                "critical:unknown@example.com=1",
            ],
            "sshd's certificate has critical options",
        ),
        (
            &authority,
            &["-n", "shell.internal"],
            "sshd's certificate is not for hosts",
        ),
    ];
    for (authority, arguments, why) in cases {
        renewed(authority, arguments);
        world.is_kept_out(ANOTHER, why);
    }
    renewed(&authority, &named);
    world.gets_in();
    // And one that is known by its key, by no other key.
    let other = std::fs::read_to_string(world.path("user.pub")).unwrap();
    let known = world.path("known_hosts");
    let text = std::fs::read_to_string(&known).unwrap();
    let host = text.split_whitespace().next().unwrap();
    std::fs::write(&known, format!("{host} {other}")).unwrap();
    world.serve(&world.block("toml", "known_hosts_file"));
    wait_until("the agent knows it by another key", || {
        Ok(world.run("ssh", &[SERVICE, "true"]).code == 255)
    })
    .unwrap();
    world.is_kept_out(ANOTHER, "sshd's key is not among the 1 that known_hosts_file has");
    std::fs::write(&known, &text).unwrap();
    world.gets_in();
    // Of several keys by the one that is known, whichever would be proposed first.
    let second = world.path("second");
    let mut keygen = Command::new("ssh-keygen");
    output(keygen.args(["-q", "-t", "ecdsa", "-N", "", "-f"]).arg(&second));
    world
        .sshd
        .reload_with(&format!("HostKey {}\n", second.display()))
        .unwrap();
    let second = std::fs::read_to_string(second.with_extension("pub")).unwrap();
    std::fs::write(&known, format!("{host} {second}")).unwrap();
    world.gets_in();
}

#[test]
fn an_operators_own_key_logs_in_by_its_certificate_and_by_no_bad_one() {
    let world = world();
    let (authority, other) = (world.key("own_ca"), world.key("other_ca"));
    let key = world.key("shell_key");
    // Besides the service's authority, or in its place.
    std::fs::copy(authority.with_extension("pub"), world.path("iap_shell_ca.pub")).unwrap();
    certify(&authority, &key, &["-n", &world.me]);
    world.serve(&world.block("toml", "user_certificate_file"));
    wait_until("the agent logs in with the operator's key", || {
        Ok(world.run("ssh", &[SERVICE, "true"]).code == 0)
    })
    .unwrap();
    let said = format!("The service's sshd does not let {} in", world.me);
    let cases: [(&Path, &[&str]); 5] = [
        (&other, &["-n", &world.me]),
        (&authority, &["-n", &world.me, "-V", "20200101:20200102"]),
        (&authority, &["-n", "somebody-else"]),
        (
            &authority,
            &["-n", &world.me, "-O", "critical:unknown@example.com=1"],
        ),
        // sshd takes none for everybody.
        (&authority, &[]),
    ];
    for (authority, arguments) in cases {
        certify(authority, &key, arguments);
        world.is_kept_out(&said, &format!("sshd does not let this agent in as {}", world.me));
    }
    certify(&authority, &key, &["-n", &world.me]);
    world.gets_in();
}

#[test]
fn a_server_that_dies_ends_its_sessions_and_their_records_and_the_next_one_gets_in() {
    let world = world();
    let before = world.count();
    let mut client = world.client("ssh", &["-tt", SERVICE, "echo \"pid $PPID\"; exec cat"]);
    client
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut client = Background(client.spawn().unwrap());
    let mut line = String::new();
    let mut output = std::io::BufReader::new(client.0.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    let pid = line.trim().strip_prefix("pid ").unwrap().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let ended = client.finish().unwrap();
    assert_eq!(ended.code, 255, "{ended:?}");
    let session = world.session(before + 1);
    assert!(
        ["backend_closed", "backend_lost"].contains(&session["close_reason"].as_str().unwrap()),
        "{session}"
    );
    let id = session["session_id"].as_str().unwrap();
    assert!(ended.stderr.contains(id), "{ended:?}");
    let records = world.plane.records(id).unwrap();
    let recording = records
        .iter()
        .find(|record| record["event"] == "session.recording")
        .unwrap();
    assert_eq!(recording["complete"], true, "{recording}");
    world.gets_in();
}

#[test]
fn what_a_client_wants_that_is_not_its_own_is_refused_and_the_rest_goes_on() {
    let world = world();
    // An agent of the user's, which a client would have forwarded.
    let socket = world.path("agent");
    let mut ssh_agent = Command::new("ssh-agent");
    let ssh_agent = ssh_agent
        .arg("-D")
        .arg("-a")
        .arg(&socket)
        .stdout(Stdio::null())
        .spawn();
    let _ssh_agent = Background(ssh_agent.unwrap());
    wait_until("it listens", || Ok(socket.exists())).unwrap();
    let mut client = world.client("ssh", &["-A", SERVICE, "echo \"agent: $SSH_AUTH_SOCK.\""]);
    let ran: iap_e2e::Ran = client.env("SSH_AUTH_SOCK", &socket).output().unwrap().into();
    assert_eq!((ran.code, ran.stdout.trim()), (0, "agent: ."), "{}", ran.stderr);
    // A port at the server's side.
    let back = [
        "-o",
        "ExitOnForwardFailure=yes",
        "-R",
        "0:127.0.0.1:22",
        SERVICE,
        "true",
    ];
    let ran = world.run("ssh", &back);
    assert!(
        ran.code == 255 && ran.stderr.contains("remote port forwarding failed"),
        "{ran:?}"
    );
    // Something that sshd does not have.
    let ran = world.run("ssh", &["-s", SERVICE, "no-such-thing"]);
    assert!(
        ran.code != 0 && ran.stderr.contains("subsystem request failed"),
        "{ran:?}"
    );
    // Whatever it would prove itself by, who it is has been proven.
    for method in ["password", "keyboard-interactive", "gssapi-with-mic,hostbased"] {
        let ran = world.run(
            "ssh",
            &[
                "-o",
                &format!("PreferredAuthentications={method}"),
                SERVICE,
                "echo in",
            ],
        );
        assert_eq!(
            (ran.code, ran.stdout.trim()),
            (0, "in"),
            "{method}: {}",
            ran.stderr
        );
    }
    // Names that are none, and another program's protocol.
    for name in ["", "a b", "root\nroot", &"x".repeat(1000)] {
        let ran = world.run("ssh", &["-o", &format!("User=\"{name}\""), SERVICE, "echo in"]);
        assert!(ran.code == 255 && ran.stdout.is_empty(), "{name:?}: {ran:?}");
    }
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".repeat(10_000),
        vec![0; 1 << 20],
        b"SSH-2.0-x\r\n".repeat(10_000),
    ] {
        let mut command = world
            .plane
            .command("alice", &["connect", SERVICE, "--stdio"])
            .unwrap();
        let mut client = Background(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        );
        // It is cut short while it still speaks.
        let _ = client.0.stdin.as_mut().unwrap().write_all(&garbage);
        client.finish().unwrap();
    }
    world.gets_in();
}

#[test]
fn recordings_are_replayed_by_the_commands_that_the_page_has() {
    let world = world();
    let before = world.count();
    let ran = world.run("ssh", &["-tt", SERVICE, "echo on record"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let session = world.session(before + 1);
    let id = session["session_id"].as_str().unwrap();
    let commands = world.block("sh", "sessions play").replace("SESSION", id);
    let expected = [Some("on record"), None, Some("\"complete\": true"), None];
    assert_eq!(commands.lines().count(), expected.len());
    for (command, expected) in commands.lines().zip(expected) {
        wait_until("the recording has arrived", || {
            let ran = world.shell("auditor", command);
            Ok(ran.code == 0 && expected.is_none_or(|expected| ran.stdout.contains(expected)))
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", world.shell("auditor", command)));
    }
    let cast = std::fs::read_to_string(world.path("session.cast")).unwrap();
    assert!(cast.contains("on record"), "{cast}");
}

#[test]
fn what_somebody_ran_drives_no_terminal_of_who_reads_the_record() {
    let world = world();
    let before = world.count();
    let title = "echo '\u{1b}]0;pwned\u{7}\u{9b}31m' done";
    let ran = world.run("ssh", &[SERVICE, title]);
    assert!(
        ran.stdout.contains('\u{1b}'),
        "who runs it sees it as it is: {ran:?}"
    );
    let session = world.session(before + 1);
    let id = session["session_id"].as_str().unwrap();
    for read in [&["sessions", "show", id][..], &["audit", "search", "pwned"]] {
        let shown = world.iapctl("auditor", read);
        let shown = shown.succeeded().unwrap();
        assert!(shown.contains("pwned"), "{read:?}: {shown}");
        let raw = shown
            .chars()
            .find(|letter| letter.is_control() && *letter != '\n');
        assert_eq!(raw, None, "{read:?}: {shown:?}");
    }
}
