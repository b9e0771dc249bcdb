//! Login through a certified OpenID provider (npm `oidc-provider`), over real HTTP: its login and consent pages, our
//! approval page, the loopback redirect.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use iap_e2e::{Background, Plane, Ran};
use iap_testkit::browser::{Browser, Page};
use serde_json::Value;

const CONNECTOR: &str = "certified";
pub(super) const SECRET: &str = "the client secret of the end-to-end tests";

/// The provider as a process; it ends when its standard input does.
pub(super) struct Provider {
    process: Background,
    said: BufReader<ChildStdout>,
    pub(super) issuer: String,
}

impl Provider {
    pub(super) fn start() -> Self {
        Self::start_with("on")
    }

    /// `refresh`: "off" for one that gives no refresh tokens.
    pub(super) fn start_with(refresh: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../oidc");
        assert!(
            Path::new(folder).join("node_modules").is_dir(),
            "`make test` installs the provider first"
        );
        let mut process: Child = Command::new("node")
            .arg("server.js")
            .current_dir(folder)
            .env("REDIRECT_URI", "https://iap.localhost/login/callback")
            .env("CLIENT_ID", "iap")
            .env("CLIENT_SECRET", SECRET)
            .env("REFRESH", refresh)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(process.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        Self {
            process: Background(process),
            said,
            issuer: ready["issuer"].as_str().unwrap().to_owned(),
        }
    }

    /// A command, as `tests/oidc/server.js` lists them, and its answer.
    pub(super) fn tell(&mut self, command: &Value) -> Value {
        let pipe = self.process.0.stdin.as_mut().unwrap();
        writeln!(pipe, "{command}").unwrap();
        loop {
            let mut line = String::new();
            assert!(self.said.read_line(&mut line).unwrap() > 0, "the provider ended");
            if line.starts_with("{\"done\"") {
                let answer: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(answer["failed"], Value::Null, "{command}");
                return answer;
            }
        }
    }

    /// A plane that knows this provider beside its built-in one, and a policy that names its groups.
    pub(super) fn plane(&self) -> Plane {
        self.plane_with("")
    }

    /// The same with further configuration of the auth server, behind the connector's table.
    pub(super) fn plane_with(&self, more: &str) -> Plane {
        self.plane_whose_rule_says(more, "")
    }

    /// The same with more in the rule too.
    pub(super) fn plane_whose_rule_says(&self, more: &str, rule: &str) -> Plane {
        self.plane_of(more, rule, &[])
    }

    /// The same with TCP services of the test's own: names, and ports of this machine.
    pub(super) fn plane_serving(&self, more: &str, services: &[(&str, u16)]) -> Plane {
        self.plane_of(more, "", services)
    }

    fn plane_of(&self, more: &str, rule: &str, services: &[(&str, u16)]) -> Plane {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&secret)
            .unwrap();
        file.write_all(SECRET.as_bytes()).unwrap();
        let connectors = folder.path().join("connectors.toml");
        let table = format!(
            "[[connector]]\nname = \"{CONNECTOR}\"\nissuer = \"{}\"\nclient_id = \"iap\"\nclient_secret_file = \"{}\"\n\
             scopes = [\"openid\", \"email\", \"profile\", \"groups\"]\ngroups_claim = \"groups\"\ndomains = [\"example.com\"]\n{more}\n",
            self.issuer,
            secret.display()
        );
        std::fs::write(&connectors, table).unwrap();
        let mut arguments = vec!["--demo", "--connectors", connectors.to_str().unwrap()];
        let own: Vec<String> = services
            .iter()
            .map(|(name, port)| format!("{name}=127.0.0.1:{port}"))
            .collect();
        arguments.extend(own.iter().flat_map(|own| ["--service", own]));
        let plane = Plane::start(&arguments).unwrap();
        let policy = std::fs::read_to_string(plane.dir().join("config/policy.toml")).unwrap();
        let names = services.iter().map(|(name, _)| *name);
        let names: Vec<&str> = ["db-prod", "echo"].into_iter().chain(names).collect();
        let rule = format!(
            "[[rule]]\nname = \"engineers of the certified provider\"\neffect = \"allow\"\n\
             users = {{ groups = [\"certified:engineering\"] }}\nservices = {{ names = {names:?} }}\n{rule}\n"
        );
        let changed = plane.scratch().join("policy.toml");
        std::fs::write(&changed, format!("{rule}{policy}")).unwrap();
        plane.log_in("admin").unwrap();
        plane
            .iapctl("admin", &["policy", "apply", changed.to_str().unwrap()])
            .unwrap()
            .succeeded()
            .unwrap();
        plane
    }
}

pub(super) fn on_the_web<T>(work: impl Future<Output = anyhow::Result<T>>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
        .unwrap()
}

pub(super) fn browser(plane: &Plane) -> Browser {
    let descriptor = plane.descriptor().unwrap();
    let root = std::fs::read(descriptor["ca_file"].as_str().unwrap()).unwrap();
    let proxy: SocketAddr = descriptor["proxy_addr"].as_str().unwrap().parse().unwrap();
    Browser::new(Some(&root), &[("iap.localhost", proxy)]).unwrap()
}

