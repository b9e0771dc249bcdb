//! A PostgreSQL server of its own, reached by TLS, that lets in nobody without a certificate.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use iap_e2e::{Background, Plane, Ran, wait_until};
use rustix::process::Signal;

use super::{plane, statements};

/// Rules of who may log in: whoever shows the login's certificate.
const RULES: &str = "local all all trust\nhostssl all all 127.0.0.1/32 cert\n";

struct Server {
    folder: tempfile::TempDir,
    port: u16,
    _process: Background,
}

impl Server {
    /// With a certificate for `localhost`, and `client_ca` for those of its clients.
    fn start(client_ca: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("iap-pg.")
            .tempdir_in("/tmp")
            .unwrap();
        let file = |name: &str| folder.path().join(name).display().to_string();
        let certificate = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=database",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ];
        let mut openssl = Command::new("openssl");
        openssl
            .args(certificate)
            .args(["-keyout", &file("server.key"), "-out", &file("server.pem")]);
        ran(&mut openssl);
        std::fs::write(file("clients.pem"), client_ca).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            ran(Command::new("chown").args(["-R", "postgres"]).arg(folder.path()));
        }
        let data = file("data");
        ran(as_postgres(is_root, "initdb").args(["-D", &data, "-U", "postgres", "-A", "trust", "--no-sync"]));
        std::fs::write(file("rules"), RULES).unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut server = as_postgres(is_root, "postgres");
        server.args([
            "-D",
            &data,
            "-k",
            folder.path().to_str().unwrap(),
            "-p",
            &port.to_string(),
        ]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "ssl=on",
            &format!("ssl_cert_file={}", file("server.pem")),
            &format!("ssl_key_file={}", file("server.key")),
            &format!("ssl_ca_file={}", file("clients.pem")),
            &format!("hba_file={}", file("rules")),
        ] {
            server.args(["-c", setting]);
        }
        let log = std::fs::File::create(file("server.log")).unwrap();
        let process = server.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let server = Self {
            folder,
            port,
            _process: Background(process),
        };
        let answers = || Ok(server.superuser("select 1").code == 0);
        wait_until("the server answers", answers).unwrap();
        server
    }

    fn superuser(&self, statement: &str) -> Ran {
        let mut psql = Command::new("psql");
        psql.args([
            "-X", "-At", "-U", "postgres", "-d", "postgres", "-c", statement, "-h",
        ])
        .arg(self.folder.path())
        .args(["-p", &self.port.to_string()])
        .env_remove("PGSSLMODE");
        psql.output().unwrap().into()
    }
}

/// A program of the newest version that is there; as root it would refuse to run.
fn as_postgres(is_root: bool, program: &str) -> Command {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    versions.sort();
    let path = versions.last().unwrap().join("bin").join(program);
    if !is_root {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
        .arg(path);
    command
}

fn ran(command: &mut Command) {
    let ran: Ran = command.output().unwrap().into();
    ran.succeeded().unwrap();
}

/// The place of `db-prod` in the agent's own file, taken up without a restart.
fn leads_to(plane: &Plane, port: u16, section: &str) {
    let config = plane.dir().join("config/agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let (before, rest) = text.split_once("name = \"db-prod\"\n").unwrap();
    let (_, after) = rest.split_once("\n[[service]]").unwrap();
    let service =
        format!("name = \"db-prod\"\nbackend = \"localhost:{port}\"\n\n[service.postgres]\n{section}\n");
    std::fs::write(&config, format!("{before}{service}\n[[service]]{after}")).unwrap();
    plane.signal("agent", Signal::HUP).unwrap();
}

fn authority(path: &Path) -> String {
    format!("ca_file = \"{}\"\n", path.display())
}

#[test]
fn a_backend_that_asks_for_a_certificate_is_verified_and_shown_the_logins_own() {
    let plane = plane();
    plane.log_in("admin").unwrap();
    let export = ["ca", "export", "--service", "db-prod", "--kind", "postgres"];
    let client_ca = plane.iapctl("admin", &export).unwrap();
    let server = Server::start(client_ca.succeeded().unwrap());
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
