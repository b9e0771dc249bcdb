//! How a command ends: the exit codes that scripts rely on.

use std::process::{ExitCode, ExitStatus as ProcessStatus};

/// The exit code of our own failures while a command of the user's was to run in our place.
const COMMAND_WRAPPER_FAILED: u8 = 125;
/// Shells report a command that died of signal n as 128 + n.
const SIGNAL_BASE: i32 = 128;

/// The exit status of `iapctl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: done.
    Done,
    /// 1: our failure, or the network's.
    Failed,
    /// 2: usage or bad input.
    Usage,
    /// 3: denied by policy.
    Denied,
    /// 4: a login is needed.
    LoginNeeded,
    /// The status of the command that was run.
    Command(u8),
}

impl ExitStatus {
    /// The number the shell sees.
    pub fn code(self) -> u8 {
        match self {
            ExitStatus::Done => 0,
            ExitStatus::Failed => 1,
            ExitStatus::Usage => 2,
            ExitStatus::Denied => 3,
            ExitStatus::LoginNeeded => 4,
            ExitStatus::Command(code) => code,
        }
    }

    /// Under `connect -- CMD` a plain failure is 125, so that it is never taken for the command's own.
    pub fn around_a_command(self) -> Self {
        match self {
            ExitStatus::Failed => ExitStatus::Command(COMMAND_WRAPPER_FAILED),
            ExitStatus::Done
            | ExitStatus::Usage
            | ExitStatus::Denied
            | ExitStatus::LoginNeeded
            | ExitStatus::Command(_) => self,
        }
    }

    /// The status to pass on for a command that ended with `status`.
    pub fn of_command(status: ProcessStatus) -> Self {
        let code = status
            .code()
            .or_else(|| signal_of(status).map(|signal| SIGNAL_BASE + signal));
        ExitStatus::Command(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        ExitCode::from(status.code())
    }
}

#[cfg(unix)]
fn signal_of(status: ProcessStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[cfg(not(unix))]
fn signal_of(_status: ProcessStatus) -> Option<i32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_failure_changes_around_a_command() {
        assert_eq!(ExitStatus::Failed.around_a_command().code(), 125);
        assert_eq!(ExitStatus::Usage.around_a_command().code(), 2);
        assert_eq!(ExitStatus::Denied.around_a_command().code(), 3);
        assert_eq!(ExitStatus::LoginNeeded.around_a_command().code(), 4);
        assert_eq!(ExitStatus::Command(1).around_a_command().code(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_command_killed_by_a_signal_is_128_and_the_signal() {
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(ExitStatus::of_command(ProcessStatus::from_raw(15)).code(), 143);
        assert_eq!(ExitStatus::of_command(ProcessStatus::from_raw(7 << 8)).code(), 7);
    }
}