/// `iapctl login` through the certified provider, in the background, and the first line of `read` that `wanted` accepts.
pub(super) fn login(plane: &Plane, user: &str, method: &str) -> Background {
    let arguments = login_arguments(plane, method);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Background(plane.command(user, &arguments).unwrap().spawn().unwrap())
}

/// Logs `user` in as alice of the certified provider, whose `iapctl login` is given `more`.
pub(super) fn log_in(plane: &Plane, user: &str, more: &[&str]) {
    let mut arguments = login_arguments(plane, "--no-browser");
    arguments.extend(more.iter().map(ToString::to_string));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut waiting = Background(plane.command(user, &arguments).unwrap().spawn().unwrap());
    let mut url = String::new();
    BufReader::new(waiting.0.stdout.take().unwrap())
        .read_line(&mut url)
        .unwrap();
    approve(plane, &url);
    waiting.finish().unwrap().succeeded().unwrap();
}

/// What alice does in the browser that `iapctl login` opens.
pub(super) fn approve(plane: &Plane, url: &str) {
    let last = on_the_web(async {
        let mut browser = browser(plane);
        let page = browser.open(url.trim()).await?;
        sign_in_and_approve(&mut browser, page, "alice").await
    });
    assert!(last.status.is_success(), "{}", last.text());
}

fn login_arguments(plane: &Plane, method: &str) -> Vec<String> {
    let descriptor = plane.descriptor().unwrap();
    let port = descriptor["proxy_addr"]
        .as_str()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    let cluster = format!("iap.localhost:{port}");
    let ca = descriptor["ca_file"].as_str().unwrap();
    ["login", &cluster, "--ca", ca, method, "--connector", CONNECTOR]
        .map(str::to_owned)
        .to_vec()
}

/// Signs in at the provider, consents, and presses "approve" on our page.
pub(super) async fn sign_in_and_approve(
    browser: &mut Browser,
    page: Page,
    user: &str,
) -> anyhow::Result<Page> {
    let approval = browser.sign_in(page, user).await?;
    anyhow::ensure!(
        approval.url.host_str() == Some("iap.localhost"),
        "this is {}",
        approval.url
    );
    anyhow::ensure!(
        approval.text().contains("alice@example.com"),
        "the page names who signed in: {}",
        approval.text()
    );
    browser.approve(&approval).await
}

fn reaches_the_database(plane: &Plane, user: &str) {
    let query = ["connect", "db-prod", "--", "psql", "-X", "-Atc", "select 1"];
    assert_eq!(
        plane.iapctl(user, &query).unwrap().succeeded().unwrap().trim(),
        "1"
    );
    plane.log_in("auditor").unwrap();
    let sessions = plane
        .sessions_when(|all| all.len() == 1 && !all[0]["end"].is_null())
        .unwrap();
    assert_eq!(
        sessions[0]["decision"]["rule"],
        "engineers of the certified provider"
    );
}

#[test]
fn browser_login_through_a_certified_provider_reaches_the_database() {
    let provider = Provider::start();
    let plane = provider.plane();
    log_in(&plane, "carol", &[]);
    reaches_the_database(&plane, "carol");
}

#[test]
fn headless_login_through_a_certified_provider_reaches_the_database() {
    let provider = Provider::start();
    let plane = provider.plane();
    let mut waiting = login(&plane, "carol", "--headless");
    let (address, code, words) = shown(&mut waiting);
    on_the_web(async {
        // Another device: it shares nothing with the terminal but what a person carries over.
        let mut browser = browser(&plane);
        let page = browser.open(&address).await?;
        let asking = browser.submit(&page, &[("code", &code)]).await?;
        let page = browser.follow(&asking, CONNECTOR).await?;
        let approval = browser.sign_in(page, "alice").await?;
        anyhow::ensure!(
            approval.text().contains(&words),
            "the page shows the words: {}",
            approval.text()
        );
        browser.approve(&approval).await
    });
    waiting.finish().unwrap().succeeded().unwrap();
    reaches_the_database(&plane, "carol");
}

#[test]
fn a_person_who_refuses_on_the_approval_page_is_not_logged_in() {
    let provider = Provider::start();
    let plane = provider.plane();
    let mut waiting = login(&plane, "carol", "--no-browser");
    let mut url = String::new();
    BufReader::new(waiting.0.stdout.take().unwrap())
        .read_line(&mut url)
        .unwrap();
    on_the_web(async {
        let mut browser = browser(&plane);
        let page = browser.open(url.trim()).await?;
        let approval = browser.sign_in(page, "alice").await?;
        browser.submit(&approval, &[("decision", "deny")]).await
    });
    let ended = waiting.finish().unwrap();
    assert_eq!(ended.code, 3, "{ended:?}");
    assert_eq!(plane.iapctl("carol", &["ls"]).unwrap().code, 4);
}

