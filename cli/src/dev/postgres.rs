//! The demo database: a real PostgreSQL of its own, in the plane's folder, on a Unix socket only.
//!
//! PostgreSQL refuses to run as root, and its own user cannot enter a 0700 folder. As root it therefore runs in a user
//! namespace in which root appears as the `postgres` user; Debian's own cluster is never touched.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;

use super::layout::Layout;
use super::supervisor::Program;

const PORT: u16 = 5432;
const READY_SECONDS_MAX: u64 = 30;
/// `sockaddr_un` holds 108 bytes with the terminating zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Where the database listens; a short path, because a socket's path may not exceed 107 bytes.
pub(crate) fn socket_path(layout: &Layout) -> PathBuf {
    socket_folder(layout).join(format!(".s.PGSQL.{PORT}"))
}

fn socket_folder(layout: &Layout) -> PathBuf {
    layout.dir.join("postgres")
}

fn data_folder(layout: &Layout) -> PathBuf {
    layout.dir.join("postgres").join("data")
}

/// PostgreSQL's programs, found where Debian and others put them.
#[derive(Clone, Debug)]
pub(crate) struct Installation {
    bin: PathBuf,
}

impl Installation {
    /// The newest installation under `/usr/lib/postgresql`, else the one on the `PATH`.
    ///
    /// # Errors
    /// When there is none; the message has the command that installs it.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                Some((
                    entry.file_name().to_str()?.parse().ok()?,
                    entry.path().join("bin"),
                ))
            })
            .collect();
        versions.sort();
        let on_path = std::env::var_os("PATH")
            .into_iter()
            .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
            .filter(|folder| folder.join("postgres").is_file());
        versions
            .into_iter()
            .rev()
            .map(|(_, bin)| bin)
            .chain(on_path)
            .find(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file())
            .map(|bin| Self { bin })
            .context("PostgreSQL is not installed: `apt-get install postgresql` brings it (or start without --demo)")
    }

    /// Creates the database files once.
    ///
    /// # Errors
    /// When `initdb` fails; the message holds what it printed.
    pub(crate) fn initialise(&self, layout: &Layout) -> anyhow::Result<()> {
        let socket = socket_path(layout);
        ensure!(
            socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX,
            "{} is too long for a socket's path (107 bytes): choose a shorter --dir",
            socket.display()
        );
        let data = data_folder(layout);
        if data.join("PG_VERSION").exists() {
            return Ok(());
        }
        std::fs::create_dir_all(socket_folder(layout))?;
        private(&socket_folder(layout))?;
        // Made aside and moved when whole: an `initdb` that was ended leaves nothing that looks like a database.
        let unfinished = data.with_extension("unfinished");
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished)?;
        }
        let arguments = [
            "-D",
            text(&unfinished)?,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ];
        self.run("initdb", &arguments)?;
        std::fs::rename(&unfinished, &data).with_context(|| format!("cannot make {}", data.display()))
    }

    /// The supervised server: no TCP, socket in the plane's folder.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub(crate) fn program(&self, layout: &Layout) -> anyhow::Result<Program> {
        let (path, mut arguments) = self.command("postgres")?;
        let folder = socket_folder(layout);
        for argument in [
            "-D",
            text(&data_folder(layout))?,
            "-k",
            text(&folder)?,
            "-p",
            &PORT.to_string(),
        ] {
            arguments.push(argument.to_owned());
        }
        for setting in [
            "listen_addresses=",
            "fsync=off",
            "max_connections=200",
            "unix_socket_permissions=0700",
        ] {
            arguments.extend(["-c".to_owned(), setting.to_owned()]);
        }
        Ok(Program {
            name: "postgres",
            path,
            arguments,
            log: layout.log("postgres"),
            stop_signal: Signal::INT,
            store: None,
        })
    }

    /// Waits until it answers, then creates the demo's roles, databases and a table worth asking about.
    ///
    /// # Errors
    /// When it does not answer in time, or `psql` fails.
    pub(crate) fn fill(&self, layout: &Layout) -> anyhow::Result<()> {
        self.wait_ready(layout)?;
        for login in ["app", "alice", "readonly"] {
            if self
                .ask(
                    layout,
                    "postgres",
                    &format!("select 1 from pg_roles where rolname = '{login}'"),
                )?
                .is_empty()
            {
                self.ask(layout, "postgres", &format!("create role \"{login}\" login"))?;
            }
            if self
                .ask(
                    layout,
                    "postgres",
                    &format!("select 1 from pg_database where datname = '{login}'"),
                )?
                .is_empty()
            {
                self.ask(
                    layout,
                    "postgres",
                    &format!("create database \"{login}\" owner \"{login}\""),
                )?;
            }
        }
        self.ask(layout, "app", ORDERS).map(|_| ())
    }

    fn wait_ready(&self, layout: &Layout) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(READY_SECONDS_MAX);
        loop {
            match self.ask(layout, "postgres", "select 1") {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!(
                        "PostgreSQL did not answer within {READY_SECONDS_MAX} s; see {}",
                        layout.log("postgres").display()
                    )));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn ask(&self, layout: &Layout, database: &str, statement: &str) -> anyhow::Result<String> {
        let folder = socket_folder(layout);
        let (path, mut arguments) = self.command("psql")?;
        let own = [
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            text(&folder)?,
            "-U",
            "postgres",
            "-d",
            database,
            "-c",
            statement,
        ];
        arguments.extend(own.map(str::to_owned));
        let output = Command::new(&path)
            .args(&arguments)
            .env("PGPORT", PORT.to_string())
            .env_remove("PGSSLMODE")
            .output()
            .with_context(|| format!("cannot run {}", path.display()))?;
        if !output.status.success() {
            bail!("psql: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let (path, mut all) = self.command(program)?;
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let output = Command::new(&path)
            .args(&all)
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        ensure!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// The program itself, or as root `unshare` in front of it. `unshare` replaces itself, so the pid is PostgreSQL's.
    fn command(&self, program: &str) -> anyhow::Result<(PathBuf, Vec<String>)> {
        let path = self.bin.join(program);
        if !rustix::process::geteuid().is_root() {
            return Ok((path, Vec::new()));
        }
        let (uid, gid) = postgres_user()?;
        let arguments = vec![
            "--user".to_owned(),
            format!("--map-user={uid}"),
            format!("--map-group={gid}"),
            text(&path)?.to_owned(),
        ];
        Ok((PathBuf::from("unshare"), arguments))
    }
}

fn postgres_user() -> anyhow::Result<(u32, u32)> {
    let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    passwd
        .lines()
        .filter_map(|line| line.strip_prefix("postgres:"))
        .find_map(|rest| {
            let mut fields = rest.split(':').skip(1);
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .context("PostgreSQL refuses to run as root, and there is no user `postgres` to appear as")
}

fn private(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot close {} to others", folder.display()))
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8: choose another --dir", path.display()))
}

const ORDERS: &str = "create table if not exists orders (id int primary key, customer text, total numeric(10,2)); \
     insert into orders values (1, 'Ada', 120.50), (2, 'Grace', 80.00), (3, 'Edsger', 42.42) on conflict do nothing; \
     grant all on orders to app; grant select on orders to readonly, alice";
