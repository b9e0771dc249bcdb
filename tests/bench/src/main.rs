//! `make bench`: this path beside its peers, in one run. See docs/performance.md for the method.
#![allow(clippy::print_stderr)]

mod half_open;
mod load;
mod nginx;
mod ours;
mod policy;
mod process;
mod report;
mod scale;
mod snapshot;
mod system;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;

use crate::ours::Plane;
use crate::report::{Results, machine, median};
use crate::system::System;

const GIB: u64 = 1 << 30;
const STREAMS: [u64; 2] = [1, 8];
const PARALLEL: [usize; 2] = [1, 16];

/// Measures and writes the results.
#[derive(Debug, Parser)]
struct Arguments {
    /// The folder of the release programs.
    #[arg(long, default_value = "target/release")]
    bin: PathBuf,
    /// For programs.
    #[arg(long, default_value = "tests/bench/results.json")]
    results: PathBuf,
    /// For people.
    #[arg(long, default_value = "docs/performance.md")]
    report: PathBuf,
    /// Rounds of which the median is taken.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// GiB in each bulk measurement.
    #[arg(long, default_value_t = 2)]
    gib: u64,
    /// Measure 10,000 half-open connections alone, and replace the figures of that name.
    #[arg(long)]
    half_open: bool,
    /// Seconds of each measurement of new sessions.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Measures many agents, a large policy and locks instead.
    #[arg(long)]
    scale: bool,
    /// Writes the page for people anew from the results there are.
    #[arg(long)]
    report_only: bool,
    /// Agents of `--scale`.
    #[arg(long, default_value_t = 1000)]
    agents: usize,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if arguments.report_only {
        return Results::read(&arguments.results)?.write(&arguments.results, &arguments.report);
    }
    if arguments.scale {
        return scale::run(&arguments);
    }
    let folder = tempfile::Builder::new().prefix("iap-bench.").tempdir_in("/tmp")?;
    let backend = load::serve_backend()?;
    let mut results = Results {
        machine: machine(),
        versions: versions(&arguments),
        ..Results::default()
    };

    if arguments.half_open {
        return measure_half_open(&arguments, folder.path(), backend);
    }
    eprintln!("starting nginx x3 and a plane of our own");
    let plane = Plane::start(&arguments.bin, &folder.path().join("plane"), backend)?;
    let home = plane.log_in("alice")?;
    let systems = vec![
        plane.path(&home)?,
        nginx::start(&nginx::folder(folder.path())?, backend)?,
    ];
    for system in &systems {
        load::bulk(system.port, 1, GIB / 8)?;
    }
    measure_bulk(&arguments, &systems, &mut results)?;
    measure_sessions(&arguments, &systems, &mut results)?;
    eprintln!("10,000 half-open connections");
    half_open::measure(&plane, systems.first().map_or(0, |own| own.port), &mut results)?;
    for system in systems {
        system.end();
    }
    eprintln!("policy and snapshots");
    results.add(
        "policy_us_1000",
        "iap",
        policy::microseconds_per_decision()?,
        "µs",
    );
    results.add(
        "snapshot_s_100",
        "iap",
        snapshot::seconds_to_agents(&plane, 100)?,
        "s",
    );
    if let Ok(earlier) = Results::read(&arguments.results) {
        results.keep_others_of(earlier);
    }
    results.write(&arguments.results, &arguments.report)?;
    eprintln!(
        "wrote {} and {}",
        arguments.results.display(),
        arguments.report.display()
    );
    Ok(())
}

fn measure_half_open(arguments: &Arguments, folder: &Path, backend: u16) -> anyhow::Result<()> {
    let mut results = Results::read(&arguments.results)?;
    let plane = Plane::start(&arguments.bin, &folder.join("plane"), backend)?;
    let own = plane.path(&plane.log_in("alice")?)?;
    half_open::measure(&plane, own.port, &mut results)?;
    own.end();
    results.write(&arguments.results, &arguments.report)
}

fn measure_bulk(arguments: &Arguments, systems: &[System], results: &mut Results) -> anyhow::Result<()> {
    for streams in STREAMS {
        let mut samples: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
        for round in 1..=arguments.rounds {
            for system in systems {
                let before = system.read_cpu()?;
                let seconds = load::bulk(system.port, streams, arguments.gib * GIB)?;
                let after = system.read_cpu()?;
                let gib = whole(arguments.gib);
                let path = after.path_since(&before) / gib;
                let rate = gib * whole(GIB) * 8.0 / seconds / 1e9;
                eprintln!(
                    "{:9} {streams} streams, round {round}: {rate:.2} Gbit/s, {path:.2} CPU-s/GiB",
                    system.name
                );
                samples
                    .entry((system.name, "path_cpu_s_per_gib"))
                    .or_default()
                    .push(path);
                let proxy = after.proxy_since(&before) / gib;
                samples
                    .entry((system.name, "proxy_cpu_s_per_gib"))
                    .or_default()
                    .push(proxy);
                samples
                    .entry((system.name, "throughput_gbit"))
                    .or_default()
                    .push(rate);
            }
        }
        for ((system, figure), mut values) in samples {
            let unit = if figure == "throughput_gbit" {
                "Gbit/s"
            } else {
                "CPU-s/GiB"
            };
            results.add(&format!("{figure}_{streams}"), system, median(&mut values), unit);
        }
    }
    Ok(())
}

fn measure_sessions(arguments: &Arguments, systems: &[System], results: &mut Results) -> anyhow::Result<()> {
    for parallel in PARALLEL {
        let mut samples: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
        for round in 1..=arguments.rounds {
            for system in systems {
                let before = system.read_cpu()?;
                let (opened, seconds) =
                    load::sessions(system.port, parallel, Duration::from_secs(arguments.seconds))?;
                let after = system.read_cpu()?;
                let rate = whole(opened) / seconds;
                let each = after.path_since(&before) * 1e6 / whole(opened.max(1));
                eprintln!(
                    "{:9} {parallel} parallel, round {round}: {rate:.0} sessions/s, {each:.0} CPU-µs each",
                    system.name
                );
                samples.entry((system.name, "new_per_s")).or_default().push(rate);
                samples.entry((system.name, "new_cpu_us")).or_default().push(each);
            }
        }
        for ((system, figure), mut values) in samples {
            let unit = if figure == "new_per_s" { "1/s" } else { "µs" };
            results.add(&format!("{figure}_{parallel}"), system, median(&mut values), unit);
        }
    }
    Ok(())
}

/// Counts here stay far below 2^52.
#[allow(clippy::cast_precision_loss)]
fn whole(count: u64) -> f64 {
    count as f64
}

fn versions(arguments: &Arguments) -> BTreeMap<String, String> {
    let own = Command::new(arguments.bin.join("iapctl"))
        .arg("--version")
        .output();
    let own = own
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default();
    BTreeMap::from([
        ("iap".to_owned(), own),
        ("nginx".to_owned(), nginx::version()),
        (
            "command".to_owned(),
            format!(
                "make bench ({} rounds of {} GiB)",
                arguments.rounds, arguments.gib
            ),
        ),
    ])
}
