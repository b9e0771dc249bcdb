//! Denials, counted per (user, service, code) and minute, and server names that are not what the proxy spoke of,
//! per (proxy, both names) and minute: who tries again and again fills neither the spool nor the log.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use iap_audit::{DecisionRecord, Event, EventKind};
use iap_identity::{AgentId, ConnectionId, ProxyId, ServiceName, SessionId};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::decide::Refusal;
use crate::session::Caller;

/// One refusal of a proven caller.
#[derive(Debug, Clone)]
pub struct Denied {
    /// The session there would have been, as the caller was told.
    pub session_id: SessionId,
    /// The connection it came on.
    pub connection_id: ConnectionId,
    /// Who.
    pub caller: Caller,
    /// Which service.
    pub service: ServiceName,
    /// From where, by the word of a proxy.
    pub client: SocketAddr,
    /// Which proxy.
    pub asserted_by: ProxyId,
    /// Why.
    pub refusal: Refusal,
    /// Why, as records say it.
    pub decision: DecisionRecord,
    /// When.
    pub at: OffsetDateTime,
}

/// A client whose server name is not the service that its proxy spoke of.
#[derive(Debug, Clone)]
pub struct Mismatch {
    /// The service of the server name.
    pub asked: ServiceName,
    /// What the proxy spoke of.
    pub said: String,
    /// The sentence.
    pub reason: String,
    /// From where, by the word of the proxy.
    pub client: SocketAddr,
    /// Which proxy.
    pub asserted_by: ProxyId,
    /// When.
    pub at: OffsetDateTime,
}

/// Mismatches told apart in one minute. No client need exist for one: a proxy can make up any number.
const MISMATCHES_MAX: usize = 64;

/// The denials and mismatches of the current minute. The first of each kind is recorded at once; a count of those
/// that followed is recorded when the minute is over.
#[derive(Debug, Default)]
pub struct Denials {
    denials: Kinds<(String, ServiceName, &'static str), Denied>,
    mismatches: Kinds<(ProxyId, ServiceName, String), Mismatch>,
}

impl Denials {
    /// Takes a denial; gives it back when it is the first of its kind and is to be recorded now. At most `kinds_max`
    /// kinds are told apart in one minute; the rest is counted together.
    pub fn take(&mut self, denied: Denied, kinds_max: usize) -> Option<Denied> {
        let user = denied.caller.peer().principal();
        let key = (user, denied.service.clone(), denied.refusal.code());
        let at = denied.at;
        self.denials.take(key, denied, at, kinds_max)
    }

    /// The same for a mismatch.
    pub fn take_mismatch(&mut self, mismatch: Mismatch) -> Option<Mismatch> {
        let (asked, said) = (mismatch.asked.clone(), mismatch.said.clone());
        let at = mismatch.at;
        self.mismatches
            .take((mismatch.asserted_by, asked, said), mismatch, at, MISMATCHES_MAX)
    }

