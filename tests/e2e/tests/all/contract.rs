//! The command line's contract: what scripts rely on, tried on one plane for each state of it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iap_e2e::{Background, Plane, Ran, program, wait_until};
use rustix::process::Signal;
use serde_json::Value;

/// A program of the plane that was killed is running again within this time.
const RESTART_SECONDS_MAX: Duration = Duration::from_secs(1);
/// The whole plane ends within this time of being asked.
const END_SECONDS_MAX: Duration = Duration::from_secs(10);

/// RFC 3339, UTC, with milliseconds.
fn is_time(value: &Value) -> bool {
    value.as_str().is_some_and(|text| {
        let bytes = text.as_bytes();
        bytes.len() == "2026-11-22T14:03:07.123Z".len()
            && bytes[10] == b'T'
            && bytes[19] == b'.'
            && bytes[23] == b'Z'
    })
}

fn is_uuid_v7(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|text| text.len() == 36 && text.as_bytes()[14] == b'7')
}

fn sh(plane: &Plane, user: &str, script: &str) -> Ran {
    let path = format!(
        "{}:{}",
        program("iapctl").unwrap().parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    Command::new("sh")
        .args(["-c", script])
        .env("PATH", path)
        .env("IAPCTL_HOME", plane.home(user))
        .env("IAPCTL_NONINTERACTIVE", "1")
        .output()
        .unwrap()
        .into()
}

#[test]
fn commands_keep_their_word_on_exit_codes_environment_and_json() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "bob", "auditor", "admin"] {
        plane.log_in(user).unwrap();
    }
    exit_codes_are_those_scripts_rely_on(&plane);
    a_commands_environment_leads_to_the_local_end_alone(&plane);
    settings_can_be_evaluated(&plane);
    sessions_have_the_promised_keys(&plane);
    locks_of_every_kind_come_and_go(&plane);
    a_denial_prints_a_command_that_works(&plane);
    a_newly_named_group_needs_no_new_login(&plane);
}

fn exit_codes_are_those_scripts_rely_on(plane: &Plane) {
    let mark = plane.scratch().join("ran");
    let mark = mark.to_str().unwrap();
    for (user, arguments, code) in [
        ("alice", &["connect", "echo", "--", "sh", "-c", "exit 7"][..], 7),
        ("alice", &["connect", "echo", "--", "sh", "-c", "kill $$"], 143),
        ("alice", &["connect", "echo", "--", "no-such-command"], 127),
        ("alice", &["connect", "no-such-service", "--", "touch", mark], 2),
        ("alice", &["connect", "echo", "--listen", "0.0.0.0:0"], 2),
        ("alice", &["proxy", "no-such-service"], 2),
        ("bob", &["connect", "db-prod", "--", "touch", mark], 3),
        ("bob", &["proxy", "db-prod"], 2),
        ("bob", &["can", "bob@example.com", "db-prod"], 3),
        ("bob", &["audit", "search", "alice"], 3),
        ("nobody", &["connect", "echo", "--", "touch", mark], 4),
        ("nobody", &["ls"], 4),
        ("auditor", &["audit", "search", "event ==="], 2),
    ] {
        let ran = plane.iapctl(user, arguments).unwrap();
        assert_eq!(
            ran.code, code,
            "{user}: {arguments:?}\n{}{}",
            ran.stdout, ran.stderr
        );
        assert!(ran.stdout.is_empty() || user == "bob", "talk is on stderr");
    }
    assert!(
        !std::path::Path::new(mark).exists(),
        "a command ran without a session"
    );
}

fn a_commands_environment_leads_to_the_local_end_alone(plane: &Plane) {
    let ran = sh(
        plane,
        "alice",
        "PGSSLMODE=verify-full PGSSLROOTCERT=/x PGSSLCERT=/y PGHOSTADDR=192.0.2.1 \
         iapctl connect db-prod --database postgres -- sh -c 'env | grep -E \"^PGSSL\" | grep -v PGSSLMODE=disable; \
         test $IAP_PORT = $PGPORT && psql -Atc \"select current_user, current_database()\"'",
    );
    assert_eq!(ran.succeeded().unwrap(), "app|postgres\n");
    let ran = sh(
        plane,
        "alice",
        "iapctl connect web -- sh -c 'curl -s http://$IAP_HOST:$IAP_PORT/headers'",
    );
    assert!(ran.succeeded().unwrap().contains("user-agent"), "{}", ran.stdout);
}

