//! Structured logs on standard error.

use std::io::IsTerminal;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

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
}

/// Installs the process-wide subscriber. `level` is a level or a comma-separated list of `target=level`.
pub fn init(format: LogFormat, level: &str) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(level).map_err(|_| TelemetryError::Level {
        level: level.to_owned(),
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let installed = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|_| TelemetryError::AlreadyInstalled)
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
