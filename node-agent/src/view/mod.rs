//! What the agent decides from: trust, rules and locks of one moment, immutable once published.

mod age;
pub mod feed;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use iap_identity::{AgentId, Locks, ServiceName, TrustBundle};
use iap_policy::{Policy, Protocol, Vocabulary};
use iap_proto::{LockList, ServiceRecord, Snapshot};
use time::OffsetDateTime;

use crate::clock::Witnessed;

pub use age::Older;
pub use feed::{Accepted, Feed, FeedError};

/// A snapshot whose policy is compiled.
#[derive(Debug)]
pub struct Rules {
    snapshot: Snapshot,
    policy: Policy,
    services: BTreeMap<ServiceName, Arc<ServiceRecord>>,
    /// The newest signed time at which they were known to be the newest there are.
    confirmed: Mutex<Witnessed>,
}

impl Rules {
    fn new(snapshot: Snapshot, policy: Policy) -> Self {
        let by_name = |record: &ServiceRecord| (record.facts.name.clone(), Arc::new(record.clone()));
        let services = snapshot.services.iter().map(by_name).collect();
        Self {
            confirmed: Mutex::new(Witnessed::now(snapshot.issued)),
            snapshot,
            policy,
            services,
        }
    }

    /// A beat signed at `time` named these rules as the newest.
    fn confirm(&self, time: OffsetDateTime) {
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        if !confirmed.is_after(time) {
            *confirmed = Witnessed::now(time);
        }
    }
}

/// Trust, rules and locks that go together.
#[derive(Debug, Clone)]
pub struct View {
    serial: u64,
    bundle: Arc<TrustBundle>,
    rules: Arc<Rules>,
    locks: Arc<LockList>,
}

impl View {
    /// Counts the views of this process; a decision made with an older one must be made again.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Whom to trust.
    #[must_use]
    pub fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    /// The compiled policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.rules.policy
    }

    /// The version of the policy.
    #[must_use]
    pub fn policy_version(&self) -> u64 {
        self.rules.snapshot.policy_version
    }

    /// The version that first named each group.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.rules.snapshot.vocabulary
    }

    /// When the snapshot is dead.
    #[must_use]
    pub fn expires(&self) -> OffsetDateTime {
        self.rules.snapshot.expires
    }

    /// How long ago, at `now`, the auth server last confirmed these rules as the newest.
    #[must_use]
    pub fn rules_age(&self, now: OffsetDateTime) -> Duration {
        let confirmed = *self
            .rules
            .confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        confirmed.age(now)
    }

    /// The snapshot's epoch and version.
    #[must_use]
    pub fn snapshot_version(&self) -> (u64, u64) {
        (self.rules.snapshot.epoch, self.rules.snapshot.version)
    }

    /// The locks in force.
    #[must_use]
    pub fn locks(&self) -> &Locks {
        &self.locks.locks
    }

    /// Where the proxies are, as `host:port`.
    pub fn proxies(&self) -> impl Iterator<Item = &str> {
        self.rules
            .snapshot
            .proxies
            .iter()
            .map(|proxy| proxy.address.as_str())
    }

    /// The record of a service, provided it is granted to this agent.
    #[must_use]
    pub fn service_for(&self, name: &ServiceName, agent: &AgentId) -> Option<Arc<ServiceRecord>> {
        self.rules
            .services
            .get(name)
            .filter(|record| record.agents.contains(agent))
            .cloned()
    }

    /// How a service speaks.
    #[must_use]
    pub fn protocol_of(&self, name: &ServiceName) -> Option<Protocol> {
        self.rules.services.get(name).map(|record| record.facts.protocol)
    }

    /// Every service granted to this agent.
    pub fn services_of(&self, agent: AgentId) -> impl Iterator<Item = &Arc<ServiceRecord>> {
        self.rules
            .services
            .values()
            .filter(move |record| record.agents.contains(&agent))
    }
}
