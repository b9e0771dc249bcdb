//! Structured logs on standard error.

use std::io::IsTerminal;

use serde::Deserialize;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for collectors.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is neither a level nor a list of `target=level`.
    #[error("log level {level:?} is not understood: use error, warn, info, debug, trace or target=level,...")]
    Level {
        /// What was given.
        level: String,
    },
    /// A subscriber is already installed.
    #[error("logging is already set up in this process")]
    AlreadyInstalled,
    /// The subscriber is gone.
    #[error("logging is not set up in this process")]
    NotInstalled,
}

/// Changes what a running program logs.
#[derive(Debug, Clone)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// From now on this level; when it is not understood, the old one stays.
    pub fn set(&self, level: &str) -> Result<(), TelemetryError> {
        let filter = parse_level(level)?;
        self.0.reload(filter).map_err(|_| TelemetryError::NotInstalled)
    }
}

/// Installs the process-wide subscriber. `level` is a level or a comma-separated list of `target=level`.
pub fn init(format: LogFormat, level: &str) -> Result<LogLevel, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse_level(level)?);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let filtered = tracing_subscriber::registry().with(filter);
    let installed = match format {
        LogFormat::Text => filtered.with(lines).try_init(),
        LogFormat::Json => filtered.with(lines.json().flatten_event(true)).try_init(),
    };
    installed.map_err(|_| TelemetryError::AlreadyInstalled)?;
    Ok(LogLevel(handle))
}

fn parse_level(level: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(level).map_err(|_| TelemetryError::Level {
        level: level.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_level_that_is_not_understood_is_named() {
        let error = init(LogFormat::Text, "info,iap=loud").unwrap_err();
        assert!(error.to_string().contains("iap=loud"), "{error}");
    }
}
