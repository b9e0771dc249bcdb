//! A plane with one SSH service and the server behind it, set up as the operator's pages have it: a service that is passed
//! on, by `docs/ssh.md`, or one that is recorded, by `docs/ssh-recording.md`. Blocks are taken from the page, and nothing but
//! names, addresses and paths is put in their place.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use iap_e2e::{Page, Plane, Ran, Sshd, wait_until};

/// What the policy of these tests has besides the page's rule.
const ADMINISTRATORS: &str = "[[admin]]\nusers = { groups = [\"dev:admins\"] }\n\
    verbs = [\"policy.write\", \"service.write\", \"audit.read\", \"lock.write\", \"session.kill\", \"ca.sign\"]\n\
    [[admin]]\nusers = { groups = [\"dev:auditors\"] }\nverbs = [\"audit.read\", \"recording.read\"]\n";

pub(crate) struct World {
    pub(crate) plane: Plane,
    pub(crate) sshd: Sshd,
    pub(crate) files: tempfile::TempDir,
    /// Who the tests run as: the one account that a server without root's rights lets in.
    pub(crate) me: String,
    pub(crate) service: &'static str,
    page: Page,
}

impl World {
    /// The agent passes bytes on; with these logins in the policy, where `{me}` stands for the account there is.
    pub(crate) fn relaying(logins: &str) -> Self {
        Self::configured(logins, "")
    }

    /// The same with more in the auth server's own file.
    pub(crate) fn configured(logins: &str, more: &str) -> Self {
        let page = Page::new(include_str!("../../../../docs/ssh.md"));
        let world = Self::start(page, "web-1", more);
        world.apply_policy(world.service, logins);
        world.log_in_alice();
        world
    }

