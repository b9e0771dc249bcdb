//! What changed between two readings of a configuration file: what takes effect at once, and what at the next start.

use std::collections::BTreeSet;
use std::path::Path;

use super::{ConfigErrors, environment, read_text};

const LOG_LEVEL: &str = "log.level";

/// The values of a configuration file, overrides from the environment included, as they were read.
#[derive(Debug, Clone, PartialEq)]
pub struct Values(toml::Table);

/// Which keys a running program takes over.
#[derive(Debug, Clone, Copy)]
pub struct LiveKeys {
    /// Keys, and sections with every key in them, that it does.
    pub taken_over: &'static [&'static str],
    /// Keys in those sections that it reads at the start alone.
    pub fixed: &'static [&'static str],
}

impl LiveKeys {
    /// `log.level` is taken over by every program.
    fn has(&self, key: &str) -> bool {
        let among = |keys: &[&str]| keys.iter().any(|section| is_at_or_below(key, section));
        key == LOG_LEVEL || (among(self.taken_over) && !among(self.fixed))
    }
}

/// Dotted keys that differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that a running program takes over.
    pub applied: Vec<String>,
    /// Those that are read at the start alone.
    pub needs_restart: Vec<String>,
}

impl Values {
    /// Reads the file's values without looking at what they mean.
    ///
    /// # Errors
    /// When it cannot be read, or is no TOML.
    pub fn load(path: &Path, environment_prefix: &str) -> Result<Self, ConfigErrors> {
        let file = path.display().to_string();
        let text = read_text(path).map_err(|message| ConfigErrors::of(&file, "", message))?;
        Self::parse(&text, &file, environment_prefix, std::env::vars())
    }

    fn parse(
        text: &str,
        file: &str,
        environment_prefix: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::none(file);
        let parsed = text.parse::<toml::Table>();
        let mut table =
            parsed.map_err(|error| ConfigErrors::of(file, "", error.to_string().trim_end().to_owned()))?;
        environment::apply(&mut table, environment_prefix, environment, &mut errors);
        errors.into_result(Self(table))
    }

    /// What differs from `before`.
    #[must_use]
    pub fn changes(&self, before: &Self, live: &LiveKeys) -> Changes {
        let mut keys = BTreeSet::new();
        differ("", &before.0, &self.0, &mut keys);
        let (applied, needs_restart) = keys.into_iter().partition(|key| live.has(key));
        Changes {
            applied,
            needs_restart,
        }
    }
}

impl Changes {
    /// Writes to the log what became of the file.
    pub fn log(&self) {
        if self.applied.is_empty() && self.needs_restart.is_empty() {
            tracing::info!("the configuration file was read again: nothing in it has changed");
        }
        if !self.applied.is_empty() {
            tracing::info!(keys = self.applied.join(" "), "configuration taken over");
        }
        if !self.needs_restart.is_empty() {
            let keys = self.needs_restart.join(" ");
            tracing::warn!(keys, "configuration that takes effect at the next start only");
        }
    }
}

fn is_at_or_below(key: &str, section: &str) -> bool {
    key.strip_prefix(section)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn differ(path: &str, before: &toml::Table, after: &toml::Table, keys: &mut BTreeSet<String>) {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        let key = match path {
            "" => name.clone(),
            path => format!("{path}.{name}"),
        };
        match (before.get(name), after.get(name)) {
            (Some(toml::Value::Table(before)), Some(toml::Value::Table(after))) => {
                differ(&key, before, after, keys);
            }
            (Some(toml::Value::Table(before)), None) => differ(&key, before, &toml::Table::new(), keys),
            (None, Some(toml::Value::Table(after))) => differ(&key, &toml::Table::new(), after, keys),
            (before, after) if before == after => {}
            _ => {
                keys.insert(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn values(text: &str) -> Values {
        Values::parse(text, "x.toml", "IAP_TEST", []).unwrap()
    }

    const LIVE: LiveKeys = LiveKeys {
        taken_over: &["service", "limits"],
        fixed: &["limits.y"],
    };

    #[test]
    fn changes_are_dotted_keys_told_apart_by_what_a_running_program_takes_over() {
        let before = values(
            "a = 1\nb = 2\n[log]\nlevel = \"info\"\n[limits]\nx = 1\ny = 2\n[[service]]\nname = \"a\"",
        );
        let after =
            values("a = 1\n[log]\nlevel = \"debug\"\n[limits]\nx = 2\ny = 3\n[[service]]\nname = \"b\"");
        let changes = after.changes(&before, &LIVE);
        assert_eq!(changes.applied, ["limits.x", "log.level", "service"]);
        assert_eq!(changes.needs_restart, ["b", "limits.y"]);
        assert_eq!(after.changes(&after, &LIVE), Changes::default());
    }

    #[test]
    fn a_section_that_appears_is_told_apart_key_by_key() {
        let changes = values("[limits]\nx = 1\ny = 2").changes(&values(""), &LIVE);
        assert_eq!(changes.applied, ["limits.x"]);
        assert_eq!(changes.needs_restart, ["limits.y"]);
    }

    #[test]
    fn overrides_from_the_environment_are_no_change_of_the_file() {
        let variable = || [("IAP_TEST__A".to_owned(), "5".to_owned())];
        let before = Values::parse("a = 1", "x", "IAP_TEST", variable()).unwrap();
        let after = Values::parse("a = 2", "x", "IAP_TEST", variable()).unwrap();
        assert_eq!(after.changes(&before, &LIVE), Changes::default());
    }

    #[test]
    fn a_live_section_is_no_prefix_of_another_key() {
        let changes = values("services = 1").changes(&values(""), &LIVE);
        assert_eq!(changes.needs_restart, ["services"]);
    }
}
