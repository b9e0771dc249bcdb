//! Connections that agents dialled in advance: who was invited, who came, and who waits for a client.

use std::collections::BTreeMap;

use iap_identity::{AgentId, ConnectionId};
use thiserror::Error;
use time::OffsetDateTime;

use crate::preface::{PoolPreface, Token};

/// The connections of one proxy that wait for clients.
///
/// `T` is the connection. An agent's place is taken by its invitation, so that whoever comes fits; a token is good
/// for one connection, from the agent it was told to, until its deadline.
pub struct Pool<T> {
    members: BTreeMap<AgentId, Member<T>>,
    /// Whose each open invitation is.
    owners: BTreeMap<ConnectionId, AgentId>,
    taken: usize,
    idle: usize,
    limits: PoolLimits,
}

/// How many may wait.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Of all agents, invitations included.
    pub connections_max: usize,
    /// Of one agent, invitations included.
    pub connections_per_agent_max: usize,
}

struct Member<T> {
    invited: BTreeMap<ConnectionId, Invitation>,
    idle: BTreeMap<ConnectionId, Idle<T>>,
}

struct Invitation {
    token: Token,
    deadline: OffsetDateTime,
}

struct Idle<T> {
    connection: T,
    until: OffsetDateTime,
}

impl<T> Default for Member<T> {
    fn default() -> Self {
        Self {
            invited: BTreeMap::new(),
            idle: BTreeMap::new(),
        }
    }
}

impl<T> Member<T> {
    fn len(&self) -> usize {
        self.invited.len() + self.idle.len()
    }
}

impl<T> Pool<T> {
    /// Nobody is invited.
    pub fn new(limits: PoolLimits) -> Self {
        Self {
            members: BTreeMap::new(),
            owners: BTreeMap::new(),
            taken: 0,
            idle: 0,
            limits,
        }
    }

    /// From now on so many may wait. Those that do, and invitations given, stay.
    pub fn resize(&mut self, limits: PoolLimits) {
        self.limits = limits;
    }

    /// How many more connections of this agent fit.
    pub fn room(&self, agent: &AgentId) -> usize {
        let own = self.members.get(agent).map_or(0, Member::len);
        let own_room = self.limits.connections_per_agent_max.saturating_sub(own);
        own_room.min(self.limits.connections_max.saturating_sub(self.taken))
    }

    /// Keeps a place for a connection that brings this token before the deadline. `false` when there is none.
    pub fn invite(
        &mut self,
        agent: AgentId,
        id: ConnectionId,
        token: Token,
        deadline: OffsetDateTime,
    ) -> bool {
        if self.room(&agent) == 0 || self.owners.contains_key(&id) {
            return false;
        }
        let invitation = Invitation { token, deadline };
        self.members
            .entry(agent)
            .or_default()
            .invited
            .insert(id, invitation);
        self.owners.insert(id, agent);
        self.taken += 1;
        true
    }

    /// Takes in a connection that somebody brought with a preface; it waits until `until`.
    ///
    /// # Errors
    /// When the preface is not that of an agent that was invited.
    pub fn enter(
        &mut self,
        now: OffsetDateTime,
        preface: &PoolPreface,
        connection: T,
        until: OffsetDateTime,
    ) -> Result<AgentId, PoolRefusal> {
        let id = preface.id;
        let agent = *self.owners.get(&id).ok_or(PoolRefusal::Unknown)?;
        let member = self.members.get_mut(&agent).ok_or(PoolRefusal::Unknown)?;
        let invitation = member.invited.get(&id).ok_or(PoolRefusal::Unknown)?;
        if !invitation.token.matches(&preface.token) {
            return Err(PoolRefusal::WrongToken);
        }
        let late = now >= invitation.deadline;
        member.invited.remove(&id);
        self.owners.remove(&id);
        if late {
            self.taken = self.taken.saturating_sub(1);
            return Err(PoolRefusal::Late);
        }
        member.idle.insert(id, Idle { connection, until });
        self.idle += 1;
        Ok(agent)
    }

    /// A connection of this agent for a client, the newest first. It is the pool's no more.
    pub fn take(&mut self, now: OffsetDateTime, agent: &AgentId) -> Option<(ConnectionId, T)> {
        self.expire(now, agent);
        let (id, idle) = self.members.get_mut(agent)?.idle.pop_last()?;
        self.taken = self.taken.saturating_sub(1);
        self.idle = self.idle.saturating_sub(1);
        Some((id, idle.connection))
    }

    /// Closes what has waited too long, and withdraws old invitations.
    pub fn expire(&mut self, now: OffsetDateTime, agent: &AgentId) {
        let Some(member) = self.members.get_mut(agent) else {
            return;
        };
        let (before, idle_before) = (member.len(), member.idle.len());
        let owners = &mut self.owners;
        member.invited.retain(|id, invitation| {
            let holds = now < invitation.deadline;
            if !holds {
                owners.remove(id);
            }
            holds
        });
        member.idle.retain(|_, idle| now < idle.until);
        let (after, idle_after) = (member.len(), member.idle.len());
        self.taken = self.taken.saturating_sub(before - after);
        self.idle = self.idle.saturating_sub(idle_before - idle_after);
        if after == 0 {
            self.members.remove(agent);
        }
    }