    /// The agent records; sshd is known by its key.
    pub(crate) fn recording() -> Self {
        let page = Page::new(include_str!("../../../../docs/ssh-recording.md"));
        let world = Self::start(page, "shell", "");
        let scan = world
            .block("sh", "ssh-keyscan")
            .replace("10.0.0.7", &format!("-p {} 127.0.0.1", world.sshd.port));
        world.shell("admin", &scan).succeeded().unwrap();
        world.serve(&world.block("toml", "known_hosts_file"));
        world.apply_policy(world.service, r#"["{me}"]"#);
        world.plane.log_in("alice").unwrap();
        wait_until("alice gets in", || {
            // The login knew of no service yet whose agent had read its file.
            world.plane.log_in("alice")?;
            Ok(world.run("ssh", &[world.service, "true"]).code == 0)
        })
        .unwrap();
        world
    }

    fn start(page: Page, service: &'static str, more: &str) -> Self {
        let files = tempfile::Builder::new()
            .prefix("iap-e2e.")
            .tempdir_in("/tmp")
            .unwrap();
        let me = output(Command::new("id").arg("-un"));
        let within = |text: &str| placed(text, files.path());
        let trust = within(&page.block("sshd_config", "TrustedUserCAKeys").unwrap());
        let trust = format!("{trust}LogLevel VERBOSE\n");
        let sshd = Sshd::start_with(files.path(), |program| Command::new(program), &trust).unwrap();
        let backend = format!("{service}=127.0.0.1:{}", sshd.port);
        let own = files.path().join("auth.toml");
        std::fs::write(&own, more).unwrap();
        let own = own.display().to_string();
        let plane = Plane::start(&["--service", &backend, "--connectors", &own]).unwrap();
        plane.log_in("admin").unwrap();
        let world = Self {
            plane,
            sshd,
            files,
            me,
            service,
            page,
        };
        let record = world.block("toml", "protocol = \"ssh\"");
        world.admin("services", &record.replace("deploy", &world.me));
        let export = world.block("sh", "--kind ssh-user");
        world.shell("admin", &export).succeeded().unwrap();
        world
    }

    /// The page's block in that language that says so, with this world's paths.
    pub(crate) fn block(&self, language: &str, saying: &str) -> String {
        placed(&self.page.block(language, saying).unwrap(), self.files.path())
    }

    /// Puts the page's table into the agent's own file.
    pub(crate) fn serve(&self, table: &str) {
        let backend = format!("127.0.0.1:{}", self.sshd.port);
        let table = table.replace("10.0.0.7:22", &backend);
        self.plane.serve(self.service, &table).unwrap();
    }

    /// Commands as written, in the folder that stands for all that the page names.
    pub(crate) fn shell(&self, user: &str, commands: &str) -> Ran {
        self.plane.shell(user, self.files.path(), commands).unwrap()
    }

    /// As soon as the agent has said where it reaches the server from, so that her certificate is bound to that.
    fn log_in_alice(&self) {
        wait_until("a certificate is bound to the agent's address", || {
            self.plane.log_in("alice")?;
            let file = self.folder().join("web-1-cert.pub");
            let shown = Command::new("ssh-keygen").arg("-Lf").arg(file).output()?;
            Ok(String::from_utf8_lossy(&shown.stdout).contains("source-address 127.0.0.1/32"))
        })
        .unwrap();
    }

    pub(crate) fn apply_policy(&self, service: &str, logins: &str) {
        let logins = logins.replace("{me}", &self.me);
        let rule = self
            .block("toml", "[[rule]]")
            .replace("[\"deploy\"]", &logins)
            .replace(self.service, service);
        self.admin("policy", &format!("{rule}{ADMINISTRATORS}"));
    }

    /// `iapctl WHAT apply` of this document.
    pub(crate) fn admin(&self, what: &str, document: &str) {
        let file = self.files.path().join(format!("{what}.toml"));
        std::fs::write(&file, document).unwrap();
        let applied = self.iapctl("admin", &[what, "apply", file.to_str().unwrap()]);
        applied.succeeded().unwrap();
    }

    pub(crate) fn iapctl(&self, user: &str, arguments: &[&str]) -> Ran {
        self.plane.iapctl(user, arguments).unwrap()
    }

    /// Alice's SSH folder.
    pub(crate) fn folder(&self) -> PathBuf {
        self.plane.home("alice").join("clusters/iap.localhost/ssh")
    }

    /// A stock client that reads the fragment and nothing else.
    pub(crate) fn client(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let ssh = format!("ssh -F {} -o BatchMode=yes", self.config());
        match program {
            "git" => drop(command.env("GIT_SSH_COMMAND", ssh)),
            "rsync" => drop(command.args(["-e", &ssh])),
            _ => drop(command.args(["-F", &self.config(), "-o", "BatchMode=yes"])),
        }
        command
            .args(arguments)
            .env("IAPCTL_NONINTERACTIVE", "1")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn config(&self) -> String {
        self.folder().join("config").display().to_string()
    }

    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Ran {
        self.client(program, arguments).output().unwrap().into()
    }

    /// `iapctl ssh` as alice.
    pub(crate) fn ssh(&self, arguments: &[&str]) -> Ran {
        let mut all = vec!["ssh"];
        all.extend(arguments);
        self.iapctl("alice", &all)
    }
}

/// With this folder in the place of those that a page names.
fn placed(text: &str, folder: &Path) -> String {
    let folder = folder.display().to_string();
    text.replace("/etc/ssh/", &format!("{folder}/"))
        .replace("/etc/iap/", &format!("{folder}/"))
}

pub(crate) fn output(command: &mut Command) -> String {
    let ran = Ran::from(command.output().unwrap());
    ran.succeeded().unwrap().trim().to_owned()
}

/// Bytes that do not shrink.
pub(crate) fn write_random(path: &Path, bytes: u64) {
    use std::io::Read as _;
    let mut random = std::fs::File::open("/dev/urandom").unwrap().take(bytes);
    let written = std::io::copy(&mut random, &mut std::fs::File::create(path).unwrap());
    assert_eq!(written.unwrap(), bytes);
}

pub(crate) fn assert_same(one: &Path, other: &Path) {
    assert!(digest(one) == digest(other), "{}", other.display());
}

/// SHA-256.
pub(crate) fn digest(path: &Path) -> String {
    let printed = output(Command::new("sha256sum").arg("--").arg(path));
    printed.split_whitespace().next().unwrap().to_owned()
}
