//! A PostgreSQL server that is reached by TLS, and lets in nobody without a certificate.

use std::path::Path;

use iap_e2e::{Plane, wait_until};

use super::server::Server;
use super::{plane, statements};

/// Rules of who may log in: whoever shows the login's certificate.
const RULES: &str = "local all all trust\nhostssl all all 127.0.0.1/32 cert\n";
const SETTINGS: &str = "ssl = on\nssl_cert_file = '/etc/postgresql/server.pem'\n\
    ssl_key_file = '/etc/postgresql/server.key'\nssl_ca_file = '/etc/postgresql/clients.pem'\n";

/// The place of `db-prod` in the agent's own file, taken up without a restart.
pub(super) fn leads_to(plane: &Plane, port: u16, section: &str) {
    let table =
        format!("name = \"db-prod\"\nbackend = \"localhost:{port}\"\n\n[service.postgres]\n{section}\n");
    plane.serve("db-prod", &table).unwrap();
}

pub(super) fn authority(path: &Path) -> String {
    format!("ca_file = \"{}\"\n", path.display())
}

#[test]
fn a_backend_that_asks_for_a_certificate_is_verified_and_shown_the_logins_own() {
    let plane = plane();
    plane.log_in("admin").unwrap();
    let export = ["ca", "export", "--service", "db-prod", "--kind", "postgres"];
    let client_ca = plane.iapctl("admin", &export).unwrap();
    let folder = Server::folder();
    std::fs::write(folder.path().join("clients.pem"), client_ca.succeeded().unwrap()).unwrap();
    let server = Server::start(folder, SETTINGS, RULES, "");
    for statement in [
        "create role app login",
        "create database app owner app",
        "create role readonly login",
    ] {
        server.superuser(statement).succeeded().unwrap();
    }
    let query = |login: &str, statement: &str| {
        let arguments = [
            "connect",
            "db-prod",
            "--login",
            login,
            "--database",
            "app",
            "--",
            "psql",
            "-X",
            "-Atc",
            statement,
        ];
        plane.iapctl("alice", &arguments).unwrap()
    };
    let certificate = server.folder.path().join("server.pem");
    let shown = format!("{}client_certificate = true\n", authority(&certificate));
    leads_to(&plane, server.port, &shown);
    let who = "select current_user || ' ' || ssl || ' ' || version || ' ' || client_dn \
               from pg_stat_ssl where pid = pg_backend_pid()";
    wait_until("the agent logs in by its certificate", || {
        Ok(query("app", who).stdout.trim() == "app true TLSv1.3 /CN=app")
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", query("app", who)));
    // Each login has a certificate of its own.
    assert_eq!(
        query("readonly", who).stdout.trim(),
        "readonly true TLSv1.3 /CN=readonly"
    );
    let found = statements(&plane, r#"statement.contains("pg_stat_ssl")"#, |all| {
        all.len() >= 2
    });
    assert!(found.iter().any(|record| record["login"] == "readonly"));

    // Without one, and to somebody else, nobody gets in.
    leads_to(&plane, server.port, &authority(&certificate));
    wait_until("nothing is shown", || {
        Ok(query("app", who)
            .stderr
            .contains("requires a valid client certificate"))
    })
    .unwrap();
    let other = server.folder.path().join("clients.pem");
    let shown = format!("{}client_certificate = true\n", authority(&other));
    leads_to(&plane, server.port, &shown);
    wait_until("the backend is taken for another", || {
        Ok(query("app", who)
            .stderr
            .contains("the agent cannot log in to the service's backend"))
    })
    .unwrap();
    let named = format!(
        "{}client_certificate = true\nserver_name = \"elsewhere\"\n",
        authority(&certificate)
    );
    leads_to(&plane, server.port, &named);
    wait_until("it has another name", || {
        let log = std::fs::read_to_string(plane.dir().join("logs/agent.log"))?;
        query("app", who);
        Ok(log.contains("not valid for name"))
    })
    .unwrap();
}
