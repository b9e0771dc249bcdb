//! The mistakes found in a configuration file.

use std::fmt;

use super::Origins;
use super::stand_in::Holes;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Dotted key, such as `limits.connections_max` or `connector.0.issuer`; empty for the whole file.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
    /// The environment variable the value came from, if it did not come from the file.
    pub variable: Option<String>,
    /// Keys without which nothing can be said about this one.
    depends_on: &'static [&'static str],
}

/// Every mistake found in one configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    file: String,
    errors: Vec<ConfigError>,
}

impl ConfigErrors {
    /// An empty list for `file`, for checks that go beyond single values.
    pub fn none(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            errors: Vec::new(),
        }
    }

    /// A list of one.
    pub fn of(file: &str, key: &str, message: impl Into<String>) -> Self {
        let mut errors = Self::none(file);
        errors.push(key, message);
        errors
    }

    /// Adds a mistake.
    pub fn push(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(ConfigError {
            key: key.to_owned(),
            message: message.into(),
            variable: None,
            depends_on: &[],
        });
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// The mistakes, in the order they were found.
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }

    /// `value` if nothing is wrong.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// Adds a mistake that only holds if the values under `depends_on` (dotted keys or sections) can be read.
    pub fn push_given(&mut self, key: &str, depends_on: &'static [&'static str], message: impl Into<String>) {
        self.push(key, message);
        if let Some(pushed) = self.errors.last_mut() {
            pushed.depends_on = depends_on;
        }
    }

    /// Adds findings about what values mean, except those about stand-ins for values that could not be read:
    /// these would only confuse.
    pub(super) fn add_those_beyond(&mut self, findings: Self, holes: &Holes) {
        let rests_on_stand_in = |finding: &ConfigError| {
            holes.touch(&finding.key) || finding.depends_on.iter().any(|key| holes.lie_below(key))
        };
        let beyond = findings
            .errors
            .into_iter()
            .filter(|finding| !rests_on_stand_in(finding));
        self.errors.extend(beyond);
    }

    pub(super) fn push_once(&mut self, key: &str, message: String) {
        if !self
            .errors
            .iter()
            .any(|known| known.key == key && known.message == message)
        {
            self.push(key, message);
        }
    }

    pub(super) fn name_origins(&mut self, origins: &Origins) {
        for error in &mut self.errors {
            error.variable = origins.get(&error.key).cloned().or(error.variable.take());
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            write!(formatter, "{}: ", self.file)?;
            if !error.key.is_empty() {
                write!(formatter, "{}: ", error.key)?;
            }
            formatter.write_str(&error.message)?;
            if let Some(variable) = &error.variable {
                write!(formatter, " (set by {variable})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
