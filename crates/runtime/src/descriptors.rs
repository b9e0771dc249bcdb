//! File descriptors: as many as the system allows, and one clear line when they run out.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Between two complaints of one process.
pub const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

static COMPLAINT: Complaint = Complaint {
    last: Mutex::new(None),
};

/// Raises this process's limit of open files to the most it may have, and says how many that are.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_err() {
        tracing::debug!("the limit of open files cannot be raised");
    }
    let now = allowed();
    tracing::debug!(open_files_max = now, "open files");
    now
}

/// How many this process may have open; `u64::MAX` when there is no limit.
pub fn allowed() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many a process of this user may raise its limit to; `u64::MAX` when there is no limit.
pub fn allowed_at_most() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Whether an error says that this process, or the machine, has run out of what a socket needs.
pub fn are_exhausted(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| exhausted.contains(&errno))
}

/// Says, at most once in [`COMPLAINT_INTERVAL`], that descriptors have run out while doing `what`; returns whether
/// `error` was of that kind.
pub fn complain(error: &io::Error, what: &str) -> bool {
    let exhausted = are_exhausted(error);
    if exhausted && let Some(unsaid) = COMPLAINT.due(Instant::now()) {
        tracing::error!(
            %error,
            what,
            open_files_max = allowed(),
            unsaid,
            "out of file descriptors: new connections fail or wait until others end; raise LimitNOFILE in the unit, or ulimit -n"
        );
    }
    exhausted
}

struct Complaint {
    /// When, and how many were left unsaid since.
    last: Mutex<Option<(Instant, u64)>>,
}

impl Complaint {
    /// Whether it is time again: how often it was not.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.as_mut() {
            Some((at, unsaid)) if now.saturating_duration_since(*at) < COMPLAINT_INTERVAL => {
                *unsaid = unsaid.saturating_add(1);
                None
            }
            Some((_, unsaid)) => {
                let before = *unsaid;
                *last = Some((now, 0));
                Some(before)
            }
            None => {
                *last = Some((now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_comes_once_in_a_while_and_counts_what_it_left_out() {
        let complaint = Complaint {
            last: Mutex::new(None),
        };
        let now = Instant::now();
        assert_eq!(complaint.due(now), Some(0));
        assert_eq!(complaint.due(now), None);
        assert_eq!(complaint.due(now + COMPLAINT_INTERVAL / 2), None);
        assert_eq!(complaint.due(now + COMPLAINT_INTERVAL), Some(2));
    }

    #[test]
    fn only_what_a_socket_needs_counts_as_exhausted() {
        let of = |errno: Errno| io::Error::from(errno);
        assert!(are_exhausted(&of(Errno::MFILE)) && are_exhausted(&of(Errno::NFILE)));
        assert!(!are_exhausted(&of(Errno::CONNREFUSED)) && !are_exhausted(&io::Error::other("x")));
    }
}
