//! Denials, counted per (user, service, code) and minute: somebody who tries again and again fills neither
//! the spool nor the log.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use iap_audit::{DecisionRecord, Event, EventKind};
use iap_identity::{AgentId, ProxyId, ServiceName, SessionId};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::decide::Refusal;
use crate::session::Caller;

/// One refusal of a proven caller.
#[derive(Debug, Clone)]
pub struct Denied {
    /// The session there would have been, as the caller was told.
    pub session_id: SessionId,
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

type Key = (String, ServiceName, &'static str);

#[derive(Debug)]
struct Counted {
    first: Denied,
    last_at: OffsetDateTime,
    more: u64,
}

/// The denials of the current minute. The first of each kind is recorded at once; a count of those that
/// followed is recorded when the minute is over.
#[derive(Debug, Default)]
pub struct Denials {
    kinds: BTreeMap<Key, Counted>,
    beyond: u64,
}

impl Denials {
    /// Takes a denial; gives it back when it is the first of its kind and is to be recorded now. At most `kinds_max`
    /// kinds are told apart in one minute; the rest is counted together.
    pub fn take(&mut self, denied: Denied, kinds_max: usize) -> Option<Denied> {
        let user = denied.caller.peer().principal();
        let key = (user, denied.service.clone(), denied.refusal.code());
        if let Some(counted) = self.kinds.get_mut(&key) {
            counted.more += 1;
            counted.last_at = denied.at;
            return None;
        }
        if self.kinds.len() >= kinds_max {
            self.beyond += 1;
            return None;
        }
        let counted = Counted {
            last_at: denied.at,
            first: denied.clone(),
            more: 0,
        };
        self.kinds.insert(key, counted);
        Some(denied)
    }

    /// Ends the minute: what was counted beyond the first of each kind, as events.
    pub fn end_minute(&mut self, agent: &AgentId, now: OffsetDateTime) -> Vec<Event> {
        let kinds = std::mem::take(&mut self.kinds);
        let repeated = kinds.into_values().filter(|counted| counted.more > 0);
        let mut events: Vec<_> = repeated
            .map(|counted| {
                event(&counted.first, agent, counted.last_at)
                    .field("count", counted.more)
                    .field("coalesced", true)
            })
            .collect();
        let beyond = std::mem::take(&mut self.beyond);
        if beyond > 0 {
            let event = Event::new(EventKind::SessionDenied, now, Uuid::now_v7());
            let reason = "more kinds of denials in one minute than are told apart";
            events.push(
                event
                    .agent(agent)
                    .field("count", beyond)
                    .field("coalesced", true)
                    .reason(reason),
            );
        }
        events
    }
}

/// The record of one denial.
#[must_use]
pub fn event(denied: &Denied, agent: &AgentId, at: OffsetDateTime) -> Event {
    let event = Event::new(EventKind::SessionDenied, at, Uuid::now_v7())
        .session(&denied.session_id)
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
