//! `iapctl dev`: a whole access plane on this machine, for trying it, for demos and for tests.
//!
//! The auth server, the proxy and the agent are the real programs, started as children; the identity provider and the
//! demo's small backends live in this process.

mod backends;
mod config;
mod descriptor;
mod layout;
mod login;
mod plane;
mod postgres;
pub mod provider;
mod robot;
mod sshd;
mod supervisor;
mod tour;

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use self::config::{Offer, OwnService};
use self::layout::Layout;
use self::plane::Plane;
use self::supervisor::Supervisor;
use crate::failure::Failure;

/// A whole plane on this machine.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DevArgs {
    /// The folder everything of the plane lives in.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Adds the services db-prod (PostgreSQL), echo, ssh-demo (a recorded sshd) and web, and a policy for them.
    #[arg(long)]
    demo: bool,
    /// Adds a TCP service of your own: NAME=HOST:PORT or NAME=unix:/path. May be given several times.
    #[arg(long = "service", value_name = "NAME=ADDRESS")]
    services: Vec<OwnService>,
    /// Adds identity providers beside the built-in one: a TOML file of [[connector]] tables, as in iap-auth's own file.
    #[arg(long = "connectors", value_name = "FILE")]
    connectors: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<DevCommand>,
}

#[derive(Debug, Subcommand)]
enum DevCommand {
    /// Shows the main job step by step on a running plane.
    Tour {
        /// The plane's folder.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Logs a user of the development identity provider in, without a browser.
    Login {
        /// alice, bob, auditor or admin.
        user: String,
        /// The plane's folder.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// Runs `iapctl dev …` with `home` as the iapctl home a login is stored in.
///
/// # Errors
/// The step that failed, with what to do about it.
pub async fn run(arguments: DevArgs, home: PathBuf) -> anyhow::Result<()> {
    match arguments.command {
        Some(DevCommand::Tour { dir }) => tour::run(&folder(dir)?).await,
        Some(DevCommand::Login { user, dir }) => login::run(&folder(dir)?, &home, &user).await,
        None => {
            let offer = Offer {
                demo: arguments.demo,
                connectors: arguments.connectors.map(read).transpose()?.unwrap_or_default(),
                own: arguments.services,
            };
            serve(folder(arguments.dir)?, offer).await
        }
    }
}

fn folder(dir: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    match dir {
        Some(dir) => Ok(std::path::absolute(dir)?),
        None => Layout::default_dir(),
    }
}

fn read(path: PathBuf) -> anyhow::Result<String> {
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

async fn serve(dir: PathBuf, offer: Offer) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let _alone = lock(&dir)?;
    let supervisor = Supervisor::default();
    let ran = tokio::select! {
        ran = run_plane(&dir, offer, &supervisor) => ran,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    say("stopping");
    Plane::withdraw(&dir);
    supervisor.end().await;
    ran
}

async fn run_plane(dir: &Path, offer: Offer, supervisor: &Supervisor) -> anyhow::Result<()> {
    let plane = Plane::start(dir, offer, supervisor).await?;
    introduce(&plane);
    plane.keep_descriptor_true().await
}

/// One supervisor per folder, for as long as the file is held; the system lets go of it however this one ends.
fn lock(dir: &Path) -> anyhow::Result<File> {
    layout::private_folder(dir)?;
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::failed(format!(
            "a development plane already runs in {}",
            dir.display()
        ))
        .next("use it, end it with Ctrl-C, or choose another folder with --dir")
        .into()),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn introduce(plane: &Plane) {
    let descriptor = plane.descriptor();
    let users: Vec<&str> = descriptor
        .users
        .iter()
        .filter_map(|user| user.name.split('@').next())
        .collect();
    let services: Vec<&str> = descriptor
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    say(&format!(
        "ready: {} at {}",
        descriptor.cluster, descriptor.proxy_addr
    ));
    say(&format!("  folder    {}", plane.dir().display()));
    say(&format!("  users     {}", users.join(", ")));
    say(&format!(
        "  services  {}",
        if services.is_empty() {
            "none yet".to_owned()
        } else {
            services.join(", ")
        }
    ));
    if let Some(service) = services.first() {
        say(&format!(
            "  try       iapctl dev login alice && iapctl connect {service}"
        ));
    }
    say("Ctrl-C stops everything.");
}

/// Talk goes to stderr, as in every command.
fn say(line: &str) {
    // Nobody is left to tell when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}
