//! Recorded SSH: stock OpenSSH clients through `iapctl connect NAME --stdio` to a real sshd, what of it is on record,
//! and what replays.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use iap_e2e::{Background, Plane, Ran, program, wait_until};
use rustix::process::Signal;
use serde_json::Value;

pub(crate) const SERVICE: &str = "ssh-demo";

/// A plane on which alice and the auditor are logged in, and what OpenSSH's clients need to reach its sshd as alice.
pub(crate) struct Shell {
    pub(crate) plane: Plane,
    login: String,
    config: PathBuf,
}

impl Shell {
    pub(crate) fn start() -> Self {
        Self::on(Plane::demo().unwrap())
    }

    pub(crate) fn on(plane: Plane) -> Self {
        plane.log_in("alice").unwrap();
        plane.log_in("auditor").unwrap();
        let services = plane.json("alice", &["ls"]).unwrap();
        let service = |service: &&Value| service["name"] == SERVICE;
        let service = services.as_array().unwrap().iter().find(service).unwrap();
        let login = service["login"].as_str().unwrap().to_owned();
        let config = plane.scratch().join("ssh.conf");
        let text = format!(
            "Host {SERVICE}\nProxyCommand env IAPCTL_HOME={home} IAPCTL_NONINTERACTIVE=1 {iapctl} connect %h --stdio\n\
             User {login}\nBatchMode yes\nIdentityFile none\nIdentityAgent none\nStrictHostKeyChecking accept-new\n\
             UserKnownHostsFile {known}\nLogLevel INFO\n",
            home = plane.home("alice").display(),
            iapctl = program("iapctl").unwrap().display(),
            known = plane.scratch().join("known_hosts").display(),
        );
        fs::write(&config, text).unwrap();
        Self { plane, login, config }
    }

    pub(crate) fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("-F")
            .arg(&self.config)
            .env("TERM", "xterm")
            .env("LC_E2E", "passed");
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let mut ssh = self.client("ssh");
        Ran::from(ssh.args(arguments).output().unwrap())
    }

    /// The one session there was, with all its records, once it is over.
    pub(crate) fn session(&self) -> (String, Vec<Value>) {
        let sessions = self
            .plane
            .sessions_when(|all| all.len() == 1 && !all[0]["end"].is_null())
            .unwrap();
        let id = sessions[0]["session_id"].as_str().unwrap().to_owned();
        let records = self.plane.records(&id).unwrap();
        (id, records)
    }

    /// What a player prints, once the auth server has all of the recording.
    pub(crate) fn replayed(&self, session: &str, more: &[&str]) -> Ran {
        let play = [&["sessions", "play", session], more].concat();
        let mut played = None;
        wait_until("the recording has arrived", || {
            let ran = self.plane.iapctl("auditor", &play)?;
            let is_here = ran.stderr.contains("on record") || ran.stderr.contains("missing");
            played = Some(ran);
            Ok(is_here)
        })
        .unwrap();
        played.unwrap()
    }
}

pub(crate) fn of<'a>(records: &'a [Value], event: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["event"] == event).collect()
}

