//! `doctor`: what may be wrong between this machine and the cluster, each finding with the command or setting that
//! mends it. It looks and says nothing to anybody that they do not hear from every client.

mod clock;
mod files;
mod listening;
mod path;
mod server;

use std::fmt::Write as _;

use serde::Serialize;

pub use files::{check_private_tree, check_room, check_space};
pub use listening::{Transport, check_bindable, check_listening};
pub use path::{Target, check_path, check_server, presented};
pub use server::{Server, check_running, check_signed_time};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could.
    Warning,
    /// It does not work.
    Failed,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check: a word that does not change.
    pub check: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was seen.
    pub detail: String,
    /// The command or setting that mends it.
    pub fix: Option<String>,
}

/// All findings, in the order of the checks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing failed.
    pub healthy: bool,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            detail: detail.into(),
            fix: None,
        }
    }

    /// Works, but not as well as it could.
    pub fn warning(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warning,
            fix: Some(fix.into()),
            ..Self::ok(check, detail)
        }
    }

    /// Does not work.
    pub fn failed(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Failed,
            fix: Some(fix.into()),
            ..Self::ok(check, detail)
        }
    }
}

/// The findings about one thing that several checks look at, as one: the worst of them, or what is said when all is
/// well.
pub fn worst_of(check: &'static str, findings: Vec<Finding>, well: impl Into<String>) -> Finding {
    let worst = findings.into_iter().max_by_key(|finding| finding.verdict);
    match worst {
        Some(worst) if worst.verdict != Verdict::Ok => Finding { check, ..worst },
        Some(_) | None => Finding::ok(check, well),
    }
}

impl Report {
    /// A report of these findings.
    pub fn new(findings: Vec<Finding>) -> Self {
        Self {
            healthy: findings.iter().all(|finding| finding.verdict != Verdict::Failed),
            findings,
        }
    }

    /// The report as one JSON object.
    ///
    /// # Errors
    /// When it cannot be written as such.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// One line for each check, and one for each fix.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let mark = match finding.verdict {
                Verdict::Ok => "ok     ",
                Verdict::Warning => "warning",
                Verdict::Failed => "FAILED ",
            };
            // Writing to a String does not fail.
            let _ = writeln!(text, "{mark}  {:<12} {}", finding.check, finding.detail);
            if let Some(fix) = &finding.fix {
                let _ = writeln!(text, "{:>24}{fix}", "-> ");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests;
