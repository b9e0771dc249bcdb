//! The command tree.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::commands;
use crate::printer::Format;

/// Reach private services as yourself: log in once, then connect by name.
#[derive(Debug, Parser)]
#[command(
    name = "iapctl",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Begin with: iapctl login CLUSTER, then iapctl ls, then iapctl connect NAME\n\
    Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 denied by policy, 4 login needed"
)]
pub struct Arguments {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
pub struct Global {
    /// The folder that keeps logins [default: ~/.iapctl] [env: IAPCTL_HOME]
    // Read from the environment elsewhere: here it would stand in the usage line of every error.
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub home: Option<PathBuf>,
    /// The cluster to work with [default: the one logged in to last]
    #[arg(
        short,
        long,
        global = true,
        help_heading = "Global options",
        value_name = "CLUSTER"
    )]
    pub cluster: Option<String>,
    /// Say what is being done
    #[arg(short, long, global = true, help_heading = "Global options", action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// No colours (NO_COLOR does the same)
    #[arg(long, global = true, help_heading = "Global options")]
    pub no_color: bool,
}

/// How a command prints its results.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// How results are printed
    #[arg(
        short,
        long,
        visible_short_alias = 'o',
        value_enum,
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub format: Format,
}

impl Output {
    /// Whether programs read the result.
    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Log in through the browser; stores a certificate that lasts an hour
    Login(commands::login::LoginArguments),
    /// Show who you are logged in as, and until when
    Status(commands::status::StatusArguments),
    /// End the login and remove its certificate
    Logout(commands::logout::LogoutArguments),
    /// Look for what may be wrong between here and the cluster, and say how to mend it
    Doctor(commands::doctor::DoctorArguments),
    /// List the services you may reach
    #[command(visible_alias = "list")]
    Ls(commands::ls::LsArguments),
    /// Connect to a service: its own client, a command of yours, or a local port
    Connect(commands::connect::ConnectArguments),
    /// Local ports for graphical clients, several services at once
    Proxy(commands::proxy::ProxyArguments),
    /// Print the settings for clients that speak TLS themselves
    Env(commands::env::EnvArguments),
    /// Log in to a service by SSH; the exit code is the command's, 255 for every failure of ours
    Ssh(commands::ssh::SshArguments),
    /// Print a fragment for ~/.ssh/config, so that ssh, scp, rsync and git know the services by name
    #[command(visible_alias = "config")]
    SshConfig(commands::ssh::SshConfigArguments),
    /// Carry a connection of ssh's: for ProxyCommand
    ProxyCommand(commands::proxy_command::ProxyCommandArguments),
    /// Sessions: who reached what, when, why it was allowed
    #[command(subcommand)]
    Sessions(commands::sessions::SessionsCommand),
    /// The audit log
    #[command(subcommand)]
    Audit(commands::audit::AuditCommand),
    /// The policy: who may reach what
    #[command(subcommand)]
    Policy(commands::policy::PolicyCommand),
    /// The services the cluster knows
    #[command(subcommand)]
    Services(commands::services::ServicesCommand),
    /// Locks: cut somebody or something off at once
    #[command(subcommand)]
    Lock(commands::lock::LockCommand),
    /// Tokens with which agents and proxies join
    #[command(subcommand)]
    Tokens(commands::tokens::TokensCommand),
    /// The authorities that backends are told to trust
    #[command(subcommand)]
    Ca(commands::ca::CaCommand),
    /// The agents that serve services
    #[command(subcommand)]
    Agents(commands::agents::AgentsCommand),
    /// Say whether a user may reach a service (exit code 3 if not)
    Can(commands::can::CanArguments),
    /// List who may reach a service, and by which rules
    WhoCan(commands::who_can::WhoCanArguments),
    /// A whole access plane on this machine, to try it
    Dev(crate::dev::DevArgs),
    /// Renew the login in the background, as `login` starts it
    #[command(hide = true)]
    Renewer,
    /// Print the completion script of a shell
    Completion(commands::completion::CompletionArguments),
    /// Write the manual pages into a folder, as packages want them
    #[command(hide = true)]
    Manual(commands::manual::ManualArguments),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_tree_is_consistent() {
        Arguments::command().debug_assert();
    }
}
