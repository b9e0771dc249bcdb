//! Permissions and space on this machine.

use std::path::Path;

use super::Finding;
use crate::files::DataDir;

const SPACE_WARNED_PERCENT: u64 = 10;

/// Whether a folder and everything in it is for its owner alone. `missing` is what to do when there is none.
pub fn check_private_tree(path: &Path, missing: &str) -> Finding {
    if !path.exists() {
        let detail = format!("{} does not exist", path.display());
        return Finding::failed("permissions", detail, missing);
    }
    match DataDir::open_or_create(path) {
        Ok(_) => Finding::ok("permissions", format!("{} is private", path.display())),
        Err(error) => {
            let text = error.to_string();
            // The error ends in the command itself.
            let fix = text
                .split_once("run `")
                .and_then(|(_, rest)| rest.split_once('`'));
            let fix = fix.map_or_else(
                || format!("run this as the owner of {}", path.display()),
                |(command, _)| command.to_owned(),
            );
            Finding::failed("permissions", text, fix)
        }
    }
}

/// Whether the file system of `path` has room for `needed` more bytes.
#[cfg(unix)]
pub fn check_space(path: &Path, needed: u64) -> Finding {
    with_space_of(path, |free, all| judge_space(path, free, all, needed))
}

/// Whether the file system of `path` has room left for what grows without a limit there.
#[cfg(unix)]
pub fn check_room(path: &Path, free_bytes_min: u64) -> Finding {
    with_space_of(path, |free, all| judge_room(path, free, all, free_bytes_min))
}

/// What `judge` makes of the bytes that are free on the file system of `path`, and of all it has.
#[cfg(unix)]
fn with_space_of(path: &Path, judge: impl FnOnce(u64, u64) -> Finding) -> Finding {
    match rustix::fs::statvfs(path) {
        Ok(usage) => judge(usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize),
        Err(error) => {
            let detail = format!("{}: {error}", path.display());
            Finding::failed("disk", detail, format!("see `df {}`", path.display()))
        }
    }
}

fn judge_room(path: &Path, free: u64, all: u64, free_bytes_min: u64) -> Finding {
    let detail = format!(
        "{} MiB free of {} MiB at {}",
        free >> 20,
        all >> 20,
        path.display()
    );
    let fix = "free or add space";
    if free < free_bytes_min {
        Finding::failed("disk", detail, fix)
    } else if free < all / 100 * SPACE_WARNED_PERCENT {
        Finding::warning("disk", detail, fix)
    } else {
        Finding::ok("disk", detail)
    }
}

fn judge_space(path: &Path, free: u64, all: u64, needed: u64) -> Finding {
    let mebibytes = |bytes: u64| bytes >> 20;
    let detail = format!(
        "{} MiB free of {} MiB at {}, and the spool may still take {} MiB",
        mebibytes(free),
        mebibytes(all),
        path.display(),
        mebibytes(needed)
    );
    let fix = || "free or add space, or lower limits.spool_bytes_max".to_owned();
    if free < needed {
        Finding::failed("disk", detail, fix())
    } else if free.saturating_sub(needed) < all / 100 * SPACE_WARNED_PERCENT {
        Finding::warning("disk", detail, fix())
    } else {
        Finding::ok("disk", detail)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_file_that_others_may_read_is_named_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let private = folder.path().join("state");
        assert_eq!(check_private_tree(&private, "join").fix.as_deref(), Some("join"));
        std::fs::create_dir(&private).unwrap();
        std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o700)).unwrap();
        let file = private.join("key.pem");
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let loose = check_private_tree(&private, "join");
        assert_eq!(loose.verdict, Verdict::Failed);
        assert_eq!(loose.fix, Some(format!("chmod 0600 {}", file.display())));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(check_private_tree(&private, "join").verdict, Verdict::Ok);
    }

    #[test]
    fn room_is_judged_by_what_is_free_and_by_its_share() {
        let judge = |free: u64| judge_room(Path::new("/x"), free << 20, 1000 << 20, 64 << 20).verdict;
        assert_eq!(judge(500), Verdict::Ok);
        assert_eq!(judge(99), Verdict::Warning);
        assert_eq!(judge(63), Verdict::Failed);
    }

    #[test]
    fn space_is_judged_by_what_the_spool_may_still_take() {
        let judge = |free: u64, needed: u64| {
            judge_space(Path::new("/x"), free << 20, 1000 << 20, needed << 20).verdict
        };
        assert_eq!(judge(500, 100), Verdict::Ok);
        assert_eq!(judge(150, 100), Verdict::Warning);
        assert_eq!(judge(50, 100), Verdict::Failed);
    }
}
