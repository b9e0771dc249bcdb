//! `iapctl proxy-command`: what `ssh` starts to reach a service. OpenSSH takes 255 for "the connection failed", so every
//! failure of ours is that.

use clap::Args;

use super::connect;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::failure;

/// `proxy-command`.
#[derive(Debug, Args)]
pub struct ProxyCommandArguments {
    /// As which login: %r in a configuration of ssh
    #[arg(short, long)]
    login: Option<String>,
    /// The service's name, with or without the cluster's behind it
    #[arg(value_name = "NAME")]
    service: String,
}

pub(super) async fn run(arguments: ProxyCommandArguments, context: &Context) -> ExitStatus {
    let carried = Box::pin(connect::over_stdio(&arguments.service, arguments.login, context)).await;
    carried.unwrap_or_else(|error| failed(context, &error))
}

/// Says what failed; the status that OpenSSH uses for it.
pub(super) fn failed(context: &Context, error: &anyhow::Error) -> ExitStatus {
    match failure::report(&context.printer, error) {
        ExitStatus::Done => ExitStatus::Done,
        ExitStatus::Failed
        | ExitStatus::Usage
        | ExitStatus::Denied
        | ExitStatus::LoginNeeded
        | ExitStatus::Command(_) => ExitStatus::Command(u8::MAX),
    }
}
