//! Brings a whole plane up on this machine, keeps it up, takes it down.
//!
//! The order is an operator's: identity provider, auth server, proxy joined with a token, administrator logged in,
//! services and policy applied, agent joined with a token. Each step runs the real programs.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use iap_runtime::handover::Keeper;
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::Offer;
use super::descriptor::{Descriptor, Pids, users};
use super::layout::{CLUSTER, Layout};
use super::supervisor::{Program, Supervised, Supervisor, end_leftovers, log_tail, sibling};
use super::{backends, config, postgres, provider, say, sshd};

/// From start to ready; `dev.json` appears within this time or the start has failed.
const READY_SECONDS_MAX: u64 = 60;
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// A running plane.
#[derive(Debug)]
pub(crate) struct Plane {
    layout: Layout,
    offer: Offer,
    auth: Supervised,
    proxy: Supervised,
    agent: Supervised,
    postgres: Option<Supervised>,
    sshd: Option<Supervised>,
}

impl Plane {
    /// Starts everything and returns when a session could be opened.
    ///
    /// # Errors
    /// The first step that failed, with the end of the log that explains it. Programs already started go on until
    /// `supervisor` ends them.
    pub(crate) async fn start(dir: &Path, mut offer: Offer, supervisor: &Supervisor) -> anyhow::Result<Self> {
        clear_previous(dir);
        let layout = Layout::prepare(dir)?;
        offer.demo |= layout.config("services.toml").exists();
        let database = if offer.demo {
            Some(start_database(&layout, supervisor)?)
        } else {
            None
        };
        let sshd = match offer.demo {
            true => Some(supervisor.start(sshd::prepare(&layout)?)?),
            false => None,
        };
        write_client_secret(&layout)?;
        config::write_servers(&layout, &offer)?;
        config::write_documents(&layout, &offer)?;
        serve_in_process(&layout, offer.demo, &supervisor.stop).await?;

        say("starting the auth server");
        let auth = supervise(&layout, "auth", "iap-auth", supervisor)?;
        wait_ready(&layout, "auth", layout.ports.auth_admin, &auth).await?;
        if !layout.dir.join("proxy/proxy_id").exists() {
            join_proxy(&layout).await?;
        }
        say("starting the proxy");
        let proxy = supervise(&layout, "proxy", "iap-proxy", supervisor)?;
        wait_ready(&layout, "proxy", layout.ports.proxy_admin, &proxy).await?;
        set_up_as_administrator(&layout, &offer).await?;
        say("starting the agent");
        let agent = supervise(&layout, "agent", "iap-agent", supervisor)?;
        wait_ready(&layout, "agent", layout.ports.agent_admin, &agent).await?;
        let postgres = match database {
            Some(database) => Some(database.await.context("the database's start was interrupted")??),
            None => None,
        };
        super::login::seed_home(&layout)?;
        let plane = Self {
            layout,
            offer,
            auth,
            proxy,
            agent,
            postgres,
            sshd,
        };
        plane.wait_served().await?;
        plane.publish()?;
        Ok(plane)
    }

