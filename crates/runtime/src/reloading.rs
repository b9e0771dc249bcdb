//! SIGHUP: the configuration file is read again. What a running program can take over, it does; what it cannot is
//! named; a file with mistakes changes nothing.

use std::path::PathBuf;

use crate::config::{ConfigErrors, LiveKeys, Values};
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
    /// What the program takes over while it runs.
    pub live: LiveKeys,
    /// What is logged.
    pub level: LogLevel,
    /// Whom to tell.
    pub manager: ServiceManager,
}

/// A file that was read again and has no mistakes.
pub struct Checked {
    /// The level to log at.
    pub level: String,
    /// Takes over what the program can. Nothing is taken over before the whole file is known to be good.
    pub take_over: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Checked");
        shown.field("level", &self.level).finish_non_exhaustive()
    }
}

impl Reloading {
    /// Answers until the shutdown. `check` reads and checks the file.
    pub async fn run(
        self,
        mut hangups: Hangups,
        shutdown: Shutdown,
        mut check: impl FnMut() -> Result<Checked, ConfigErrors> + Send,
    ) {
        let mut held = Values::load(&self.path, self.environment_prefix).ok();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = hangups.received() => {}
            }
            self.manager.reloading();
            match self.once(&mut check) {
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
        check: &mut impl FnMut() -> Result<Checked, ConfigErrors>,
    ) -> Result<Values, ConfigErrors> {
        let values = Values::load(&self.path, self.environment_prefix)?;
        let checked = check()?;
        let file = self.path.display().to_string();
        self.level
            .set(&checked.level)
            .map_err(|error| ConfigErrors::of(&file, "log.level", error.to_string()))?;
        (checked.take_over)();
        Ok(values)
    }

    fn report(&self, held: &mut Option<Values>, values: Values) {
        if let Some(before) = held {
            values.changes(before, &self.live).log();
        }
        *held = Some(values);
    }
}
