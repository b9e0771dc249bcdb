//! More servers beside a development plane's own: proxies and agents that joined with a token, as an operator adds
//! them. Nobody starts them again when they end.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::{Background, Plane, Ran, program};

/// A proxy or agent beside those of a plane.
#[derive(Debug)]
pub struct Annex {
    program: &'static str,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    process: Option<Background>,
}

impl Annex {
    /// A proxy that listens on `address`, which is also how others reach it; joined and running. `admin` is logged in.
    ///
    /// # Errors
    /// When it does not join.
    pub fn proxy(plane: &Plane, name: &str, address: SocketAddr, more: &str) -> anyhow::Result<Self> {
        let auth = setting(&plane.dir().join("config/proxy.toml"), "auth")?;
        let admin = iap_testkit::free_port()?;
        let text = format!(
            "cluster = \"iap.localhost\"\nlisten = [\"{address}\"]\npublic_address = \"{address}\"\nauth = \"{auth}\"\n\
             admin_listen = \"127.0.0.1:{admin}\"\n{more}"
        );
        let mut annex = Self::write(plane, "iap-proxy", name, &text, &[])?;
        let token = annex.token(plane, &["proxy"])?;
        annex.join(&["--auth", &auth, "--token-file", &token])?;
        annex.start()?;
        crate::wait_until("the proxy listens", || Ok(TcpStream::connect(address).is_ok()))?;
        Ok(annex)
    }

    /// An agent for `services` (names and backends), which the policy's rule for `env = "dev"` covers; joined
    /// through `proxy` and running. `admin` is logged in.
    ///
    /// # Errors
    /// When it does not join.
    pub fn agent(
        plane: &Plane,
        name: &str,
        proxy: &str,
        services: &[(&str, &str)],
        more: &str,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let mut text = format!("cluster = \"iap.localhost\"\nproxies = [\"{proxy}\"]\n{more}\n");
        let mut record = String::new();
        let mut wanted = vec!["agent"];
        for (service, keys) in services {
            text.push_str(&format!("[[service]]\nname = \"{service}\"\n{keys}\n"));
            record.push_str(&format!(
                "[[service]]\nname = \"{service}\"\nprotocol = \"tcp\"\nlabels = {{ env = \"dev\" }}\n"
            ));
            wanted.extend(["--service", service]);
        }
        let annex = Self::write(plane, "iap-agent", name, &text, environment)?;
        let document = annex.folder.join("services.toml");
        std::fs::write(&document, record)?;
        let document = document.display().to_string();
        plane
            .iapctl("admin", &["services", "apply", &document])?
            .succeeded()?;
        let token = annex.token(plane, &wanted)?;
        annex.join(&["--proxy", proxy, "--token-file", &token])?;
        let mut annex = annex;
        annex.start()?;
        Ok(annex)
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Starts it, again after its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))?;
        let mut command = self.command(&[])?;
        command.stdout(log.try_clone()?).stderr(log);
        self.process = Some(Background(command.spawn()?));
        Ok(())
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> anyhow::Result<Pid> {
        let process = self.process.as_ref().context("it does not run")?;
        Pid::from_raw(i32::try_from(process.0.id())?).context("no such process id")
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(self.pid()?, signal)?)
    }

    /// Kills it, as a power failure would.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Whether it has ended by itself, and how.
    ///
    /// # Errors
    /// When it does not run.
    pub fn ended(&mut self) -> anyhow::Result<Option<i32>> {
        let process = self.process.as_mut().context("it does not run")?;
        Ok(process.0.try_wait()?.map(|status| status.code().unwrap_or(-1)))
    }

    fn write(
        plane: &Plane,
        program: &'static str,
        name: &str,
        text: &str,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let folder = plane.scratch().join(name);
        std::fs::create_dir(&folder)?;
        let state = folder.join("state");
        // Keys before the first table are the file's own.
        let text = format!("state_dir = \"{}\"\n{text}", state.display());
        std::fs::write(folder.join("config.toml"), text)?;
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Ok(Self {
            program,
            folder,
            environment: environment.collect(),
            process: None,
        })
    }

    /// A token for what `arguments` say, in a file.
    fn token(&self, plane: &Plane, arguments: &[&str]) -> anyhow::Result<String> {
        let mut all = vec!["tokens", "create"];
        all.extend(arguments);
        let made = plane.iapctl("admin", &all)?;
        let path = self.folder.join("token");
        let mut options = std::fs::OpenOptions::new();
        options.create(true).write(true).truncate(true).mode(0o600);
        std::io::Write::write_all(&mut options.open(&path)?, made.succeeded()?.as_bytes())?;
        Ok(path.display().to_string())
    }

    fn join(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut all = vec!["join"];
        all.extend(arguments);
        Ran::from(self.command(&all)?.output()?).succeeded().map(drop)
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(program(self.program)?);
        command.args(arguments).arg("--config").arg(self.config());
        command.envs(self.environment.iter().cloned());
        command.stdin(Stdio::null());
        Ok(command)
    }
}

impl Drop for Annex {
    fn drop(&mut self) {
        if std::thread::panicking() {
            crate::show_log(&self.folder.join("log"));
        }
    }
}

/// The text value of a key at the top of a configuration file.
fn setting(file: &Path, key: &str) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file)?;
    let opening = format!("{key} = \"");
    let line = text.lines().find_map(|line| line.strip_prefix(&opening));
    let value = line.and_then(|line| line.strip_suffix('"'));
    value
        .map(str::to_owned)
        .with_context(|| format!("{} has no {key}", file.display()))
}