    pub(crate) fn descriptor(&self) -> Descriptor {
        let layout = &self.layout;
        Descriptor {
            cluster: CLUSTER.to_owned(),
            proxy_addr: layout.proxy_address(),
            web_url: layout.web_url(),
            issuer: layout.issuer(),
            ca_file: layout.root_certificate(),
            iapctl_home: layout.dir.join("home"),
            services: self.offer.services(),
            users: users(),
            pids: Pids {
                auth: self.auth.pid(),
                proxy: self.proxy.pid(),
                agent: self.agent.pid(),
                dev: std::process::id(),
                postgres: self.postgres.as_ref().map(Supervised::pid),
                sshd: self.sshd.as_ref().map(Supervised::pid),
            },
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.layout.dir
    }

    /// Rewrites `dev.json` whenever a restarted program has a new process id; never returns.
    pub(crate) async fn keep_descriptor_true(&self) -> anyhow::Result<()> {
        let mut auth = self.auth.pid_changes();
        let mut proxy = self.proxy.pid_changes();
        let mut agent = self.agent.pid_changes();
        let mut postgres = self.postgres.as_ref().map(Supervised::pid_changes);
        let mut sshd = self.sshd.as_ref().map(Supervised::pid_changes);
        loop {
            tokio::select! {
                changed = auth.changed() => changed?,
                changed = proxy.changed() => changed?,
                changed = agent.changed() => changed?,
                changed = changed(&mut postgres) => changed?,
                changed = changed(&mut sshd) => changed?,
            }
            self.publish()?;
        }
    }

    /// Takes `dev.json` away: nothing is ready any more.
    pub(crate) fn withdraw(dir: &Path) {
        remove_descriptor(&dir.join("dev.json"));
    }

    fn publish(&self) -> anyhow::Result<()> {
        self.descriptor().write(&self.layout.descriptor())
    }

    /// Ready means that a client would be answered: every service's name reaches the agent.
    async fn wait_served(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(READY_SECONDS_MAX);
        for service in self.offer.services() {
            while let Err(error) = super::login::probe_service(&self.layout, &service.name).await {
                if Instant::now() > deadline {
                    bail!(
                        "the service {} was not reachable within {READY_SECONDS_MAX} s: {error:#}\n{}",
                        service.name,
                        log_tail(&self.layout.log("agent"))
                    );
                }
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        }
        Ok(())
    }
}

/// The next process id; never, when there is no such program.
async fn changed(pid: &mut Option<watch::Receiver<u32>>) -> Result<(), watch::error::RecvError> {
    match pid {
        Some(pid) => pid.changed().await,
        None => std::future::pending().await,
    }
}

/// What an earlier supervisor that was ended by force left in the folder.
fn clear_previous(dir: &Path) {
    let previous = Descriptor::read(dir);
    // First, so that nobody takes the old run's file for the new one's.
    remove_descriptor(&dir.join("dev.json"));
    if let Ok(previous) = previous {
        let pids = previous.pids;
        let known = [
            (pids.agent, "iap-agent"),
            (pids.proxy, "iap-proxy"),
            (pids.auth, "iap-auth"),
            (pids.postgres.unwrap_or_default(), "postgres"),
            (pids.sshd.unwrap_or_default(), "sshd"),
        ];
        end_leftovers(dir, &known);
    }
}

fn remove_descriptor(path: &Path) {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove"),
    }
}

type StartingDatabase = tokio::task::JoinHandle<anyhow::Result<Supervised>>;

/// Runs beside the other steps: `initdb` takes a second or two.
fn start_database(layout: &Layout, supervisor: &Supervisor) -> anyhow::Result<StartingDatabase> {
    let installation = postgres::Installation::find()?;
    say("starting PostgreSQL for db-prod");
    let layout = layout.clone();
    let starting = supervisor.clone();
    Ok(supervisor.spawn(async move {
        let prepared = (installation.clone(), layout.clone());
        tokio::task::spawn_blocking(move || prepared.0.initialise(&prepared.1)).await??;
        ensure!(!starting.stop.is_cancelled(), "asked to end while starting");
        let running = starting.start(installation.program(&layout)?)?;
        let filling = tokio::task::spawn_blocking(move || installation.fill(&layout));
        tokio::select! {
            filled = filling => filled??,
            () = starting.stop.cancelled() => bail!("asked to end while starting"),
        }
        Ok(running)
    }))
}

/// The identity provider and the demo's small backends live in this process.
async fn serve_in_process(layout: &Layout, demo: bool, stop: &CancellationToken) -> anyhow::Result<()> {
    let address = ("127.0.0.1", layout.ports.identity_provider);
    let listener = TcpListener::bind(address)
        .await
        .context("cannot listen for the identity provider")?;
    let settings = provider::Settings {
        issuer: layout.issuer(),
        client_id: config::CLIENT_ID.to_owned(),
        client_secret: read_client_secret(layout)?,
        redirect_uris: vec![format!("{}/login/callback", layout.web_url())],
        users: users()
            .into_iter()
            .map(|user| provider::ProviderUser::new(&user.name, user.groups))
            .collect(),
    };
    let serving = provider::serve(listener, settings, stop.clone().cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(error = %format!("{error:#}"), "the identity provider ended");
        }
    });
    if demo {
        backends::serve(layout.ports.echo, layout.ports.web, stop.clone()).await?;
    }
    Ok(())
}

fn supervise(
    layout: &Layout,
    name: &'static str,
    program: &str,
    supervisor: &Supervisor,
) -> anyhow::Result<Supervised> {
    let program = Program {
        name,
        path: sibling(program)?,
        arguments: vec![
            "--config".to_owned(),
            layout.config(&format!("{name}.toml")).display().to_string(),
        ],
        log: layout.log(name),
        stop_signal: Signal::TERM,
        store: (name == "agent").then(|| store(layout)).flatten(),
    };
    supervisor.start(program)
}

/// Where the agent leaves its sessions when it is told to stop, as with systemd.
fn store(layout: &Layout) -> Option<Arc<Keeper>> {
    // Only there where a socket's path may be so long.
    Keeper::listen(&layout.dir.join("agent.notify"))
        .inspect_err(|error| tracing::warn!(%error, "sessions end when the agent is started again"))
        .ok()
        .map(Arc::new)
}

/// Waits for `/readyz`; a program that ends instead (it says why in its log) ends the start at once.
async fn wait_ready(
    layout: &Layout,
    name: &str,
    admin_port: u16,
    program: &Supervised,
) -> anyhow::Result<()> {
    let url = format!("http://127.0.0.1:{admin_port}/readyz");
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(2))
        .build()?;
    let deadline = Instant::now() + Duration::from_secs(READY_SECONDS_MAX);
    loop {
        let answered = client
            .get(&url)
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success());
        if answered {
            return Ok(());
        }
        let ended = program.pid_changes().has_changed().unwrap_or(true);
        if ended || Instant::now() > deadline {
            let log = layout.log(name);
            let how = if ended {
                "ended while it was started"
            } else {
                "was not ready in time"
            };
            bail!("{name} {how}; {} ends with\n{}", log.display(), log_tail(&log));
        }
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}

