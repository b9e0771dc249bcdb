//! Which of two objects of a kind is the newer one.

use time::OffsetDateTime;

/// An object that is older than the one held: a replay, or a server restored from a backup without a new epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {what} of epoch {epoch}, version {version} is older than the one held ({held_epoch}, {held_version})"
)]
pub struct Older {
    /// Which object.
    pub what: &'static str,
    /// Its epoch.
    pub epoch: u64,
    /// Its version.
    pub version: u64,
    /// The epoch held.
    pub held_epoch: u64,
    /// The version held.
    pub held_version: u64,
}

/// What makes one object newer than another of its kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Age {
    epoch: u64,
    version: u64,
    issued: OffsetDateTime,
}

impl Age {
    pub(super) fn of(epoch: u64, version: u64, issued: OffsetDateTime) -> Self {
        Self {
            epoch,
            version,
            issued,
        }
    }

    /// Whether this one replaces `held`: a higher version does, and so does the same version signed later,
    /// which is how an expiry moves on. A lower one is an error.
    pub(super) fn replaces(self, what: &'static str, held: Self) -> Result<bool, Older> {
        if (self.epoch, self.version) < (held.epoch, held.version) {
            return Err(Older {
                what,
                epoch: self.epoch,
                version: self.version,
                held_epoch: held.epoch,
                held_version: held.version,
            });
        }
        Ok((self.epoch, self.version, self.issued) > (held.epoch, held.version, held.issued))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(epoch: u64, version: u64, second: i64) -> Age {
        Age::of(
            epoch,
            version,
            OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(second),
        )
    }

    #[test]
    fn higher_versions_epochs_and_later_signatures_replace() {
        let held = age(2, 5, 100);
        for newer in [age(2, 6, 100), age(2, 6, 1), age(3, 1, 1), age(2, 5, 101)] {
            assert_eq!(newer.replaces("snapshot", held), Ok(true), "{newer:?}");
        }
    }

    #[test]
    fn the_same_again_changes_nothing_and_anything_lower_is_refused_however_late_it_was_signed() {
        let held = age(2, 5, 100);
        assert_eq!(held.replaces("snapshot", held), Ok(false));
        assert_eq!(age(2, 5, 99).replaces("snapshot", held), Ok(false));
        for older in [age(2, 4, 999), age(1, 9, 999)] {
            assert!(older.replaces("snapshot", held).is_err(), "{older:?}");
        }
    }
}
