//! `iapctl completion SHELL`.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::arguments::Arguments;
use crate::context::Context;
use crate::exit::ExitStatus;

/// `completion`.
#[derive(Debug, Args)]
pub struct CompletionArguments {
    /// Which shell's script to print
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(arguments: &CompletionArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "iapctl", &mut script);
    context.printer.result(&String::from_utf8(script)?)?;
    Ok(ExitStatus::Done)
}
