//! What reading PostgreSQL costs: the same work at a service whose statements are on record, and at one whose bytes pass
//! unread.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::Sizes;
use crate::part::Part;
use crate::plane::Plane;
use crate::process::{Running, cpu_seconds, run};
use crate::report::Results;
use crate::stats::Samples;
use crate::system::OURS;

const SERVICE: &str = "db-prod";
const LOGIN: &str = "app";
/// Bytes of a row of text, its end included.
const ROW_BYTES: u64 = 100;
const MIB: u64 = 1024 * 1024;
/// Clients of `pgbench`, and its threads.
const CLIENTS: (&str, &str) = ("8", "2");
const PGBENCH_SECONDS: &str = "4";
const IN_FORCE: Duration = Duration::from_secs(20);

/// A plane with a database, and how the agent treats it.
struct Database {
    handler: &'static str,
    plane: Plane,
    port: u16,
    connector: Running,
}

/// `copy_out_*`, `pgbench_*`.
///
/// # Errors
/// When a plane does not start, or PostgreSQL's programs fail.
pub(crate) fn measure(
    bin: &std::path::Path,
    folder: &std::path::Path,
    sizes: Sizes,
    results: &mut Results,
) -> anyhow::Result<()> {
    let databases = [
        Database::start(bin, folder.join("read"), true)?,
        Database::start(bin, folder.join("unread"), false)?,
    ];
    for database in &databases {
        database.pgbench(&["-i", "-q"])?;
    }
    let mut samples = Samples::default();
    for round in 1..=sizes.rounds {
        eprintln!("{}, round {round}", Part::Postgres.word());
        // One behind the other, and each of them first as often: what the machine does meanwhile meets both alike.
        let mut in_turn: Vec<&Database> = databases.iter().collect();
        if round % 2 == 0 {
            in_turn.reverse();
        }
        for database in &in_turn {
            database.copy_out(sizes.mib, &mut samples)?;
        }
        for database in &in_turn {
            database.select(&mut samples)?;
        }
        for figure in ["copy_out_cpu_s_per_gib", "pgbench_per_s"] {
            let newest = |handler: &str| samples.newest(&format!("{figure}_{handler}"), OURS);
            let both = newest("postgres").zip(newest("tcp"));
            let (read, unread) = both.context("not all was measured")?;
            samples.add(&format!("{figure}_ratio"), OURS, read / unread, "postgres / tcp");
        }
    }
    samples.conclude(results);
    Ok(())
}

impl Database {
    fn start(bin: &std::path::Path, dir: PathBuf, inspect: bool) -> anyhow::Result<Self> {
        let plane = Plane::start_demo(bin, &dir)?;
        let home = plane.log_in("alice")?;
        let admin = plane.log_in("admin")?;
        let record = format!(
            "[[service]]\nname = \"{SERVICE}\"\nprotocol = \"postgres\"\ninspect = {inspect}\ndefault_login = \"{LOGIN}\"\nlabels = {{ env = \"dev\" }}\n"
        );
        plane.apply_services(&admin, &record)?;
        let (port, connector) = plane.connect_to(SERVICE, &home)?;
        let database = Self {
            handler: if inspect { "postgres" } else { "tcp" },
            plane,
            port,
            connector,
        };
        database.is_treated_as(if inspect { "statements" } else { "bytes" })?;
        Ok(database)
    }

    /// Waits until new sessions are.
    fn is_treated_as(&self, observed: &str) -> anyhow::Result<()> {
        let auditor = self.plane.log_in("auditor")?;
        let expression =
            format!("event == \"session.start\" && service == \"{SERVICE}\" && observed == \"{observed}\"");
        let deadline = Instant::now() + IN_FORCE;
        loop {
            self.psql("select 1")?;
            let found = self
                .plane
                .iapctl(&auditor, &["audit", "search", &expression, "-f", "json"])?;
            if found.contains("session.start") {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "sessions are not observed by {observed}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn copy_out(&self, mib: u64, samples: &mut Samples) -> anyhow::Result<()> {
        let rows = mib * MIB / ROW_BYTES;
        let text = ROW_BYTES - 1;
        let before = self.cpu()?;
        let begun = Instant::now();
        self.psql(&format!(
            "copy (select repeat('x', {text}) from generate_series(1, {rows})) to stdout"
        ))?;
        let seconds = begun.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let gib = (rows * ROW_BYTES) as f64 / 1024.0_f64.powi(3);
        let cpu = (self.cpu()? - before) / gib;
        let gigabits = gib * 8.0 * 1024.0_f64.powi(3) / 1e9 / seconds;
        self.add(samples, "copy_out_cpu_s_per_gib", cpu, "CPU-s/GiB");
        self.add(samples, "copy_out_gbit", gigabits, "Gbit/s");
        Ok(())
    }

    fn select(&self, samples: &mut Samples) -> anyhow::Result<()> {
        let (clients, threads) = CLIENTS;
        let before = self.cpu()?;
        let said = self.pgbench(&["-n", "-S", "-c", clients, "-j", threads, "-T", PGBENCH_SECONDS])?;
        let used = self.cpu()? - before;
        let number = |line: &str| {
            let rest = said.lines().find_map(|said| said.trim().strip_prefix(line))?;
            rest.split_whitespace().next()?.parse::<f64>().ok()
        };
        let rate = number("tps = ").with_context(|| format!("no rate in {said:?}"))?;
        let count = number("number of transactions actually processed: ")
            .with_context(|| format!("no count in {said:?}"))?;
        self.add(samples, "pgbench_per_s", rate, "1/s");
        self.add(samples, "pgbench_cpu_us", used * 1e6 / count, "µs");
        Ok(())
    }

    fn add(&self, samples: &mut Samples, figure: &str, value: f64, unit: &'static str) {
        samples.add(&format!("{figure}_{}", self.handler), OURS, value, unit);
    }

    /// Of connector, proxy and agent.
    fn cpu(&self) -> anyhow::Result<f64> {
        let agent = cpu_seconds(self.plane.pid("agent")?)?;
        let proxy = cpu_seconds(self.plane.pid("proxy")?)?;
        Ok(agent + proxy + cpu_seconds(self.connector.id())?)
    }

    fn psql(&self, statement: &str) -> anyhow::Result<()> {
        let mut psql = self.client("psql");
        psql.args(["-X", "-q", "-o", "/dev/null", "-c", statement]);
        run(&mut psql).map(|_| ())
    }

    fn pgbench(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(self.client("pgbench").args(arguments))
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", LOGIN)
            .env("PGDATABASE", LOGIN)
            .env("PGSSLMODE", "disable")
            .env("PGGSSENCMODE", "disable");
        command
    }
}
