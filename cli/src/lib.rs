//! iapctl: log in, connect, list, administer, audit.
//!
//! Reading order: `arguments` is the command tree; `context` what every command is given; `commands` one
//! file per command. Below them: `home` keeps what a login leaves on disk, `trust` and `login` make it,
//! `identity` reads and renews it, `renewer` does so in the background; `api` talks to the auth server; `session` dials services and carries
//! local connections to them. `failure` and `exit` say how commands end, `printer` is the only place that
//! writes to the terminal.

pub mod address;
pub mod api;
pub mod arguments;
pub mod clock;
pub mod commands;
pub mod context;
pub mod dev;
pub mod diff;
pub mod duration;
pub mod exit;
pub mod failure;
pub mod home;
pub mod identity;
pub mod login;
pub mod pkcs12;
pub mod printer;
pub mod renewer;
pub mod services;
pub mod session;
pub mod ssh;
pub mod table;
pub mod trust;

use std::process::ExitCode;

use clap::Parser as _;

use arguments::Arguments;
use context::Context;
use exit::ExitStatus;
use iap_runtime::traces::FINISH_TIMEOUT;

/// How long background work may go on after the command has ended.
const SHUTDOWN_MILLISECONDS: u64 = 50;

/// Parses the command line, runs one command, and says how it ended.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    iap_runtime::tls::install_provider();
    let (context, runtime) = match prepare(&arguments) {
        Ok(ready) => ready,
        Err(error) => return failure::report(&printer::Printer::new(false, 0), &error).into(),
    };
    let printer = context.printer.clone();
    let outcome = runtime.block_on(Box::pin(commands::run(arguments.command, &context)));
    runtime.block_on(context.traces.finish(FINISH_TIMEOUT));
    runtime.shutdown_timeout(std::time::Duration::from_millis(SHUTDOWN_MILLISECONDS));
    match outcome {
        Ok(status) => status.into(),
        Err(error) => failure::report(&printer, &error).into(),
    }
}

fn prepare(arguments: &Arguments) -> anyhow::Result<(Context, tokio::runtime::Runtime)> {
    let context = Context::new(&arguments.global)?;
    let mut builder = match arguments.command {
        // It lives for hours beside everything else, and mostly sleeps.
        arguments::Command::Renewer => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.enable_all().build()?;
    let context = {
        let _within = runtime.enter();
        context.with_traces()
    };
    Ok((context, runtime))
}

/// The status of a command that did what it was asked.
pub const DONE: ExitStatus = ExitStatus::Done;