    /// Ends the minute: what was counted beyond the first of each kind, as events.
    pub fn end_minute(&mut self, agent: &AgentId, now: OffsetDateTime) -> Vec<Event> {
        let counted = |event: Event, count: u64| event.field("count", count).field("coalesced", true);
        let together = |kind: EventKind, what: &str, count: u64| {
            let event = Event::new(kind, now, Uuid::now_v7()).agent(agent);
            let reason = format!("more kinds of {what} in one minute than are told apart");
            counted(event, count).reason(&reason)
        };
        let (denials, more_denials) = self.denials.end();
        let (mismatches, more_mismatches) = self.mismatches.end();
        let denials = denials
            .into_iter()
            .map(|again| counted(event(&again.first, agent, again.last_at), again.more));
        let mismatches = mismatches
            .into_iter()
            .map(|again| counted(mismatch_event(&again.first, agent, again.last_at), again.more));
        let beyond = [
            (EventKind::SessionDenied, "denials", more_denials),
            (
                EventKind::SessionNameMismatch,
                "unexpected server names",
                more_mismatches,
            ),
        ];
        let beyond = beyond
            .into_iter()
            .filter(|(_, _, count)| *count > 0)
            .map(|(kind, what, count)| together(kind, what, count));
        denials.chain(mismatches).chain(beyond).collect()
    }
}

/// What happened in one minute, by its kind.
#[derive(Debug)]
struct Kinds<K, T> {
    kinds: BTreeMap<K, Counted<T>>,
    beyond: u64,
}

impl<K, T> Default for Kinds<K, T> {
    fn default() -> Self {
        Self {
            kinds: BTreeMap::new(),
            beyond: 0,
        }
    }
}

#[derive(Debug)]
struct Counted<T> {
    first: T,
    last_at: OffsetDateTime,
    more: u64,
}

impl<K: Ord, T: Clone> Kinds<K, T> {
    fn take(&mut self, key: K, what: T, at: OffsetDateTime, kinds_max: usize) -> Option<T> {
        if let Some(counted) = self.kinds.get_mut(&key) {
            counted.more += 1;
            counted.last_at = at;
            return None;
        }
        if self.kinds.len() >= kinds_max {
            self.beyond += 1;
            return None;
        }
        let counted = Counted {
            first: what.clone(),
            last_at: at,
            more: 0,
        };
        self.kinds.insert(key, counted);
        Some(what)
    }

    /// Those that came more than once, and how many came beyond the kinds told apart.
    fn end(&mut self) -> (Vec<Counted<T>>, u64) {
        let kinds = std::mem::take(&mut self.kinds).into_values();
        let repeated = kinds.filter(|counted| counted.more > 0).collect();
        (repeated, std::mem::take(&mut self.beyond))
    }
}

/// The record of one mismatch.
#[must_use]
pub fn mismatch_event(mismatch: &Mismatch, agent: &AgentId, at: OffsetDateTime) -> Event {
    Event::new(EventKind::SessionNameMismatch, at, Uuid::now_v7())
        .agent(agent)
        .service(&mismatch.asked)
        .client_address(mismatch.client)
        .field("client_asserted_by", mismatch.asserted_by.to_string())
        .reason(&mismatch.reason)
}

/// The record of one denial.
#[must_use]
pub fn event(denied: &Denied, agent: &AgentId, at: OffsetDateTime) -> Event {
    let event = Event::new(EventKind::SessionDenied, at, Uuid::now_v7())
        .session(&denied.session_id)
        .connection(&denied.connection_id)
        .user(&denied.caller.record())
        .serial(denied.caller.peer().serial())
        .service(&denied.service)
        .agent(agent)
        .client_address(denied.client)
        .field("client_asserted_by", denied.asserted_by.to_string())
        .decision(&denied.decision)
        .field("denial", denied.refusal.code())
        .reason(&denied.refusal.detail());
    match denied.caller.login_id() {
        Some(login_id) => event.login_id(&login_id),
        None => event,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mismatch(asked: &str) -> Mismatch {
        Mismatch {
            asked: ServiceName::parse(asked).unwrap(),
            said: "echo".to_owned(),
            reason: String::new(),
            client: "203.0.113.7:4711".parse().unwrap(),
            asserted_by: ProxyId::from_uuid(Uuid::from_u128(1)),
            at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn however_many_names_a_proxy_makes_up_the_records_of_a_minute_are_bounded() {
        let mut denials = Denials::default();
        let names = 10 * MISMATCHES_MAX;
        let taken = (0..names).filter_map(|n| denials.take_mismatch(mismatch(&format!("s{n}"))));
        assert_eq!(taken.count(), MISMATCHES_MAX);
        let agent = AgentId::from_uuid(Uuid::from_u128(2));
        let rest = denials.end_minute(&agent, OffsetDateTime::UNIX_EPOCH);
        assert_eq!(rest.len(), 1, "one record counts them together");
        assert!(denials.take_mismatch(mismatch("s0")).is_some(), "a new minute");
    }
}
