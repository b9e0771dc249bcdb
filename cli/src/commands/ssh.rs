//! `iapctl ssh`: the system's OpenSSH client, told where a service is, who vouches for it, and who one is there.

use std::ffi::OsString;
use std::process::Command;

use clap::Args;

use crate::context::Context;
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::identity::{self, Identity};
use crate::ssh::config::{self, Paths};
use crate::ssh::{self, SshService};

/// `ssh`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  iapctl ssh web-1\n  iapctl ssh deploy@web-1 -- systemctl status nginx\n  \
    iapctl ssh web-1 --ssh-arg=-L8080:localhost:80\nThe exit code is that of the command, and 255 for every failure of ours and of ssh's."
)]
pub struct SshArguments {
    /// The service's name, and as which login
    #[arg(value_name = "[LOGIN@]NAME")]
    target: String,
    /// An argument for ssh itself
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    ssh_arg: Vec<OsString>,
    /// A command to run there; its words are joined with blanks, as ssh does
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// `ssh-config`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  iapctl ssh-config --path   # then, at the top of ~/.ssh/config: Include THAT-PATH\n\
    The file is written anew with each login and renewal, so that ssh, scp, sftp, rsync, git and whatever else starts ssh \
    know the services by name."
)]
pub struct SshConfigArguments {
    /// Print where the fragment is, instead of what it says
    #[arg(long)]
    path: bool,
}

pub(super) async fn run(arguments: SshArguments, context: &Context) -> ExitStatus {
    match Box::pin(start(arguments, context)).await {
        Ok(status) => status,
        Err(error) => super::proxy_command::failed(context, &error),
    }
}

/// The fragment as the newest login has it.
pub(super) async fn config(arguments: SshConfigArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let identity = identity::require(context).await?;
    let text = match identity.home.ssh_config()? {
        Some(text) => text,
        // A login of before there was any.
        None => {
            let renewed = identity::renew_within_limit(&identity).await?;
            renewed.home.ssh_config()?.unwrap_or_default()
        }
    };
    let path = Paths::of(&identity.home)?.fragment();
    if arguments.path {
        context.printer.result(&path.display().to_string())?;
    } else {
        context.printer.result(text.trim_end())?;
        let include = format!(
            "To use it, at the top of ~/.ssh/config: Include {}",
            path.display()
        );
        context.printer.talk(&include);
    }
    Ok(ExitStatus::Done)
}

async fn start(arguments: SshArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let identity = identity::require(context).await?;
    let (login, name) = match arguments.target.rsplit_once('@') {
        Some((login, name)) => (Some(login), name),
        None => (None, arguments.target.as_str()),
    };
    let label = ssh::service_label(name, identity.home.cluster());
    let label = crate::api::service_name(label)?;
    let service = find(&identity, label.as_str()).await?;
    let mut command = Command::new("ssh");
    for (keyword, value) in config::settings(&service, &Paths::of(&identity.home)?) {
        // What is named on the command line comes first, and the first counts.
        if keyword != "User" || login.is_none() {
            command.arg("-o").arg(format!("{keyword} {value}"));
        }
    }
    if let Some(login) = login {
        command.arg("-l").arg(login);
    }
    command
        .args(&arguments.ssh_arg)
        .arg("--")
        .arg(service.name.as_str());
    command.args(&arguments.command);
    replace(command)
}

/// The service as the login knows it; a renewal brings what was granted since.
async fn find(identity: &Identity, name: &str) -> anyhow::Result<SshService> {
    let known =
        |services: Vec<SshService>| services.into_iter().find(|service| service.name.as_str() == name);
    if let Some(service) = known(ssh::services(&identity.home)?) {
        return Ok(service);
    }
    let renewed = identity::renew_within_limit(identity).await;
    if let Some(service) = known(ssh::services(&identity.home)?) {
        return Ok(service);
    }
    let because = match renewed {
        Ok(_) => {
            "it does not exist, speaks another protocol, or the policy gives you no login there".to_owned()
        }
        Err(error) => {
            format!("the stored login knows none of that name, and could not be renewed: {error:#}")
        }
    };
    Err(Failure::failed(format!("'{name}' is no SSH service of yours"))
        .because(because)
        .next("iapctl ls")
        .into())
}

/// OpenSSH takes our place, with the terminal, the signals and the exit code.
#[cfg(unix)]
fn replace(mut command: Command) -> anyhow::Result<ExitStatus> {
    use std::os::unix::process::CommandExt as _;
    let error = command.exec();
    Err(not_started(&error))
}

#[cfg(not(unix))]
fn replace(mut command: Command) -> anyhow::Result<ExitStatus> {
    let status = command.status().map_err(|error| not_started(&error))?;
    Ok(ExitStatus::of_command(status))
}

fn not_started(error: &std::io::Error) -> anyhow::Error {
    Failure::failed("cannot run the OpenSSH client 'ssh'")
        .because(error.to_string())
        .next("install it (Debian: apt install openssh-client)")
        .into()
}
