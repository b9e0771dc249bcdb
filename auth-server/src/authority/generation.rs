//! Which certificate of a login may renew it.
//!
//! The newest may. The one before it may once more for ten minutes, for clients that forgot their request.
//! The request that made the newest may be repeated, byte by byte, for ten minutes, as often as answers are
//! lost: it gets a certificate of the same generation. Anything else means that two hold the key, and locks
//! both. The rule stands in docs/protocol.md.

use time::{Duration, OffsetDateTime};

use crate::store::{AnsweredRequest, GenerationRow, Hash};

/// How long a lost answer can be asked for again.
pub const PREVIOUS_ACCEPTED: Duration = Duration::minutes(10);

/// What a certificate of some generation may do.
#[derive(Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Renew: the row to be stored, whose generation the new certificate carries.
    Allowed(GenerationRow),
    /// Be answered once more: the certificate carries the generation that is. The row to be stored differs from the
    /// one before in the last digit of a time alone, so that whoever gave the first answer up does not take the
    /// generation back.
    Repeated(GenerationRow),
    /// Nothing: the login was ended by its holder.
    Ended,
    /// Nothing: another holder of the key has renewed already.
    Reused,
}

/// Judges a certificate of generation `presented` that comes with a request of hash `request`.
pub fn judge(row: &GenerationRow, presented: u64, request: &Hash, now: OffsetDateTime) -> Renewal {
    if row.ended_at.is_some() {
        return Renewal::Ended;
    }
    let is_newest = presented == row.generation;
    let is_previous = presented.checked_add(1) == Some(row.generation);
    let repeated = row.answered.as_ref().filter(|answered| {
        answered.from == presented && answered.request == *request && now < answered.until
    });
    if let (false, Some(answered)) = (is_newest, repeated) {
        return Renewal::Repeated(GenerationRow {
            answered: Some(AnsweredRequest {
                until: answered.until + Duration::MILLISECOND,
                ..answered.clone()
            }),
            ..row.clone()
        });
    }
    let previous_until = match (is_newest, is_previous) {
        (true, _) => Some(now + PREVIOUS_ACCEPTED),
        // Once more, and not again: the window closes with its use.
        (false, true) if row.previous_until.is_some_and(|until| now < until) => None,
        (false, _) => return Renewal::Reused,
    };
    Renewal::Allowed(GenerationRow {
        generation: row.generation + 1,
        previous_until,
        answered: Some(AnsweredRequest {
            request: *request,
            from: presented,
            until: now + PREVIOUS_ACCEPTED,
        }),
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
    /// A request that was not made before.
    const OTHER: u8 = 99;

    fn first() -> GenerationRow {
        GenerationRow {
            login_id: LoginId::from_uuid(Uuid::nil()),
            user_id: UserId::derive("dev", "https://issuer", "alice"),
            generation: 1,
            previous_until: None,
            ended_at: None,
            answered: None,
        }
    }

    fn judged(row: &GenerationRow, presented: u64, request: u8, minute: i64) -> Renewal {
        judge(row, presented, &[request; 32], START + Duration::minutes(minute))
    }

    /// With a request that no other call makes.
    fn allowed(row: &GenerationRow, presented: u64, minute: i64) -> GenerationRow {
        let request = row
            .answered
            .as_ref()
            .map_or(1, |answered| answered.request[0] + 1);
        match judged(row, presented, request, minute) {
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
        assert_eq!(judged(&third, 1, OTHER, 9), Renewal::Reused);
        assert_eq!(judged(&third, 2, OTHER, 9), Renewal::Reused);
        assert_eq!(allowed(&third, 3, 40).generation, 4);
    }

    #[test]
    fn the_previous_generation_is_reuse_after_ten_minutes() {
        let second = allowed(&first(), 1, 0);
        assert_eq!(judged(&second, 1, OTHER, 10), Renewal::Reused);
    }

    #[test]
    fn generations_that_were_never_issued_are_reuse() {
        assert_eq!(judged(&first(), 2, OTHER, 0), Renewal::Reused);
        assert_eq!(judged(&first(), 0, OTHER, 0), Renewal::Reused);
        assert_eq!(judged(&first(), u64::MAX, OTHER, 0), Renewal::Reused);
    }

    #[test]
    fn a_login_that_was_ended_renews_no_more() {
        let ended = GenerationRow {
            ended_at: Some(START),
            ..first()
        };
        assert_eq!(judged(&ended, 1, OTHER, 0), Renewal::Ended);
    }

    #[test]
    fn the_same_request_is_answered_again_as_often_as_it_comes_within_ten_minutes() {
        let Renewal::Allowed(second) = judged(&first(), 1, 7, 0) else {
            panic!("the newest may renew");
        };
        for minute in [0, 1, 9] {
            assert!(matches!(judged(&second, 1, 7, minute), Renewal::Repeated(_)));
        }
        assert_eq!(judged(&second, 1, 7, 10), Renewal::Reused);
        assert_eq!(allowed(&second, 2, 30).generation, 3);
    }

    #[test]
    fn the_second_request_of_a_forgetful_client_can_be_repeated_too() {
        let Renewal::Allowed(second) = judged(&first(), 1, 7, 0) else {
            panic!("the newest may renew");
        };
        let Renewal::Allowed(third) = judged(&second, 1, 8, 5) else {
            panic!("the previous may renew once more");
        };
        assert!(matches!(judged(&third, 1, 8, 14), Renewal::Repeated(_)));
        assert_eq!(judged(&third, 1, 8, 15), Renewal::Reused);
        assert_eq!(
            judged(&third, 1, 7, 6),
            Renewal::Reused,
            "the first answer is spent"
        );
        assert_eq!(
            judged(&third, 2, 8, 6),
            Renewal::Reused,
            "it came from another generation"
        );
    }

    #[test]
    fn another_request_on_a_spent_generation_is_reuse() {
        let Renewal::Allowed(second) = judged(&first(), 1, 7, 0) else {
            panic!("the newest may renew");
        };
        let Renewal::Allowed(third) = judged(&second, 2, 8, 1) else {
            panic!("the newest may renew");
        };
        assert_eq!(judged(&third, 1, 7, 2), Renewal::Reused);
        assert_eq!(judged(&third, 1, OTHER, 2), Renewal::Reused);
        assert!(matches!(judged(&third, 2, 8, 2), Renewal::Repeated(_)));
    }
}
