//! The renewer: one small process for each login, left behind by `iapctl login`, that renews the certificate
//! at half its life, so that programs which read the files themselves keep working.
//!
//! A certificate that expired meanwhile, because the machine slept, is renewed all the same while the login goes on.
//! The renewer ends with the login: at its deadline, at `logout`, at a lock, and when the home is gone. It goes by the
//! wall clock, which it reads again and again: a laptop that slept finds it awake. `status` reads what it
//! wrote to `renewer.json`; whether it lives is told by the lock on `renewer.lock`, never by a number.

mod log;
mod process;
mod schedule;
mod state;

use std::time::Duration;

use anyhow::Context as _;
use iap_identity::{LoginId, UserPeer};
use time::OffsetDateTime;

use crate::duration::rfc3339;
use crate::exit::ExitStatus;
use crate::failure;
use crate::home::ClusterHome;
use crate::identity::{self, Identity, Standing};
use log::Log;
use state::Running;

pub use process::{Stopped, start, stop};
pub use state::{Report, report};

/// The wall clock may jump, the laptop may sleep, and the home may go: all are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// The longest a renewal may take.
const RENEWAL_SECONDS_MAX: u64 = 20;
/// A login that is over twice in a row is over: a clock may be wrong for a moment.
const OVER_SEEN_MAX: u32 = 2;

/// What the renewer does next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Looks again after that time.
    Look(Duration),
    /// Ends, for this reason.
    End(String),
}

/// A renewer at work.
struct Renewer {
    home: ClusterHome,
    running: Running,
    log: Log,
    login: Option<LoginId>,
    deadline: Option<OffsetDateTime>,
    failures: u32,
    retry_at: Option<OffsetDateTime>,
    over_seen: u32,
}

/// Renews the cluster's login until it is over. Ends at once when another renewer is at work here.
///
/// # Errors
/// When the home cannot be used.
pub async fn run(home: ClusterHome) -> anyhow::Result<()> {
    process::leave_the_terminal();
    let Some(running) = Running::take(&home).await? else {
        return Ok(());
    };
    let mut ending = process::Ending::listen().context("cannot wait for signals")?;
    let log = Log::open(&home);
    log.line(&format!("started, process {}", std::process::id()));
    let mut renewer = Renewer {
        home,
        running,
        log,
        login: None,
        deadline: None,
        failures: 0,
        retry_at: None,
        over_seen: 0,
    };
    let why = loop {
        // Never given up half-way: an answer that is not stored would be a generation lost.
        match Box::pin(renewer.step(OffsetDateTime::now_utc())).await {
            Next::End(why) => break why,
            Next::Look(wait) => tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = ending.asked() => break "it was asked to".to_owned(),
            },
        }
    };
    renewer.end(&why);
    Ok(())
}

impl Renewer {
    async fn step(&mut self, now: OffsetDateTime) -> Next {
        if !self.home.is_there() {
            return Next::End("the home is gone".to_owned());
        }
        match identity::load(&self.home, now) {
            Ok(Standing::Valid(identity)) => {
                self.over_seen = 0;
                self.attend(&identity, now).await
            }
            Ok(Standing::NoLogin(_)) => match identity::lapsed(&self.home, now) {
                Ok(Some(identity)) => {
                    self.over_seen = 0;
                    self.attend(&identity, now).await
                }
                Ok(None) | Err(_) => self.without_login(now),
            },
            Err(error) => {
                self.note(&format!("the login cannot be read: {error:#}"));
                Next::Look(LOOK_EVERY)
            }
        }
    }

    async fn attend(&mut self, identity: &Identity, now: OffsetDateTime) -> Next {
        let peer = &identity.peer;
        if self.login != Some(peer.login_id) {
            (self.login, self.failures, self.retry_at) = (Some(peer.login_id), 0, None);
            self.log.line(&format!(
                "login {} of {}, until {}",
                peer.login_id,
                peer.name,
                rfc3339(peer.login_deadline)
            ));
        }
        self.deadline = Some(peer.login_deadline);
        let Some(due) = self.due(peer, now) else {
            self.write(peer, None, None);
            return Next::Look(LOOK_EVERY);
        };
        if now < due {
            self.write(peer, Some(due), None);
            return Next::Look(schedule::wait(now, due).min(LOOK_EVERY));
        }
        self.renew(identity).await
    }

