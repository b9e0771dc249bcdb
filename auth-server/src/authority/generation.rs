//! Which certificate of a login may renew it.
//!
//! The newest may. The one before it may once more for ten minutes, for clients whose answer was lost
//! on the way. Anything else means that two hold the key, and locks both.

use time::{Duration, OffsetDateTime};

use crate::store::GenerationRow;

/// How long a lost answer can be asked for again.
pub const PREVIOUS_ACCEPTED: Duration = Duration::minutes(10);

/// What a certificate of some generation may do.
#[derive(Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Renew: the row to be stored, whose generation the new certificate carries.
    Allowed(GenerationRow),
    /// Nothing: the login was ended by its holder.
    Ended,
    /// Nothing: another holder of the key has renewed already.
    Reused,
}

/// Judges a certificate of generation `presented`.
pub fn judge(row: &GenerationRow, presented: u64, now: OffsetDateTime) -> Renewal {
    if row.ended_at.is_some() {
        return Renewal::Ended;
    }
    let is_newest = presented == row.generation;
    let is_previous = presented.checked_add(1) == Some(row.generation);
    let previous_until = match (is_newest, is_previous) {
        (true, _) => Some(now + PREVIOUS_ACCEPTED),
        // Once more, and not again: the window closes with its use.
        (false, true) if row.previous_until.is_some_and(|until| now < until) => None,
        (false, _) => return Renewal::Reused,
    };
    Renewal::Allowed(GenerationRow {
        generation: row.generation + 1,
        previous_until,
        ..row.clone()
    })
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use iap_identity::{LoginId, UserId};
    use uuid::Uuid;

    use super::*;

    const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn first() -> GenerationRow {
        GenerationRow {
            login_id: LoginId::from_uuid(Uuid::nil()),
            user_id: UserId::derive("dev", "https://issuer", "alice"),
            generation: 1,
            previous_until: None,
            ended_at: None,
        }
    }

    fn allowed(row: &GenerationRow, presented: u64, minute: i64) -> GenerationRow {
        match judge(row, presented, START + Duration::minutes(minute)) {
            Renewal::Allowed(row) => row,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_renewal_is_one_generation_further() {
        let second = allowed(&first(), 1, 30);
        assert_eq!(second.generation, 2);
        assert_eq!(allowed(&second, 2, 60).generation, 3);
    }

    #[test]
    fn the_previous_generation_renews_once_more_within_ten_minutes() {
        let second = allowed(&first(), 1, 0);
        let third = allowed(&second, 1, 9);
        assert_eq!(third.generation, 3);
        assert_eq!(judge(&third, 1, START + Duration::minutes(9)), Renewal::Reused);
        assert_eq!(judge(&third, 2, START + Duration::minutes(9)), Renewal::Reused);
        assert_eq!(allowed(&third, 3, 40).generation, 4);
    }

    #[test]
    fn the_previous_generation_is_reuse_after_ten_minutes() {
        let second = allowed(&first(), 1, 0);
        assert_eq!(judge(&second, 1, START + Duration::minutes(10)), Renewal::Reused);
    }

    #[test]
    fn generations_that_were_never_issued_are_reuse() {
        assert_eq!(judge(&first(), 2, START), Renewal::Reused);
        assert_eq!(judge(&first(), 0, START), Renewal::Reused);
        assert_eq!(judge(&first(), u64::MAX, START), Renewal::Reused);
    }

    #[test]
    fn a_login_that_was_ended_renews_no_more() {
        let ended = GenerationRow {
            ended_at: Some(START),
            ..first()
        };
        assert_eq!(judge(&ended, 1, START), Renewal::Ended);
    }
}
