//! The README's section "Your own service behind your own provider", walked through: three servers started from the
//! example configurations, an identity provider that is not ours, and the documents the section prints.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use iap_e2e::{Background, Ran, program, wait_until};
use iap_testkit::Browser;
use iap_testkit::free_port;
use serde_json::Value;

use crate::oidc::{Provider, SECRET, on_the_web};

const CLUSTER: &str = "iap.localhost";

/// What an operator has before the first start: three files in one folder, and ports.
struct Site {
    folder: tempfile::TempDir,
    auth: SocketAddr,
    proxy: SocketAddr,
}

impl Site {
    /// The example configurations, with this machine's ports and folders in them.
    fn new(issuer: &str, backend: SocketAddr) -> Self {
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let site = Self {
            folder: tempfile::Builder::new()
                .prefix("iap-e2e.")
                .tempdir_in("/tmp")
                .unwrap(),
            auth: local(free_port().unwrap()),
            proxy: local(free_port().unwrap()),
        };
        let secret = site.private_file("client_secret", SECRET);
        site.configure(
            "auth",
            &[
                ("0.0.0.0:7443", &site.auth.to_string()),
                ("10.0.0.0/8", "127.0.0.1/32"),
                // Plain HTTP on loopback is for tests; everything else of the provider is as it would be.
                ("admin_listen =", "development = true\nadmin_listen ="),
                ("https://login.example.com", issuer),
                ("/etc/iap/client_secret", secret.to_str().unwrap()),
            ],
        );
        site.configure(
            "proxy",
            &[
                ("0.0.0.0:443", &site.proxy.to_string()),
                ("10.0.0.5:7443", &site.auth.to_string()),
            ],
        );
        site.configure("agent", &[("127.0.0.1:5432", &backend.to_string())]);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self, name: &str, changes: &[(&str, &str)]) {
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples");
        let mut text = std::fs::read_to_string(format!("{examples}/{name}.toml")).unwrap();
        let state = self.path(&format!("iap-{name}"));
        let everywhere = [
            ("iap.example.com:443", format!("{CLUSTER}:{}", self.proxy.port())),
            ("iap.example.com", CLUSTER.to_owned()),
            (&format!("/var/lib/iap-{name}"), state.display().to_string()),
            ("you@example.com", "admin@example.com".to_owned()),
        ];
        for port in 7480..7483 {
            text = text.replace(
                &format!("127.0.0.1:{port}"),
                &format!("127.0.0.1:{}", free_port().unwrap()),
            );
        }
        for (from, to) in changes {
            assert!(text.contains(from), "{name}.toml no longer says {from}");
            text = text.replace(from, to);
        }
        for (from, to) in everywhere {
            text = text.replace(from, &to);
        }
        std::fs::write(self.path(&format!("{name}.toml")), text).unwrap();
    }

    fn private_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path
    }

    /// `iap-NAME ARGUMENTS --config …/NAME.toml`
    fn server(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program(&format!("iap-{name}")).unwrap());
        command
            .args(arguments)
            .arg("--config")
            .arg(self.path(&format!("{name}.toml")));
        command.stdin(Stdio::null());
        command
    }

    fn start(&self, name: &str) -> Background {
        let log = std::fs::File::create(self.path(&format!("{name}.log"))).unwrap();
        let mut command = self.server(name, &[]);
        Background(
            command
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap(),
        )
    }

    /// Starts the auth server and waits until it answers on its host.
    fn start_auth(&self) -> (Background, String) {
        let auth = self.start("auth");
        wait_until("the auth server prints its pin", || Ok(self.pin().is_some())).unwrap();
        (auth, self.pin().unwrap())
    }

    fn pin(&self) -> Option<String> {
        let log = std::fs::read_to_string(self.path("auth.log")).unwrap();
        let (_, rest) = log.split_once("its CA pin:  ")?;
        Some(rest.lines().next()?.to_owned())
    }

    /// `iap-auth token proxy`, once the server answers on its host.
    fn proxy_token(&self) -> String {
        let mut token = String::new();
        wait_until("the auth server makes a token", || {
            let ran = Ran::from(self.server("auth", &["token", "proxy"]).output()?);
            token = ran.stdout;
            Ok(ran.code == 0)
        })
        .unwrap();
        token
    }

    fn join(&self, name: &str, file: &Path) -> Ran {
        let (flag, address) = match name {
            "proxy" => ("--auth", self.auth.to_string()),
            _ => ("--proxy", self.proxy.to_string()),
        };
        let file = file.to_str().unwrap();
        let arguments = ["join", flag, &address, "--token-file", file];
        self.server(name, &arguments).output().unwrap().into()
    }

    fn iapctl(&self, person: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("iapctl").unwrap());
        command
            .args(arguments)
            .env("IAPCTL_HOME", self.path("homes").join(person))
            .env("IAPCTL_NONINTERACTIVE", "1")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, person: &str, arguments: &[&str]) -> Ran {
        self.iapctl(person, arguments).output().unwrap().into()
    }

    /// `iapctl login`, the provider's pages, and our approval page.
    fn log_in(&self, person: &str, pin: &str) {
        let cluster = format!("{CLUSTER}:{}", self.proxy.port());
        let arguments = ["login", &cluster, "--ca", pin, "--no-browser"];
        let mut waiting = Background(self.iapctl(person, &arguments).spawn().unwrap());
        let mut url = String::new();
        BufReader::new(waiting.0.stdout.take().unwrap())
            .read_line(&mut url)
            .unwrap();
        let root = std::fs::read(self.path("iap-auth/root.pem")).unwrap();
        let last = on_the_web(async {
            let mut browser = Browser::new(Some(&root), &[(CLUSTER, self.proxy)])?;
            let page = browser.open(url.trim()).await?;
            let approval = browser.sign_in(page, person).await?;
            browser.approve(&approval).await
        });
        assert!(last.status.is_success(), "{}", last.text());
        waiting.finish().unwrap().succeeded().unwrap();
    }
}

