//! The plane over five hosts. The auth server's host runs `iapctl dev`, for its identity provider; the proxies and
//! agents are started as on machines of their own.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iap_e2e::network::Network;
use iap_e2e::{Background, Plane, Ran, program, wait_until};
use serde_json::Value;

use super::session::Session;

const CLUSTER: &str = "iap.localhost";
const HOSTS: [&str; 5] = ["client", "first", "second", "agent", "auth"];
/// Every host has all ports for itself.
const PORTS: &str = r#"{"proxy":7001,"auth":7443,"identity_provider":7002,"auth_admin":7003,"proxy_admin":7004,"agent_admin":7005,"echo":7006,"web":7007}"#;
const AUTH_PORT: u16 = 7443;
const PUBLIC_PORT: u16 = 443;
/// Of the agents' admin addresses, which are on one host.
const FIRST_ADMIN_PORT: usize = 7010;
/// How `iapctl status` ends once the certificate has.
const EXPIRED: i32 = 4;
const BACKEND: &str = "127.0.0.1:7000";
/// Sends back every byte.
const ECHO: &str = "require('net').createServer(s => { s.on('error', () => s.destroy()); s.pipe(s) }).listen(7000, '127.0.0.1')";
const SLOW_LINK: Duration = Duration::from_millis(200);
const LOSS_PERCENT: u32 = 2;

/// What a test wants different.
pub(super) struct Settings {
    pub(super) udp_is_blocked: bool,
    pub(super) slow_hosts: &'static [&'static str],
    pub(super) lock_feed_seconds_max: u32,
    pub(super) snapshot_max_age: &'static str,
    /// How long users' certificates are good.
    pub(super) certificate_life: &'static str,
    /// What `iapctl dev` beside the auth server is to serve.
    pub(super) dev: &'static [&'static str],
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            udp_is_blocked: false,
            slow_hosts: &[],
            lock_feed_seconds_max: 14_400,
            snapshot_max_age: "24h",
            certificate_life: "1h",
            dev: &["--service", "near=127.0.0.1:7006"],
        }
    }
}

/// One that serves one service.
struct Agent {
    service: String,
    config: PathBuf,
    process: Background,
}

/// Dropped in order: the programs before the network they are in.
pub(super) struct World {
    agents: Vec<Agent>,
    proxies: Vec<Background>,
    _backend: Background,
    pub(super) plane: Plane,
    pub(super) network: Network,
}

impl World {
    /// Starts everything; returns when a session through each agent could be opened.
    pub(super) fn start(settings: &Settings) -> Self {
        let mut network = Network::of(&HOSTS).unwrap();
        if settings.udp_is_blocked {
            network.block_udp().unwrap();
        }
        for host in settings.slow_hosts {
            network.slow_down(host, SLOW_LINK, LOSS_PERCENT).unwrap();
        }
        let plane = Plane::start_by(settings.dev, |folder, command| {
            std::fs::create_dir_all(folder)?;
            std::fs::write(folder.join("ports.json"), PORTS)?;
            let mut inside = network.moved_inside("auth", &command);
            inside
                .env("IAP_AUTH__LISTEN", format!("0.0.0.0:{AUTH_PORT}"))
                .env(
                    "IAP_AUTH__PROXY_PROTOCOL_FROM",
                    r#"["127.0.0.1/32", "10.66.0.0/16"]"#,
                )
                .env("IAP_AUTH__SNAPSHOT__BEAT", "1s")
                .env("IAP_AUTH__SNAPSHOT__MAX_AGE", settings.snapshot_max_age)
                .env("IAP_AUTH__LOGIN__TTL", settings.certificate_life);
            Ok(inside)
        })
        .unwrap();
        let mut backend = network.inside("agent", "node");
        backend.args(["-e", ECHO]);
        let mut world = Self {
            agents: Vec::new(),
            proxies: Vec::new(),
            _backend: Background(backend.spawn().unwrap()),
            plane,
            network,
        };
        for user in ["admin", "alice", "auditor"] {
            world.log_in(user);
        }
        world.offer(&[("far", "tcp"), ("late", "tcp")]);
        for host in ["first", "second"] {
            world.start_proxy(host);
        }
        world.start_agent("far", BACKEND, settings.lock_feed_seconds_max);
        world.start_agent("late", BACKEND, 14_400);
        world.lead_client_to_public_proxies();
        for service in ["far", "late"] {
            drop(world.session_again(service, super::BACK_SECONDS_MAX));
        }
        world
    }