fn settings_can_be_evaluated(plane: &Plane) {
    for script in [
        "eval \"$(iapctl env db-prod)\" && psql -Atc 'select 42'",
        "set -a && iapctl env db-prod -f dotenv > \"$IAPCTL_HOME/env\" && . \"$IAPCTL_HOME/env\" && psql -Atc 'select 42'",
        "psql \"$(iapctl env db-prod --format url)\" -Atc 'select 42'",
    ] {
        assert_eq!(
            sh(plane, "alice", script).succeeded().unwrap(),
            "42\n",
            "{script}"
        );
    }
    let settings = plane.json("alice", &["env", "db-prod"]).unwrap();
    assert_eq!(settings["PGSSLMODE"], "verify-full");
    let known_bad = plane.iapctl("alice", &["env", "echo", "-f", "jdbc"]).unwrap();
    assert_eq!(known_bad.code, 2, "{}", known_bad.stderr);
}

fn sessions_have_the_promised_keys(plane: &Plane) {
    let live = plane.command("alice", &["connect", "echo", "--stdio"]).unwrap();
    let mut live = live;
    let held = Background(live.stdin(Stdio::piped()).spawn().unwrap());
    let all = plane
        .sessions_when(|all| {
            all.iter().any(|one| one["end"].is_null()) && all.iter().any(|one| !one["end"].is_null())
        })
        .unwrap();
    drop(held);
    for session in &all {
        assert!(is_uuid_v7(&session["session_id"]), "{session}");
        assert!(is_time(&session["start"]), "{session}");
        assert!(session["end"].is_null() || is_time(&session["end"]), "{session}");
        assert_eq!(session["user"], "alice@example.com");
        assert!(session["service"].is_string() && session["agent"].is_string());
        assert!(session["bytes_in"].is_u64() && session["bytes_out"].is_u64());
        assert_eq!(session["close_reason"].is_null(), session["end"].is_null());
        let decision = &session["decision"];
        assert_eq!(decision["effect"], "allow");
        assert!(decision["rule"].is_string() && decision["policy_version"].is_u64());
    }
    let both = r#"user.name == "alice@example.com" && event == "session.start""#;
    let found = plane.json("auditor", &["audit", "search", both]).unwrap();
    assert!(found.as_array().unwrap().len() >= all.len());
    let none = plane
        .json("auditor", &["audit", "search", "no_such_field == 3"])
        .unwrap();
    assert_eq!(none, serde_json::json!([]));
    let own = plane.json("bob", &["sessions", "ls"]).unwrap();
    assert_eq!(own, serde_json::json!([]), "others' sessions need audit.read");
}

fn locks_of_every_kind_come_and_go(plane: &Plane) {
    let id = "01a203e0-5b93-72a7-8d1e-835a2c5f0522";
    for (flag, target) in [
        ("--user", "eve@example.com"),
        ("--login-id", id),
        ("--session", id),
        ("--agent", id),
        ("--device", "laptop"),
        ("--serial", "0a0b0c"),
    ] {
        let added = plane
            .json(
                "admin",
                &["lock", "add", flag, target, "--reason", "a test", "--ttl", "1h"],
            )
            .unwrap();
        assert_eq!(added["target"], target);
        assert!(is_time(&added["expires"]), "{added}");
        let lock = added["lock_id"].as_str().unwrap();
        let removed = plane.json("admin", &["lock", "rm", lock]).unwrap();
        assert_eq!(removed["removed"][0], lock);
    }
    assert_eq!(
        plane.json("admin", &["lock", "ls"]).unwrap(),
        serde_json::json!([])
    );
}

fn a_denial_prints_a_command_that_works(plane: &Plane) {
    let denied = plane.iapctl("bob", &["connect", "db-prod"]).unwrap();
    assert_eq!(denied.code, 3);
    assert!(denied.stderr.contains("#databases"), "{}", denied.stderr);
    let (_, hint) = denied.stderr.trim_end().split_once("iapctl ").unwrap();
    let words: Vec<&str> = hint.split(' ').collect();
    for user in ["bob", "admin"] {
        let explained = plane.iapctl(user, &words).unwrap();
        assert!(
            explained.succeeded().unwrap().contains("bob@example.com"),
            "{hint}"
        );
    }
}