/// What the README lets its reader write into `name`.
fn document(name: &str) -> String {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let opening = format!("cat > {name} <<'END'\n");
    let (_, rest) = readme
        .split_once(&opening)
        .unwrap_or_else(|| panic!("the README no longer writes {name}"));
    let (text, _) = rest.split_once("END\n").unwrap();
    text.replace("you@example.com", "admin@example.com")
}

/// A service of one's own: says one line to whoever comes, and is silent before.
fn own_service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 4];
            if stream.read_exact(&mut asked).is_ok() {
                stream.write_all(b"from the private service\n").unwrap();
            }
        }
    });
    address
}

/// `iapctl connect db-prod --stdio`, asked for one line.
fn ask(site: &Site, person: &str) -> Ran {
    let mut command = site.iapctl(person, &["connect", "db-prod", "--stdio"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // A refused client is gone before it reads.
    let _ = child.stdin.take().unwrap().write_all(b"ask\n");
    child.wait_with_output().unwrap().into()
}

#[test]
fn an_operator_follows_the_readme_to_their_own_service_behind_their_own_provider() {
    let provider = Provider::start();
    let site = Site::new(&provider.issuer, own_service());

    let (_auth, pin) = site.start_auth();
    let token = site.private_file("proxy.token", &site.proxy_token());
    site.join("proxy", &token).succeeded().unwrap();
    let _proxy = site.start("proxy");
    wait_until("the proxy listens", || Ok(TcpStream::connect(site.proxy).is_ok())).unwrap();

    site.log_in("admin", &pin);
    std::fs::write(site.path("services.toml"), document("services.toml")).unwrap();
    std::fs::write(site.path("policy.toml"), document("policy.toml")).unwrap();
    for command in [
        ["services", "apply", "services.toml"],
        ["policy", "apply", "policy.toml"],
    ] {
        site.run("admin", &command).succeeded().unwrap();
    }
    let made = site.run("admin", &["tokens", "create", "agent", "--service", "db-prod"]);
    made.succeeded().unwrap();
    assert!(
        made.stderr.contains("iap-agent join"),
        "it says what to run: {}",
        made.stderr
    );
    let token = site.private_file("agent.token", &made.stdout);

    let joined = site.join("agent", &token);
    assert!(
        joined.succeeded().unwrap().contains("granted: db-prod"),
        "{joined:?}"
    );
    let _agent = site.start("agent");

    site.log_in("alice", &pin);
    wait_until("the service can be reached", || {
        Ok(ask(&site, "alice").stdout == "from the private service\n")
    })
    .unwrap();
    site.log_in("bob", &pin);
    let denied = ask(&site, "bob");
    assert_eq!(denied.code, 3, "{denied:?}");
    assert!(
        denied.stderr.contains("#databases"),
        "it names the contact: {}",
        denied.stderr
    );

    wait_until("the record of alice's session is at the auth server", || {
        let ran = site.run("admin", &["sessions", "ls", "-f", "json"]);
        let sessions: Vec<Value> = serde_json::from_str(&ran.stdout)?;
        Ok(sessions
            .iter()
            .any(|session| session["decision"]["rule"] == "engineers reach the databases"))
    })
    .unwrap();
}

#[test]
fn what_goes_wrong_when_a_server_joins_is_said_in_words_an_operator_can_use() {
    let site = Site::new("http://127.0.0.1:1", own_service());
    let explained = |ran: Ran, words: &[&str]| {
        assert_ne!(ran.code, 0, "{ran:?}");
        for word in words {
            assert!(ran.stderr.contains(word), "{word:?} is not in: {}", ran.stderr);
        }
        assert_eq!(
            ran.stderr.trim_end().lines().count(),
            1,
            "one sentence: {}",
            ran.stderr
        );
    };
    let nobody = site.private_file(
        "early.token",
        &format!("iapj1.{}.{}", "0".repeat(64), "A".repeat(43)),
    );
    explained(
        site.server("auth", &["token", "proxy"]).output().unwrap().into(),
        &["no auth server runs in", "start `iap-auth --config FILE` first"],
    );
    explained(
        site.join("proxy", &nobody),
        &["cannot be reached at", "Connection refused"],
    );
    explained(
        site.server("proxy", &[]).output().unwrap().into(),
        &["holds no certificate", "iap-proxy join"],
    );

    let (_auth, _) = site.start_auth();
    let good = site.proxy_token();
    explained(
        site.server("auth", &[]).output().unwrap().into(),
        &["in use by another iap-auth"],
    );
    explained(
        site.join("proxy", &nobody),
        &["did not prove to be auth.iap.localhost", "another cluster"],
    );
    let open = site.private_file("open.token", &good);
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    explained(site.join("proxy", &open), &["0644", "chmod 0600"]);
    let garbage = site.private_file("garbage.token", "let me in");
    explained(site.join("proxy", &garbage), &["iapj1.<pin>.<secret>"]);

    let token = site.private_file("proxy.token", &good);
    site.join("proxy", &token).succeeded().unwrap();
    explained(
        site.join("proxy", &token),
        &["used already", "iapctl tokens create"],
    );

    let _taken = TcpListener::bind(site.proxy).unwrap();
    let busy: Ran = site.server("proxy", &[]).output().unwrap().into();
    assert_ne!(busy.code, 0);
    assert!(
        busy.stderr.contains("cannot listen on"),
        "the port is named: {}",
        busy.stderr
    );
}
