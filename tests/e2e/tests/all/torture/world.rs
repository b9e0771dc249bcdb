//! A plane with two proxies and two agents: those of `iapctl dev`, which restarts what ends, and one more of each,
//! restarted here.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use iap_e2e::{Background, Plane, Ran, program, wait_until};
use iap_testkit::free_port;
use rustix::process::Signal;

use super::dialler::{CLUSTER, Dialler};
use super::load::NO_ID;
use super::random::Random;

/// Served by the first agent, by the second, and by both.
pub(super) const SERVICES: [&str; 3] = ["left", "right", "both"];
const RESTART_MILLISECONDS_MAX: u64 = 400;

/// What can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Victim {
    Auth,
    FirstProxy,
    SecondProxy,
    FirstAgent,
    SecondAgent,
    Iapctl,
}

pub(super) const VICTIMS: [Victim; 6] = [
    Victim::Auth,
    Victim::FirstProxy,
    Victim::SecondProxy,
    Victim::FirstAgent,
    Victim::SecondAgent,
    Victim::Iapctl,
];

/// The running programs. The fields are dropped in order: ours before the plane whose proxy they use.
pub(super) struct World {
    /// `iapctl connect` with a live session.
    connector: Background,
    agent: Ours,
    proxy: Ours,
    pub(super) proxies: Vec<SocketAddr>,
    pub(super) plane: Plane,
}

/// A program that this harness restarts.
struct Ours {
    name: &'static str,
    config: PathBuf,
    log: PathBuf,
    child: Child,
}

impl World {
    /// Starts everything and returns when every service answers through every proxy's control connection.
    pub(super) fn start(backend: SocketAddr) -> Self {
        let offered = ["left", "both"].map(|name| format!("{name}={backend}"));
        let plane = Plane::start(&["--service", &offered[0], "--service", &offered[1]]).unwrap();
        let descriptor = plane.descriptor().unwrap();
        let first: SocketAddr = descriptor["proxy_addr"].as_str().unwrap().parse().unwrap();
        let second = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        plane.log_in("admin").unwrap();
        plane.log_in("alice").unwrap();
        wait_less(&plane);
        let proxy = second_proxy(&plane, second);
        let agent = second_agent(&plane, first, backend);
        Self {
            connector: connector(&plane),
            agent,
            proxy,
            proxies: vec![first, second],
            plane,
        }
    }

    /// The client's certificate, new.
    pub(super) fn dialler(&self) -> anyhow::Result<Dialler> {
        self.plane.log_in("alice")?;
        Dialler::of_home(&self.plane.home("alice"))
    }

    /// Kills a program where it stands and has it started again.
    pub(super) fn kill(&mut self, victim: Victim, random: &mut Random) {
        let pause = Duration::from_millis(random.below(RESTART_MILLISECONDS_MAX));
        let supervised = match victim {
            Victim::Auth => "auth",
            Victim::FirstProxy => "proxy",
            Victim::FirstAgent => "agent",
            Victim::SecondProxy => return self.proxy.kill_and_restart(pause),
            Victim::SecondAgent => return self.agent.kill_and_restart(pause),
            // The next one is started once everything is whole again, as after any other kill.
            Victim::Iapctl => return self.disconnect(),
        };
        let before = self.plane.pid(supervised).unwrap();
        self.plane.signal(supervised, Signal::KILL).unwrap();
        wait_until("its supervisor starts it again", || {
            Ok(self.plane.pid(supervised)? != before)
        })
        .unwrap();
    }

    /// Starts `iapctl connect` again, if a kill ended it or its session.
    pub(super) fn connect_again(&mut self) {
        if self.connector.round_trip(b"pong").is_err() {
            self.connector = connector(&self.plane);
        }
    }

    /// Ends the session of `iapctl connect` for good.
    pub(super) fn disconnect(&mut self) {
        let _ = self.connector.0.kill();
    }

    pub(super) fn database(&self) -> PathBuf {
        self.plane.dir().join("auth/auth.db")
    }

    /// Where each agent's records wait.
    pub(super) fn spools(&self) -> [PathBuf; 2] {
        [
            self.plane.dir().join("agent/spool"),
            self.plane.scratch().join("second-agent/spool"),
        ]
    }
}

/// A killed client is waited for so long, that all is at rest in time.
const WAITS_LESS: &str = "[limits]\nresume_seconds_max = 5\n";