async fn join_proxy(layout: &Layout) -> anyhow::Result<()> {
    let config = layout.config("auth.toml").display().to_string();
    let token = output(
        &sibling("iap-auth")?,
        &["token", "proxy", "--config", &config],
        &[],
    )
    .await?;
    let file = write_secret(layout, "proxy_token", token.trim())?;
    let own = layout.config("proxy.toml").display().to_string();
    let auth = format!("127.0.0.1:{}", layout.ports.auth);
    let arguments = [
        "join",
        "--config",
        &own,
        "--auth",
        &auth,
        "--token-file",
        &file.display().to_string(),
    ];
    output(&sibling("iap-proxy")?, &arguments, &[]).await.map(|_| ())
}

/// What the first administrator does, with the same commands an operator would type.
async fn set_up_as_administrator(layout: &Layout, offer: &Offer) -> anyhow::Result<()> {
    let enrolled = layout.dir.join("agent/agent_id").exists();
    let marker = layout.dir.join("applied.json");
    let wanted = serde_json::to_vec(&offer.services())?;
    let applied = std::fs::read(&marker).is_ok_and(|applied| applied == wanted);
    if enrolled && applied {
        return Ok(());
    }
    say("logging the administrator in");
    super::login::log_in(layout, &layout.operator_home(), "admin").await?;
    if !applied {
        for (offered, file) in [
            (offer.demo, "services.toml"),
            (!offer.own.is_empty(), "own-services.toml"),
        ] {
            if offered {
                operator(
                    layout,
                    &["services", "apply", &layout.config(file).display().to_string()],
                )
                .await?;
            }
        }
        if offer.demo {
            let export = ["ca", "export", "--service", "ssh-demo", "--kind", "ssh-user"];
            sshd::trust(layout, &operator(layout, &export).await?)?;
        }
        operator(
            layout,
            &[
                "policy",
                "apply",
                &layout.config("policy.toml").display().to_string(),
            ],
        )
        .await?;
    }
    // A plane that gains services gains an agent that is granted them: every join makes a new id.
    empty(&layout.dir.join("agent"))?;
    join_agent(layout, offer).await?;
    std::fs::write(&marker, wanted).with_context(|| format!("cannot write {}", marker.display()))
}

async fn join_agent(layout: &Layout, offer: &Offer) -> anyhow::Result<()> {
    let services = offer.services();
    let mut arguments = vec!["tokens", "create", "agent", "-f", "json"];
    for service in &services {
        arguments.extend(["--service", &service.name]);
    }
    let created: serde_json::Value = serde_json::from_str(&operator(layout, &arguments).await?)
        .context("`iapctl tokens create` printed something else than JSON")?;
    let token = created
        .get("token")
        .and_then(|token| token.as_str())
        .context("no token in the answer")?;
    let file = write_secret(layout, "agent_token", token)?;
    let own = layout.config("agent.toml").display().to_string();
    let proxy = layout.proxy_address();
    let arguments = [
        "join",
        "--config",
        &own,
        "--proxy",
        &proxy,
        "--token-file",
        &file.display().to_string(),
    ];
    output(&sibling("iap-agent")?, &arguments, &[]).await.map(|_| ())
}

fn empty(folder: &Path) -> anyhow::Result<()> {
    std::fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    super::layout::private_folder(folder)
}

async fn operator(layout: &Layout, arguments: &[&str]) -> anyhow::Result<String> {
    let home = layout.operator_home();
    let own = std::env::current_exe().context("cannot find my own file")?;
    output(
        &own,
        arguments,
        &[("IAPCTL_HOME", &home), ("IAPCTL_NONINTERACTIVE", Path::new("1"))],
    )
    .await
}

async fn output(program: &Path, arguments: &[&str], environment: &[(&str, &Path)]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    for (name, value) in environment {
        command.env(name, value);
    }
    let finished = tokio::time::timeout(Duration::from_secs(READY_SECONDS_MAX), command.output())
        .await
        .with_context(|| format!("{} took too long", program.display()))?
        .with_context(|| format!("cannot run {}", program.display()))?;
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    ensure!(
        finished.status.success(),
        "`{name} {}` failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&finished.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&finished.stdout).into_owned())
}

fn write_client_secret(layout: &Layout) -> anyhow::Result<()> {
    if layout.secret("client_secret").exists() {
        return Ok(());
    }
    let mut random = [0_u8; 32];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("the system gave no randomness"))?;
    write_secret(layout, "client_secret", &iap_identity::hex(&random)).map(|_| ())
}

fn read_client_secret(layout: &Layout) -> anyhow::Result<String> {
    let path = layout.secret("client_secret");
    Ok(std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .trim()
        .to_owned())
}

/// Writes a file only its owner may read.
fn write_secret(layout: &Layout, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = layout.secret(name);
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(file, "{text}").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
