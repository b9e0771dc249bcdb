//! Clients of other people's making. Each driver does the job that `tests/clients/README.md` describes, through `iapctl
//! connect` and with what `iapctl env` prints, without `iapctl` in the path; what it did is on record.

mod rust;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use iap_e2e::{Plane, Ran};
use serde_json::{Value, json};

use super::{plane, statements};
use crate::stock_clients::environment;

const SERVICE: &str = "db-prod";
/// No driver takes longer: the statement of 60 s is cancelled at once.
const SECONDS_MAX: &str = "50";
const RUST: &str = "tokio-postgres";

/// A driver, by the command that runs it.
struct Driver {
    name: &'static str,
    command: fn() -> Vec<String>,
    /// It takes what `iapctl env --format jdbc` prints.
    takes_address: bool,
}

impl Driver {
    const fn new(name: &'static str, command: fn() -> Vec<String>) -> Self {
        Self {
            name,
            command,
            takes_address: false,
        }
    }
}

const DRIVERS: [Driver; 5] = [
    Driver::new("psycopg", || python("psycopg_job.py")),
    Driver::new("asyncpg", || python("asyncpg_job.py")),
    Driver::new("node-postgres", || vec!["node".to_owned(), source("node/job.js")]),
    Driver::new("pgx", || vec![built("pgx")]),
    Driver {
        name: "pgjdbc",
        command: || {
            let path = format!("/usr/share/java/postgresql.jar:{}", built(""));
            ["java", "-cp", &path, "Job"].map(str::to_owned).to_vec()
        },
        takes_address: true,
    },
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn source(file: &str) -> String {
    root().join("tests/clients").join(file).display().to_string()
}

/// `make clients` puts it there.
pub(crate) fn built(file: &str) -> String {
    let path = root().join("target/clients").join(file);
    assert!(path.exists(), "{} is missing: make clients", path.display());
    path.display().to_string()
}

fn python(file: &str) -> Vec<String> {
    vec![built("venv/bin/python"), source(&format!("python/{file}"))]
}

/// What a driver printed, without its version.
fn done(name: &str, ran: &Ran) -> Value {
    let stdout = ran.succeeded().unwrap();
    let mut said: Value = serde_json::from_str(stdout.trim()).unwrap();
    let client = said["client"].take();
    let (driver, version) = client.as_str().unwrap().split_once(' ').unwrap();
    assert!(driver == name && !version.is_empty(), "{client}");
    said["client"] = Value::from(name);
    said
}

fn the_job(name: &str) -> Value {
    json!({
        "client": name, "user": "app", "sum": 42, "copied": 1000, "sqlstate": "22012", "cancelled": "57014",
    })
}

/// What so many drivers did is on record, each of it once, and the values of parameters nowhere.
fn is_on_record(plane: &Plane, drivers: usize) {
    let all = |expression: &str| {
        let found = statements(plane, expression, |all| all.len() >= drivers);
        assert_eq!(found.len(), drivers, "{expression}: {found:#?}");
        found
    };
    // Some ask for one row, and do not ask whether there are more.
    let sums = all(r#"statement.contains("::int + ") && outcome in ["done", "suspended"]"#);
    assert!(sums.iter().all(|record| record["parameter_count"] == 2));
    assert!(sums.iter().all(|record| record["parameters"].is_null()));
    all(r#"sqlstate == "22012" && statement.contains("1 / 0")"#);
    all(r#"sqlstate == "57014" && statement.contains("pg_sleep(60)")"#);
    for way in ["in", "out"] {
        let copies = all(&format!(
            "copy.direction == {way:?} && statement.contains(\"rows\")"
        ));
        assert!(copies.iter().all(|record| record["rows"] == 1000), "{copies:#?}");
    }
}

#[test]
fn pgbench_runs_in_each_of_its_modes_by_way_of_iapctl() {
    let plane = plane();
    let bench = |arguments: &[&str]| {
        let command = [&["connect", SERVICE, "--", "pgbench"], arguments].concat();
        plane
            .iapctl("alice", &command)
            .unwrap()
            .succeeded()
            .unwrap()
            .to_owned()
    };
    bench(&["-i", "-q"]);
    for mode in ["simple", "extended", "prepared"] {
        let said = bench(&["-n", "-S", "-t", "50", "-c", "2", "-M", mode]);
        let all = "number of transactions actually processed: 100/100";
        assert!(said.contains(all), "{said}");
    }
    let expression = r#"statement.startsWith("SELECT abalance")"#;
    let found = statements(&plane, expression, |all| all.len() >= 300);
    assert_eq!(found.len(), 300);
    let each = |record: &Value| record["rows"] == 1 && record["outcome"] == "done";
    assert!(found.iter().all(each));
    let prepared = found
        .iter()
        .filter(|record| record["prepared_statement"].is_string());
    assert_eq!(prepared.count(), 100);
}

#[test]
fn every_driver_works_through_iapctl_connect_and_is_on_record() {
    let plane = plane();
    for driver in DRIVERS {
        let mut arguments = vec!["connect".to_owned(), SERVICE.to_owned(), "--".to_owned()];
        arguments.extend(["timeout".to_owned(), SECONDS_MAX.to_owned()]);
        match driver.takes_address {
            true => {
                let address =
                    "jdbc:postgresql://$IAP_HOST:$IAP_PORT/$PGDATABASE?user=$PGUSER&sslmode=disable";
                let line = format!("exec {} \"{address}\"", (driver.command)().join(" "));
                arguments.extend(["sh".to_owned(), "-c".to_owned(), line]);
            }
            false => arguments.extend((driver.command)()),
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ran = plane.iapctl("alice", &arguments).unwrap();
        assert_eq!(done(driver.name, &ran), the_job(driver.name));
    }
    is_on_record(&plane, DRIVERS.len());
}

#[test]
fn every_driver_works_without_iapctl_in_the_path_and_is_on_record() {
    let plane = plane();
    let variables = environment(&plane, "alice", SERVICE);
    let hosts = hosts_with(&plane, &variables);
    let address = plane
        .iapctl("alice", &["env", SERVICE, "--format", "jdbc"])
        .unwrap();
    let address = address.succeeded().unwrap().trim().to_owned();
    for driver in DRIVERS {
        let mut command = (driver.command)();
        if driver.takes_address {
            command.push(address.clone());
        }
        let ran = knowing(&hosts, &command).envs(&variables).output().unwrap();
        assert_eq!(done(driver.name, &ran.into()), the_job(driver.name));
    }
    is_on_record(&plane, DRIVERS.len());
}

#[test]
fn tokio_postgres_works_through_iapctl_and_without_and_cancels_over_tls() {
    let plane = plane();
    let variables = environment(&plane, "alice", SERVICE);
    assert_eq!(rust::work(&variables, true), the_job(RUST));

    let script = "echo \"$PGHOST $PGPORT $PGUSER $PGDATABASE\"; exec cat";
    let mut command = plane
        .command("alice", &["connect", SERVICE, "--", "sh", "-c", script])
        .unwrap();
    let mut session = command.stdin(Stdio::piped()).spawn().unwrap();
    let local = rust::local_environment(session.stdout.take().unwrap());
    assert_eq!(rust::work(&local, false), the_job(RUST));
    drop(session.stdin.take());
    assert!(session.wait().unwrap().success());
    is_on_record(&plane, 2);
}

/// The names that this machine knows, and the service's: names under `.localhost` are not known to all resolvers.
fn hosts_with(plane: &Plane, variables: &BTreeMap<String, String>) -> PathBuf {
    let file = plane.scratch().join("hosts");
    let known = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let line = format!("{} {}", variables["IAP_HOST"], variables["IAP_SERVER_NAME"]);
    std::fs::write(&file, format!("{known}\n{line}\n")).unwrap();
    file
}

/// A command that finds these names, and nobody else does.
fn knowing(hosts: &Path, command: &[String]) -> Command {
    let mut inside = Command::new("timeout");
    inside.args([SECONDS_MAX, "unshare", "--mount"]);
    if !rustix::process::geteuid().is_root() {
        inside.arg("--map-root-user");
    }
    inside.args(["sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
    inside.arg(hosts).args(command);
    inside
}
