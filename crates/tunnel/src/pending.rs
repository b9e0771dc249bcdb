//! Connections that wait for an agent to dial back: each with a token for one agent, one use, a few seconds.

use std::collections::BTreeMap;

use iap_identity::{AgentId, ConnectionId};
use thiserror::Error;
use time::OffsetDateTime;

use crate::preface::{Preface, Token};

/// The waiting connections of one proxy, at most `pending_opens_max` of them.
///
/// `T` is whatever waits (the shell's sender). A waiter leaves the table exactly once: redeemed, refused,
/// abandoned with its agent, withdrawn, or expired. A token is thereby good for one use.
pub struct PendingOpens<T> {
    waiting: BTreeMap<ConnectionId, Waiting<T>>,
    pending_opens_max: usize,
}

struct Waiting<T> {
    agent: AgentId,
    token: Token,
    waiter: T,
    deadline: OffsetDateTime,
}

impl<T> PendingOpens<T> {
    /// An empty table.
    pub fn new(pending_opens_max: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            pending_opens_max,
        }
    }

    /// From now on so many may wait. Those that do stay.
    pub fn resize(&mut self, pending_opens_max: usize) {
        self.pending_opens_max = pending_opens_max;
    }

    /// Puts a connection on the table. The token was drawn for this call and is told to `agent` alone; it is
    /// refused from `deadline` on.
    pub fn issue(
        &mut self,
        now: OffsetDateTime,
        agent: AgentId,
        connection_id: ConnectionId,
        token: Token,
        waiter: T,
        deadline: OffsetDateTime,
    ) -> Result<(), IssueError> {
        if deadline <= now {
            return Err(IssueError::AlreadyLate);
        }
        if self.waiting.len() >= self.pending_opens_max {
            return Err(IssueError::Full {
                pending_opens_max: self.pending_opens_max,
            });
        }
        if self.waiting.contains_key(&connection_id) {
            return Err(IssueError::Duplicate);
        }
        self.waiting.insert(
            connection_id,
            Waiting {
                agent,
                token,
                waiter,
                deadline,
            },
        );
        Ok(())
    }

    /// The waiter a dial-back came for. A wrong token leaves the waiter in place, so that guessing at ids
    /// cannot cut other people's connections.
    pub fn redeem(&mut self, now: OffsetDateTime, preface: &Preface) -> Result<T, RedeemError> {
        let waiting = self
            .waiting
            .get(&preface.connection_id)
            .ok_or(RedeemError::Unknown)?;
        if !waiting.token.matches(&preface.token) {
            return Err(RedeemError::WrongToken);
        }
        let waiting = self
            .waiting
            .remove(&preface.connection_id)
            .ok_or(RedeemError::Unknown)?;
        if now >= waiting.deadline {
            return Err(RedeemError::Late);
        }
        Ok(waiting.waiter)
    }

    /// The same for a dial-back whose agent is proven: it must be the one that was asked.
    pub fn redeem_by(
        &mut self,
        now: OffsetDateTime,
        agent: &AgentId,
        preface: &Preface,
    ) -> Result<T, RedeemError> {
        match self.waiting.get(&preface.connection_id) {
            Some(waiting) if waiting.agent != *agent => Err(RedeemError::WrongToken),
            Some(_) | None => self.redeem(now, preface),
        }
    }

    /// The waiter that `agent` will not dial back for; nothing when the connection was not given to it.
    pub fn refuse(&mut self, connection_id: &ConnectionId, agent: &AgentId) -> Option<T> {
        let waiting = self.waiting.get(connection_id)?;
        if waiting.agent != *agent {
            return None;
        }
        self.waiting.remove(connection_id).map(|waiting| waiting.waiter)
    }

    /// The waiter of a connection whose client gave up.
    pub fn withdraw(&mut self, connection_id: &ConnectionId) -> Option<T> {
        self.waiting.remove(connection_id).map(|waiting| waiting.waiter)
    }

    /// Every waiter of an agent whose control connection ended.
    pub fn abandon(&mut self, agent: &AgentId) -> Vec<(ConnectionId, T)> {
        self.take(|waiting| waiting.agent == *agent)
    }

    /// Every waiter whose deadline has passed.
    pub fn expire(&mut self, now: OffsetDateTime) -> Vec<(ConnectionId, T)> {
        self.take(|waiting| now >= waiting.deadline)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn take(&mut self, chosen: impl Fn(&Waiting<T>) -> bool) -> Vec<(ConnectionId, T)> {
        let ids: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| chosen(waiting))
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter()
            .filter_map(|id| self.waiting.remove(&id).map(|waiting| (id, waiting.waiter)))
            .collect()
    }
}

