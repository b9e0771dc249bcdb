//! What was measured, for programs (`results.json`) and for people (`performance.md`).

mod machine;
mod page;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::part::Part;

pub(crate) use machine::{load_average, machine};

/// How the names of notes begin that say what is missing.
const NOT_MEASURED: &str = "not measured: ";

/// One measured value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) figure: String,
    pub(crate) system: String,
    pub(crate) value: f64,
    pub(crate) unit: String,
}

/// The figures of one or several runs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: BTreeMap<String, String>,
    /// What was measured with: programs, commands, and what could not be measured and why.
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) figures: Vec<Figure>,
}

impl Results {
    /// What an earlier run wrote.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub(crate) fn read(json: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(json).with_context(|| format!("cannot read {}", json.display()))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Takes a figure in, in place of an earlier value.
    pub(crate) fn add(&mut self, figure: &str, system: &str, value: f64, unit: &str) {
        let known = self
            .figures
            .iter_mut()
            .find(|one| one.figure == figure && one.system == system);
        if let Some(known) = known {
            known.value = value;
            unit.clone_into(&mut known.unit);
            return;
        }
        self.figures.push(Figure {
            figure: figure.to_owned(),
            system: system.to_owned(),
            value,
            unit: unit.to_owned(),
        });
    }

    /// A figure's value.
    pub(crate) fn value(&self, figure: &str, system: &str) -> Option<f64> {
        self.figures
            .iter()
            .find(|one| one.figure == figure && one.system == system)
            .map(|one| one.value)
    }

    /// Says that a system is missing in a part, and why.
    pub(crate) fn failed(&mut self, system: &str, part: Part, error: &anyhow::Error) {
        eprintln!("{system} is left out of {}: {error:#}", part.word());
        let name = format!("{NOT_MEASURED}{system} ({})", part.word());
        self.versions.insert(name, format!("{error:#}"));
    }

    /// Whether a part of that system is missing.
    pub(crate) fn has_failed(&self, system: &str) -> bool {
        let mut missing = self.versions.keys().filter_map(|name| missing_in(name));
        missing.any(|(missing, _)| missing == system)
    }

    /// What an earlier run measured and this one does not. A part is replaced whole: its figures are ratios within a run.
    pub(crate) fn keep_of(&mut self, earlier: Self, parts: &[Part]) {
        for one in earlier.figures {
            if !parts.contains(&Part::of(&one.figure)) && self.value(&one.figure, &one.system).is_none() {
                self.figures.push(one);
            }
        }
        let measured = |name: &str| {
            let (_, part) = missing_in(name)?;
            parts.iter().find(|one| one.word() == part)
        };
        // A command of which nothing is left.
        let is_over = |name: &str| {
            let words = name
                .strip_prefix("command (")
                .and_then(|rest| rest.strip_suffix(')'));
            words.is_some_and(|words| {
                words
                    .split(',')
                    .all(|word| parts.iter().any(|part| part.word() == word))
            })
        };
        for (name, version) in earlier.versions {
            if measured(&name).is_none() && !is_over(&name) {
                self.versions.entry(name).or_insert(version);
            }
        }
    }

    /// Writes both files.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn write(&self, json: &Path, markdown: &Path) -> anyhow::Result<()> {
        std::fs::write(json, serde_json::to_string_pretty(self)? + "\n")?;
        std::fs::write(markdown, self.page())?;
        Ok(())
    }
}

/// The system and the part that a note says is missing.
fn missing_in(name: &str) -> Option<(&str, &str)> {
    let (system, part) = name.strip_prefix(NOT_MEASURED)?.rsplit_once(" (")?;
    Some((system, part.strip_suffix(')')?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_was_measured_replaces_its_figures_and_others_are_kept() {
        let mut earlier = Results::default();
        earlier.add("rtt_p50_us_64b_1", "iap", 1.0, "µs");
        earlier.add("rtt_p50_us_64b_1", "gone", 1.0, "µs");
        earlier.add("agents_back_s", "iap", 9.0, "s");
        earlier
            .versions
            .insert("command (scale)".to_owned(), "x".to_owned());
        for command in ["command (rtt)", "command (bulk,rtt)"] {
            earlier.versions.insert(command.to_owned(), "x".to_owned());
        }
        earlier.failed("gone", Part::Rtt, &anyhow::anyhow!("broken"));
        earlier.failed("absent", Part::Bulk, &anyhow::anyhow!("not there"));
        let mut results = Results::default();
        results.add("rtt_p50_us_64b_1", "iap", 2.0, "µs");
        results.keep_of(earlier, &[Part::Rtt]);
        assert_eq!(results.value("rtt_p50_us_64b_1", "iap"), Some(2.0));
        assert_eq!(results.value("rtt_p50_us_64b_1", "gone"), None);
        assert_eq!(results.value("agents_back_s", "iap"), Some(9.0));
        let has = |command: &str| results.versions.contains_key(command);
        assert!(has("command (scale)") && has("command (bulk,rtt)") && !has("command (rtt)"));
        assert!(results.has_failed("absent") && !results.has_failed("gone"));
    }

    #[test]
    fn what_failed_is_named_with_its_reason() {
        let mut results = Results::default();
        for part in [Part::Bulk, Part::Rtt] {
            results.failed("ssh -L", part, &anyhow::anyhow!("no sshd"));
        }
        assert!(results.has_failed("ssh -L") && !results.has_failed("ssh -J"));
        assert!(
            results
                .page()
                .contains("- not measured: ssh -L (bulk, rtt): no sshd\n")
        );
    }

    #[test]
    fn the_json_has_the_agreed_keys() -> anyhow::Result<()> {
        let mut results = Results::default();
        results.add("throughput_gbit_1", "iap", 2.0, "Gbit/s");
        let json = serde_json::to_value(&results)?;
        let keys: Vec<&str> = json
            .as_object()
            .into_iter()
            .flat_map(|all| all.keys())
            .map(String::as_str)
            .collect();
        assert_eq!(keys, ["figures", "machine", "versions"]);
        let figure = serde_json::json!({"figure": "throughput_gbit_1", "system": "iap", "value": 2.0, "unit": "Gbit/s"});
        assert_eq!(json.pointer("/figures/0"), Some(&figure));
        Ok(())
    }
}
