//! The page for people: the method, a table for each part, and where and with what it was measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Results, missing_in};
use crate::part::Part;
use crate::system::{ALL, OURS};

const METHOD: &str = include_str!("method.md");

impl Results {
    /// The whole page, in Markdown.
    pub(crate) fn page(&self) -> String {
        let mut text = METHOD.to_owned();
        text.push_str(&self.tables());
        text.push_str("\n## Where and with what\n\n");
        for (name, value) in self.machine.iter().chain(&self.versions) {
            if missing_in(name).is_none() {
                let _ = writeln!(text, "- {name}: {value}");
            }
        }
        for ((system, why), parts) in self.missing() {
            let _ = writeln!(text, "- not measured: {system} ({}): {why}", parts.join(", "));
        }
        text
    }

    /// The parts in which a system is missing, by system and reason.
    fn missing(&self) -> BTreeMap<(&str, &str), Vec<&str>> {
        let mut missing: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, why) in &self.versions {
            if let Some((system, part)) = missing_in(name) {
                missing.entry((system, why.as_str())).or_default().push(part);
            }
        }
        missing
    }

    /// Of each part that has figures.
    pub(crate) fn tables(&self) -> String {
        let mut text = String::new();
        for part in Part::ALL {
            let figures = self.figures_of(part);
            if figures.is_empty() {
                continue;
            }
            let _ = write!(text, "\n## {}\n\n", part.title());
            if part.beside_others() {
                self.write_comparison(&mut text, &figures);
            } else {
                self.write_list(&mut text, &figures);
            }
        }
        text
    }

    /// A row for each figure, a column for each system that has one of them.
    fn write_comparison(&self, text: &mut String, figures: &[(&str, &str)]) {
        let has = |system: &str| {
            figures
                .iter()
                .any(|(figure, _)| self.value(figure, system).is_some())
        };
        let systems: Vec<&str> = ALL
            .iter()
            .map(|kind| kind.name)
            .filter(|name| has(name))
            .collect();
        let _ = writeln!(text, "| figure | unit | {} |", systems.join(" | "));
        let _ = writeln!(text, "| --- | --- |{}", " --- |".repeat(systems.len()));
        for (figure, unit) in figures {
            let cells: Vec<String> = systems.iter().map(|system| self.cell(figure, system)).collect();
            let _ = writeln!(text, "| `{figure}` | {unit} | {} |", cells.join(" | "));
        }
    }

    /// A peer's value, with ours divided by it.
    fn cell(&self, figure: &str, system: &str) -> String {
        let Some(value) = self.value(figure, system) else {
            return "–".to_owned();
        };
        match self.value(figure, OURS) {
            // Of nothing there is no ratio.
            Some(own) if system != OURS && own.min(value) > 0.0 => {
                format!("{} ({:.2})", shown(value), own / value)
            }
            Some(_) | None => shown(value),
        }
    }

    fn write_list(&self, text: &mut String, figures: &[(&str, &str)]) {
        text.push_str("| figure | value | unit |\n| --- | --- | --- |\n");
        for (figure, unit) in figures {
            if let Some(value) = self.value(figure, OURS) {
                let _ = writeln!(text, "| `{figure}` | {value:.2} | {unit} |");
            }
        }
    }

    /// Names and units, each once, in the order of measurement.
    fn figures_of(&self, part: Part) -> Vec<(&str, &str)> {
        let mut names: Vec<(&str, &str)> = Vec::new();
        for one in &self.figures {
            let known = names.iter().any(|(name, _)| *name == one.figure);
            if !known && Part::of(&one.figure) == part {
                names.push((&one.figure, &one.unit));
            }
        }
        names
    }
}

/// Three digits that mean something.
fn shown(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_value_has_ours_divided_by_it_behind() {
        let mut results = Results::default();
        results.add("path_cpu_s_per_gib_1", "iap", 1.5, "CPU-s/GiB");
        results.add("path_cpu_s_per_gib_1", "nginx x3", 3.0, "CPU-s/GiB");
        results.add("throughput_gbit_1", "iap", 120.4, "Gbit/s");
        results.add("policy_us_1000", "iap", 1.25, "µs");
        results.add("auth_cpu_s_per_gib_1", "iap", 0.0, "CPU-s/GiB");
        results.add("auth_cpu_s_per_gib_1", "nginx x3", 0.0, "CPU-s/GiB");
        let expected = "\n## Many bytes\n\n\
            | figure | unit | iap | nginx x3 |\n\
            | --- | --- | --- | --- |\n\
            | `path_cpu_s_per_gib_1` | CPU-s/GiB | 1.50 | 3.00 (0.50) |\n\
            | `throughput_gbit_1` | Gbit/s | 120 | – |\n\
            | `auth_cpu_s_per_gib_1` | CPU-s/GiB | 0.00 | 0.00 |\n\
            \n## Decisions and snapshots\n\n\
            | figure | value | unit |\n\
            | --- | --- | --- |\n\
            | `policy_us_1000` | 1.25 | µs |\n";
        assert_eq!(results.tables(), expected);
    }

    #[test]
    fn systems_come_in_the_order_of_the_list_of_systems() {
        let mut results = Results::default();
        for system in ["ssh -J", "nginx x3", "iap"] {
            results.add("rtt_p50_us_64b_1", system, 11.0, "µs");
        }
        assert!(results.tables().contains("| iap | nginx x3 | ssh -J |"));
    }

    #[test]
    fn values_have_three_digits() {
        assert_eq!([0.123, 12.345, 1234.5].map(shown), ["0.12", "12.3", "1234"]);
    }
}
