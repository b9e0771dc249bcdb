//! Clients of other people's making, each with a driver of its own (`tests/clients`).

use std::path::PathBuf;
use std::process::Command;

use iap_e2e::Plane;
use serde_json::Value;

use super::{plane, run, statements};
use crate::stock_clients::environment;

#[test]
fn pgbench_runs_in_each_of_its_modes_by_way_of_iapctl() {
    let plane = plane();
    let bench = |arguments: &[&str]| by_iapctl(&plane, &[&["pgbench"], arguments].concat());
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
fn psycopg_runs_by_way_of_iapctl_and_without_it() {
    let plane = plane();
    let program = [installed("venv/bin/python"), installed("psycopg_client.py")];
    let program: Vec<&str> = program.iter().map(String::as_str).collect();
    assert_eq!(by_iapctl(&plane, &program), "done\n");
    by_iapctl(&plane, &["psql", "-Xqc", "drop table psycopg_rows"]);
    let own = environment(&plane, "alice", "db-prod");
    let ran = run(Command::new(program[0]).arg(program[1]).envs(own));
    assert_eq!(ran.succeeded().unwrap(), "done\n");
    is_on_record(&plane, "insert into psycopg_rows values ($1, $2)", 200);
    failed(&plane, &["22012", "57014", "22012", "57014"]);
    copied(&plane, "psycopg_rows", 2);
}

#[test]
fn asyncpg_runs_by_way_of_iapctl() {
    let plane = plane();
    let program = [installed("venv/bin/python"), installed("asyncpg_client.py")];
    let program: Vec<&str> = program.iter().map(String::as_str).collect();
    assert_eq!(by_iapctl(&plane, &program), "done\n");
    is_on_record(&plane, "insert into asyncpg_rows values ($1, $2)", 100);
    is_on_record(&plane, "select count(*) from asyncpg_rows where id < $1", 3);
    failed(&plane, &["22012", "57014"]);
    copied(&plane, "asyncpg_rows", 1);
}

#[test]
fn node_postgres_runs_by_way_of_iapctl() {
    let plane = plane();
    assert_eq!(
        by_iapctl(&plane, &["node", &installed("node_client.js")]),
        "done\n"
    );
    is_on_record(&plane, "insert into node_rows values ($1, $2)", 100);
    failed(&plane, &["22012"]);
    copied(&plane, "node_rows", 1);
}

#[test]
fn pgx_runs_by_way_of_iapctl() {
    let plane = plane();
    assert_eq!(by_iapctl(&plane, &[&installed("pgx-client")]), "done\n");
    is_on_record(&plane, "insert into pgx_rows values ($1, $2)", 100);
    failed(&plane, &["22012"]);
    copied(&plane, "pgx_rows", 1);
}

/// A file that `tests/clients/install` puts there, or that lies there.
fn installed(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../clients")
        .join(name);
    assert!(
        path.exists(),
        "{} is missing: run tests/clients/install",
        path.display()
    );
    path.display().to_string()
}

fn by_iapctl(plane: &Plane, program: &[&str]) -> String {
    let ran = plane.iapctl("alice", &[&["connect", "db-prod", "--"], program].concat());
    ran.unwrap().succeeded().unwrap().to_owned()
}

fn is_on_record(plane: &Plane, statement: &str, times: usize) {
    let expression = format!("statement == {statement:?}");
    let done = |all: &[Value]| {
        let done = all.iter().filter(|record| record["outcome"] != "failed");
        done.count() >= times
    };
    let found = statements(plane, &expression, done);
    assert_eq!(found.len(), times);
    assert!(found.iter().all(|record| record["parameter_count"].is_u64()));
    // Their values are nobody's unless that is asked for.
    assert!(found.iter().all(|record| record["parameters"].is_null()));
}

fn failed(plane: &Plane, sqlstates: &[&str]) {
    let found = statements(plane, r#"outcome == "failed""#, |all| {
        all.len() >= sqlstates.len()
    });
    let found: Vec<&str> = found
        .iter()
        .filter_map(|record| record["sqlstate"].as_str())
        .collect();
    assert_eq!(found, sqlstates);
}

fn copied(plane: &Plane, table: &str, out: usize) {
    let expression = format!("copy.direction != \"both\" && statement.contains({table:?})");
    let whole = |all: &[Value]| {
        let of = |direction: &str| {
            all.iter()
                .filter(|record| record["copy"]["direction"] == direction)
                .count()
        };
        // pgx is not asked to copy anything out.
        of("in") >= 1 && (table == "pgx_rows" || of("out") >= out)
    };
    let found = statements(plane, &expression, whole);
    let bytes = |record: &Value| record["copy"]["bytes"].as_u64().unwrap_or_default();
    assert!(
        found
            .iter()
            .all(|record| bytes(record) > 900 * "copied".len() as u64),
        "{found:#?}"
    );
}
