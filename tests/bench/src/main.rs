//! `make bench`: this path beside its peers, in one run. See docs/performance.md for the method.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod joined;
mod light_agent;
mod link;
mod load;
mod measure;
mod part;
mod person;
mod plane;
mod process;
mod report;
mod run;
mod scale;
mod stats;
mod system;

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};

use crate::measure::Sizes;
use crate::part::Part;
use crate::report::Results;
use crate::run::Run;
use crate::system::{ALL, Kind, OURS, Programs};

/// Measures this path beside its peers, and prints what came out or writes it.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    programs: Programs,
    /// Measure these parts alone; the figures of others are kept.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Measure these systems alone, each by its name or else the beginning of it: iap,haproxy.
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    #[command(flatten)]
    sizes: Sizes,
    /// Agents of the part `scale`.
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Where results for programs are kept; nothing is written without.
    #[arg(long, requires = "report")]
    results: Option<PathBuf>,
    /// The page for people.
    #[arg(long, requires = "results")]
    report: Option<PathBuf>,
    /// Write the page for people anew from the results there are.
    #[arg(long, requires = "results")]
    report_only: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A hop of `splice x3`: carries one port to another.
    #[command(hide = true)]
    Hop {
        /// Where it listens.
        listen: u16,
        /// Where it leads.
        to: u16,
    },
}

impl Arguments {
    fn parts(&self) -> Vec<Part> {
        let wanted = |part: &Part| match self.only.as_slice() {
            [] => part.by_default(),
            only => only.contains(part),
        };
        Part::ALL.into_iter().filter(wanted).collect()
    }

    fn kinds(&self) -> anyhow::Result<Vec<Kind>> {
        for word in &self.systems {
            let known = ALL.iter().any(|kind| kind.is_called(word));
            let names = || ALL.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
            ensure!(known, "no system is called {word:?}: there are {}", names());
        }
        let wanted = |kind: &&Kind| {
            let means = |word: &String| match ALL.iter().any(|kind| kind.name == word) {
                true => kind.name == word,
                false => kind.is_called(word),
            };
            self.systems.is_empty() || self.systems.iter().any(means)
        };
        Ok(ALL.iter().filter(wanted).copied().collect())
    }

    /// Where results go, if they are to be kept.
    fn files(&self) -> Option<(PathBuf, PathBuf)> {
        self.results.clone().zip(self.report.clone())
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(Command::Hop { listen, to }) = arguments.command {
        return system::carry_by_splice(listen, to);
    }
    if arguments.report_only {
        let (json, page) = arguments.files().context("name the files")?;
        return Results::read(&json)?.write(&json, &page);
    }
    let results = Run::begin(&arguments)?.all()?;
    if arguments.results.is_none() {
        println!("{}", results.tables());
    }
    ensure!(
        !results.has_failed(OURS),
        "a part of our own path was not measured"
    );
    Ok(())
}
