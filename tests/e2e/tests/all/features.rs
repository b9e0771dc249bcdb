//! What a rule lets its sessions do beyond the usual, at real backends; and who has the last word.

use std::process::{Command, Stdio};

use iap_e2e::{Plane, Ran, program, wait_until};

use crate::stock_clients::environment;

const FEATURES: &str = r#"features = ["postgres.options", "postgres.replication", "ssh.port_forwarding"]"#;

/// The demo's policy with that line in the rules of databases and shells.
fn apply_with(plane: &Plane, line: &str) {
    let policy = std::fs::read_to_string(plane.dir().join("config/policy.toml")).unwrap();
    let mut changed = policy.clone();
    for services in ["{ names = [\"db-prod\"] }\n", "{ names = [\"ssh-demo\"] }\n"] {
        let key = format!("services = {services}");
        assert!(changed.contains(&key), "{changed}");
        changed = changed.replace(&key, &format!("{key}{line}\n"));
    }
    let file = plane.scratch().join("policy.toml");
    std::fs::write(&file, changed).unwrap();
    let apply = ["policy", "apply", file.to_str().unwrap()];
    plane.iapctl("admin", &apply).unwrap().succeeded().unwrap();
}

fn psql(plane: &Plane, connection: &str, statement: &str) -> Ran {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-At", "-d", connection, "-c", statement])
        .envs(environment(plane, "alice", "db-prod"))
        .stdin(Stdio::null());
    psql.output().unwrap().into()
}

/// What the demo's own sshd says first to whoever connects to it through a session.
fn forwarded(plane: &Plane) -> Ran {
    let agent = std::fs::read_to_string(plane.dir().join("config/agent.toml")).unwrap();
    let (_, place) = agent.split_once("name = \"ssh-demo\"\nbackend = \"").unwrap();
    let (address, _) = place.split_once('"').unwrap();
    let through = format!(
        "ProxyCommand=env IAPCTL_HOME={} IAPCTL_NONINTERACTIVE=1 {} connect ssh-demo --stdio",
        plane.home("alice").display(),
        program("iapctl").unwrap().display()
    );
    let services = plane.json("alice", &["ls"]).unwrap();
    let services = services.as_array().unwrap();
    let shell = services.iter().find(|service| service["name"] == "ssh-demo");
    let login = shell.unwrap()["login"].as_str().unwrap().to_owned();
    let mut ssh = Command::new("timeout");
    ssh.args([
        "5",
        "ssh",
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
    ])
    .args(["-o", "UserKnownHostsFile=/dev/null", "-o", &through])
    .args(["-l", &login, "-W", address, "ssh-demo"])
    .stdin(Stdio::null());
    ssh.output().unwrap().into()
}

#[test]
fn a_rule_lets_clients_set_options_replicate_and_forward_and_the_agents_file_has_the_last_word() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin"] {
        plane.log_in(user).unwrap();
    }
    let memory = || psql(&plane, "options='-c work_mem=1357kB'", "show work_mem");
    assert!(
        memory().stderr.contains("startup options are not allowed"),
        "{:?}",
        memory()
    );
    assert!(!forwarded(&plane).stdout.contains("SSH-2.0"));
    apply_with(&plane, FEATURES);
    wait_until("the rule allows options", || {
        Ok(memory().stdout.trim() == "1357kB")
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", memory()));
    // It is the backend now that refuses the role.
    let replication = psql(&plane, "replication=database", "IDENTIFY_SYSTEM");
    assert!(replication.stderr.contains("replication role"), "{replication:?}");
    let banner = forwarded(&plane);
    assert!(banner.stdout.starts_with("SSH-2.0-OpenSSH"), "{banner:?}");

    let never = format!(
        "name = \"db-prod\"\nbackend = \"unix:{}/postgres/.s.PGSQL.5432\"\n\n[service.postgres]\noptions = false\n",
        plane.dir().display()
    );
    plane.serve("db-prod", &never).unwrap();
    wait_until("the agent's own file forbids it", || {
        Ok(memory().stderr.contains("startup options are not allowed"))
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", memory()));
}
