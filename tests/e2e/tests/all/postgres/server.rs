//! A PostgreSQL server of its own, on a Unix socket and by TCP.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use iap_e2e::{Background, Ran, wait_until};

pub(crate) struct Server {
    /// Its socket is here, what its settings name in `/etc/postgresql`, and `server.pem`, its own certificate for `localhost`.
    pub(crate) folder: tempfile::TempDir,
    pub(crate) port: u16,
    _process: Background,
}

impl Server {
    /// Where it will be, with what its settings name.
    pub(crate) fn folder() -> tempfile::TempDir {
        tempfile::Builder::new()
            .prefix("iap-pg.")
            .tempdir_in("/tmp")
            .unwrap()
    }

    /// With these settings, rules of who may log in, and names of the system's users.
    pub(crate) fn start(folder: tempfile::TempDir, settings: &str, rules: &str, idents: &str) -> Self {
        let place = folder.path().display().to_string();
        let file = |name: &str| format!("{place}/{name}");
        certify(folder.path(), "server");
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            ran(Command::new("chown").args(["-R", "postgres", &place]));
        }
        let data = file("data");
        ran(as_postgres(is_root, "initdb").args(["-D", &data, "-U", "postgres", "-A", "trust", "--no-sync"]));
        let port = free_port();
        let own = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{place}'\nfsync = off\n{}",
            settings.replace("/etc/postgresql", &place)
        );
        std::fs::write(file("data/postgresql.conf"), own).unwrap();
        std::fs::write(file("data/pg_hba.conf"), rules).unwrap();
        std::fs::write(file("data/pg_ident.conf"), idents).unwrap();
        let log = std::fs::File::create(file("server.log")).unwrap();
        let mut server = as_postgres(is_root, "postgres");
        server.args(["-D", &data]).stdout(Stdio::null()).stderr(log);
        let server = Self {
            folder,
            port,
            _process: Background(server.spawn().unwrap()),
        };
        let answers = || Ok(server.superuser("select 1").code == 0);
        wait_until("the server answers", answers).unwrap();
        server
    }

    /// Other rules from now on.
    pub(crate) fn rule(&self, rules: &str) {
        std::fs::write(self.folder.path().join("data/pg_hba.conf"), rules).unwrap();
        self.superuser("select pg_reload_conf()").succeeded().unwrap();
    }

    /// Where it is for somebody on this host.
    pub(crate) fn socket(&self) -> String {
        format!("{}/.s.PGSQL.{}", self.folder.path().display(), self.port)
    }

    /// What its owner is answered.
    pub(crate) fn superuser(&self, statement: &str) -> Ran {
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
    let key_pair = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ];
    let mut openssl = Command::new("openssl");
    openssl
        .args(key_pair)
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
