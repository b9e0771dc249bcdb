//! A PostgreSQL server of its own, reached by TLS.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use iap_e2e::{Background, Plane, Ran, wait_until};
use rustix::process::Signal;

pub(super) struct Server {
    pub(super) folder: tempfile::TempDir,
    pub(super) port: u16,
    _process: Background,
}

impl Server {
    /// With a certificate for `localhost`, this `pg_hba.conf`, and an authority for its clients' certificates if they have any.
    pub(super) fn start(rules: &str, client_ca: Option<&str>) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("iap-pg.")
            .tempdir_in("/tmp")
            .unwrap();
        let file = |name: &str| folder.path().join(name).display().to_string();
        certify(folder.path(), "server");
        if let Some(client_ca) = client_ca {
            std::fs::write(file("clients.pem"), client_ca).unwrap();
        }
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            ran(Command::new("chown").args(["-R", "postgres"]).arg(folder.path()));
        }
        let data = file("data");
        ran(as_postgres(is_root, "initdb").args(["-D", &data, "-U", "postgres", "-A", "trust", "--no-sync"]));
        std::fs::write(file("rules"), rules).unwrap();
        let port = free_port();
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
            &format!("hba_file={}", file("rules")),
        ] {
            server.args(["-c", setting]);
        }
        if client_ca.is_some() {
            server.args(["-c", &format!("ssl_ca_file={}", file("clients.pem"))]);
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

    pub(super) fn superuser(&self, statement: &str) -> Ran {
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

/// A key and its own certificate for `localhost`: `NAME.key` and `NAME.pem`.
pub(super) fn certify(folder: &Path, name: &str) {
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args(["-nodes", "-days", "1", "-subj", "/CN=database"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(folder.join(format!("{name}.key")))
        .arg("-out")
        .arg(folder.join(format!("{name}.pem")));
    ran(&mut openssl);
}

/// One that nobody listens at.
pub(super) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn ran(command: &mut Command) {
    let ran: Ran = command.output().unwrap().into();
    ran.succeeded().unwrap();
}

/// The place of `db-prod` in the agent's own file, taken up without a restart.
pub(super) fn leads_to(plane: &Plane, port: u16, section: &str) {
    let config = plane.dir().join("config/agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let (before, rest) = text.split_once("name = \"db-prod\"\n").unwrap();
    let (_, after) = rest.split_once("\n[[service]]").unwrap();
    let service =
        format!("name = \"db-prod\"\nbackend = \"localhost:{port}\"\n\n[service.postgres]\n{section}\n");
    std::fs::write(&config, format!("{before}{service}\n[[service]]{after}")).unwrap();
    plane.signal("agent", Signal::HUP).unwrap();
}

pub(super) fn authority(path: &Path) -> String {
    format!("ca_file = \"{}\"\n", path.display())
}
