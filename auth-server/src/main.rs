//! `iap-auth --config FILE`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand};
use iap_auth::app::{App, LimitsInForce};
use iap_auth::break_glass::{self, Wish};
use iap_auth::config::{self, Config};
use iap_auth::context::{Clock, Random};
use iap_auth::idp::{self, TestArguments};
use iap_auth::listener::WebTls;
use iap_auth::{backup, doctor, local, printer};
use iap_runtime::config::{ConfigDuration, ConfigErrors};
use iap_runtime::manual::Manual;
use iap_runtime::net::HostPort;
use iap_runtime::reloading::{Checked, Reloading};
use iap_runtime::service_manager::ServiceManager;
use iap_runtime::shutdown::{Hangups, Shutdown};
use iap_runtime::{admin, descriptors, telemetry, tls};

/// Bad arguments or a bad configuration, as clap says it too.
const EXIT_USAGE: u8 = 2;
/// How long the program waits at its end for what nothing can interrupt, as a resolver that does not answer.
const LEFT_BEHIND: Duration = Duration::from_secs(1);

const MANUAL: Manual<'_> = Manual {
    section: "8",
    files: &[
        ("/etc/iap/auth.toml", "The configuration."),
        ("/var/lib/iap-auth", "Keys and database: the cluster."),
        (
            "/usr/share/doc/iap-auth/operate.md",
            "Installing, upgrading, backup, break-glass, and what to do when a part fails.",
        ),
        (
            "/usr/share/doc/iap-auth/configuration.md",
            "Every key of the configuration.",
        ),
    ],
};

/// The auth server: certificates, login, join, policy, audit.
#[derive(Parser)]
#[command(name = "iap-auth", version)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        default_value = "/etc/iap/auth.toml"
    )]
    config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Configured(Configured),
    /// Write the manual pages into a folder, as packages want them
    #[command(hide = true)]
    Manual {
        /// The folder; it must exist.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
}

/// What needs the configuration.
#[derive(Subcommand)]
enum Configured {
    /// Ask the running server whether it is ready; exit code 1 while it is not.
    Ready,
    /// Look for what may be wrong on this host, at the providers and on the way in, and say how to mend it.
    Doctor {
        /// How findings are printed.
        #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
        format: Format,
    },
    /// Make a join token on this host, through the running server: how the first proxy joins.
    Token {
        #[command(subcommand)]
        kind: TokenFor,
    },
    /// Copy database and keys to one file (0600) that `restore` brings the cluster back from; the server may run.
    Backup {
        /// The file to make; it must not exist.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Bring the cluster back from a backup, into an empty data_dir; then start the server.
    Restore {
        /// The backup.
        #[arg(value_name = "FILE")]
        backup: PathBuf,
    },
    /// Break glass: a certificate with every admin verb, without a login, for whoever administers this host. The
    /// server must run; the reason is recorded first.
    AdminCert {
        /// How long it lives, such as 15m; at most 1h.
        #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = ConfigDuration::parse)]
        ttl: ConfigDuration,
        /// Why; goes into the audit log.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// The folder to make, for `iapctl --home`.
        #[arg(long, value_name = "DIR", default_value = "iap-break-glass")]
        home: PathBuf,
        /// What iapctl shall dial, such as a proxy; without it, this server.
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<HostPort>,
    },
    /// Identity providers.
    Idp {
        #[command(subcommand)]
        what: IdpCommand,
    },
}

#[derive(Subcommand)]
enum IdpCommand {
    /// Try a connector: checks the provider, lets somebody sign in, and shows who that is and which rules match.
    Test(TestArguments),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Subcommand)]
