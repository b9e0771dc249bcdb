//! `iapctl manual --output DIR`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use iap_runtime::manual::Manual;

use crate::arguments::Arguments;
use crate::exit::ExitStatus;

const MANUAL: Manual<'_> = Manual {
    section: "1",
    files: &[("~/.iapctl", "Logins. IAPCTL_HOME or --home names another folder.")],
};

/// `manual`.
#[derive(Debug, Args)]
pub struct ManualArguments {
    /// The folder; it must exist
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

pub(super) fn run(arguments: &ManualArguments) -> anyhow::Result<ExitStatus> {
    let folder = &arguments.output;
    MANUAL
        .write(Arguments::command(), folder)
        .with_context(|| format!("cannot write the manual pages into {}", folder.display()))?;
    Ok(ExitStatus::Done)
}
