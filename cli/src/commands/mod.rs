//! One file per command.

pub mod agents;
pub mod audit;
pub mod ca;
pub mod can;
pub mod completion;
pub mod connect;
pub mod doctor;
pub mod env;
pub mod lock;
pub mod login;
pub mod logout;
pub mod ls;
pub mod manual;
pub mod policy;
pub mod proxy;
pub mod proxy_command;
pub mod services;
pub mod sessions;
pub mod ssh;
pub mod status;
pub mod tokens;
pub mod who_can;

mod erase;
mod interruption;
mod play;
mod records;
mod sign_host_key;
mod watch;

use crate::arguments::Command;
use crate::context::Context;
use crate::exit::ExitStatus;

/// Runs one command.
///
/// # Errors
/// Why it failed; [`crate::failure::status_of`] says how to end.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitStatus> {
    match command {
        Command::Login(arguments) => login::run(arguments, context).await,
        Command::Status(arguments) => status::run(arguments, context),
        Command::Logout(arguments) => logout::run(arguments, context).await,
        Command::Ls(arguments) => ls::run(arguments, context).await,
        Command::Connect(arguments) => Box::pin(connect::run(arguments, context)).await,
        Command::Proxy(arguments) => Box::pin(proxy::run(arguments, context)).await,
        Command::Env(arguments) => env::run(arguments, context).await,
        Command::Ssh(arguments) => Ok(ssh::run(arguments, context).await),
        Command::SshConfig(arguments) => Box::pin(ssh::config(arguments, context)).await,
        Command::ProxyCommand(arguments) => Ok(proxy_command::run(arguments, context).await),
        Command::Ca(command) => ca::run(command, context).await,
        Command::Sessions(command) => sessions::run(command, context).await,
        Command::Audit(command) => audit::run(command, context).await,
        Command::Policy(command) => Box::pin(policy::run(command, context)).await,
        Command::Services(command) => services::run(command, context).await,
        Command::Lock(command) => lock::run(command, context).await,
        Command::Tokens(command) => tokens::run(command, context).await,
        Command::Agents(command) => agents::run(command, context).await,
        Command::Can(arguments) => can::run(arguments, context).await,
        Command::Doctor(arguments) => Box::pin(doctor::run(arguments, context)).await,
        Command::WhoCan(arguments) => who_can::run(arguments, context).await,
        Command::Dev(arguments) => Box::pin(crate::dev::run(arguments, context.home.path().to_owned()))
            .await
            .map(|()| ExitStatus::Done),
        Command::Renewer => Box::pin(crate::renewer::run(context.cluster_home()?))
            .await
            .map(|()| ExitStatus::Done),
        Command::Completion(arguments) => completion::run(&arguments, context),
        Command::Manual(arguments) => manual::run(&arguments),
    }
}