/// The first agent takes that over.
fn wait_less(plane: &Plane) {
    let config = plane.dir().join("config/agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(!text.contains("[limits]"));
    std::fs::write(&config, text + WAITS_LESS).unwrap();
    plane.signal("agent", Signal::HUP).unwrap();
}

/// A live session of `iapctl connect`: which one it is, only the agent knows.
fn connector(plane: &Plane) -> Background {
    let mut live = None;
    wait_until("iapctl opens a session", || {
        let mut command = plane.command("alice", &["connect", "both", "--stdio"])?;
        let mut child = Background(command.stdin(Stdio::piped()).spawn()?);
        let said = child.0.stdin.as_mut().unwrap().write_all(NO_ID.as_bytes());
        if said.is_ok() && child.round_trip(b"ping").is_ok() {
            live = Some(child);
        }
        Ok(live.is_some())
    })
    .unwrap();
    live.unwrap()
}

fn second_proxy(plane: &Plane, listen: SocketAddr) -> Ours {
    let auth = setting(&plane.dir().join("config/auth.toml"), "listen");
    let state = plane.scratch().join("second-proxy");
    let text = format!(
        "cluster = {CLUSTER:?}\nstate_dir = {state:?}\nlisten = [\"{listen}\"]\npublic_address = \"{listen}\"\nauth = {auth:?}\n"
    );
    let config = write(plane, "second-proxy.toml", &text);
    let made: Ran = Command::new(program("iap-auth").unwrap())
        .args(["token", "proxy", "--config"])
        .arg(plane.dir().join("config/auth.toml"))
        .output()
        .unwrap()
        .into();
    join(
        "iap-proxy",
        plane,
        &config,
        ("--auth", &auth),
        made.succeeded().unwrap(),
    );
    Ours::start("iap-proxy", config)
}

fn second_agent(plane: &Plane, proxy: SocketAddr, backend: SocketAddr) -> Ours {
    let services = write(
        plane,
        "right.toml",
        "[[service]]\nname = \"right\"\nprotocol = \"tcp\"\nlabels = { env = \"dev\" }\n",
    );
    let admin = |arguments: &[&str]| plane.iapctl("admin", arguments).unwrap();
    admin(&["services", "apply", services.to_str().unwrap()])
        .succeeded()
        .unwrap();
    let made = admin(&[
        "tokens",
        "create",
        "agent",
        "--service",
        "right",
        "--service",
        "both",
    ]);
    let state = plane.scratch().join("second-agent");
    let text = format!(
        "cluster = {CLUSTER:?}\nstate_dir = {state:?}\nproxies = [\"{proxy}\"]\n{WAITS_LESS}\
         [[service]]\nname = \"right\"\nbackend = \"{backend}\"\n[[service]]\nname = \"both\"\nbackend = \"{backend}\"\n"
    );
    let config = write(plane, "second-agent.toml", &text);
    let through = proxy.to_string();
    join(
        "iap-agent",
        plane,
        &config,
        ("--proxy", &through),
        made.succeeded().unwrap(),
    );
    Ours::start("iap-agent", config)
}

fn join(name: &str, plane: &Plane, config: &Path, (flag, address): (&str, &str), token: &str) {
    let file = write(plane, &format!("{name}.token"), token.trim());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, mode).unwrap();
    let joined: Ran = Command::new(program(name).unwrap())
        .args(["join", flag, address, "--token-file"])
        .arg(file)
        .arg("--config")
        .arg(config)
        .output()
        .unwrap()
        .into();
    joined.succeeded().unwrap();
}

fn write(plane: &Plane, name: &str, text: &str) -> PathBuf {
    let path = plane.scratch().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// The value of `key = "value"` in a configuration file.
fn setting(file: &Path, key: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let prefix = format!("{key} = \"");
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap();
    line.trim_end_matches('"').to_owned()
}

impl Ours {
    fn start(name: &'static str, config: PathBuf) -> Self {
        let log = config.with_extension("log");
        let child = spawn(name, &config, &log);
        Self {
            name,
            config,
            log,
            child,
        }
    }

    fn kill_and_restart(&mut self, pause: Duration) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::thread::sleep(pause);
        self.child = spawn(self.name, &self.config, &self.log);
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(name: &str, config: &Path, log: &Path) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .unwrap();
    Command::new(program(name).unwrap())
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}
