//! One run: which parts in which order, on which systems, and what becomes of the results.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::part::Part;
use crate::plane::Plane;
use crate::report::{Results, load_average, machine};
use crate::system::{Certificates, Kind, Network, OURS, Site, System};
use crate::{Arguments, load, measure, scale};

/// One way, between any two hops.
const WAN: Network = Network::Wan(std::time::Duration::from_millis(20));
const WARMING_MIB: u64 = 128;
const AGENTS_OF_SNAPSHOT: usize = 100;

/// A run under way.
pub(crate) struct Run<'a> {
    arguments: &'a Arguments,
    parts: Vec<Part>,
    kinds: Vec<Kind>,
    certificates: Certificates,
    folder: TempDir,
    /// The port of what every path leads to.
    backend: u16,
    /// Where results go, if they are kept.
    files: Option<(PathBuf, PathBuf)>,
    /// The load average when it began.
    load: String,
    results: Results,
    done: Vec<Part>,
}

impl<'a> Run<'a> {
    /// Makes what all parts need.
    ///
    /// # Errors
    /// When there is no OpenSSL, no port, or a system is unknown.
    pub(crate) fn begin(arguments: &'a Arguments) -> anyhow::Result<Self> {
        iap_runtime::descriptors::raise_limit();
        let folder = tempfile::Builder::new().prefix("iap-bench.").tempdir_in("/tmp")?;
        let certificates = Certificates::make(folder.path().join("certificates"))?;
        let mut results = Results {
            machine: machine(),
            ..Results::default()
        };
        let mut version = |name: &str, version: &str| {
            results.versions.insert(name.to_owned(), version.to_owned());
        };
        version("openssl", &certificates.version);
        version("key exchange of the peers", certificates.group);
        Ok(Self {
            arguments,
            parts: arguments.parts(),
            kinds: arguments.kinds()?,
            certificates,
            folder,
            backend: load::serve_backend()?,
            files: arguments.files(),
            load: load_average(),
            results,
            done: Vec::new(),
        })
    }

    /// Measures everything that was asked for. What fails is left out, with its reason in the results.
    ///
    /// # Errors
    /// When the results cannot be written.
    pub(crate) fn all(mut self) -> anyhow::Result<Results> {
        self.side_by_side()?;
        self.one_by_one(Part::Wan, WAN, |_| true, measure::wan)?;
        self.one_by_one(Part::Idle, Network::Loopback, |kind| kind.of_three, measure::idle)?;
        self.alone(Part::Agents, |run| {
            measure::agents(run.bin(), run.folder.path(), run.backend, &mut run.results)
        })?;
        self.alone(Part::Policy, Self::policy)?;
        self.alone(Part::Postgres, |run| {
            let (bin, folder) = (run.bin(), run.folder.path());
            measure::postgres(bin, folder, run.arguments.sizes, &mut run.results)
        })?;
        self.alone(Part::HalfOpen, Self::half_open)?;
        self.alone(Part::Scale, |run| {
            let (bin, folder) = (run.bin(), run.folder.path());
            scale::measure(bin, folder, run.arguments.agents, &mut run.results)
        })?;
        Ok(self.results)
    }

    /// What is measured on all systems in turn: they run at once.
    fn side_by_side(&mut self) -> anyhow::Result<()> {
        type Measure = fn(&[System], measure::Sizes, &mut Results);
        let measures: [(Part, Measure); 4] = [
            (Part::Bulk, measure::bulk),
            (Part::Rtt, measure::rtt),
            (Part::New, measure::new),
            (Part::Handshake, measure::handshake),
        ];
        if !measures.iter().any(|(part, _)| self.wants(*part)) {
            return Ok(());
        }
        let mut systems = Vec::new();
        for kind in self.kinds.clone() {
            let warm = self.start(kind, Network::Loopback).and_then(warmed);
            match warm {
                Ok(system) => systems.push(system),
                Err(error) => {
                    for (part, _) in measures {
                        if self.wants(part) && (part.beside_others() || kind.name == OURS) {
                            self.results.failed(kind.name, part, &error);
                        }
                    }
                }
            }
        }
        for (part, measure) in measures {
            if self.wants(part) {
                measure(&systems, self.arguments.sizes, &mut self.results);
                self.finish(part)?;
            }
        }
        Ok(())
    }

