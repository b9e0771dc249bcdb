//! `iapctl dev tour`: the main job, step by step, on a running development plane.
//!
//! Every step is a command a person would type, run as a real process and shown with what it printed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::time::Instant;

use super::descriptor::Descriptor;
use super::say;

const QUERY: &str = "select customer, total from orders order by total desc";
const RECORD_SECONDS_MAX: u64 = 15;
/// How often it is asked for.
const ASK_EVERY: Duration = Duration::from_millis(100);
const DENIED: i32 = 3;

/// Walks through the main job; the first step that does not do what it should ends the tour with an error.
///
/// # Errors
/// When no demo plane runs in `dir`, or a step fails.
pub(crate) async fn run(dir: &Path) -> anyhow::Result<()> {
    let descriptor = Descriptor::read(dir)?;
    ensure!(
        descriptor
            .services
            .iter()
            .any(|service| service.name == "db-prod"),
        "this plane has no demo services: start it with `iapctl dev --demo`"
    );
    let tour = Tour {
        dir: dir.to_owned(),
        homes: dir.join("tour"),
        descriptor,
    };
    tour.log_in_and_query().await?;
    let session = tour.read_the_record().await?;
    tour.work_in_a_shell().await?;
    tour.see_a_denial().await?;
    tour.survive_an_outage().await?;
    tour.say_what_next(&session);
    Ok(())
}

struct Tour {
    dir: PathBuf,
    homes: PathBuf,
    descriptor: Descriptor,
}

struct Finished {
    stdout: String,
    stderr: String,
    code: i32,
}

impl Tour {
    async fn log_in_and_query(&self) -> anyhow::Result<()> {
        heading("1. Alice logs in: a certificate for an hour that says who she is");
        self.log_in("alice").await?;
        heading(
            "2. What she may reach, and a query to the private database, through a proxy that cannot read it",
        );
        self.shown("alice", &["ls"]).await?.succeeded()?;
        let answer = self
            .shown("alice", &["connect", "db-prod", "--", "psql", "-X", "-c", QUERY])
            .await?;
        answer.succeeded()?;
        ensure!(
            answer.stdout.contains("120.50"),
            "the query's answer is not the one the database holds"
        );
        Ok(())
    }

    async fn read_the_record(&self) -> anyhow::Result<String> {
        heading("3. An auditor reads the record");
        self.log_in("auditor").await?;
        let session = self.newest_session_at("alice@example.com", "db-prod").await?;
        self.shown("auditor", &["sessions", "ls"]).await?.succeeded()?;
        self.shown("auditor", &["sessions", "show", &session])
            .await?
            .succeeded()?;
        Ok(session)
    }

    async fn work_in_a_shell(&self) -> anyhow::Result<()> {
        heading(
            "4. Alice runs a command on a server, without a key or a password, and an auditor sees what she saw",
        );
        let answer = self
            .shown("alice", &["ssh", "ssh-demo", "--", "uname", "-sm"])
            .await?;
        answer.succeeded()?;
        let session = self.newest_session_at("alice@example.com", "ssh-demo").await?;
        self.shown("auditor", &["sessions", "show", &session])
            .await?
            .succeeded()?;
        self.wait_for_recording(&session).await?;
        let played = self.shown("auditor", &["sessions", "play", &session]).await?;
        played.succeeded()?;
        ensure!(
            played.stdout == answer.stdout,
            "what is replayed is not what the command printed"
        );
        Ok(())
    }

    /// A recording reaches the auth server a second or two after its end.
    async fn wait_for_recording(&self, session: &str) -> anyhow::Result<()> {
        arrived("the recording", async || {
            let played = self.quiet("auditor", &["sessions", "play", session]).await?;
            Ok((played.code == 0 && played.stderr.contains("on record")).then_some(()))
        })
        .await
    }

    async fn see_a_denial(&self) -> anyhow::Result<()> {
        heading("5. Bob is not allowed: one sentence, exit code 3, and the query never ran");
        self.log_in("bob").await?;
        let denied = self
            .shown("bob", &["connect", "db-prod", "--", "psql", "-X", "-c", QUERY])
            .await?;
        ensure!(
            denied.code == DENIED,
            "bob should have been denied with exit code 3, and got {}",
            denied.code
        );
        say(&format!("(exit code {})", denied.code));
        Ok(())
    }

