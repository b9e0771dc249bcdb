//! A login by password within TLS is bound to the backend's certificate (SCRAM-SHA-256-PLUS): not even somebody whom the
//! agent takes for the backend can hand it on.

use std::process::{Command, Stdio};

use iap_e2e::{Background, wait_until};

use super::by_certificate::{authority, leads_to};
use super::server::{Server, certify, free_port};
use super::{plane, run};

/// Who may log in: whoever proves that they know the password.
const RULES: &str = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
const SETTINGS: &str =
    "ssl = on\nssl_cert_file = '/etc/postgresql/server.pem'\nssl_key_file = '/etc/postgresql/server.key'\n";

#[test]
fn a_login_by_password_is_handed_on_by_nobody_in_between() {
    let plane = plane();
    let server = Server::start(Server::folder(), SETTINGS, RULES, "");
    for statement in [
        "create role app login password 'pencil'",
        "create database app owner app",
    ] {
        server.superuser(statement).succeeded().unwrap();
    }
    let secret = plane.scratch().join("app.password");
    std::fs::write(&secret, "pencil\n").unwrap();
    let folder = plane.scratch();
    certify(folder, "between");
    let pem = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    let both = folder.join("both.pem");
    let backend = server.folder.path().join("server.pem");
    std::fs::write(&both, pem(&backend) + &pem(&folder.join("between.pem"))).unwrap();
    let section = format!(
        "{}password_files = {{ app = \"{}\" }}\n",
        authority(&both),
        secret.display()
    );
    let who = ["-c", "select current_user"];
    let query = || {
        let psql = [
            "connect",
            "db-prod",
            "--database",
            "app",
            "--",
            "psql",
            "-X",
            "-At",
        ];
        plane.iapctl("alice", &[&psql[..], &who].concat()).unwrap()
    };
    leads_to(&plane, server.port, &section);
    wait_until("the agent logs in by password over TLS", || {
        Ok(query().stdout.trim() == "app")
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", query()));

    // Two stunnels: TLS is ended, and begun anew to the backend, with PostgreSQL's own way of asking for it.
    let (port, inner) = (free_port(), free_port());
    let file = |name: &str| folder.join(name).display().to_string();
    let stunnel = format!(
        "foreground = yes\npid =\n\
         [front]\nprotocol = pgsql\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{inner}\ncert = {}\nkey = {}\n\
         [back]\nclient = yes\nprotocol = pgsql\naccept = 127.0.0.1:{inner}\nconnect = 127.0.0.1:{}\n",
        file("between.pem"),
        file("between.key"),
        server.port
    );
    std::fs::write(file("stunnel.conf"), stunnel).unwrap();
    let log = std::fs::File::create(file("stunnel.log")).unwrap();
    let _between = Background(
        Command::new("stunnel")
            .arg(file("stunnel.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap(),
    );
    // It can be used by whoever does not bind to anything.
    let through = |binding: &str| {
        run(Command::new("psql").args(["-X", "-At"]).args(who).arg(format!(
            "host=127.0.0.1 port={port} user=app dbname=app password=pencil sslmode=require channel_binding={binding}"
        )))
    };
    wait_until("stunnel leads to the backend", || {
        Ok(through("disable").stdout.trim() == "app")
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", through("disable")));
    leads_to(&plane, port, &section);
    wait_until("the agent finds out", || {
        let log = std::fs::read_to_string(plane.dir().join("logs/agent.log"))?;
        query();
        Ok(log.contains("SCRAM channel binding check failed"))
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", query()));
    assert_ne!(query().code, 0);
}
