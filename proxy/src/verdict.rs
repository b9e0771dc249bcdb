//! What its agent says of a session's client, and how long a session may linger that has no good word yet.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use iap_identity::{AgentId, ConnectionId};
use iap_runtime::pump::{LiveLimits, PumpLimits};
use tokio::sync::Notify;

use crate::admission::Source;

/// How long a connection lasts without a byte once one side has closed it, while nobody has said that its client
/// proved who it is: whoever leads it to its end closes it within moments, and a stranger that stays holds a place.
pub const UNPROVEN_HALF_CLOSED: Duration = Duration::from_secs(5);
/// What an agent that has given a client up may still tell it.
pub const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long after the end of a session its agent's verdict still counts: it travels another way than the bytes, and
/// the agent may have a last word for the client first.
const AWAITED_FOR: Duration = Duration::from_secs(10);
/// Ended sessions whose verdict is awaited, at most: beyond it the one that ended first is forgotten.
const AWAITED_MAX: usize = 16_384;

/// Limits of connections of whose clients nothing will be known here, as those to the auth server.
#[derive(Debug, Clone, Copy)]
pub struct Unproven;

impl LiveLimits for Unproven {
    fn now(&self) -> PumpLimits {
        PumpLimits {
            half_closed_idle: Some(UNPROVEN_HALF_CLOSED),
            ..PumpLimits::default()
        }
    }
}

/// The verdict on one session's client. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Verdict(Arc<State>);

#[derive(Debug, Default)]
struct State {
    word: OnceLock<Word>,
    given: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Proven,
    Failed,
}

impl Verdict {
    /// The agent has judged. It does so once.
    pub fn give(&self, authenticated: bool) {
        let word = match authenticated {
            true => Word::Proven,
            false => Word::Failed,
        };
        if self.0.word.set(word).is_ok() {
            self.0.given.notify_one();
        }
    }

    /// Returns when the client has failed and what its agent had to tell it has had time to arrive; never for
    /// another. One may wait, here or for [`is_proven`](Self::is_proven).
    pub async fn failed(&self) {
        match self.word().await {
            // In a box: no other client waits for that.
            Word::Failed => Box::pin(tokio::time::sleep(FAREWELL_TIMEOUT)).await,
            Word::Proven => std::future::pending().await,
        }
    }

    /// Whether the client proved who it is; no, where its agent has not said so within `patience`.
    pub async fn is_proven(&self, patience: Duration) -> bool {
        matches!(
            tokio::time::timeout(patience, self.word()).await,
            Ok(Word::Proven)
        )
    }

    async fn word(&self) -> Word {
        loop {
            if let Some(word) = self.0.word.get() {
                return *word;
            }
            self.0.given.notified().await;
        }
    }
}

impl LiveLimits for Verdict {
    fn now(&self) -> PumpLimits {
        match self.0.word.get() {
            Some(Word::Proven) => PumpLimits::default(),
            Some(Word::Failed) | None => Unproven.now(),
        }
    }
}

/// Sessions that ended before their agent had judged them.
#[derive(Debug, Default)]
pub struct Awaited {
    ended: BTreeMap<ConnectionId, (AgentId, Source)>,
    /// In the order in which they ended. Those that were judged since are here and not above.
    order: VecDeque<(Instant, ConnectionId)>,
}

impl Awaited {
    /// Remembers a session that ended now.
    pub fn keep(&mut self, id: ConnectionId, agent: AgentId, source: Source, now: Instant) {
        self.forget(now);
        if self.order.len() >= AWAITED_MAX
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.ended.remove(&oldest);
        }
        self.ended.insert(id, (agent, source));
        self.order.push_back((now, id));
    }

    /// The source of a session of this agent that is judged now, once.
    pub fn take(&mut self, id: &ConnectionId, agent: &AgentId, now: Instant) -> Option<Source> {
        self.forget(now);
        let (served_by, source) = *self.ended.get(id)?;
        if served_by != *agent {
            return None;
        }
        self.ended.remove(id);
        Some(source)
    }

    fn forget(&mut self, now: Instant) {
        let is_over = |at: &Instant| now.saturating_duration_since(*at) >= AWAITED_FOR;
        while self.order.front().is_some_and(|(at, _)| is_over(at)) {
            if let Some((_, id)) = self.order.pop_front() {
                self.ended.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures_util::FutureExt as _;
    use uuid::Uuid;

    use super::*;

    fn id(number: usize) -> ConnectionId {
        ConnectionId::from_uuid(Uuid::from_u128(
            0x0198_0000_0000_7000_8000_0000_0000_0000 | number as u128,
        ))
    }

    #[tokio::test]
    async fn a_client_is_proven_once_its_agent_said_so_and_not_by_silence() {
        let (silent, good, bad) = (Verdict::default(), Verdict::default(), Verdict::default());
        good.give(true);
        good.give(false);
        bad.give(false);
        assert!(!silent.is_proven(Duration::ZERO).await);
        assert!(good.is_proven(Duration::ZERO).await);
        assert!(!bad.is_proven(Duration::from_secs(60)).await);
        assert!(good.failed().now_or_never().is_none());
        // Whoever stopped waiting for the failure has not used the word up.
        let late = Verdict::default();
        assert!(late.failed().now_or_never().is_none());
        let giving = async { late.give(true) };
        let (proven, ()) = tokio::join!(late.is_proven(Duration::from_secs(60)), giving);
        assert!(proven);
    }

    #[test]
    fn verdicts_are_awaited_for_a_while_and_within_bounds() {
        let mut awaited = Awaited::default();
        let agent = AgentId::from_uuid(Uuid::from_u128(0x0198_0000_0000_7000_9000_0000_0000_0001));
        let source = Source::of(IpAddr::from([203, 0, 113, 1]));
        let now = Instant::now();
        awaited.keep(id(0), agent, source, now);
        assert_eq!(awaited.take(&id(0), &agent, now + AWAITED_FOR), None, "too late");
        for number in 1..=AWAITED_MAX + 1 {
            awaited.keep(id(number), agent, source, now);
        }
        assert_eq!(awaited.ended.len(), AWAITED_MAX);
        assert_eq!(awaited.order.len(), AWAITED_MAX);
        assert_eq!(awaited.take(&id(1), &agent, now), None, "it ended first");
        assert_eq!(awaited.take(&id(2), &agent, now), Some(source));
        assert_eq!(awaited.take(&id(2), &agent, now), None, "judged once");
    }
}
