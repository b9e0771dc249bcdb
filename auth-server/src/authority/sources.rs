//! Where the backends of SSH services see their agents, as the agents say: a person's certificate for such a service is
//! good from there alone, because the way to the server leads through one of them. Kept in memory: agents say it again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use iap_identity::{AgentId, ServiceName};

/// Addresses of one agent towards one service.
pub(crate) const ADDRESSES_PER_AGENT_MAX: usize = 8;
/// Addresses in one certificate; a service with more is not bound.
const ADDRESSES_MAX: usize = 32;

/// The newest word of each agent.
#[derive(Debug, Default)]
pub struct SshSources(Mutex<BTreeMap<AgentId, BTreeMap<ServiceName, Vec<IpAddr>>>>);

impl SshSources {
    /// What an agent says now, in place of what it said before.
    pub fn report(&self, agent: AgentId, sources: BTreeMap<ServiceName, Vec<IpAddr>>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match sources.is_empty() {
            true => drop(known.remove(&agent)),
            false => drop(known.insert(agent, sources)),
        }
    }

    /// The addresses from which a service's agents reach its backend; none where one of them has not said, because a
    /// session may lead through that one.
    pub fn of(&self, service: &ServiceName, agents: &[AgentId]) -> Vec<IpAddr> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::new();
        for agent in agents {
            let said = known.get(agent).and_then(|services| services.get(service));
            match said {
                Some(addresses) if !addresses.is_empty() => all.extend(addresses),
                Some(_) | None => return Vec::new(),
            }
        }
        all.sort_unstable();
        all.dedup();
        if all.len() > ADDRESSES_MAX {
            all.clear();
        }
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn agent(number: u128) -> AgentId {
        AgentId::from_uuid(
            uuid::Builder::from_unix_timestamp_millis(1, &number.to_be_bytes()[6..].try_into().unwrap())
                .into_uuid(),
        )
    }

    #[test]
    fn a_service_is_bound_to_the_addresses_of_all_its_agents_or_to_none() {
        let (sources, service) = (SshSources::default(), ServiceName::parse("web").unwrap());
        let (one, two) = (agent(1), agent(2));
        let said = |address: [u8; 4]| BTreeMap::from([(service.clone(), vec![IpAddr::from(address)])]);
        sources.report(one, said([10, 0, 0, 1]));
        assert_eq!(sources.of(&service, &[one]), [IpAddr::from([10, 0, 0, 1])]);
        assert!(
            sources.of(&service, &[one, two]).is_empty(),
            "the other has not said"
        );
        sources.report(two, said([10, 0, 0, 2]));
        assert_eq!(sources.of(&service, &[one, two]).len(), 2);
        sources.report(two, BTreeMap::from([(service.clone(), Vec::new())]));
        assert!(
            sources.of(&service, &[one, two]).is_empty(),
            "the other does not know"
        );
        let elsewhere = ServiceName::parse("db").unwrap();
        assert!(sources.of(&elsewhere, &[one]).is_empty());
    }
}
