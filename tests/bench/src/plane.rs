//! A development plane with one more service, as `iapctl dev` runs it, and what its people do with it.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::process::{Running, free_ports, wait_for_file, wait_for_port};

const START_SECONDS_MAX: u64 = 90;

/// A running development plane.
#[derive(Debug)]
pub(crate) struct Plane {
    /// Where the programs are.
    bin: PathBuf,
    pub(crate) dir: PathBuf,
    descriptor: serde_json::Value,
    /// Ends the plane when dropped.
    _running: Running,
}

impl Plane {
    /// With everything as it is by default.
    pub(crate) fn start(bin: &Path, dir: &Path, backend: u16) -> anyhow::Result<Self> {
        Self::start_with(bin, dir, backend, &[])
    }

    /// With settings of the programs' own, as their environment has them: `IAP_PROXY__LIMITS__AGENTS_MAX`.
    pub(crate) fn start_with(
        bin: &Path,
        dir: &Path,
        backend: u16,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let service = format!("bulk=127.0.0.1:{backend}");
        Self::start_as(bin, dir, &["--service", &service], settings)
    }

    /// With the demo's services, a database among them.
    pub(crate) fn start_demo(bin: &Path, dir: &Path) -> anyhow::Result<Self> {
        Self::start_as(bin, dir, &["--demo"], &[])
    }

    fn start_as(
        bin: &Path,
        dir: &Path,
        arguments: &[&str],
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let mut running = Running::start(
            "iapctl dev",
            Command::new(bin.join("iapctl"))
                .args(["dev", "--dir"])
                .arg(dir)
                .args(arguments)
                .envs(settings.iter().copied())
                .stderr(std::fs::File::create(dir.with_extension("log"))?),
        )?;
        let file = dir.join("dev.json");
        wait_for_file(&file, &mut running, START_SECONDS_MAX)?;
        let descriptor = serde_json::from_slice(&std::fs::read(file)?)?;
        Ok(Self {
            bin: bin.to_owned(),
            dir: dir.to_owned(),
            descriptor,
            _running: running,
        })
    }

    /// Where the programs are.
    pub(crate) fn bin(&self) -> &Path {
        &self.bin
    }

    /// Logs `user` in and returns the home that holds the login.
    pub(crate) fn log_in(&self, user: &str) -> anyhow::Result<PathBuf> {
        let home = self.home_of(user);
        self.iapctl(
            &home,
            &["dev", "login", user, "--dir", &self.dir.display().to_string()],
        )?;
        Ok(home)
    }

    /// Where the login of `user` is.
    pub(crate) fn home_of(&self, user: &str) -> PathBuf {
        self.dir.join(format!("bench-{user}"))
    }