/// Why a connection cannot wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IssueError {
    /// The table is at its limit; the client may try again.
    #[error("{pending_opens_max} connections already wait for an agent")]
    Full {
        /// The limit.
        pending_opens_max: usize,
    },
    /// An id drawn twice.
    #[error("a connection of this id already waits")]
    Duplicate,
    /// A deadline that lies in the past.
    #[error("the deadline has passed before the connection could wait")]
    AlreadyLate,
}

/// Why a dial-back is refused. All look alike from outside: the socket closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RedeemError {
    /// Never issued, used before, or given up.
    #[error("no connection of this id waits for a dial-back")]
    Unknown,
    /// Not the token this connection was opened with: a guess, or another agent's.
    #[error("the dial-back's token is not the one this connection was opened with")]
    WrongToken,
    /// The right token, too late.
    #[error("the dial-back came after its deadline")]
    Late,
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use proptest::prelude::*;
    use time::Duration;
    use uuid::Uuid;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn connection(number: u128) -> ConnectionId {
        ConnectionId::from_uuid(Uuid::from_u128(
            0x0198_0000_0000_7000_8000_0000_0000_0000 | number,
        ))
    }

    fn agent(number: u128) -> AgentId {
        AgentId::from_uuid(Uuid::from_u128(
            0x0198_0000_0000_7000_9000_0000_0000_0000 | number,
        ))
    }

    fn token(byte: u8) -> Token {
        Token::from_random([byte; 16])
    }

    fn preface(number: u128, byte: u8) -> Preface {
        Preface {
            connection_id: connection(number),
            token: token(byte),
        }
    }

    fn seconds(count: i64) -> OffsetDateTime {
        NOW + Duration::seconds(count)
    }

    fn two_waiting() -> PendingOpens<&'static str> {
        let mut pending = PendingOpens::new(8);
        pending
            .issue(NOW, agent(1), connection(1), token(1), "first", seconds(5))
            .unwrap();
        pending
            .issue(NOW, agent(2), connection(2), token(2), "second", seconds(5))
            .unwrap();
        pending
    }

    #[test]
    fn the_right_token_fetches_its_connection_once() {
        let mut pending = two_waiting();
        assert_eq!(pending.redeem(seconds(1), &preface(1, 1)), Ok("first"));
        assert_eq!(
            pending.redeem(seconds(1), &preface(1, 1)),
            Err(RedeemError::Unknown)
        );
    }

    #[test]
    fn a_wrong_token_is_refused_and_the_connection_still_waits() {
        let mut pending = two_waiting();
        assert_eq!(
            pending.redeem(seconds(1), &preface(1, 9)),
            Err(RedeemError::WrongToken)
        );
        assert_eq!(pending.redeem(seconds(1), &preface(1, 1)), Ok("first"));
    }

    #[test]
    fn another_agents_token_fetches_nothing_but_its_own_connection() {
        let mut pending = two_waiting();
        assert_eq!(
            pending.redeem(seconds(1), &preface(1, 2)),
            Err(RedeemError::WrongToken)
        );
        assert_eq!(pending.redeem(seconds(1), &preface(2, 2)), Ok("second"));
    }

    #[test]
    fn a_late_token_is_refused_and_gone() {
        let mut pending = two_waiting();
        assert_eq!(pending.redeem(seconds(5), &preface(1, 1)), Err(RedeemError::Late));
        assert_eq!(
            pending.redeem(seconds(1), &preface(1, 1)),
            Err(RedeemError::Unknown)
        );
    }

    #[test]
    fn a_proven_agent_fetches_only_what_it_was_asked_for() {
        let mut pending = two_waiting();
        assert_eq!(
            pending.redeem_by(seconds(1), &agent(2), &preface(1, 1)),
            Err(RedeemError::WrongToken)
        );
        assert_eq!(
            pending.redeem_by(seconds(1), &agent(1), &preface(1, 1)),
            Ok("first")
        );
    }

    #[test]
    fn only_the_agent_asked_can_refuse() {
        let mut pending = two_waiting();
        assert_eq!(pending.refuse(&connection(1), &agent(2)), None);
        assert_eq!(pending.refuse(&connection(1), &agent(1)), Some("first"));
        assert_eq!(pending.redeem(NOW, &preface(1, 1)), Err(RedeemError::Unknown));
    }

    #[test]
    fn the_table_is_bounded_and_ids_are_unique() {
        let mut pending = PendingOpens::new(1);
        pending
            .issue(NOW, agent(1), connection(1), token(1), (), seconds(5))
            .unwrap();
        let full = pending.issue(NOW, agent(1), connection(2), token(2), (), seconds(5));
        assert_eq!(full, Err(IssueError::Full { pending_opens_max: 1 }));
        let mut pending = PendingOpens::new(2);
        pending
            .issue(NOW, agent(1), connection(1), token(1), (), seconds(5))
            .unwrap();
        let again = pending.issue(NOW, agent(1), connection(1), token(2), (), seconds(5));
        assert_eq!(again, Err(IssueError::Duplicate));
        let late = pending.issue(seconds(5), agent(1), connection(3), token(2), (), seconds(5));
        assert_eq!(late, Err(IssueError::AlreadyLate));
    }

    #[test]
    fn an_agent_that_leaves_takes_only_its_own_waiters() {
        let mut pending = two_waiting();
        assert_eq!(pending.abandon(&agent(1)), vec![(connection(1), "first")]);
        assert_eq!(pending.len(), 1);
    }

    #[test]
    fn expiry_takes_exactly_those_whose_deadline_has_come() {
        let mut pending = two_waiting();
        pending
            .issue(NOW, agent(1), connection(3), token(3), "third", seconds(9))
            .unwrap();
        assert!(pending.expire(seconds(4)).is_empty());
        assert_eq!(pending.expire(seconds(5)).len(), 2);
        assert_eq!(pending.withdraw(&connection(3)), Some("third"));
        assert!(pending.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Operation {
        Issue {
            connection: u8,
            agent: u8,
            token: u8,
            life: u8,
        },
        Redeem {
            connection: u8,
            token: u8,
        },
        Refuse {
            connection: u8,
            agent: u8,
        },
        Expire,
        Wait(u8),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            (0u8..4, 0u8..2, 0u8..3, 1u8..6).prop_map(|(connection, agent, token, life)| Operation::Issue {
                connection,
                agent,
                token,
                life
            }),
            (0u8..4, 0u8..3).prop_map(|(connection, token)| Operation::Redeem { connection, token }),
            (0u8..4, 0u8..2).prop_map(|(connection, agent)| Operation::Refuse { connection, agent }),
            Just(Operation::Expire),
            (1u8..4).prop_map(Operation::Wait),
        ]
    }

    proptest! {
        /// Against a list that is searched from end to end and nothing else.
        #[test]
        fn any_history_agrees_with_a_plain_list(operations in proptest::collection::vec(operation(), 0..80)) {
            let mut pending = PendingOpens::new(3);
            let mut model: Vec<(u8, u8, u8, i64)> = Vec::new();
            let mut clock = 0i64;
            for operation in operations {
                match operation {
                    Operation::Issue { connection: id, agent: owner, token: byte, life } => {
                        let deadline = clock + i64::from(life);
                        let fits = model.len() < 3 && !model.iter().any(|entry| entry.0 == id);
                        let issued = pending.issue(
                            seconds(clock), agent(owner.into()), connection(id.into()), token(byte), id, seconds(deadline),
                        );
                        prop_assert_eq!(issued.is_ok(), fits);
                        if fits {
                            model.push((id, owner, byte, deadline));
                        }
                    }
                    Operation::Redeem { connection: id, token: byte } => {
                        let at = model.iter().position(|entry| entry.0 == id && entry.2 == byte);
                        let expected = at.map(|at| model.remove(at)).filter(|entry| clock < entry.3).map(|entry| entry.0);
                        prop_assert_eq!(pending.redeem(seconds(clock), &preface(id.into(), byte)).ok(), expected);
                    }
                    Operation::Refuse { connection: id, agent: owner } => {
                        let at = model.iter().position(|entry| entry.0 == id && entry.1 == owner);
                        let expected = at.map(|at| model.remove(at).0);
                        prop_assert_eq!(pending.refuse(&connection(id.into()), &agent(owner.into())), expected);
                    }
                    Operation::Expire => {
                        let expired = pending.expire(seconds(clock)).len();
                        let before = model.len();
                        model.retain(|entry| clock < entry.3);
                        prop_assert_eq!(expired, before - model.len());
                    }
                    Operation::Wait(by) => clock += i64::from(by),
                }
                prop_assert_eq!(pending.len(), model.len());
            }
        }
    }
}