    /// Stopped, not ended: the supervisor would start an ended program again at once.
    async fn survive_an_outage(&self) -> anyhow::Result<()> {
        heading("6. The auth server stops answering; Alice connects all the same");
        let auth = self.descriptor.pids.auth;
        command_line(&format!("kill -STOP {auth}    # iap-auth"));
        let frozen = Frozen::stop(auth)?;
        let answer = self.shown(
            "alice",
            &[
                "connect",
                "db-prod",
                "--",
                "psql",
                "-X",
                "-At",
                "-c",
                "select 'still here'",
            ],
        );
        let answer = answer.await?;
        drop(frozen);
        command_line(&format!("kill -CONT {auth}"));
        answer.succeeded()?;
        ensure!(
            answer.stdout.contains("still here"),
            "the query did not reach the database"
        );
        Ok(())
    }

    fn say_what_next(&self, session: &str) {
        let home = self.homes.join("alice");
        heading("What to try next (on a plane that stays: make demo STAY=1, or iapctl dev --demo)");
        for line in [
            format!("export IAPCTL_HOME={}", home.display()),
            "iapctl connect db-prod                    # psql, interactively".to_owned(),
            "iapctl ssh ssh-demo                       # a shell, on record".to_owned(),
            "iapctl connect echo                       # a local port for any TCP client".to_owned(),
            "eval \"$(iapctl env db-prod)\" && psql      # a stock client, straight to the proxy".to_owned(),
            "iapctl policy explain --service db-prod   # which rule decides, and why".to_owned(),
            format!("iapctl sessions show {session}"),
            format!(
                "{}    # edit the policy, then: iapctl policy apply",
                self.dir.join("config/policy.toml").display()
            ),
        ] {
            say(&format!("  {line}"));
        }
    }

    async fn log_in(&self, user: &str) -> anyhow::Result<()> {
        let dir = self.dir.display().to_string();
        self.shown(user, &["dev", "login", user, "--dir", &dir])
            .await?
            .succeeded()
    }

    /// The record reaches the auth server a moment after the session's end.
    async fn newest_session_at(&self, user: &str, service: &str) -> anyhow::Result<String> {
        arrived("the session's record", async || {
            let listed = self.quiet("auditor", &["sessions", "ls", "-f", "json"]).await?;
            listed.succeeded()?;
            let sessions: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout)
                .context("`sessions ls -f json` printed something else")?;
            let complete = sessions.iter().find(|session| {
                session.get("user").and_then(|name| name.as_str()) == Some(user)
                    && session.get("service").and_then(|name| name.as_str()) == Some(service)
                    && session.get("end").is_some_and(|end| !end.is_null())
            });
            let id = complete.and_then(|session| session.get("session_id"));
            Ok(id.and_then(|id| id.as_str()).map(str::to_owned))
        })
        .await
    }

    async fn shown(&self, user: &str, arguments: &[&str]) -> anyhow::Result<Finished> {
        command_line(&format!("iapctl {}", quoted(arguments)));
        let finished = self.quiet(user, arguments).await?;
        for text in [&finished.stdout, &finished.stderr] {
            if !text.trim().is_empty() {
                say(text.trim_end());
            }
        }
        Ok(finished)
    }

    async fn quiet(&self, user: &str, arguments: &[&str]) -> anyhow::Result<Finished> {
        let own = std::env::current_exe().context("cannot find my own file")?;
        let output = Command::new(own)
            .args(arguments)
            .env("IAPCTL_HOME", self.homes.join(user))
            .env("IAPCTL_NONINTERACTIVE", "1")
            .env("PAGER", "cat")
            .stdin(Stdio::null())
            .output()
            .await
            .context("cannot run iapctl")?;
        Ok(Finished {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        })
    }
}

impl Finished {
    fn succeeded(&self) -> anyhow::Result<()> {
        ensure!(
            self.code == 0,
            "that command should have succeeded, and ended with exit code {}",
            self.code
        );
        Ok(())
    }
}

/// A stopped process that goes on when this is dropped, whatever happened in between.
struct Frozen(Pid);

impl Frozen {
    fn stop(pid: u32) -> anyhow::Result<Self> {
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .context("dev.json names no process for auth")?;
        kill_process(pid, Signal::STOP).context("cannot stop the auth server")?;
        Ok(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = kill_process(self.0, Signal::CONT) {
            tracing::error!(%error, "cannot let the auth server go on");
        }
    }
}

fn heading(text: &str) {
    say(&format!("\n== {text}"));
}

fn command_line(text: &str) {
    say(&format!("$ {text}"));
}

fn quoted(arguments: &[&str]) -> String {
    let words = arguments.iter().map(|word| {
        if word.contains(' ') {
            format!("\"{word}\"")
        } else {
            (*word).to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Asks for something that is on its way to the auth server until it is there.
async fn arrived<T>(what: &str, ask: impl AsyncFn() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(RECORD_SECONDS_MAX);
    loop {
        if let Some(there) = ask().await? {
            return Ok(there);
        }
        if Instant::now() > deadline {
            bail!("{what} did not arrive within {RECORD_SECONDS_MAX} s");
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