    /// Runs a command and returns what it printed.
    pub(crate) fn iapctl(&self, home: &Path, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(self.bin.join("iapctl"))
            .args(arguments)
            .env("IAPCTL_HOME", home)
            .env("IAPCTL_NONINTERACTIVE", "1")
            .stdin(Stdio::null())
            .output()
            .context("cannot run iapctl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "iapctl {}: {}",
            arguments.join(" "),
            said.trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `iapctl connect --listen`: its port, once it accepts, and the program.
    pub(crate) fn connect(&self, home: &Path) -> anyhow::Result<(u16, Running)> {
        self.connect_to("bulk", home)
    }

    /// The same to another service.
    pub(crate) fn connect_to(&self, service: &str, home: &Path) -> anyhow::Result<(u16, Running)> {
        let [port] = free_ports()?;
        let log = self.dir.join("connect.log");
        let mut connector = Running::start(
            "iapctl connect",
            Command::new(self.bin.join("iapctl"))
                .args(["connect", service, "--listen", &format!("127.0.0.1:{port}")])
                .env("IAPCTL_HOME", home)
                .env("IAPCTL_NONINTERACTIVE", "1")
                .stdout(Stdio::null())
                .stderr(std::fs::File::create(&log)?),
        )?;
        wait_for_port(port, &mut connector, 20)
            .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        Ok((port, connector))
    }

    /// The proxy's public port.
    pub(crate) fn proxy_port(&self) -> anyhow::Result<u16> {
        let address: std::net::SocketAddr = self.text("proxy_addr")?.parse()?;
        Ok(address.port())
    }

    /// From now on the programs of `home` know the cluster's proxy at another port of this machine, and no other.
    pub(crate) fn lead_home_to(&self, home: &Path, port: u16) -> anyhow::Result<()> {
        let file = home
            .join("clusters")
            .join(self.text("cluster")?)
            .join("cluster.json");
        let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        let addresses = record
            .get_mut("addresses")
            .context("cluster.json has no addresses")?;
        *addresses = serde_json::json!([format!("127.0.0.1:{port}")]);
        Ok(std::fs::write(&file, serde_json::to_vec(&record)?)?)
    }

    pub(crate) fn text(&self, key: &str) -> anyhow::Result<&str> {
        self.descriptor
            .get(key)
            .and_then(|value| value.as_str())
            .with_context(|| format!("dev.json has no {key}"))
    }

    /// A token for `uses` agents that may serve `services`.
    pub(crate) fn agent_token(&self, admin: &Path, uses: usize, services: &[&str]) -> anyhow::Result<String> {
        let uses = uses.to_string();
        let mut arguments = vec!["tokens", "create", "agent", "--uses", &uses, "-f", "json"];
        for service in services {
            arguments.extend(["--service", service]);
        }
        let created: serde_json::Value = serde_json::from_str(&self.iapctl(admin, &arguments)?)?;
        let token = created.get("token").and_then(|token| token.as_str());
        Ok(token.context("no token in the answer")?.to_owned())
    }

    /// Records services as an operator would.
    pub(crate) fn apply_services(&self, admin: &Path, records: &str) -> anyhow::Result<()> {
        let file = self.dir.join("config/bench-services.toml");
        std::fs::write(&file, records)?;
        self.iapctl(admin, &["services", "apply", &file.display().to_string()])?;
        Ok(())
    }

    /// One more agent, for a service that exists: joined and running.
    pub(crate) fn agent(
        &self,
        admin: &Path,
        name: &str,
        service: &str,
        backend: u16,
    ) -> anyhow::Result<Running> {
        let folder = self.dir.join(name);
        std::fs::create_dir(&folder)?;
        let (config, token) = (folder.join("config.toml"), folder.join("token"));
        let proxy = self.text("proxy_addr")?;
        std::fs::write(
            &config,
            format!(
                "cluster = \"{}\"\nstate_dir = \"{}\"\nproxies = [\"{proxy}\"]\n\n[[service]]\nname = \"{service}\"\nbackend = \"127.0.0.1:{backend}\"\n",
                self.text("cluster")?,
                folder.join("state").display(),
            ),
        )?;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create_new(true).write(true).mode(0o600).open(&token)?;
        file.write_all(self.agent_token(admin, 1, &[service])?.as_bytes())?;
        let program = self.bin.join("iap-agent");
        let joined = Command::new(&program)
            .args(["join", "--proxy", proxy, "--token-file"])
            .arg(&token)
            .arg("--config")
            .arg(&config)
            .output()?;
        let said = String::from_utf8_lossy(&joined.stderr);
        ensure!(joined.status.success(), "{name} does not join: {}", said.trim());
        let log = std::fs::File::create(folder.join("log"))?;
        Running::start(
            name,
            Command::new(&program)
                .arg("--config")
                .arg(&config)
                .stdout(log.try_clone()?)
                .stderr(log),
        )
    }

    /// Ends one of the plane's programs where it stands; its supervisor starts it again.
    pub(crate) fn kill(&self, name: &str) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid(name)?)?;
        let pid = rustix::process::Pid::from_raw(pid).context("no such process id")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
    }

    /// The process of `name` now: another one after a restart.
    pub(crate) fn pid(&self, name: &str) -> anyhow::Result<u32> {
        let descriptor: serde_json::Value =
            serde_json::from_slice(&std::fs::read(self.dir.join("dev.json"))?)?;
        let pid = descriptor
            .get("pids")
            .and_then(|pids| pids.get(name))
            .and_then(|pid| pid.as_u64());
        Ok(u32::try_from(pid.with_context(|| {
            format!("dev.json names no process for {name}")
        })?)?)
    }
}