enum TokenFor {
    /// A single-use token for `iap-proxy join`; printed on standard output.
    Proxy {
        /// Until when it can be used, in seconds; 0 for 30 minutes.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        ttl: u32,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let command = match arguments.command {
        Some(Command::Manual { output }) => return exit_code(manual(&output).map(|()| true)),
        Some(Command::Configured(command)) => Some(command),
        None => None,
    };
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(errors) => {
            printer::failure(&errors);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if arguments.check_config {
        printer::configuration_is_good(&config);
        return ExitCode::SUCCESS;
    }
    let outcome = match command {
        None => run(config, &arguments.config).map(|()| true),
        Some(Configured::Ready) => ready(&config).map(|()| true),
        Some(Configured::Doctor { format }) => examine(&config, &arguments.config, format),
        Some(Configured::Token {
            kind: TokenFor::Proxy { ttl },
        }) => proxy_token(&config, ttl).map(|()| true),
        Some(Configured::Idp {
            what: IdpCommand::Test(arguments),
        }) => idp_test(&config, &arguments),
        Some(Configured::Backup { output }) => make_backup(&config, &output).map(|()| true),
        Some(Configured::Restore { backup }) => restore(&config, &backup).map(|()| true),
        Some(Configured::AdminCert {
            ttl,
            reason,
            home,
            address,
        }) => admin_certificate(
            &config,
            &Wish {
                life: ttl.get(),
                reason,
                home,
                address,
            },
        )
        .map(|()| true),
    };
    exit_code(outcome)
}

fn exit_code(outcome: anyhow::Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            printer::failure(&format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config, file: &Path) -> anyhow::Result<()> {
    let level = telemetry::init(config.log_format, &config.log_level)?;
    let manager = ServiceManager::from_environment();
    let reloading = Reloading {
        path: file.to_owned(),
        environment_prefix: config::ENVIRONMENT_PREFIX,
        live: config::LIVE_KEYS,
        level,
        manager,
    };
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(config, reloading));
    runtime.shutdown_timeout(LEFT_BEHIND);
    outcome
}

fn manual(folder: &Path) -> anyhow::Result<()> {
    Ok(MANUAL.write(Arguments::command(), folder)?)
}

fn ready(config: &Config) -> anyhow::Result<()> {
    printer::readiness(&admin::ask_readiness(config.admin_listen)?);
    Ok(())
}

fn examine(config: &Config, file: &Path, format: Format) -> anyhow::Result<bool> {
    tls::install_provider();
    let report = one_command()?.block_on(doctor::examine(config, file));
    match format {
        Format::Text => printer::findings_of_doctor(report.render().trim_end()),
        Format::Json => printer::findings_of_doctor(&report.json()?),
    }
    Ok(report.healthy)
}

fn proxy_token(config: &Config, ttl: u32) -> anyhow::Result<()> {
    printer::token(&one_command()?.block_on(local::ask_for_proxy_token(&config.data_dir, ttl))?);
    Ok(())
}

fn idp_test(config: &Config, arguments: &TestArguments) -> anyhow::Result<bool> {
    tls::install_provider();
    one_command()?.block_on(idp::test(config, arguments))
}

fn make_backup(config: &Config, output: &Path) -> anyhow::Result<()> {
    let now = Clock::system().now();
    printer::backup_made(&one_command()?.block_on(backup::make(config, output, now))?);
    Ok(())
}

fn restore(config: &Config, file: &Path) -> anyhow::Result<()> {
    let (clock, random) = (Clock::system(), Random::system());
    let report = one_command()?.block_on(backup::restore(config, file, &clock, &random))?;
    printer::restored(config, &report);
    Ok(())
}

fn admin_certificate(config: &Config, wish: &Wish) -> anyhow::Result<()> {
    let given = one_command()?.block_on(break_glass::obtain(config, wish))?;
    printer::admin_certificate(wish, &given);
    Ok(())
}

fn one_command() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn serve(config: Config, reloading: Reloading) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals()?;
    let hangups = Hangups::listen()?;
    descriptors::raise_limit();
    let app = App::build(config.clone(), Clock::system(), Random::system()).await?;
    if app.is_first_start() {
        printer::first_start(&config, &app.pin());
    }
    let (manager, path) = (reloading.manager.clone(), reloading.path.clone());
    let follow = manager
        .clone()
        .follow(shutdown.clone(), config.limits.drain_timeout);
    tokio::spawn(follow);
    let check = reading_again(path, app.web_tls(), app.limits());
    tokio::spawn(reloading.run(hangups, shutdown.clone(), check));
    Ok(app.run(shutdown, move || manager.ready()).await?)
}

/// What changes of the file while the server runs are its limits, and what it logs; the certificate that browsers
/// see is read again too.
fn reading_again(
    path: PathBuf,
    web: WebTls,
    limits: LimitsInForce,
) -> impl FnMut() -> Result<Checked, ConfigErrors> + Send {
    move || {
        let config = Config::load(&path)?;
        let (web, limits) = (web.clone(), limits.clone());
        Ok(Checked {
            level: config.log_level,
            take_over: Box::new(move || {
                match web.reload() {
                    Ok(()) => tracing::info!("the public certificate was read again"),
                    Err(error) => tracing::error!(%error, "the public certificate stays as it was"),
                }
                limits.take_over(config.limits)
            }),
        })
    }
}
