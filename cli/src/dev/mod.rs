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
mod supervisor;
mod tour;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use self::config::{Offer, OwnService};
use self::layout::Layout;
use self::plane::Plane;

/// A whole plane on this machine.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DevArgs {
    /// The folder everything of the plane lives in.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Adds the services db-prod (PostgreSQL), echo and web, and a policy for them.
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
    let plane = tokio::select! {
        plane = Plane::start(&dir, offer) => plane?,
        _ = interrupt.recv() => anyhow::bail!("interrupted while starting"),
        _ = terminate.recv() => anyhow::bail!("asked to end while starting"),
    };
    introduce(&plane);
    let kept = tokio::select! {
        kept = plane.keep_descriptor_true() => kept,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    say("stopping");
    plane.shut_down().await;
    kept
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
    say("  try       iapctl dev login alice && iapctl connect db-prod");
    say("Ctrl-C stops everything.");
}

/// Talk goes to stderr, as in every command.
fn say(line: &str) {
    // Nobody is left to tell when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}