/// A configuration with the provider alone, beside a policy of one rule.
fn configured(issuer: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    let text = format!(
        "cluster = \"iap.localhost\"\ndata_dir = \"{}\"\nlisten = \"127.0.0.1:0\"\ndevelopment = true\n\n[bootstrap]\nadmins = \
         [\"alice@example.com\"]\n\n[[connector]]\nname = \"{CONNECTOR}\"\nissuer = \"{issuer}\"\nclient_id = \"iap\"\nclient_secret_file = \"{}\"\nscopes = \
         [\"openid\", \"email\", \"profile\", \"groups\"]\ndomains = [\"example.com\"]\n",
        folder.path().display(),
        secret.display(),
    );
    std::fs::write(folder.path().join("auth.toml"), text).unwrap();
    let mut options = std::fs::OpenOptions::new();
    let options = options.create(true).truncate(true).write(true).mode(0o600);
    options
        .open(&secret)
        .unwrap()
        .write_all(SECRET.as_bytes())
        .unwrap();
    let policy = "[[rule]]\nname = \"engineers\"\neffect = \"allow\"\nusers = { groups = [\"engineering\"] }\nservices = { names = \
                  [\"db\"] }\nwhen = 'user.auth_age < duration(\"1h\")'\n\n[[rule]]\nname = \"supporters\"\neffect = \"allow\"\nusers = { \
                  groups = [\"support\"] }\nservices = { names = [\"db\"] }\n";
    std::fs::write(folder.path().join("policy.toml"), policy).unwrap();
    folder
}

fn idp_test(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(iap_e2e::program("iap-auth").unwrap());
    command
        .args(["idp", "test", "--config", "auth.toml", "--policy", "policy.toml"])
        .args(more)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
fn idp_test_signs_in_at_a_certified_provider_and_shows_who_that_is_and_which_rules_match() {
    let provider = Provider::start();
    let folder = configured(&provider.issuer);
    let mut running = Background(idp_test(folder.path(), &[]).spawn().unwrap());
    let mut said = BufReader::new(running.0.stdout.take().unwrap());
    let mut before = String::new();
    let url = loop {
        let mut line = String::new();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended early: {before}");
        if line.trim().starts_with("http") {
            break line.trim().to_owned();
        }
        before += &line;
    };
    for checked in ["ok  discovery", "ok  keys", "ok  algorithms: ", "ok  clock"] {
        assert!(before.contains(checked), "{checked}: {before}");
    }
    let landed = on_the_web(async {
        let mut browser = Browser::new(None, &[])?.stop_before("https://iap.localhost/login/callback");
        let page = browser.open(&url).await?;
        let page = browser.sign_in(page, "alice").await?;
        Ok(page.next.map(String::from).unwrap_or_default())
    });
    let mut input = running.0.stdin.take().unwrap();
    input.write_all(format!("{landed}\n").as_bytes()).unwrap();
    let mut after = String::new();
    said.read_to_string(&mut after).unwrap();
    assert_eq!(running.finish().unwrap().code, 0, "{after}");
    for shown in [
        "groups: [\"engineering\"]",
        "user name: alice@example.com",
        "groups:    certified:engineering",
        "allow \"engineers\" (line 1), when user.auth_age",
        "bootstrap.admins: every verb",
    ] {
        assert!(after.contains(shown), "{shown}: {after}");
    }
    assert!(!after.contains("supporters"), "{after}");
}

#[test]
fn idp_test_without_the_provider_tells_what_a_token_lacks() {
    let folder = configured("https://sso.example.com");
    let claims = folder.path().join("claims.json");
    std::fs::write(
        &claims,
        r#"{"sub": "1", "email": "alice@example.com", "email_verified": true, "nonce": "n-0S6"}"#,
    )
    .unwrap();
    let ran: Ran = idp_test(folder.path(), &["--claims", "claims.json"])
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("sent no `groups` claim"), "{ran:?}");
    assert!(!ran.stdout.contains("n-0S6"), "{ran:?}");
}

/// Keeps a pipe open and read, so that its writer does not fail.
fn drain(mut pipe: impl Read + Send + 'static) {
    std::thread::spawn(move || std::io::copy(&mut pipe, &mut std::io::sink()));
}

/// What `--headless` tells the person: the address, the code, the words.
fn shown(login: &mut Background) -> (String, String, String) {
    let mut reader = BufReader::new(login.0.stderr.take().unwrap());
    let mut lines = Vec::new();
    let words = loop {
        let mut line = String::new();
        assert!(
            reader.read_line(&mut line).unwrap() > 0,
            "it ended early: {lines:?}"
        );
        if let Some((_, words)) = line.split_once("shows these words: ") {
            break words.trim().to_owned();
        }
        lines.push(line.trim().to_owned());
    };
    drain(reader);
    let address = lines
        .iter()
        .find(|line| line.starts_with("https://"))
        .unwrap()
        .clone();
    let after = lines
        .iter()
        .position(|line| line.contains("type the code"))
        .unwrap();
    let code = lines[after..]
        .iter()
        .skip(1)
        .find(|line| !line.is_empty())
        .unwrap()
        .clone();
    (address, code, words)
}
