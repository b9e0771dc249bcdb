//! `iapctl connect NAME`.

mod child;
mod client;
mod stdio;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use iap_identity::LoginName;
use serde_json::json;

use super::interruption::Interruption;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::failure::{self, Failure};
use crate::home::ClusterHome;
use crate::identity::{self, Identity};
use crate::printer::Format;
use crate::services::POSTGRES;
use crate::session::{Early, LocalListener, Serving, Session, Sessions, Wanted, listen_address, stable_port};
use client::LocalEnvironment;

/// Programs of PostgreSQL's that reach a server through libpq.
const LIBPQ_PROGRAMS: [&str; 7] = [
    "psql",
    "pgbench",
    "pg_dump",
    "pg_dumpall",
    "pg_restore",
    "pg_isready",
    "vacuumdb",
];

/// `connect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  iapctl connect db-prod\n  iapctl connect db-prod -- pg_dump -Fc -f dump\n  \
    iapctl connect echo --listen 9000"
)]
pub struct ConnectArguments {
    /// The service's name
    #[arg(value_name = "NAME")]
    service: String,
    /// As which login
    #[arg(short, long)]
    login: Option<String>,
    /// Which database [default: the one named like the login]
    #[arg(short, long)]
    database: Option<String>,
    /// Listen here instead of starting a client: PORT or IP:PORT
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["stdio", "command"])]
    listen: Option<String>,
    /// Allow --listen on an address that others can reach
    #[arg(long, requires = "listen")]
    insecure_listen: bool,
    /// Carry one session over stdin and stdout
    #[arg(long, conflicts_with = "command")]
    stdio: bool,
    #[command(flatten)]
    output: Output,
    /// A command to run with the local address in its environment
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(super) async fn run(arguments: ConnectArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let around_a_command = !arguments.command.is_empty();
    let result = Box::pin(connect(arguments, context)).await;
    match result {
        Err(error) if around_a_command => Ok(failure::report(&context.printer, &error).around_a_command()),
        other => other,
    }
}

async fn connect(arguments: ConnectArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let wanted = wanted(&arguments)?;
    let listen = arguments
        .listen
        .as_deref()
        .map(|text| listen_address(text, arguments.insecure_listen))
        .transpose()?;
    let program = arguments
        .command
        .first()
        .map(|program| child::find(program))
        .transpose();
    let program = match program {
        Ok(program) => program,
        Err(missing) => return Ok(missing.report(&context.printer)),
    };
    let began = Instant::now();
    let identity = identity::require(context).await?;
    let sessions = Sessions::new(context, identity.clone(), wanted).logged_in_since(began);
    let sessions = Arc::new(sessions);
    sessions.renew_beside();
    if arguments.stdio {
        let ended = Box::pin(stdio::run(context, &sessions)).await;
        sessions.end_renewals().await;
        return ended;
    }
    // Before anything else happens: a denial ends here.
    let first = Box::pin(sessions.open(&mut Early::none())).await?;
    say_session(context, &first);
    let names = client::Names::of(&identity, sessions.wanted(), &first);
    if let Some(program) = program {
        let rest = arguments.command.get(1..).unwrap_or_default();
        let command = (program.as_path(), rest);
        return run_command(context, &identity.home, sessions, first, names, command).await;
    }
    if first.protocol == POSTGRES && listen.is_none() {
        return start_psql(context, &identity.home, sessions, first, names).await;
    }
    listen_until_interrupted(context, &identity, sessions, first, listen, arguments.output).await
}

/// One session over stdin and stdout, whatever the service speaks.
pub(super) async fn over_stdio(
    service: &str,
    login: Option<String>,
    context: &Context,
) -> anyhow::Result<ExitStatus> {
    let cluster = context.cluster_home()?;
    let arguments = ConnectArguments {
        service: crate::ssh::service_label(service, cluster.cluster()).to_owned(),
        login,
        database: None,
        listen: None,
        insecure_listen: false,
        stdio: true,
        output: Output { format: Format::Text },
        command: Vec::new(),
    };
    Box::pin(connect(arguments, context)).await
}

