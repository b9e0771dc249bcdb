//! The drill: back up, go on working, lose the auth server's folder, restore, go on working.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use iap_e2e::{Plane, Ran, program, wait_until};
use rustix::process::Signal;
use serde_json::Value;

/// `iap-auth` on the plane's own configuration, as an administrator runs it on the host.
fn iap_auth(plane: &Plane, arguments: &[&str]) -> Ran {
    let mut command = Command::new(program("iap-auth").unwrap());
    command
        .args(arguments)
        .arg("--config")
        .arg(plane.dir().join("config/auth.toml"));
    command.output().unwrap().into()
}

fn session(plane: &Plane, expected: i32) {
    let ran = plane.iapctl("alice", &["connect", "echo", "--", "true"]).unwrap();
    assert_eq!(ran.code, expected, "{ran:?}");
}

fn settled(plane: &Plane, count: usize) {
    let complete = |all: &[Value]| all.len() == count && all.iter().all(|one| !one["end"].is_null());
    plane.sessions_when(complete).unwrap();
}

fn events(plane: &Plane, name: &str) -> Vec<Value> {
    let found = plane
        .json("auditor", &["audit", "search", &format!("event == \"{name}\"")])
        .unwrap();
    found.as_array().cloned().unwrap()
}

/// The folder is gone, and the server with it; the supervisor must not start another one meanwhile.
fn lose_the_auth_server(plane: &Plane) -> PathBuf {
    let lost = plane.scratch().join("lost");
    plane.signal("dev", Signal::STOP).unwrap();
    plane.signal("auth", Signal::KILL).unwrap();
    std::fs::rename(plane.dir().join("auth"), &lost).unwrap();
    lost
}

fn restore(plane: &Plane, backup: &Path) {
    let auth = plane.pid("auth").unwrap();
    let backup = backup.display().to_string();
    let ran = iap_auth(plane, &["restore", &backup]);
    assert!(ran.succeeded().unwrap().contains("is restored in"), "{ran:?}");
    plane.signal("dev", Signal::CONT).unwrap();
    wait_until("the auth server is started again", || {
        Ok(plane.pid("auth")? != auth)
    })
    .unwrap();
}

/// Every source's numbers go from 1 without a gap, and none is there twice.
fn chains_are_whole(plane: &Plane) {
    let all = plane
        .json(
            "auditor",
            &["audit", "search", "agent_seq > 0", "--limit", "1000"],
        )
        .unwrap();
    let mut sources: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for record in all.as_array().unwrap() {
        let source = record["agent_id"].as_str().unwrap().to_owned();
        sources
            .entry(source)
            .or_default()
            .push(record["agent_seq"].as_u64().unwrap());
    }
    assert_eq!(
        sources.len(),
        3,
        "the agent, the server before and after: {sources:?}"
    );
    for (source, mut numbers) in sources {
        numbers.sort_unstable();
        let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
        assert_eq!(numbers, expected, "{source}");
    }
}

#[test]
fn after_a_restore_agents_return_and_send_again_what_the_backup_lacks() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "auditor", "admin"] {
        plane.log_in(user).unwrap();
    }
    session(&plane, 0);
    settled(&plane, 1);
    let backup = plane.scratch().join("backup.tar");
    let made = iap_auth(&plane, &["backup", "--output", &backup.display().to_string()]);
    assert!(
        made.succeeded().unwrap().contains("holds the database and keys"),
        "{made:?}"
    );

    // Acknowledged after the backup, and versions that only the lost server reached.
    session(&plane, 0);
    session(&plane, 0);
    settled(&plane, 3);
    for name in ["mallory", "eve"] {
        let add = ["lock", "add", "--user", name, "--reason", "drill"];
        plane.iapctl("admin", &add).unwrap().succeeded().unwrap();
    }
    let live = plane.echo_session("alice").unwrap();
    let lost = lose_the_auth_server(&plane);
    restore(&plane, &backup);
    drop(live);
    wait_until("a new session opens", || {
        Ok(plane.iapctl("alice", &["connect", "echo", "--", "true"])?.code == 0)
    })
    .unwrap();

    settled(&plane, 5);
    assert!(events(&plane, "audit.alarm").is_empty());
    assert!(events(&plane, "audit.lost").is_empty());
    assert_eq!(events(&plane, "auth.restored").len(), 1);
    chains_are_whole(&plane);

    // A lower version of the new epoch is obeyed.
    let add = ["lock", "add", "--user", "alice@example.com", "--reason", "drill"];
    plane.iapctl("admin", &add).unwrap().succeeded().unwrap();
    wait_until("the agent follows the new server's locks", || {
        Ok(plane.iapctl("alice", &["connect", "echo", "--", "true"])?.code == 3)
    })
    .unwrap();
    assert!(lost.join("auth.db").exists());
}

#[test]
fn a_restore_into_a_folder_in_use_is_refused_with_what_to_do() {
    let plane = Plane::start(&[]).unwrap();
    let backup = plane.scratch().join("backup.tar").display().to_string();
    iap_auth(&plane, &["backup", "--output", &backup])
        .succeeded()
        .unwrap();
    let again = iap_auth(&plane, &["backup", "--output", &backup]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("exists already"), "{again:?}");
    let refused = iap_auth(&plane, &["restore", &backup]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("is not empty") && refused.stderr.contains("move the old one away"),
        "{refused:?}"
    );
}

#[test]
fn break_glass_works_on_the_host_while_the_provider_is_away_and_is_on_record() {
    let plane = Plane::demo().unwrap();
    plane.log_in("auditor").unwrap();
    // The provider of the development plane lives in the supervisor.
    plane.signal("dev", Signal::STOP).unwrap();
    let home = plane.scratch().join("glass").display().to_string();
    let arguments = [
        "admin-cert",
        "--ttl",
        "5m",
        "--reason",
        "provider down",
        "--home",
        &home,
    ];
    let given = iap_auth(&plane, &arguments);
    assert!(
        given.succeeded().unwrap().contains("every admin verb until"),
        "{given:?}"
    );
    let lock = [
        "--home",
        &home,
        "lock",
        "add",
        "--user",
        "mallory",
        "--reason",
        "stolen laptop",
    ];
    let locked = plane.iapctl("nobody", &lock).unwrap();
    locked.succeeded().unwrap();
    let recorded = events(&plane, "admin.break_glass");
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0]["reason"], "provider down");
    plane.signal("dev", Signal::CONT).unwrap();
}
