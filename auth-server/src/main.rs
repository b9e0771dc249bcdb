//! `iap-auth --config FILE`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use iap_auth::app::App;
use iap_auth::config::Config;
use iap_auth::context::{Clock, Random};
use iap_auth::idp::{self, TestArguments};
use iap_auth::{local, printer};
use iap_runtime::shutdown::Shutdown;
use iap_runtime::{telemetry, tls};

/// Bad arguments or a bad configuration, as clap says it too.
const EXIT_USAGE: u8 = 2;

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
    /// Make a join token on this host, through the running server: how the first proxy joins.
    Token {
        #[command(subcommand)]
        kind: TokenFor,
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
    let outcome = match arguments.command {
        None => run(config).map(|()| true),
        Some(Command::Token {
            kind: TokenFor::Proxy { ttl },
        }) => proxy_token(&config, ttl).map(|()| true),
        Some(Command::Idp {
            what: IdpCommand::Test(arguments),
        }) => idp_test(&config, &arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            printer::failure(&format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    telemetry::init(config.log_format, &config.log_level)?;
    tls::install_provider();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(config))
}

fn proxy_token(config: &Config, ttl: u32) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    printer::token(&runtime.block_on(local::ask_for_proxy_token(&config.data_dir, ttl))?);
    Ok(())
}

fn idp_test(config: &Config, arguments: &TestArguments) -> anyhow::Result<bool> {
    tls::install_provider();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(idp::test(config, arguments))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals()?;
    let app = App::build(config.clone(), Clock::system(), Random::system()).await?;
    if app.is_first_start() {
        printer::first_start(&config, &app.pin());
    }
    Ok(app.run(shutdown).await?)
}