fn say_session(context: &Context, session: &Session) {
    let said = format!("session {}", session.session_id.as_uuid());
    context.printer.verbose(&said);
}

fn wanted(arguments: &ConnectArguments) -> Result<Wanted, Failure> {
    let parse = |text: &String| {
        LoginName::parse(text)
            .map_err(|error| Failure::usage(format!("'{text}' is not a login")).because(error.to_string()))
    };
    Ok(Wanted {
        service: api::service_name(&arguments.service)?,
        login: arguments.login.as_ref().map(parse).transpose()?,
        database: arguments.database.clone(),
    })
}

async fn start_psql(
    context: &Context,
    home: &ClusterHome,
    sessions: Arc<Sessions>,
    first: Session,
    names: client::Names,
) -> anyhow::Result<ExitStatus> {
    let Ok(psql) = child::find("psql".as_ref()) else {
        let service = sessions.wanted().service.as_str();
        return Err(Failure::failed(format!("'{service}' speaks PostgreSQL, and its client psql is not installed"))
            .next(format!(
                "install it (Debian: apt install postgresql-client), or iapctl connect {service} --listen 127.0.0.1:0, \
                 or iapctl env {service}"
            ))
            .into());
    };
    run_command(context, home, sessions, first, names, (&psql, &[])).await
}

/// Listens on a port of its own, runs the command, and ends every session with it.
async fn run_command(
    context: &Context,
    home: &ClusterHome,
    sessions: Arc<Sessions>,
    first: Session,
    names: client::Names,
    command: (&Path, &[OsString]),
) -> anyhow::Result<ExitStatus> {
    let (program, arguments) = command;
    let listener = LocalListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
    let listener = if first.protocol == POSTGRES && uses_libpq(program) {
        listener.with_postgres_socket(home, &context.printer)
    } else {
        listener
    };
    let environment = LocalEnvironment {
        address: listener.address,
        socket_folder: listener.socket_folder().map(Path::to_owned),
        names,
    };
    let child = child::Child::start(program, arguments, &environment)?;
    let protocol = first.protocol.clone();
    let serving = Arc::new(Serving::new(
        sessions,
        context.printer.clone(),
        &protocol,
        Some(first),
    ));
    serving.run(listener, child.wait()).await
}

/// PostgreSQL's own programs, which know Unix sockets. Others may take a host for a name and nothing else.
fn uses_libpq(program: &Path) -> bool {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    LIBPQ_PROGRAMS.contains(&name.as_ref())
}

async fn listen_until_interrupted(
    context: &Context,
    identity: &Identity,
    sessions: Arc<Sessions>,
    first: Session,
    listen: Option<SocketAddr>,
    output: Output,
) -> anyhow::Result<ExitStatus> {
    let service = sessions.wanted().service.clone();
    let address = match listen {
        Some(address) => address,
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, stable_port(&identity.home, &service)?)),
    };
    let listener = LocalListener::bind(address).await?;
    let interruption = Interruption::listen()?;
    announce(context, service.as_str(), listener.address, output)?;
    let protocol = first.protocol.clone();
    let serving = Arc::new(Serving::new(
        sessions,
        context.printer.clone(),
        &protocol,
        Some(first),
    ));
    serving.run(listener, interruption.wait()).await;
    Ok(ExitStatus::Done)
}

/// The address on stdout, the talk on stderr.
pub(super) fn announce(
    context: &Context,
    service: &str,
    address: SocketAddr,
    output: Output,
) -> anyhow::Result<()> {
    context
        .printer
        .talk(&format!("'{service}' is at {address} until you press Ctrl-C."));
    if output.is_json() {
        context.printer.json(&json!({
            "service": service,
            "host": address.ip().to_string(),
            "port": address.port(),
            "address": address.to_string(),
        }))?;
    } else {
        context.printer.result(&address.to_string())?;
    }
    Ok(())
}
