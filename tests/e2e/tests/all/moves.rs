//! Large files by stock clients through an SSH service, passed on and recorded: what arrives is what was sent, the record
//! has its size, and the agent's memory does not grow with it. `IAP_E2E_MOVE_BYTES` chooses the size; `make moves` takes 1 GiB.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::ssh_world::{World, digest, output, write_random};

const BYTES: u64 = 64 << 20;
/// How much the agent may grow by, however much goes through it: windows, buffers, and what an allocator keeps.
const AGENT_GROWTH_KIB_MAX: u64 = 48 << 10;

/// Which way the file goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// A file, and a world to move it in.
struct Moves {
    world: World,
    bytes: u64,
    source: PathBuf,
    digest: String,
    /// Sessions there have been.
    sessions: usize,
}

impl Moves {
    fn in_world(world: World) -> Self {
        let bytes = std::env::var("IAP_E2E_MOVE_BYTES").map_or(BYTES, |bytes| bytes.parse().unwrap());
        let source = world.files.path().join("source");
        write_random(&source, bytes);
        world.plane.log_in("auditor").unwrap();
        let sessions = world
            .plane
            .sessions_when(|all| all.iter().all(|one| !one["end"].is_null()));
        Self {
            digest: digest(&source),
            sessions: sessions.unwrap().len(),
            world,
            bytes,
            source,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.world.files.path().join(name)
    }

    fn at_server(&self, path: &Path) -> String {
        format!("{}:{}", self.world.service, path.display())
    }

    /// Runs one client, and returns the records of its session once it is over.
    #[allow(clippy::print_stderr)]
    fn run(&mut self, name: &str, way: Way, mut client: Command) -> Vec<Value> {
        let began = Instant::now();
        output(&mut client);
        eprintln!(
            "{} {name}: {:.1} s",
            self.world.service,
            began.elapsed().as_secs_f64()
        );
        self.sessions += 1;
        let count = self.sessions;
        let is_over = |all: &[Value]| all.len() == count && all.iter().all(|one| !one["end"].is_null());
        let all = self.world.plane.sessions_when(is_over).unwrap();
        let session = all
            .iter()
            .max_by_key(|one| one["start"].as_str().map(str::to_owned))
            .unwrap();
        let field = match way {
            Way::Up => "bytes_in",
            Way::Down => "bytes_out",
        };
        let moved = session[field].as_u64().unwrap();
        // Headers and acknowledgements come on top.
        let most = self.bytes + self.bytes / 32 + (1 << 20);
        assert!((self.bytes..most).contains(&moved), "{name}: {field} = {moved}");
        self.world
            .plane
            .records(session["session_id"].as_str().unwrap())
            .unwrap()
    }

    fn has_arrived(&self, name: &str, at: &Path) {
        assert!(digest(at) == self.digest, "{name}: other bytes have arrived");
    }

    /// `runs` is what the client has the server run, where the record has that and no files.
    fn copy(&mut self, name: &str, program: &str, flags: &[&str], runs: Option<&str>) {
        let (there, back) = (self.file("there"), self.file("back"));
        let source = self.source.clone();
        for (way, from, to, arrived) in [
            (
                Way::Up,
                source.display().to_string(),
                self.at_server(&there),
                &there,
            ),
            (
                Way::Down,
                self.at_server(&there),
                back.display().to_string(),
                &back,
            ),
        ] {
            let client = self.world.client(program, &[flags, &[&from, &to]].concat());
            let records = self.run(name, way, client);
            self.has_arrived(name, arrived);
            match runs {
                Some(runs) => self.has_run(&records, runs),
                None => self.is_told_of(&records, way, &there),
            }
        }
        remove(&[&there, &back]);
    }

    fn sftp(&mut self) {
        let (there, back, batch) = (self.file("there"), self.file("back"), self.file("batch"));
        for (way, line, arrived) in [
            (
                Way::Up,
                format!("put {} {}\n", self.source.display(), there.display()),
                &there,
            ),
            (
                Way::Down,
                format!("get {} {}\n", there.display(), back.display()),
                &back,
            ),
        ] {
            std::fs::write(&batch, line).unwrap();
            let batch = batch.display().to_string();
            let client = self
                .world
                .client("sftp", &["-q", "-b", &batch, self.world.service]);
            let records = self.run("sftp", way, client);
            self.has_arrived("sftp", arrived);
            self.is_told_of(&records, way, &there);
        }
        remove(&[&there, &back]);
    }

    /// What git itself is slow at is switched off: nothing of it shrinks.
    fn git(&mut self) {
        let (there, bare, clone) = (self.file("repository"), self.file("bare"), self.file("clone"));
        let quick = ["-c", "core.compression=0", "-c", "core.bigFileThreshold=1m"];
        let git = |folder: &Path, arguments: &[&str]| {
            let mut git = Command::new("git");
            git.args(quick)
                .args(["-c", "user.name=a", "-c", "user.email=a@example.com", "-C"]);
            output(git.arg(folder).args(arguments));
        };
        git(self.world.files.path(), &["init", "-q", "repository"]);
        git(self.world.files.path(), &["init", "-q", "--bare", "bare"]);
        for (name, value) in [("core.compression", "0"), ("core.bigFileThreshold", "1m")] {
            git(&there, &["config", name, value]);
            git(&bare, &["config", name, value]);
        }
        std::fs::rename(&self.source, there.join("big")).unwrap();
        git(&there, &["add", "big"]);
        git(&there, &["commit", "-q", "-m", "one"]);
        let from = self.at_server(&there);
        let to = clone.display().to_string();
        let client = self
            .world
            .client("git", &[&quick[..], &["clone", "-q", &from, &to]].concat());
        let records = self.run("git clone", Way::Down, client);
        self.has_run(&records, "git-upload-pack");
        self.has_arrived("git clone", &clone.join("big"));

        let to = self.at_server(&bare);
        let folder = clone.display().to_string();
        let push = ["-C", &folder, "push", "-q", &to, "HEAD:refs/heads/main"];
        let client = self.world.client("git", &[&quick[..], &push].concat());
        let records = self.run("git push", Way::Up, client);
        self.has_run(&records, "git-receive-pack");
        let pushed = self.file("pushed");
        let mut show = Command::new("git");
        show.arg("-C").arg(&bare).args(["show", "main:big"]);
        let shown = show.stdout(std::fs::File::create(&pushed).unwrap()).status();
        assert!(shown.unwrap().success());
        self.has_arrived("git push", &pushed);
        remove(&[&pushed]);
        for folder in [there, bare, clone] {
            std::fs::remove_dir_all(folder).unwrap();
        }
    }

    /// A recorded session says which file it was, how much of it went which way, and that it is there.
    fn is_told_of(&self, records: &[Value], way: Way, path: &Path) {
        let (read, written) = match way {
            Way::Up => (0, self.bytes),
            Way::Down => (self.bytes, 0),
        };
        let path = path.display().to_string();
        let told = records.iter().any(|record| {
            record["event"] == "session.file"
                && record["operation"] == "transfer"
                && record["path"] == path.as_str()
                && record["bytes_read"] == read
                && record["bytes_written"] == written
                && record["ok"] == true
        });
        assert!(told || !self.is_recorded(), "{path}: {records:#?}");
    }

    /// A recorded session says what was run.
    fn has_run(&self, records: &[Value], command: &str) {
        let told = records.iter().any(|record| {
            record["event"] == "session.command"
                && record["command"]
                    .as_str()
                    .is_some_and(|told| told.starts_with(command))
        });
        assert!(told || !self.is_recorded(), "{command}: {records:#?}");
    }

    fn is_recorded(&self) -> bool {
        self.world.service == "shell"
    }

    /// The most memory that the agent has ever had, in KiB.
    fn agent_memory(&self) -> u64 {
        let pid = self.world.plane.pid("agent").unwrap().as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim_end_matches("kB").trim().parse().unwrap()
    }

    #[allow(clippy::print_stderr)]
    fn all(mut self) {
        let before = self.agent_memory();
        self.copy("scp", "scp", &["-q"], None);
        self.copy("scp -O", "scp", &["-q", "-O"], None);
        self.sftp();
        self.copy("rsync", "rsync", &["-q"], Some("rsync --server"));
        self.git();
        let after = self.agent_memory();
        eprintln!(
            "{} agent: {before} KiB before, {after} KiB at most",
            self.world.service
        );
        assert!(
            after - before < AGENT_GROWTH_KIB_MAX,
            "{before} KiB, and then {after} KiB"
        );
    }
}

fn remove(files: &[&Path]) {
    for file in files {
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn scp_sftp_rsync_and_git_move_large_files_intact_where_the_agent_passes_bytes_on() {
    Moves::in_world(World::relaying(r#"["{me}"]"#)).all();
}

#[test]
fn scp_sftp_rsync_and_git_move_large_files_intact_and_on_record_where_the_agent_records() {
    Moves::in_world(World::recording()).all();
}
