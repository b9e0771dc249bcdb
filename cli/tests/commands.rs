//! Whole runs of the built program: stdout, stderr and exit code, as scripts and people meet them.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;
use std::process::{Command, Stdio};

struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

fn iapctl(home: &Path, arguments: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_iapctl"))
        .args(arguments)
        .env("IAPCTL_HOME", home)
        .env_remove("IAPCTL_NONINTERACTIVE")
        .env_remove("NO_COLOR")
        .env("COLUMNS", "100")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Run {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn fresh() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn without_a_command_the_help_is_shown_as_a_usage_error() {
    let home = fresh();
    let run = iapctl(home.path(), &[]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("Usage: iapctl"), "{}", run.stderr);
    assert!(run.stdout.is_empty());
}

#[test]
fn help_is_a_result_and_names_every_command() {
    let home = fresh();
    let run = iapctl(home.path(), &["--help"]);
    assert_eq!(run.code, 0);
    for command in [
        "login",
        "status",
        "logout",
        "ls",
        "connect",
        "proxy",
        "env",
        "sessions",
        "audit",
        "policy",
        "services",
        "lock",
        "tokens",
        "agents",
        "can",
        "dev",
        "completion",
    ] {
        assert!(
            run.stdout.contains(&format!("\n  {command}")),
            "{command}\n{}",
            run.stdout
        );
    }
}

#[test]
fn mistyped_commands_and_arguments_are_usage_errors() {
    let home = fresh();
    for arguments in [
        &["conect", "db"][..],
        &["connect"],
        &["connect", "db", "--stdio", "--listen", "1"],
        &["connect", "db", "--insecure-listen"],
        &["login", "x", "--headless", "--no-browser"],
        &["lock", "add"],
        &["lock", "add", "--user", "a", "--agent", "b"],
        &["lock", "add", "--user", "a", "--ttl", "soon"],
        &["proxy"],
        &["env", "db", "--format", "yaml"],
        &["sessions", "ls", "--limit", "0"],
        &["tokens", "create", "bot"],
        &["completion", "tcsh"],
        &["ls", "-f", "xml"],
    ] {
        let run = iapctl(home.path(), arguments);
        assert_eq!(run.code, 2, "{arguments:?}\n{}", run.stderr);
        assert!(run.stdout.is_empty(), "{arguments:?}");
        assert!(run.stderr.starts_with("error: "), "{arguments:?}\n{}", run.stderr);
    }
}

#[test]
fn without_a_login_every_command_that_needs_one_exits_4_with_the_command_to_run() {
    let home = fresh();
    for arguments in [
        &["status"][..],
        &["ls"],
        &["ls", "-f", "json"],
        &["connect", "db-prod"],
        &["connect", "db-prod", "--stdio"],
        &["connect", "db-prod", "--", "true"],
        &["proxy", "--all"],
        &["env", "db-prod"],
        &["sessions", "ls"],
        &["sessions", "show", "01890000-0000-7000-8000-000000000001"],
        &["audit", "search", "x"],
        &["policy", "get"],
        &["policy", "explain", "db-prod"],
        &["services", "ls"],
        &["lock", "ls"],
        &["lock", "add", "--user", "bob@example.com"],
        &["tokens", "create", "agent", "--service", "db-prod"],
        &["agents", "ls"],
        &["can", "alice@example.com", "db-prod"],
    ] {
        let run = iapctl(home.path(), arguments);
        assert_eq!(run.code, 4, "{arguments:?}\n{}", run.stderr);
        assert!(
            run.stderr.contains("next: iapctl login"),
            "{arguments:?}\n{}",
            run.stderr
        );
    }
}

#[test]
fn status_in_json_says_so_even_without_a_login() {
    let home = fresh();
    let run = iapctl(home.path(), &["status", "-o", "json"]);
    assert_eq!(run.code, 4);
    let status: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(status["logged_in"], false);
}

#[test]
fn the_error_of_a_missing_login_is_two_lines() {
    let home = fresh();
    let run = iapctl(home.path(), &["ls"]);
    assert_eq!(
        run.stderr,
        "error: you are not logged in to any cluster\n  next: iapctl login CLUSTER\n"
    );
}

#[test]
fn bad_names_are_bad_input_before_anybody_is_asked() {
    let home = fresh();
    for arguments in [
        &["connect", "DB_PROD"][..],
        &["connect", "auth"],
        &["connect", "db-prod", "--listen", "0.0.0.0:1"],
        &["connect", "db-prod", "--login", ""],
        &["env", "a.b"],
        &["can", "alice", "Bad Name"],
        &["services", "rm", "proxy"],
        &["sessions", "show", "42"],
        &["sessions", "kill", "not-an-id"],
        &["-c", "not a cluster", "ls"],
        &["login", "iap.example.com:0"],
        &["login", "iap..example"],
        &["login", "iap.example.com", "--ca", "sha256:12"],
        &["login", "iap.example.com", "--ca", "/nowhere/ca.pem"],
        &["login"],
        &["policy", "test", "/nowhere/policy.toml"],
        &["policy", "explain"],
    ] {
        let run = iapctl(home.path(), arguments);
        assert_eq!(run.code, 2, "{arguments:?}\n{}", run.stderr);
        assert!(run.stdout.is_empty(), "{arguments:?}");
    }
    assert!(
        !home.path().join("clusters").exists(),
        "a refused command left something behind"
    );
}

#[test]
fn our_own_failure_around_a_command_is_125_and_a_missing_command_127() {
    let home = fresh();
    let cluster = home.path().join("clusters/iap.localhost");
    std::fs::create_dir_all(&cluster).unwrap();
    std::fs::write(cluster.join("cluster.json"), "not json").unwrap();
    assert_eq!(
        iapctl(home.path(), &["-c", "iap.localhost", "connect", "db-prod"]).code,
        1
    );
    assert_eq!(
        iapctl(
            home.path(),
            &["-c", "iap.localhost", "connect", "db-prod", "--", "true"]
        )
        .code,
        125
    );
    assert_eq!(
        iapctl(home.path(), &["connect", "db-prod", "--", "no-such-command-here"]).code,
        127
    );
}

#[test]
fn a_policy_is_tested_without_a_cluster() {
    let home = fresh();
    let file = home.path().join("policy.toml");
    let document = "[[rule]]\nname = \"r\"\neffect = \"allow\"\nusers = { groups = [\"g\"] }\n\
        services = { names = [\"web\"] }\n\n[[test]]\nuser = { name = \"a@example.com\", groups = [\"g\"] }\n\
        service = \"web\"\nexpect = \"allow\"\n";
    std::fs::write(&file, document).unwrap();
    let path = file.to_str().unwrap();
    let run = iapctl(home.path(), &["policy", "test", path]);
    assert_eq!(
        (run.code, run.stdout),
        (0, format!("{path} is valid; its test passes\n")),
        "{}",
        run.stderr
    );
    let run = iapctl(home.path(), &["policy", "test", path, "-f", "json"]);
    let result: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(result["tests_passed"], 1);

    std::fs::write(&file, document.replace("expect = \"allow\"", "expect = \"deny\"")).unwrap();
    let run = iapctl(home.path(), &["policy", "test", path]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("1 test fails"), "{}", run.stderr);

    std::fs::write(&file, "[[rule]]\nnme = 1\n").unwrap();
    let run = iapctl(home.path(), &["policy", "test", path]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("line "), "{}", run.stderr);
}

#[test]
fn each_shell_has_a_completion_script() {
    let home = fresh();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let run = iapctl(home.path(), &["completion", shell]);
        assert_eq!(run.code, 0, "{shell}");
        assert!(
            run.stdout.contains("iapctl") && run.stdout.contains("connect"),
            "{shell}"
        );
        assert!(run.stderr.is_empty(), "{shell}: {}", run.stderr);
    }
}

#[test]
fn logging_out_without_a_login_is_done_already() {
    let home = fresh();
    let run = iapctl(home.path(), &["logout"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, "You are not logged in.\n"));
}

#[test]
fn a_cluster_that_is_not_there_is_our_failure_and_nothing_is_remembered() {
    let home = fresh();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("iap.localhost:{}", free.local_addr().unwrap().port());
    drop(free);
    let run = iapctl(home.path(), &["login", &address]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    let pin = format!("sha256:{}", "ab".repeat(32));
    let run = iapctl(home.path(), &["login", &address, "--ca", &pin]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    let folder = home.path().join("clusters/iap.localhost");
    let left = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| name == "lock"), "{left:?}");
    assert!(!home.path().join("config.toml").exists());
}

#[cfg(unix)]
#[test]
fn output_to_a_reader_that_went_away_is_no_failure() {
    let home = fresh();
    let script = format!(
        "{} completion bash | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_iapctl")
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .env("IAPCTL_HOME", home.path())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        "0",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
