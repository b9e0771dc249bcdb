//! `psql`, `scp` and `pgbench` at work, by way of `iapctl`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iap_e2e::{Background, Plane, Ran, Sshd, program};

use super::psql::Psql;

const FILE_BYTES: u64 = 1 << 30;
/// Connections of `pgbench`.
const BENCH_CLIENTS: usize = 4;
/// For what is left once the disturbances are over.
const FINISH_SECONDS_MAX: u64 = 120;
/// What `iapctl` needs to know of the person.
const ENVIRONMENT: [&str; 2] = ["IAPCTL_HOME", "IAPCTL_NONINTERACTIVE"];

/// Who works, where, and with which services.
pub(crate) struct Desk<'a> {
    pub(crate) plane: &'a Plane,
    pub(crate) user: &'a str,
    /// The database, and what an SSH server is called.
    pub(crate) database: &'a str,
    pub(crate) files: &'a str,
    /// What `scp` fetches from there: [`file`].
    pub(crate) file: &'a Path,
    pub(crate) sshd: &'a Sshd,
    /// For so long `pgbench` is at work, and the file under way at the least: as it takes to disturb them.
    pub(crate) seconds: u64,
    /// Moves a command to where the person sits.
    pub(crate) place: &'a dyn Fn(Command) -> Command,
}

impl Desk<'_> {
    fn iapctl(&self, arguments: &[&str]) -> Command {
        let mut command = (self.place)(self.plane.command(self.user, arguments).unwrap());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn with_database(&self, arguments: &[&str]) -> Command {
        self.iapctl(&[&["connect", self.database, "--"], arguments].concat())
    }
}

/// A gibibyte of noise in a folder. It takes its time: before the login whose certificate ends soon.
pub(crate) fn file(folder: &Path) -> PathBuf {
    let file = folder.join("file");
    let mut random = Command::new("sh");
    random.args(["-c", &format!("head -c {FILE_BYTES} /dev/urandom > \"$1\""), "sh"]);
    assert!(random.arg(&file).status().unwrap().success());
    file
}

/// All of them, started and under way.
pub(crate) struct Jobs {
    psql: Psql,
    scp: Scp,
    bench: Child,
}

impl Jobs {
    /// Of psql, of scp, and of each of pgbench's connections.
    pub(crate) const SESSIONS: usize = 2 + BENCH_CLIENTS;

    pub(crate) fn start(desk: &Desk<'_>) -> Self {
        let initialised = desk
            .with_database(&["pgbench", "-i", "-q"])
            .output()
            .map(Ran::from);
        initialised.unwrap().succeeded().unwrap();
        let mut bench = desk.with_database(&["pgbench", "-n", "-T", &desk.seconds.to_string()]);
        let bench = bench.args(["-c", &BENCH_CLIENTS.to_string()]).spawn().unwrap();
        let psql = Psql::start(desk.with_database(Psql::COMMAND));
        let scp = Scp::start(desk);
        Self { psql, scp, bench }
    }

    /// All three are under way, before `what` and behind it.
    pub(crate) fn through(&mut self, what: &str, happens: impl FnOnce()) {
        self.psql.is_as_it_was(what);
        let file = self.scp.arrived();
        happens();
        let happened = Instant::now();
        for (process, name) in [(&mut self.scp.process, "scp"), (&mut self.bench, "pgbench")] {
            let ended = process.try_wait().unwrap();
            assert!(ended.is_none(), "{what}: {name} is over already");
        }
        self.psql.is_as_it_was(what);
        while self.scp.arrived() <= file {
            assert!(
                happened.elapsed() < Duration::from_secs(FINISH_SECONDS_MAX),
                "{what}: no more of the file"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        report(what, happened);
    }

    /// Waits for the end of each, and looks at what came of it.
    pub(crate) fn finish(self) {
        let Self { psql, scp, bench } = self;
        psql.finish();
        scp.finish();
        let ran = finish(bench);
        let said = ran.succeeded().unwrap();
        assert!(said.contains("number of failed transactions: 0 "), "{said}");
    }
}

/// A file on its way from the server.
struct Scp {
    process: Child,
    file: PathBuf,
    copy: PathBuf,
}

impl Scp {
    fn start(desk: &Desk<'_>) -> Self {
        let file = desk.file.to_owned();
        let copy = desk.plane.scratch().join("copy");
        let iapctl = program("iapctl").unwrap();
        let proxy_command = format!("{} connect {} --stdio", iapctl.display(), desk.files);
        let config = desk.sshd.client_config(desk.files, &proxy_command).unwrap();
        let mut command = Command::new("scp");
        let kilobits_a_second = FILE_BYTES * 8 / 1000 / desk.seconds;
        command
            .args(["-q", "-l", &kilobits_a_second.to_string(), "-F"])
            .arg(config);
        command
            .arg(format!("{}:{}", desk.files, file.display()))
            .arg(&copy);
        let person = desk.plane.command(desk.user, &[]).unwrap();
        let known = person.get_envs().filter_map(|(name, value)| {
            let name = name.to_str()?;
            ENVIRONMENT.contains(&name).then_some((name, value?))
        });
        command.envs(known);
        let mut command = (desk.place)(command);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let scp = Self {
            process: command.spawn().unwrap(),
            file,
            copy,
        };
        let begun = Instant::now();
        while scp.arrived() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "no byte of the file");
            std::thread::sleep(Duration::from_millis(20));
        }
        scp
    }

    fn arrived(&self) -> u64 {
        std::fs::metadata(&self.copy).map_or(0, |copy| copy.len())
    }

    fn finish(self) {
        finish(self.process).succeeded().unwrap();
        let sum = |file: &PathBuf| {
            let summed: Ran = Command::new("sha256sum").arg(file).output().unwrap().into();
            let said = summed.succeeded().unwrap();
            said.split_whitespace().next().unwrap().to_owned()
        };
        assert_eq!(sum(&self.copy), sum(&self.file));
        assert_eq!(std::fs::metadata(&self.copy).unwrap().len(), FILE_BYTES);
    }
}

/// For whoever reads the output; no test depends on it.
#[allow(clippy::print_stdout)]
fn report(what: &str, since: Instant) {
    println!("{what}: all went on after {:.2} s", since.elapsed().as_secs_f64());
}

fn finish(mut process: Child) -> Ran {
    let begun = Instant::now();
    while process.try_wait().unwrap().is_none() {
        assert!(
            begun.elapsed() < Duration::from_secs(FINISH_SECONDS_MAX),
            "not at its end"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Background(process).finish().unwrap()
}
