//! Errors as the user meets them: what failed, why, and the next command.

use std::fmt;

use crate::exit::ExitStatus;
use crate::printer::Printer;

/// A failure with its exit status and up to three sentences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    status: ExitStatus,
    what: String,
    why: Option<String>,
    next: Option<String>,
}

impl Failure {
    /// Our failure, or the network's (1).
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(ExitStatus::Failed, what)
    }

    /// Bad input (2).
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(ExitStatus::Usage, what)
    }

    /// Denied by policy (3).
    pub fn denied(what: impl Into<String>) -> Self {
        Self::new(ExitStatus::Denied, what)
    }

    /// A login is needed (4).
    pub fn login_needed(what: impl Into<String>) -> Self {
        Self::new(ExitStatus::LoginNeeded, what)
    }

    fn new(status: ExitStatus, what: impl Into<String>) -> Self {
        Self {
            status,
            what: what.into(),
            why: None,
            next: None,
        }
    }

    /// Adds the reason.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        let why = why.into();
        self.why = (!why.is_empty()).then_some(why);
        self
    }

    /// Adds what to do next, as a command where there is one.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Gives the failure another exit status.
    #[must_use]
    pub fn with_status(mut self, status: ExitStatus) -> Self {
        self.status = status;
        self
    }

    /// What to do next.
    pub fn next_step(&self) -> Option<&str> {
        self.next.as_deref()
    }

    /// The exit status.
    pub fn status(&self) -> ExitStatus {
        self.status
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.what)?;
        if let Some(why) = &self.why {
            write!(out, ": {why}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Writes the error to stderr and returns the status to end with. A reader of our output that went away
/// (`iapctl … | head -1`) is no failure.
pub fn report(printer: &Printer, error: &anyhow::Error) -> ExitStatus {
    if is_broken_pipe(error) {
        return ExitStatus::Done;
    }
    if let Some(failure) = find(error) {
        print(printer, failure);
        return failure.status;
    }
    let mut causes = error.chain().map(ToString::to_string);
    let what = causes.next().unwrap_or_default();
    let why = causes.collect::<Vec<_>>().join(": ");
    print(printer, &Failure::failed(what).because(why));
    ExitStatus::Failed
}

/// The status an error will end the program with.
pub fn status_of(error: &anyhow::Error) -> ExitStatus {
    find(error).map_or(ExitStatus::Failed, Failure::status)
}

fn find(error: &anyhow::Error) -> Option<&Failure> {
    error.chain().find_map(|cause| cause.downcast_ref::<Failure>())
}

fn print(printer: &Printer, failure: &Failure) {
    let label = match failure.status {
        ExitStatus::Denied => "denied",
        ExitStatus::Done
        | ExitStatus::Failed
        | ExitStatus::Usage
        | ExitStatus::LoginNeeded
        | ExitStatus::Command(_) => "error",
    };
    printer.problem(label, &failure.what);
    if let Some(why) = &failure.why {
        printer.detail_line("why", why);
    }
    if let Some(next) = &failure.next {
        printer.detail_line("next", next);
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
            && cause.to_string().starts_with(crate::printer::STDOUT_CLOSED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_survives_added_context() {
        let error = anyhow::Error::new(Failure::denied("no")).context("while connecting");
        assert_eq!(status_of(&error), ExitStatus::Denied);
    }

    #[test]
    fn an_unclassified_error_is_our_failure() {
        assert_eq!(status_of(&anyhow::anyhow!("what")), ExitStatus::Failed);
    }
}