/// A policy without alice's group, her login, then a policy that names it.
fn a_newly_named_group_needs_no_new_login(plane: &Plane) {
    let whole = plane.dir().join("config/policy.toml");
    let text = std::fs::read_to_string(&whole).unwrap();
    let without = plane.scratch().join("without.toml");
    std::fs::write(
        &without,
        text.replace("dev:engineering", "dev:others")
            .replace("alice@", "eve@"),
    )
    .unwrap();
    let apply = |file: &std::path::Path| {
        let ran = plane
            .iapctl("admin", &["policy", "apply", file.to_str().unwrap()])
            .unwrap();
        ran.succeeded().unwrap();
    };
    apply(&without);
    plane.log_in("alice").unwrap();
    let connect = ["connect", "echo", "--", "true"];
    wait_until("the agent has the policy without the group", || {
        Ok(plane.iapctl("alice", &connect)?.code == 3)
    })
    .unwrap();
    let serial = |plane: &Plane| plane.json("alice", &["status"]).unwrap()["serial"].clone();
    let before = serial(plane);
    apply(&whole);
    wait_until("alice is let in without logging in again", || {
        Ok(plane.iapctl("alice", &connect)?.code == 0)
    })
    .unwrap();
    assert_ne!(serial(plane), before, "the certificate was renewed");
}

#[test]
fn a_development_plane_heals_guards_its_folder_and_ends_whole() {
    let plane = Plane::start(&[]).unwrap();
    let first = plane.descriptor().unwrap();
    assert_eq!(first["services"], serde_json::json!([]));
    for name in ["agent", "proxy", "auth"] {
        let killed = plane.pid(name).unwrap();
        plane.signal(name, Signal::KILL).unwrap();
        let at = Instant::now();
        wait_until(
            "dev.json names the new process",
            || Ok(plane.pid(name)? != killed),
        )
        .unwrap();
        assert!(
            at.elapsed() < RESTART_SECONDS_MAX,
            "{name} after {:?}",
            at.elapsed()
        );
    }
    let dir = plane.dir().display().to_string();
    let before = plane.descriptor().unwrap()["pids"].clone();
    let second = plane.iapctl("alice", &["dev", "--dir", &dir]).unwrap();
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("already runs in"), "{}", second.stderr);
    assert_eq!(
        plane.descriptor().unwrap()["pids"],
        before,
        "the second harmed the first"
    );
    for name in ["agent", "proxy", "auth"] {
        plane.signal(name, Signal::STOP).unwrap();
    }
    let pids: Vec<_> = ["dev", "auth", "proxy", "agent"]
        .map(|name| plane.pid(name).unwrap())
        .to_vec();
    plane.signal("dev", Signal::TERM).unwrap();
    let asked = Instant::now();
    wait_until("everything has ended", || {
        Ok(pids.iter().all(|pid| !is_running(pid.as_raw_nonzero().get())))
    })
    .unwrap();
    assert!(asked.elapsed() < END_SECONDS_MAX, "after {:?}", asked.elapsed());
    assert!(!plane.dir().join("dev.json").exists());
}

/// Ended and not asked for yet (state Z) is ended.
fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn a_plane_asked_to_end_while_it_starts_leaves_nothing_behind() {
    let folder = tempfile::Builder::new()
        .prefix("iap-e2e.")
        .tempdir_in("/tmp")
        .unwrap();
    let dir = folder.path().join("plane");
    let mut child = Background(
        Command::new(program("iapctl").unwrap())
            .args(["dev", "--dir", dir.to_str().unwrap()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    wait_until("the auth server has been started", || {
        Ok(dir.join("logs/auth.log").exists())
    })
    .unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.0.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    child.0.wait().unwrap();
    let needle = dir.display().to_string();
    let left = std::fs::read_dir("/proc").unwrap().flatten().any(|process| {
        std::fs::read(process.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&needle))
    });
    assert!(!left, "a program of the plane goes on");
}