    /// When to renew, unless the certificate lasts as long as the login.
    fn due(&self, peer: &UserPeer, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let half = schedule::due(peer)?;
        Some(match self.retry_at {
            // A pause that ends far in the future is of a clock that was wrong.
            Some(retry) if retry - now <= schedule::PAUSE_MAX => half.max(retry),
            Some(_) | None => half,
        })
    }

    async fn renew(&mut self, identity: &Identity) -> Next {
        let limit = Duration::from_secs(RENEWAL_SECONDS_MAX);
        match Box::pin(identity::renew_within(identity, limit)).await {
            Ok(renewed) => {
                (self.failures, self.retry_at) = (0, None);
                self.log.line(&format!(
                    "renewed: generation {}, valid until {}",
                    renewed.peer.generation,
                    rfc3339(renewed.peer.not_after)
                ));
                self.write(&renewed.peer, schedule::due(&renewed.peer), None);
                Next::Look(Duration::ZERO)
            }
            Err(error) => self.failed(&identity.peer, &error),
        }
    }

    fn failed(&mut self, peer: &UserPeer, error: &anyhow::Error) -> Next {
        let why = format!("{error:#}");
        match failure::status_of(error) {
            ExitStatus::Denied | ExitStatus::LoginNeeded => {
                return Next::End(format!("the auth server renews this login no more: {why}"));
            }
            ExitStatus::Done | ExitStatus::Failed | ExitStatus::Usage | ExitStatus::Command(_) => {}
        }
        let now = OffsetDateTime::now_utc();
        let pause = schedule::pause(self.failures, peer.not_after - now);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + pause);
        self.log.line(&format!(
            "not renewed, again in {} s: {why}",
            pause.whole_seconds()
        ));
        self.write(peer, self.retry_at, Some(&why));
        Next::Look(schedule::wait(now, now + pause).min(LOOK_EVERY))
    }

    /// No certificate that is good now. One that has expired may be good again when the clock is right, or be
    /// followed by a new login; one that is gone was taken away by `logout`.
    fn without_login(&mut self, now: OffsetDateTime) -> Next {
        if !self.home.has_generation() {
            return Next::End("the login was ended".to_owned());
        }
        match self.deadline {
            Some(deadline) if now < deadline => {
                self.note("the certificate has expired: iapctl login");
                return Next::Look(LOOK_EVERY);
            }
            Some(_) | None => self.over_seen += 1,
        }
        match self.over_seen {
            seen if seen >= OVER_SEEN_MAX => Next::End("the login is over".to_owned()),
            _ => Next::Look(LOOK_EVERY),
        }
    }

    fn write(&self, peer: &UserPeer, next: Option<OffsetDateTime>, problem: Option<&str>) {
        let report = Report {
            login_id: Some(peer.login_id.to_string()),
            generation: Some(peer.generation),
            valid_until: Some(rfc3339(peer.not_after)),
            next_renewal: next.map(rfc3339),
            deadline: Some(rfc3339(peer.login_deadline)),
            problem: problem.map(str::to_owned),
            ..Report::of_this_process()
        };
        if let Err(error) = self.running.write(&report) {
            self.log.line(&format!("{error:#}"));
        }
    }

    fn note(&mut self, problem: &str) {
        let report = Report {
            login_id: self.login.map(|login| login.to_string()),
            deadline: self.deadline.map(rfc3339),
            problem: Some(problem.to_owned()),
            ..Report::of_this_process()
        };
        if self.running.write(&report).unwrap_or(false) {
            self.log.line(problem);
        }
    }

    fn end(self, why: &str) {
        if !self.home.is_there() {
            return;
        }
        self.log.line(&format!("ended: {why}"));
        let report = Report {
            login_id: self.login.map(|login| login.to_string()),
            deadline: self.deadline.map(rfc3339),
            ended: Some(why.to_owned()),
            ..Report::of_this_process()
        };
        let _ = self.running.write(&report);
    }
}
