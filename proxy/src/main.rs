//! `iap-proxy`: the command line around the library.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use iap_proxy::state::{self, Reloader};
use iap_proxy::{App, Config, LimitsInForce, config, doctor};
use iap_runtime::config::ConfigErrors;
use iap_runtime::manual::Manual;
use iap_runtime::net::HostPort;
use iap_runtime::reloading::{Checked, Reloading};
use iap_runtime::service_manager::ServiceManager;
use iap_runtime::shutdown::{Hangups, Shutdown};
use iap_runtime::{admin, descriptors, telemetry, tls};
use time::OffsetDateTime;

/// The user's fault, as `sysexits.h` numbers it in spirit: bad usage or configuration.
const EXIT_USAGE: u8 = 2;
/// How long the program waits at its end for what nothing can interrupt, as a resolver that does not answer.
const LEFT_BEHIND: Duration = Duration::from_secs(1);

const MANUAL: Manual<'_> = Manual {
    section: "8",
    files: &[
        ("/etc/iap/proxy.toml", "The configuration."),
        ("/var/lib/iap-proxy", "Key and certificate of this proxy."),
        (
            "/usr/share/doc/iap-proxy/operate.md",
            "Installing, upgrading, and what to do when a part fails.",
        ),
        (
            "/usr/share/doc/iap-proxy/configuration.md",
            "Every key of the configuration.",
        ),
    ],
};

/// Routes connections by server name and moves bytes it cannot read.
#[derive(Parser)]
#[command(name = "iap-proxy", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    run: RunArguments,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct RunArguments {
    /// Configuration file
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Check the configuration file and exit
    #[arg(long)]
    check_config: bool,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Configured(Configured),
    /// Write the manual pages into a folder, as packages want them
    #[command(hide = true)]
    Manual {
        /// The folder; it must exist
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
}

/// What needs the configuration.
#[derive(Subcommand)]
enum Configured {
    /// Join the cluster with a token from `iapctl tokens create proxy`
    Join {
        /// Configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Where the auth server listens; without it, `auth` of the configuration file
        #[arg(long, value_name = "HOST:PORT")]
        auth: Option<HostPort>,
        /// File that holds the token and nobody else may read
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
        /// Do nothing, successfully, where this host has joined before
        #[arg(long)]
        unless_joined: bool,
    },
    /// Look for what may be wrong on this host, towards the auth server and on the way in, and say how to mend it
    Doctor {
        /// Configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// How findings are printed
        #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
        format: Format,
    },
    /// Ask the running proxy whether it is ready; exit code 1 while it is not
    Ready {
        /// Configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let command = match arguments.command {
        Some(Command::Manual { output }) => {
            return exit_code(MANUAL.write(Arguments::command(), &output).map_err(Into::into));
        }
        Some(Command::Configured(command)) => Some(command),
        None => None,
    };
    let file = match (&command, &arguments.run.config) {
        (
            Some(
                Configured::Join { config, .. }
                | Configured::Ready { config }
                | Configured::Doctor { config, .. },
            ),
            _,
        )
        | (None, Some(config)) => config.clone(),
        (None, None) => return ExitCode::from(EXIT_USAGE),
    };
    let config = match Config::load(&file) {
        Ok(config) => config,
        Err(errors) => {
            say(&errors.to_string());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if command.is_none() && arguments.run.check_config {
        tell(&format!("{} is valid", file.display()));
        return ExitCode::SUCCESS;
    }
    exit_code(start(config, &file, command))
}

fn exit_code(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("iap-proxy: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config, file: &Path, command: Option<Configured>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(obey(config, file, command));
    runtime.shutdown_timeout(LEFT_BEHIND);
    outcome
}

async fn obey(config: Config, file: &Path, command: Option<Configured>) -> anyhow::Result<()> {
    let level = telemetry::init(config.log.format, &config.log.level)?;
    tls::install_provider();
    match command {
        Some(Configured::Ready { .. }) => tell(&admin::ask_readiness(config.admin_listen)?),
        Some(Configured::Doctor { format, .. }) => {
            let report = doctor::examine(&config, file).await;
            match format {
                Format::Text => tell(report.render().trim_end()),
                Format::Json => tell(&report.json()?),
            }
            anyhow::ensure!(report.healthy, "something is wrong: see above");
        }
        Some(Configured::Join {
            unless_joined: true, ..
        }) if state::is_joined(&config.state_dir)? => {
            say("this host has joined already");
        }
        Some(Configured::Join { auth, token_file, .. }) => {
            let auth = auth.unwrap_or_else(|| config.auth.clone());
            let id = iap_proxy::join::join(&config, auth, &token_file)
                .await
                .map_err(|error| anyhow!("cannot join: {error}"))?;
            say(&format!("joined {} as proxy {id}", config.cluster));
        }
        None => {
            let shutdown = Shutdown::on_signals()?;
            descriptors::raise_limit();
            let drain = config.limits.drain_seconds_max;
            let app = App::build(config).await?;
            for address in app.local_addresses() {
                tracing::info!(%address, "listening");
            }
            let reloading = Reloading {
                path: file.to_owned(),
                environment_prefix: config::ENVIRONMENT_PREFIX,
                live: config::LIVE_KEYS,
                level,
                manager: ServiceManager::from_environment(),
            };
            let manager = reloading.manager.clone();
            tokio::spawn(manager.clone().follow(shutdown.clone(), drain));
            let check = reading_again(file.to_owned(), app.reloader(), app.limits());
            tokio::spawn(reloading.run(Hangups::listen()?, shutdown.clone(), check));
            let running = app.start(shutdown).await?;
            manager.ready();
            let drained = running.stopped().await;
            tracing::info!(?drained, "stopped");
        }
    }
    Ok(())
}

/// What changes while the proxy runs is its certificate, its limits, and what it logs.
fn reading_again(
    file: PathBuf,
    reloader: Reloader,
    limits: LimitsInForce,
) -> impl FnMut() -> Result<Checked, ConfigErrors> + Send {
    move || {
        let config = Config::load(&file)?;
        let (reloader, limits) = (reloader.clone(), limits.clone());
        let take_over = move || {
            match reloader.reload(OffsetDateTime::now_utc()) {
                Ok(()) => tracing::info!("the certificate was read again"),
                Err(error) => tracing::error!(%error, "the certificate was not read again"),
            }
            limits.take_over(config.limits);
        };
        Ok(Checked {
            level: config.log.level,
            take_over: Box::new(take_over),
        })
    }
}

/// The one place that writes for people.
#[allow(clippy::print_stdout, reason = "a result")]
fn tell(text: &str) {
    println!("{text}");
}

#[allow(clippy::print_stderr, reason = "the command line's own voice")]
fn say(text: &str) {
    eprintln!("{text}");
}
