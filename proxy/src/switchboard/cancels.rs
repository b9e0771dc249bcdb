//! Requests to cancel, which PostgreSQL clients send in plaintext and without a name: the number that they carry leads to the
//! agents that can have given it, and only these check the key.

use std::time::{Duration, Instant};

use iap_identity::AgentId;
use iap_tunnel::{CancelRequest, ControlMessage, cancel_handle};

use super::{Line, LineNumber, Switchboard};

/// How many requests of strangers an agent is made to look at.
const CANCELS_PER_SECOND_MAX: u32 = 50;
/// Agents of one handle that are asked, of which there should be one.
const CANCEL_AGENTS_MAX: usize = 4;

/// What may be handed on to one agent in this second.
#[derive(Debug, Clone, Copy)]
pub(super) struct CancelBudget {
    since: Instant,
    left: u32,
}

impl CancelBudget {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            left: CANCELS_PER_SECOND_MAX,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        let is_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

impl Switchboard {
    /// The agent on that line understands requests to cancel.
    pub fn takes_cancels(&self, agent: &AgentId, number: LineNumber) {
        let mut table = self.table();
        let line = table.lines.get_mut(agent);
        if let Some(line) = line.filter(|line| line.number == number) {
            line.cancels = Some(CancelBudget::new(Instant::now()));
        }
    }

    /// Hands a request on to the agents that can have given its number; whether there are any.
    pub fn cancel(&self, request: &CancelRequest) -> bool {
        let (mut table, now) = (self.table(), Instant::now());
        let can_have_given = |(agent, _): &(&AgentId, &mut Line)| cancel_handle(agent) == request.handle();
        let mut asked = false;
        for (_, line) in table
            .lines
            .iter_mut()
            .filter(can_have_given)
            .take(CANCEL_AGENTS_MAX)
        {
            if line.cancels.as_mut().is_some_and(|budget| budget.take(now)) {
                let message = Box::new(ControlMessage::Cancel(request.clone()));
                asked |= line.messages.try_send(message).is_ok();
            }
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_looks_at_so_many_in_a_second_and_no_more() {
        let now = Instant::now();
        let mut budget = CancelBudget::new(now);
        let taken = (0..2 * CANCELS_PER_SECOND_MAX)
            .filter(|_| budget.take(now))
            .count();
        assert_eq!(taken, CANCELS_PER_SECOND_MAX as usize);
        assert!(budget.take(now + Duration::from_secs(1)));
    }
}
