//! Which agents serve which names, and how busy each of them is.

use std::collections::{BTreeMap, BTreeSet};

use iap_identity::{AgentId, ServiceName};

/// The routing table of one proxy. Holds what was accepted, never what was merely announced.
#[derive(Debug, Default)]
pub struct Routes {
    services_of: BTreeMap<AgentId, BTreeSet<ServiceName>>,
    agents_of: BTreeMap<ServiceName, BTreeSet<AgentId>>,
    /// Kept apart from the announcements: sessions outlive the control connection they were opened on.
    load_of: BTreeMap<AgentId, Load>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Load {
    live: usize,
    /// Breaks ties, so that idle agents take turns.
    opened: u64,
}

impl Routes {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces everything this agent offered before.
    pub fn announce(&mut self, agent: AgentId, services: Vec<ServiceName>) {
        self.forget_names(&agent);
        for service in &services {
            self.agents_of.entry(service.clone()).or_default().insert(agent);
        }
        self.services_of.insert(agent, services.into_iter().collect());
    }

    /// The agent is no longer connected.
    pub fn remove(&mut self, agent: &AgentId) {
        self.forget_names(agent);
        self.services_of.remove(agent);
        self.forget_idle(agent);
    }

    /// The agents that serve a name, the least loaded first.
    pub fn candidates(&self, service: &ServiceName) -> Vec<AgentId> {
        let agents = self.agents_of.get(service).into_iter().flatten();
        let mut loaded: Vec<_> = agents.map(|agent| (self.load(agent), agent)).collect();
        loaded.sort();
        loaded.into_iter().map(|(_, agent)| *agent).collect()
    }

    /// Whether the agent is connected, whatever it serves.
    pub fn is_connected(&self, agent: &AgentId) -> bool {
        self.services_of.contains_key(agent)
    }

    /// What a connected agent serves.
    pub fn services(&self, agent: &AgentId) -> impl Iterator<Item = &ServiceName> {
        self.services_of.get(agent).into_iter().flatten()
    }

    /// How many agents are connected.
    pub fn agents(&self) -> usize {
        self.services_of.len()
    }

    /// How many names have at least one agent.
    pub fn names(&self) -> usize {
        self.agents_of.len()
    }

    /// Sessions that run through an agent now.
    pub fn live_sessions(&self, agent: &AgentId) -> usize {
        self.load(agent).live
    }

    /// A session was given to an agent; to be called before the dial-back arrives, so that a burst spreads.
    pub fn session_started(&mut self, agent: &AgentId) {
        let load = self.load_of.entry(*agent).or_default();
        load.live += 1;
        load.opened += 1;
    }

    /// A session counted by [`session_started`](Self::session_started) is over.
    pub fn session_ended(&mut self, agent: &AgentId) {
        if let Some(load) = self.load_of.get_mut(agent) {
            load.live = load.live.saturating_sub(1);
        }
        self.forget_idle(agent);
    }

    fn load(&self, agent: &AgentId) -> Load {
        self.load_of.get(agent).copied().unwrap_or_default()
    }

    fn forget_names(&mut self, agent: &AgentId) {
        for service in self.services_of.get(agent).into_iter().flatten() {
            if let Some(agents) = self.agents_of.get_mut(service) {
                agents.remove(agent);
                if agents.is_empty() {
                    self.agents_of.remove(service);
                }
            }
        }
    }

    /// Drops the counters of an agent that is neither connected nor busy, so that the table stays as large
    /// as the fleet.
    fn forget_idle(&mut self, agent: &AgentId) {
        if !self.is_connected(agent) && self.load(agent).live == 0 {
            self.load_of.remove(agent);
        }
    }
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
    use uuid::Uuid;

    fn agent(number: u128) -> AgentId {
        AgentId::from_uuid(Uuid::from_u128(
            0x0198_0000_0000_7000_9000_0000_0000_0000 | number,
        ))
    }

    fn service(name: &str) -> ServiceName {
        ServiceName::parse(name).unwrap()
    }

    fn two_agents() -> Routes {
        let mut routes = Routes::new();
        routes.announce(agent(1), vec![service("db"), service("web")]);
        routes.announce(agent(2), vec![service("db")]);
        routes
    }

    #[test]
    fn the_least_loaded_agent_comes_first() {
        let mut routes = two_agents();
        routes.session_started(&agent(1));
        assert_eq!(routes.candidates(&service("db")), vec![agent(2), agent(1)]);
        routes.session_started(&agent(2));
        routes.session_started(&agent(2));
        assert_eq!(routes.candidates(&service("db")), vec![agent(1), agent(2)]);
    }

    #[test]
    fn idle_agents_take_turns() {
        let mut routes = two_agents();
        let first = routes.candidates(&service("db")).remove(0);
        routes.session_started(&first);
        routes.session_ended(&first);
        assert_ne!(routes.candidates(&service("db")).remove(0), first);
    }

    #[test]
    fn an_announcement_replaces_the_one_before() {
        let mut routes = two_agents();
        routes.announce(agent(1), vec![service("ssh")]);
        assert_eq!(routes.candidates(&service("db")), vec![agent(2)]);
        assert!(routes.candidates(&service("web")).is_empty());
        assert_eq!(routes.candidates(&service("ssh")), vec![agent(1)]);
        assert_eq!(routes.names(), 2);
    }

    #[test]
    fn an_agent_that_leaves_serves_nothing_but_keeps_its_live_sessions_counted() {
        let mut routes = two_agents();
        routes.session_started(&agent(2));
        routes.remove(&agent(2));
        assert_eq!(routes.candidates(&service("db")), vec![agent(1)]);
        assert_eq!(routes.live_sessions(&agent(2)), 1);
        routes.session_ended(&agent(2));
        assert!(routes.load_of.is_empty());
        assert!(!routes.is_connected(&agent(2)));
    }

    #[test]
    fn a_session_ended_twice_does_not_count_below_zero() {
        let mut routes = two_agents();
        routes.session_started(&agent(1));
        routes.session_ended(&agent(1));
        routes.session_ended(&agent(1));
        assert_eq!(routes.live_sessions(&agent(1)), 0);
    }
}