#[test]
fn a_command_has_its_outputs_exit_code_variables_and_record() {
    let shell = Shell::start();
    let ran = shell.run(&[
        "-o",
        "SendEnv=LC_E2E",
        SERVICE,
        "echo out $LC_E2E; echo err >&2; exit 7",
    ]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (7, "out passed\n"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("err\n"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("Sessions to ssh-demo are recorded."),
        "{}",
        ran.stderr
    );

    let (session, records) = shell.session();
    let events: Vec<_> = records
        .iter()
        .map(|record| record["event"].as_str().unwrap())
        .collect();
    assert_eq!(
        events,
        [
            "session.start",
            "session.command",
            "session.recording",
            "session.end"
        ]
    );
    assert_eq!(records[0]["login"], shell.login.as_str());
    assert_eq!(records[0]["observed"], "terminal");
    assert_eq!(records[1]["command"], "echo out $LC_E2E; echo err >&2; exit 7");
    assert_eq!(
        (&records[2]["exit"], &records[2]["complete"]),
        (&"7".into(), &true.into())
    );
    let replayed = shell.replayed(&session, &[]);
    assert_eq!(replayed.stdout, "out passed\nerr\n");
    assert!(replayed.stderr.contains("whole"), "{}", replayed.stderr);
    // Her own session is hers to see; bob's eyes are not meant for it.
    assert_eq!(
        shell
            .plane
            .iapctl("alice", &["sessions", "play", &session])
            .unwrap()
            .code,
        0
    );
    shell.plane.log_in("bob").unwrap();
    let refused = shell
        .plane
        .iapctl("bob", &["sessions", "play", &session])
        .unwrap();
    assert_eq!(refused.code, 2, "{refused:?}");
    // By its name alone, without a key, a password or a fingerprint.
    let by_name = shell
        .plane
        .iapctl("alice", &["ssh", SERVICE, "--", "echo", "by name;", "exit 3"])
        .unwrap();
    assert_eq!(
        (by_name.code, by_name.stdout.as_str()),
        (3, "by name\n"),
        "{}",
        by_name.stderr
    );
    assert!(
        !by_name.stderr.contains("Permanently added"),
        "its authority is known: {}",
        by_name.stderr
    );
    let signal = shell.run(&[SERVICE, "kill -TERM $$"]);
    assert_eq!(signal.code, 255, "as OpenSSH has it: {}", signal.stderr);
}

#[test]
fn an_erased_session_keeps_its_records_and_says_who_took_the_rest() {
    let shell = Shell::start();
    let secret = "a-word-that-must-go";
    assert_eq!(
        shell.run(&[SERVICE, &format!("echo {secret}")]).stdout,
        format!("{secret}\n")
    );
    let (session, records) = shell.session();
    assert_eq!(
        of(&records, "session.command")[0]["command"],
        format!("echo {secret}")
    );
    assert!(shell.replayed(&session, &[]).stderr.contains("whole"));
    let found = |user: &str, what: &str| {
        let found = shell.plane.json(user, &["audit", "search", what]).unwrap();
        found.as_array().unwrap().len()
    };
    let by_word = format!("command.contains({secret:?})");
    assert!(found("auditor", &by_word) > 0);

    let erase = ["audit", "erase", "--session", &session, "--reason", "asked for"];
    let refused = shell
        .plane
        .iapctl("auditor", &[&erase[..], &["--yes"]].concat())
        .unwrap();
    assert_eq!(refused.code, 3, "{refused:?}");
    shell.plane.log_in("admin").unwrap();
    let nobody = shell.plane.iapctl("admin", &erase).unwrap();
    assert_eq!(nobody.code, 2, "there is nobody to ask: {nobody:?}");
    let dry = shell
        .plane
        .iapctl("admin", &[&erase[..], &["--dry-run"]].concat())
        .unwrap();
    assert!(
        dry.stdout.starts_with("Would erase 2 payloads (") && dry.stdout.contains(" and 1 recording ("),
        "{dry:?}"
    );
    assert!(found("auditor", &by_word) > 0);
    let erased = shell
        .plane
        .iapctl("admin", &[&erase[..], &["--yes"]].concat())
        .unwrap();
    assert!(erased.stdout.starts_with("Erased 2 payloads ("), "{erased:?}");

    assert_eq!(found("auditor", &by_word), 0);
    let shown = shell
        .plane
        .iapctl("auditor", &["sessions", "show", &session])
        .unwrap()
        .stdout;
    assert!(!shown.contains(secret), "{shown}");
    let erased_lines = shown
        .lines()
        .filter(|line| line.contains("by admin@example.com: asked for)"));
    assert_eq!(erased_lines.count(), 2, "{shown}");
    assert!(shown.contains("X1004W audit.erased admin@example.com"), "{shown}");
    let played = shell
        .plane
        .iapctl("auditor", &["sessions", "play", &session])
        .unwrap();
    assert_eq!(played.code, 2);
    assert!(
        played.stderr.contains("by admin@example.com\n  why: asked for"),
        "{played:?}"
    );
    let again = shell
        .plane
        .iapctl("admin", &[&erase[..], &["--yes"]].concat())
        .unwrap();
    assert_eq!(again.stdout, "There is nothing to erase.\n");
    assert_eq!(found("auditor", "event == \"audit.erased\""), 1);
}

#[test]
fn an_editor_on_a_terminal_replays_byte_for_byte() {
    let shell = Shell::start();
    let file = shell.plane.scratch().join("edited");
    let mut ssh = shell.client("ssh");
    let command = format!("stty rows 24 cols 80; vim -u NONE -N {}", file.display());
    // The format is text: what is no UTF-8 would not come back as it was.
    ssh.env("LANG", "C.UTF-8");
    ssh.args(["-q", "-tt", "-o", "SendEnv=LANG", SERVICE, &command]);
    ssh.stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut ssh = Background(ssh.spawn().unwrap());
    // It forgets what was typed before it was there.
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("[New]") {
        let mut byte = [0];
        ssh.0.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        seen.extend(byte);
    }
    let keys = "ihëllo wörld\u{1b}yyp:wq\r";
    ssh.0.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    let rest = ssh.finish().unwrap();
    let seen = String::from_utf8(seen).unwrap() + &rest.stdout;
    assert_eq!(fs::read_to_string(&file).unwrap(), "hëllo wörld\nhëllo wörld\n");
    let (session, records) = shell.session();
    let recording = of(&records, "session.recording")[0];
    assert_eq!(
        (&recording["terminal"], &recording["complete"]),
        (&true.into(), &true.into())
    );
    let replayed = shell.replayed(&session, &[]);
    assert!(
        replayed.stdout.contains("\u{1b}["),
        "vim draws: {:?}",
        replayed.stdout
    );
    assert_eq!(replayed.stdout, seen);
    // As the file that it is, too.
    let cast = shell.replayed(&session, &["--format", "asciicast"]).stdout;
    let header: Value = serde_json::from_str(cast.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&header["version"], &header["env"]["TERM"]),
        (&2.into(), &"xterm".into())
    );
    assert!(!cast.contains("\"i\""), "what was typed is nobody's business");
}

#[test]
fn bytes_go_both_ways_at_once_however_many_there_are() {
    let shell = Shell::start();
    let source = shell.plane.scratch().join("source");
    let bytes: Vec<u8> = (0..32 * 1024 * 1024_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(&source, &bytes).unwrap();
    let mut ssh = shell.client("ssh");
    ssh.args(["-q", SERVICE, "cat"])
        .stdin(fs::File::open(&source).unwrap());
    let output = ssh.output().unwrap();
    assert!(output.status.success());
    assert!(
        output.stdout == bytes,
        "{} bytes of {}",
        output.stdout.len(),
        bytes.len()
    );
    let (_, records) = shell.session();
    let recording = of(&records, "session.recording")[0];
    assert!(
        recording["left_out_bytes"].as_u64().unwrap() > 60_000_000,
        "{recording}"
    );
    let end = of(&records, "session.end")[0];
    assert_eq!(
        (&end["bytes_in"], &end["bytes_out"]),
        (&bytes.len().into(), &bytes.len().into())
    );
}

#[test]
fn who_may_not_is_told_in_a_sentence_with_the_session_and_nothing_runs() {
    let shell = Shell::start();
    let refused = shell.run(&["-l", "somebody", SERVICE, "true"]);
    assert_eq!(refused.code, 255);
    let said = "Policy does not allow alice@example.com to reach ssh-demo as somebody";
    assert!(refused.stderr.contains(said), "{}", refused.stderr);
    assert!(refused.stderr.contains("Ask #platform"), "{}", refused.stderr);
    let found = shell
        .plane
        .json("auditor", &["audit", "search", "event == \"session.denied\""])
        .unwrap();
    let session = found[0]["session_id"].as_str().unwrap();
    assert!(refused.stderr.contains(session), "{}", refused.stderr);
    assert_eq!(found[0]["denial"], "login_not_allowed");
    // Ports are not forwarded unless the agent's file says so, and the attempt is on record.
    let forwarded = shell.run(&["-W", "127.0.0.1:22", SERVICE]);
    assert_eq!(forwarded.code, 255, "{}", forwarded.stderr);
    wait_until("the attempt is on record", || {
        let found = shell
            .plane
            .json("auditor", &["audit", "search", "event == \"session.forward\""])?;
        Ok(found.as_array().is_some_and(|found| {
            found.len() == 1 && found[0]["forward"] == "127.0.0.1:22" && found[0]["allowed"] == false
        }))
    })
    .unwrap();
}

#[test]
fn a_lock_ends_a_shell_and_its_terminal_says_why() {
    let shell = Shell::start();
    shell.plane.log_in("admin").unwrap();
    let mut ssh = shell.client("ssh");
    ssh.args(["-tt", SERVICE, "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut ssh = Background(ssh.spawn().unwrap());
    ssh.round_trip(b"a-mark").unwrap();
    let locked = shell.plane.iapctl(
        "admin",
        &["lock", "add", "--user", "alice@example.com", "--reason", "left"],
    );
    locked.unwrap().succeeded().unwrap();
    let ended = ssh.finish().unwrap();
    assert_eq!(ended.code, 255);
    assert!(ended.stderr.contains("Access is locked."), "{}", ended.stderr);
    let (session, records) = shell.session();
    assert_eq!(of(&records, "session.end")[0]["close_reason"], "lock");
    assert_eq!(of(&records, "session.recording")[0]["complete"], true);
    assert!(shell.replayed(&session, &[]).stdout.contains("a-mark"));
}

#[test]
fn an_agent_killed_while_it_records_keeps_what_was_shown_and_the_record_says_what_is_missing() {
    let shell = Shell::start();
    let mut ssh = shell.client("ssh");
    ssh.args(["-q", "-tt", SERVICE, "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut ssh = Background(ssh.spawn().unwrap());
    ssh.round_trip(b"a-mark").unwrap();
    let folder = shell.plane.dir().join("agent/recordings");
    wait_until("the piece is written", || {
        let files = fs::read_dir(&folder)?.flatten();
        let mut casts = files.filter(|file| file.path().extension().is_some_and(|ending| ending == "cast"));
        Ok(casts.any(|cast| fs::read_to_string(cast.path()).is_ok_and(|text| text.contains("a-mark"))))
    })
    .unwrap();
    shell.plane.signal("agent", Signal::KILL).unwrap();
    let (session, records) = shell.session();
    let recording = of(&records, "session.recording")[0];
    assert_eq!(recording["complete"], false, "{recording}");
    assert_eq!(of(&records, "session.end")[0]["close_reason"], "agent_lost");
    let replayed = shell.replayed(&session, &[]);
    assert!(replayed.stdout.contains("a-mark"), "{replayed:?}");
    assert!(
        replayed.stderr.contains("up to a second is missing"),
        "{}",
        replayed.stderr
    );
    drop(ssh);
}

#[test]
fn what_cannot_be_recorded_is_not_shown_and_the_session_ends_and_says_why() {
    let plane = Plane::start_by(&["--demo"], |_, mut command| {
        command.env("IAP_AGENT__LIMITS__RECORDINGS_BYTES_MAX", "1048576");
        command.env("IAP_AGENT__LIMITS__SPOOL_FULL_PAUSE_SECONDS_MAX", "1");
        Ok(command)
    });
    let shell = Shell::on(plane.unwrap());
    // Nobody takes what is written, so that it fills up.
    shell.plane.signal("auth", Signal::STOP).unwrap();
    let ran = shell.run(&["-tt", SERVICE, "yes 0123456789abcde | head -c 16000000; sleep 60"]);
    shell.plane.signal("auth", Signal::CONT).unwrap();
    assert_eq!(ran.code, 255, "{}", ran.stderr);
    let said = "The agent cannot write audit records.";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
    let (session, records) = shell.session();
    assert_eq!(
        of(&records, "session.end")[0]["close_reason"],
        "audit_unavailable"
    );
    let recording = of(&records, "session.recording")[0];
    assert_eq!(recording["complete"], false);
    // What was shown is on record, but for what was on its way when the disk was full.
    let replayed = shell.replayed(&session, &[]);
    assert!(ran.stdout.starts_with(&replayed.stdout));
    let missing = ran.stdout.len() - replayed.stdout.len();
    assert!(
        missing < 4 * 1024 * 1024,
        "{missing} bytes were shown and are not on record"
    );
}