    /// A session that has opened: a line came back.
    pub(super) fn session(&self, service: &str) -> anyhow::Result<Session> {
        let mut session = Session::start(self.connect(service))?;
        session.round_trip("hello")?;
        Ok(session)
    }

    /// The same, tried again until it works.
    pub(super) fn session_again(&self, service: &str, seconds_max: u64) -> Session {
        let deadline = Instant::now() + Duration::from_secs(seconds_max);
        loop {
            match self.session(service) {
                Ok(session) => return session,
                Err(error) => assert!(Instant::now() < deadline, "{service}: {error:#}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Asks for sessions until one is refused with these words.
    pub(super) fn refused_when(&self, service: &str, words: &str, seconds_max: u64) {
        let deadline = Instant::now() + Duration::from_secs(seconds_max);
        loop {
            let ran: Ran = self.connect(service).output().unwrap().into();
            if ran.code != 0 && ran.stderr.contains(words) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{service} is not refused: {} {}",
                ran.code,
                ran.stderr
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// What `iapctl … -f json` prints to a person beside the auth server.
    pub(super) fn json(&self, user: &str, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-f", "json"]);
        let ran = self.iapctl("auth", user, &all);
        serde_json::from_str(ran.succeeded().unwrap()).unwrap()
    }

    /// The sessions an auditor sees, once `settled` says that they are complete.
    pub(super) fn sessions_when(&self, settled: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let deadline = Instant::now() + Duration::from_secs(super::BACK_SECONDS_MAX);
        loop {
            let listed = self.json("auditor", &["sessions", "ls", "--limit", "1000"]);
            let seen = listed.as_array().cloned().unwrap_or_default();
            if settled(&seen) {
                return seen;
            }
            assert!(Instant::now() < deadline, "the records do not say so: {seen:#?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until so many sessions of these services are under way, and by the record each has been gone on with so often.
    pub(super) fn came_back(&self, services: &[&str], sessions: usize, times: usize) {
        let concerned =
            |one: &&Value| services.contains(&one["service"].as_str().unwrap()) && one["end"].is_null();
        let came_back = |one: &Value| self.resumes(one["session_id"].as_str().unwrap()) >= times;
        self.sessions_when(|all| {
            let ours: Vec<_> = all.iter().filter(concerned).collect();
            ours.len() == sessions && ours.into_iter().all(came_back)
        });
    }

    fn resumes(&self, session: &str) -> usize {
        let shown = self.json("auditor", &["sessions", "show", session]);
        let records = shown["records"].as_array().unwrap();
        let resumes = records
            .iter()
            .filter(|record| record["event"] == "session.resume");
        resumes.count()
    }

    /// Waits for the record of a session whose client had this address.
    pub(super) fn recorded_from(&self, address: Ipv4Addr) {
        let starts_with_it = |one: &Value| {
            let shown = self.json(
                "auditor",
                &["sessions", "show", one["session_id"].as_str().unwrap()],
            );
            shown.to_string().contains(&address.to_string())
        };
        self.sessions_when(|all| all.iter().any(starts_with_it));
    }

    /// Waits until the agent of `far` says that it reaches both proxies that way, `quic` or `tls`.
    pub(super) fn control_runs_over(&self, way: &str) {
        let deadline = Instant::now() + Duration::from_secs(super::BACK_SECONDS_MAX);
        loop {
            let agents = self.json("admin", &["agents", "ls"]);
            let all = agents.as_array().unwrap();
            let ours = all
                .iter()
                .find(|agent| agent["services"].to_string().contains("far"));
            let proxies = ours.and_then(|agent| agent["proxies"].as_array()).unwrap();
            if proxies.len() == 2 && proxies.iter().all(|proxy| proxy["control"] == way) {
                return;
            }
            assert!(Instant::now() < deadline, "not by {way}: {agents:#}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// How often the agent of `far` has connected to a proxy, by its log.
    pub(super) fn control_connections(&self) -> usize {
        let log = std::fs::read_to_string(self.plane.scratch().join("agent-far.log")).unwrap();
        let connected = log.matches("control connection established").count();
        assert!(connected >= 2, "{log}");
        connected
    }

    pub(super) fn kill_first_proxy(&mut self) {
        drop(self.proxies.remove(0));
    }

    /// Starts another agent of the same state directory, which asks the one that serves `service` for its sessions, and
    /// waits until that one has ended by itself.
    pub(super) fn replace_agent(&mut self, service: &str) {
        let place = self.agents.iter().position(|agent| agent.service == service);
        let place = place.unwrap();
        let log = format!("agent-{service}-next");
        let next = self.spawn("agent", "iap-agent", &self.agents[place].config, &log);
        let mut before = std::mem::replace(&mut self.agents[place].process, next);
        let mut ended = None;
        wait_until("the agent before has ended", || {
            ended = before.0.try_wait()?;
            Ok(ended.is_some())
        })
        .unwrap();
        let ended = ended.unwrap();
        assert!(ended.success(), "the agent of {service}: {ended}");
    }

    /// Waits until the client's certificate has ended, then until what `happens` has made the client renew it.
    pub(super) fn renews_its_certificate(&self, happens: impl FnOnce()) {
        let status = || self.iapctl("client", "alice", &["status", "-f", "json"]);
        wait_until("the certificate has ended", || Ok(status().code == EXPIRED)).unwrap();
        happens();
        wait_until("there is a new certificate", || Ok(status().code == 0)).unwrap();
    }

    /// A login from the client's host, by way of the proxies.
    pub(super) fn log_in_from_afar(&self) -> anyhow::Result<()> {
        let home = self.plane.home("nobody");
        let mut login = self.network.inside("client", program("iapctl")?);
        login
            .args(["login", "--no-browser", "--ca"])
            .arg(self.plane.dir().join("auth/root.pem"));
        login.arg(format!("{CLUSTER}:{PUBLIC_PORT}"));
        login.env("IAPCTL_HOME", home).env("IAPCTL_NONINTERACTIVE", "1");
        Ran::from(login.output()?).succeeded().map(drop)
    }

    fn connect(&self, service: &str) -> Command {
        let command = self
            .plane
            .command("alice", &["connect", service, "--stdio"])
            .unwrap();
        let mut inside = self.network.moved_inside("client", &command);
        inside
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        inside
    }

    fn iapctl(&self, host: &str, user: &str, arguments: &[&str]) -> Ran {
        let command = self.plane.command(user, arguments).unwrap();
        self.network.moved_inside(host, &command).output().unwrap().into()
    }

    fn log_in(&self, user: &str) {
        let dir = self.plane.dir().display().to_string();
        self.iapctl("auth", user, &["dev", "login", user, "--dir", &dir])
            .succeeded()
            .unwrap();
    }

    /// One more service, with an agent of its own beside the others. `backend` is as the agent sees it.
    pub(super) fn serve(&mut self, name: &str, protocol: &str, backend: &str) {
        self.offer(&[(name, protocol)]);
        self.start_agent(name, backend, 14_400);
        let deadline = Instant::now() + Duration::from_secs(super::BACK_SECONDS_MAX);
        loop {
            let ran = self.iapctl("client", "alice", &["connect", name, "--", "true"]);
            match ran.succeeded() {
                Ok(_) => return,
                Err(error) => assert!(Instant::now() < deadline, "{name}: {error:#}"),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn offer(&self, services: &[(&str, &str)]) {
        let records: String = services
            .iter()
            .map(|(name, protocol)| {
                format!(
                    "[[service]]\nname = {name:?}\nprotocol = {protocol:?}\ndefault_login = \"app\"\n\
                     labels = {{ env = \"dev\" }}\n\n"
                )
            })
            .collect();
        let file = self.write("services.toml", &records);
        self.iapctl("auth", "admin", &["services", "apply", file.to_str().unwrap()])
            .succeeded()
            .unwrap();
    }

    fn start_proxy(&mut self, host: &'static str) {
        let (here, auth) = (self.network.address(host), self.network.address("auth"));
        let state = self.plane.scratch().join(host);
        let config = self.write(
            &format!("{host}.toml"),
            &format!(
                "cluster = {CLUSTER:?}\nstate_dir = {state:?}\nlisten = [\"{here}:{PUBLIC_PORT}\"]\n\
                 public_address = \"{here}:{PUBLIC_PORT}\"\nauth = \"{auth}:{AUTH_PORT}\"\n\
                 [limits]\ncontrol_ping_seconds = 1\ncontrol_silence_seconds_max = 4\n"
            ),
        );
        let mut token = self.network.inside("auth", program("iap-auth").unwrap());
        token
            .args(["token", "proxy", "--config"])
            .arg(self.plane.dir().join("config/auth.toml"));
        let token: Ran = token.output().unwrap().into();
        let through = format!("{auth}:{AUTH_PORT}");
        self.join(
            host,
            "iap-proxy",
            &config,
            ("--auth", &through),
            token.succeeded().unwrap(),
        );
        let started = self.spawn(host, "iap-proxy", &config, host);
        self.proxies.push(started);
    }

    fn start_agent(&mut self, service: &str, backend: &str, lock_feed_seconds_max: u32) {
        let made = self.iapctl(
            "auth",
            "admin",
            &["tokens", "create", "agent", "--service", service],
        );
        let state = self.plane.scratch().join(format!("agent-{service}"));
        let proxies = ["first", "second"].map(|host| format!("{}:{PUBLIC_PORT}", self.network.address(host)));
        let admin = FIRST_ADMIN_PORT + self.agents.len();
        let config = self.write(
            &format!("agent-{service}.toml"),
            &format!(
                "cluster = {CLUSTER:?}\nstate_dir = {state:?}\nproxies = {proxies:?}\nadmin_listen = \"127.0.0.1:{admin}\"\n\
                 [limits]\nlock_feed_seconds_max = {lock_feed_seconds_max}\noutage_grace_seconds_max = 3\n\
                 [[service]]\nname = {service:?}\nbackend = {backend:?}\n"
            ),
        );
        self.join(
            "agent",
            "iap-agent",
            &config,
            ("--proxy", &proxies[0]),
            made.succeeded().unwrap(),
        );
        let process = self.spawn("agent", "iap-agent", &config, &format!("agent-{service}"));
        self.agents.push(Agent {
            service: service.to_owned(),
            config,
            process,
        });
    }

    fn join(&self, host: &str, name: &str, config: &Path, (flag, address): (&str, &str), token: &str) {
        let file = self.write(&format!("{name}-{host}.token"), token.trim());
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(super::BACK_SECONDS_MAX);
        loop {
            let mut command = self.network.inside(host, program(name).unwrap());
            command
                .args(["join", flag, address, "--token-file"])
                .arg(&file)
                .arg("--config")
                .arg(config);
            let joined: Ran = command.output().unwrap().into();
            match joined.succeeded() {
                Ok(_) => return,
                // A proxy that was started a moment ago may not answer yet.
                Err(error) => assert!(Instant::now() < deadline, "{name} on {host}: {error:#}"),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn spawn(&self, host: &str, name: &str, config: &Path, log: &str) -> Background {
        let log = std::fs::File::create(self.plane.scratch().join(format!("{log}.log"))).unwrap();
        let mut command = self.network.inside(host, program(name).unwrap());
        command
            .arg("--config")
            .arg(config)
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        Background(command.spawn().unwrap())
    }

    /// Alice logged in beside the auth server; from now on she is at the client's host.
    fn lead_client_to_public_proxies(&self) {
        let file = self
            .plane
            .home("alice")
            .join("clusters")
            .join(CLUSTER)
            .join("cluster.json");
        let mut record: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let addresses =
            ["first", "second"].map(|host| format!("{}:{PUBLIC_PORT}", self.network.address(host)));
        record["addresses"] = addresses.to_vec().into();
        std::fs::write(&file, serde_json::to_vec(&record).unwrap()).unwrap();
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.plane.scratch().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}
