//! The node agent: ends mutual TLS, decides, records, dials the backend.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use iap_agent::app::Reload;
use iap_agent::printer;
use iap_agent::session::Inheritance;
use iap_agent::{App, Config, config, doctor, join, limits};
use iap_runtime::config::ConfigErrors;
use iap_runtime::manual::Manual;
use iap_runtime::net::HostPort;
use iap_runtime::reloading::{Checked, Reloading};
use iap_runtime::service_manager::ServiceManager;
use iap_runtime::shutdown::{Hangups, Shutdown};
use iap_runtime::{admin, descriptors, telemetry, tls};

/// Lets people and programs of a cluster reach the private services beside this host.
#[derive(Debug, Parser)]
#[command(name = "iap-agent", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Args)]
struct Run {
    /// The configuration file.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Check the configuration file and exit.
    #[arg(long)]
    check_config: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join the cluster with a token from `iapctl tokens create agent`.
    Join(Join),
    /// Ask the running agent whether it is ready; exit code 1 while it is not.
    Ready {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Look for what may be wrong on this host and on the way to the cluster, and say how to mend it.
    Doctor(Doctor),
    /// Write the manual pages into a folder, as packages want them.
    #[command(hide = true)]
    Manual {
        /// The folder; it must exist.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Join {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A proxy of the cluster.
    #[arg(long, value_name = "HOST:PORT")]
    proxy: HostPort,
    /// The file that holds the token, readable by its owner alone.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Join anew under a new id, although this host has joined before.
    #[arg(long)]
    replace: bool,
    /// Do nothing, successfully, where this host has joined before.
    #[arg(long, conflicts_with = "replace")]
    unless_joined: bool,
}

#[derive(Debug, Args)]
struct Doctor {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How findings are printed.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Bad input: a configuration file with mistakes.
const EXIT_USAGE: u8 = 2;

const MANUAL: Manual<'_> = Manual {
    section: "8",
    files: &[
        ("/etc/iap/agent.toml", "The configuration."),
        (
            "/var/lib/iap-agent",
            "Keys, what the auth server said last, and records that it does not have yet.",
        ),
        (
            "/usr/share/doc/iap-agent/operate.md",
            "Installing, upgrading, offboarding, and what to do when a part fails.",
        ),
        (
            "/usr/share/doc/iap-agent/configuration.md",
            "Every key of the configuration.",
        ),
    ],
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tls::install_provider();
    match (arguments.command, arguments.run) {
        (Some(Command::Join(join)), _) => {
            with_config(&join.config, |config| block_on(join_cluster(config, &join)))
        }
        (Some(Command::Ready { config }), _) => with_config(&config, |config| ready(&config)),
        (Some(Command::Manual { output }), _) => {
            exit_code(MANUAL.write(Arguments::command(), &output).map_err(Into::into))
        }
        (Some(Command::Doctor(doctor)), _) => {
            with_config(&doctor.config, |config| block_on(examine(config, &doctor)))
        }
        (
            None,
            Run {
                config: Some(path),
                check_config: true,
            },
        ) => with_config(&path, |_| {
            printer::line(&format!("{} is valid", path.display()));
            Ok(())
        }),
        (
            None,
            Run {
                config: Some(path),
                check_config: false,
            },
        ) => with_config(&path, |config| block_on(serve(config, &path))),
        (None, Run { config: None, .. }) => {
            printer::error("--config FILE is missing");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn with_config(path: &Path, action: impl FnOnce(Config) -> anyhow::Result<()>) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(errors) => {
            printer::error(&errors.to_string());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    exit_code(action(config))
}

fn exit_code(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            printer::error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// How long threads may be waited for that nothing can interrupt, such as a look-up of a name, once the work is
/// done: an agent that was told to stop has to go.
const THREADS_TIMEOUT: Duration = Duration::from_secs(1);

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(THREADS_TIMEOUT);
    outcome
}

fn ready(config: &Config) -> anyhow::Result<()> {
    let address = config
        .admin_listen
        .context("admin_listen is not set, so nobody can ask")?;
    printer::line(&admin::ask_readiness(address)?);
    Ok(())
}

async fn join_cluster(config: Config, arguments: &Join) -> anyhow::Result<()> {
    if arguments.unless_joined
        && let Some(agent_id) = join::joined(&config)?
    {
        printer::line(&format!("this host has joined already as agent {agent_id}"));
        return Ok(());
    }
    let joined = join::join(
        &config,
        &arguments.proxy,
        &arguments.token_file,
        arguments.replace,
    )
    .await?;
    printer::line(&format!("joined {} as agent {}", config.cluster, joined.agent_id));
    for service in joined.granted {
        printer::line(&format!("  granted: {service}"));
    }
    Ok(())
}

/// Whoever reads the findings needs no further sentence when something failed.
async fn examine(config: Config, arguments: &Doctor) -> anyhow::Result<()> {
    let report = doctor::examine(&config, &arguments.config).await;
    match arguments.format {
        Format::Text => printer::line(report.render().trim_end()),
        Format::Json => printer::line(&report.json()?),
    }
    anyhow::ensure!(report.healthy, "something is wrong: see above");
    Ok(())
}

async fn serve(config: Config, path: &Path) -> anyhow::Result<()> {
    let level = telemetry::init(config.log.format, &config.log.level)?;
    let inheritance = Inheritance::from_environment();
    let shutdown = Shutdown::on_signals()?;
    descriptors::raise_limit();
    let hangups = Hangups::listen()?;
    let drain = config.limits.drain();
    let app = App::build_after(config, inheritance).await?;
    let reloading = Reloading {
        path: path.to_owned(),
        environment_prefix: config::ENVIRONMENT_PREFIX,
        live: limits::LIVE_KEYS,
        level,
        manager: ServiceManager::from_environment(),
    };
    let manager = reloading.manager.clone();
    tokio::spawn(manager.clone().follow(shutdown.clone(), drain));
    let check = reading_again(app.reload(), path.to_owned());
    tokio::spawn(reloading.run(hangups, shutdown.clone(), check));
    app.run(shutdown, move || manager.ready()).await?;
    Ok(())
}

/// The services and limits of the file take effect; the sessions of a service that it no longer lists or allows end.
fn reading_again(reload: Reload, path: PathBuf) -> impl FnMut() -> Result<Checked, ConfigErrors> + Send {
    move || {
        let config = Config::load(&path)?;
        let reload = reload.clone();
        let take_over = move || {
            let services = config.services.len();
            tracing::info!(services, "the file's services are read again");
            reload.services(config.services);
            reload.limits(config.limits);
        };
        Ok(Checked {
            level: config.log.level,
            take_over: Box::new(take_over),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_that_nothing_can_interrupt_does_not_keep_the_program() {
        let (release, held) = mpsc::channel::<()>();
        let (done, finished) = mpsc::channel();
        std::thread::spawn(move || {
            let outcome = block_on(async {
                let (started, runs) = tokio::sync::oneshot::channel();
                tokio::task::spawn_blocking(move || {
                    let _ = started.send(());
                    let _ = held.recv();
                });
                Ok(runs.await?)
            });
            done.send(outcome.is_ok()).unwrap();
        });
        assert!(finished.recv_timeout(Duration::from_secs(30)).unwrap());
        drop(release);
    }
}