    /// What is measured on each system by itself, started for it.
    fn one_by_one(
        &mut self,
        part: Part,
        network: Network,
        suits: impl Fn(&Kind) -> bool,
        measure: impl Fn(&System, &mut Results) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if !self.wants(part) {
            return Ok(());
        }
        for kind in self.kinds.clone().into_iter().filter(suits) {
            eprintln!("{}, {}", part.word(), kind.name);
            let measured = self
                .start(kind, network)
                .and_then(|system| measure(&system, &mut self.results));
            if let Err(error) = measured {
                self.results.failed(kind.name, part, &error);
            }
        }
        self.finish(part)
    }

    /// What is measured on our own programs alone.
    fn alone(
        &mut self,
        part: Part,
        measure: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if !self.wants(part) {
            return Ok(());
        }
        eprintln!("{}", part.word());
        if let Err(error) = measure(self) {
            self.results.failed(OURS, part, &error);
        }
        self.finish(part)
    }

    fn policy(&mut self) -> anyhow::Result<()> {
        let microseconds = measure::microseconds_per_decision()?;
        self.results.add("policy_us_1000", OURS, microseconds, "µs");
        let plane = Plane::start(self.bin(), &self.folder.path().join("policy"), self.backend)?;
        let seconds = measure::seconds_to_agents(&plane, AGENTS_OF_SNAPSHOT)?;
        self.results.add("snapshot_s_100", OURS, seconds, "s");
        Ok(())
    }

    fn half_open(&mut self) -> anyhow::Result<()> {
        let plane = Plane::start(self.bin(), &self.folder.path().join("half-open"), self.backend)?;
        let (port, connector) = plane.connect(&plane.log_in("alice")?)?;
        let measured = measure::half_open::measure(&plane, port, &mut self.results);
        connector.end();
        measured
    }

    fn start(&mut self, kind: Kind, network: Network) -> anyhow::Result<System> {
        let programs = &self.arguments.programs;
        let folder = self.folder.path();
        let site = Site::new(programs, &self.certificates, folder, self.backend, network)?;
        let system = kind.start(site)?;
        let (program, version) = system.version.clone();
        self.results.versions.insert(program.to_owned(), version);
        Ok(system)
    }

    fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    fn bin(&self) -> &'a Path {
        &self.arguments.programs.bin
    }

    /// Writes what there is, so that nothing of it is lost if a later part ends the run.
    fn finish(&mut self, part: Part) -> anyhow::Result<()> {
        self.done.push(part);
        let (name, command) = self.command();
        let said = format!(
            "{command}; load average {} when it began, {} at its end",
            self.load,
            load_average()
        );
        self.results.versions.insert(name, said);
        let Some((json, page)) = &self.files else {
            return Ok(());
        };
        let mut kept = Results {
            machine: self.results.machine.clone(),
            versions: self.results.versions.clone(),
            figures: self.results.figures.clone(),
        };
        if json.exists() {
            kept.keep_of(Results::read(json)?, &self.done);
        }
        kept.write(json, page)
    }

    /// What was run, under a name for it.
    fn command(&self) -> (String, String) {
        let sizes = self.arguments.sizes;
        let sizes = format!(
            "{} rounds, {} MiB, {} ms",
            sizes.rounds, sizes.mib, sizes.milliseconds
        );
        let words: Vec<&str> = self.parts.iter().map(|part| part.word()).collect();
        match (self.arguments.only.as_slice(), self.arguments.systems.is_empty()) {
            ([], true) => {
                let command = format!("make bench ({sizes})");
                ("command".to_owned(), command)
            }
            ([Part::HalfOpen | Part::Scale], _) => {
                let word = words.join(",");
                (format!("command ({word})"), format!("make {word}"))
            }
            _ => {
                let parts = words.join(",");
                let mut command = format!("iap-bench --only {parts}");
                if !self.arguments.systems.is_empty() {
                    command.push_str(&format!(" --systems {}", self.arguments.systems.join(",")));
                }
                command.push_str(&format!(" ({sizes})"));
                (format!("command ({parts})"), command)
            }
        }
    }
}

/// After the first bytes; a system that carries none is left out at once.
fn warmed(system: System) -> anyhow::Result<System> {
    load::bulk(system.port, 1, WARMING_MIB * 1024 * 1024)?;
    Ok(system)
}
