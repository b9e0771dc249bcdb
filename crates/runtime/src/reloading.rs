//! SIGHUP: the configuration file is read again. What a running program can take over, it does; what it cannot is
//! named; a file with mistakes changes nothing.

use std::path::PathBuf;

use crate::config::{ConfigErrors, Values};
use crate::service_manager::ServiceManager;
use crate::shutdown::{Hangups, Shutdown};
use crate::telemetry::LogLevel;

/// What answers SIGHUP in a program.
#[derive(Debug)]
pub struct Reloading {
    /// The configuration file.
    pub path: PathBuf,
    /// The prefix of its overrides.
    pub environment_prefix: &'static str,
    /// Keys and sections that the program takes over while it runs; `log.level` always is.
    pub live: &'static [&'static str],
    /// What is logged.
    pub level: LogLevel,
    /// Whom to tell.
    pub manager: ServiceManager,
}

impl Reloading {
    /// Answers until the shutdown. `take_over` reads and checks the file, takes over what the program can, and
    /// returns the level to log at.
    pub async fn run(
        self,
        mut hangups: Hangups,
        shutdown: Shutdown,
        mut take_over: impl FnMut() -> Result<String, ConfigErrors> + Send,
    ) {
        let mut held = Values::load(&self.path, self.environment_prefix).ok();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = hangups.received() => {}
            }
            self.manager.reloading();
            match self.once(&mut take_over) {
                Ok(values) => self.report(&mut held, values),
                Err(errors) => {
                    tracing::error!(%errors, "the configuration file has mistakes: everything stays as it was");
                }
            }
            self.manager.ready();
        }
    }

    fn once(
        &self,
        take_over: &mut impl FnMut() -> Result<String, ConfigErrors>,
    ) -> Result<Values, ConfigErrors> {
        let values = Values::load(&self.path, self.environment_prefix)?;
        let level = take_over()?;
        let file = self.path.display().to_string();
        self.level
            .set(&level)
            .map_err(|error| ConfigErrors::of(&file, "log.level", error.to_string()))?;
        Ok(values)
    }

    fn report(&self, held: &mut Option<Values>, values: Values) {
        if let Some(before) = held {
            let live: Vec<&str> = self.live.iter().copied().chain(["log.level"]).collect();
            values.changes(before, &live).log();
        }
        *held = Some(values);
    }
}