    /// The agent's control connection ended: nothing of it is left.
    pub fn leave(&mut self, agent: &AgentId) {
        if let Some(member) = self.members.remove(agent) {
            self.taken = self.taken.saturating_sub(member.len());
            self.idle = self.idle.saturating_sub(member.idle.len());
            for id in member.invited.keys() {
                self.owners.remove(id);
            }
        }
    }

    /// How many connections wait for a client.
    pub fn idle(&self) -> usize {
        self.idle
    }
}

/// Why a connection is not taken in. All look alike from outside: the socket closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PoolRefusal {
    /// Never invited, or come before.
    #[error("no invitation of this id is open")]
    Unknown,
    /// Not the token of this invitation.
    #[error("the token is not that of the invitation")]
    WrongToken,
    /// The right token, too late.
    #[error("the invitation has expired")]
    Late,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use time::Duration;
    use uuid::Uuid;

    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn id(number: u128) -> ConnectionId {
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

    fn preface(number: u128, byte: u8) -> PoolPreface {
        PoolPreface {
            id: id(number),
            token: token(byte),
        }
    }

    fn seconds(count: i64) -> OffsetDateTime {
        NOW + Duration::seconds(count)
    }

    fn pool(connections_max: usize, connections_per_agent_max: usize) -> Pool<&'static str> {
        Pool::new(PoolLimits {
            connections_max,
            connections_per_agent_max,
        })
    }

    fn invited() -> Pool<&'static str> {
        let mut pool = pool(4, 2);
        assert!(pool.invite(agent(1), id(1), token(1), seconds(5)));
        assert!(pool.invite(agent(2), id(2), token(2), seconds(5)));
        pool
    }

    #[test]
    fn an_invited_connection_waits_and_is_given_out_once() {
        let mut pool = invited();
        assert_eq!(
            pool.enter(NOW, &preface(1, 1), "first", seconds(60)),
            Ok(agent(1))
        );
        assert_eq!(pool.take(NOW, &agent(2)), None);
        assert_eq!(pool.take(NOW, &agent(1)), Some((id(1), "first")));
        assert_eq!(pool.take(NOW, &agent(1)), None);
        assert_eq!(pool.room(&agent(1)), 2);
    }

    #[test]
    fn a_token_is_good_once_in_time_and_for_its_own_invitation() {
        let mut pool = invited();
        let refused =
            |pool: &mut Pool<_>, at, preface| pool.enter(seconds(at), &preface, "x", seconds(60)).err();
        assert_eq!(refused(&mut pool, 0, preface(9, 1)), Some(PoolRefusal::Unknown));
        assert_eq!(
            refused(&mut pool, 0, preface(1, 2)),
            Some(PoolRefusal::WrongToken)
        );
        assert_eq!(refused(&mut pool, 5, preface(1, 1)), Some(PoolRefusal::Late));
        assert_eq!(refused(&mut pool, 0, preface(1, 1)), Some(PoolRefusal::Unknown));
        assert_eq!(refused(&mut pool, 0, preface(2, 2)), None);
        assert_eq!(refused(&mut pool, 0, preface(2, 2)), Some(PoolRefusal::Unknown));
        assert_eq!(pool.idle(), 1);
    }

    #[test]
    fn places_are_bounded_by_agent_and_in_all_and_given_back() {
        let mut pool = pool(3, 2);
        assert!(pool.invite(agent(1), id(1), token(1), seconds(5)));
        assert!(pool.invite(agent(1), id(2), token(1), seconds(5)));
        assert!(!pool.invite(agent(1), id(3), token(1), seconds(5)));
        assert!(pool.invite(agent(2), id(4), token(1), seconds(5)));
        assert_eq!(pool.room(&agent(2)), 0, "as many as there may be in all");
        pool.expire(seconds(5), &agent(1));
        assert_eq!((pool.room(&agent(1)), pool.room(&agent(2))), (2, 1));
    }

    #[test]
    fn what_waits_too_long_or_whose_agent_left_is_given_to_nobody() {
        let mut pool = invited();
        pool.enter(NOW, &preface(1, 1), "first", seconds(60)).unwrap();
        pool.enter(NOW, &preface(2, 2), "second", seconds(60)).unwrap();
        assert_eq!(pool.take(seconds(60), &agent(1)), None);
        pool.leave(&agent(2));
        assert_eq!(pool.take(NOW, &agent(2)), None);
        assert_eq!((pool.idle(), pool.room(&agent(1))), (0, 2));
    }
}
