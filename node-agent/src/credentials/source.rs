//! The addresses by which a backend sees this agent: what SSH certificates are bound to, so that one that gets out
//! is of no use elsewhere.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use iap_identity::AgentId;
use iap_policy::Protocol;
use iap_proto::v1;
use tokio::sync::watch;

use crate::backend::BackendAddress;
use crate::config::{LocalService, LocalServices};
use crate::view::View;

/// The auth server takes no more.
const ADDRESSES_MAX: usize = 8;
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// The SSH services whose bytes this agent passes on.
#[derive(Debug)]
pub struct Relayed {
    /// This agent.
    pub agent_id: AgentId,
    /// What the agent's own file lists.
    pub services: watch::Receiver<Arc<LocalServices>>,
    /// What is granted.
    pub views: watch::Receiver<Option<Arc<View>>>,
}

impl Relayed {
    /// Waits until the sources are others than these; for ever, once nobody publishes what they follow from.
    pub async fn changed_from(&mut self, told: &[v1::ServiceSources]) {
        loop {
            tokio::select! {
                changed = self.views.changed() => if changed.is_err() { return std::future::pending().await },
                changed = self.services.changed() => if changed.is_err() { return std::future::pending().await },
            }
            if self.sources().await != told {
                return;
            }
        }
    }

    /// Where the server of each sees people come from: the auth server binds their certificates to it.
    pub async fn sources(&self) -> Vec<v1::ServiceSources> {
        let view = self.views.borrow().clone();
        let local = self.services.borrow().clone();
        let granted = view.iter().flat_map(|view| view.services_of(self.agent_id));
        let relayed = granted
            .map(|record| &record.facts)
            .filter(|facts| facts.protocol == Protocol::Ssh && !facts.inspect)
            .filter_map(|facts| Some((facts.name.clone(), local.get(&facts.name)?)));
        let mut sources = Vec::new();
        for (name, service) in relayed {
            let addresses = addresses(service).await;
            sources.push(v1::ServiceSources {
                service: name.to_string(),
                addresses: addresses.iter().map(ToString::to_string).collect(),
            });
        }
        sources
    }
}

/// What the agent's own file says; else the addresses this host takes towards the backend. Empty where that is not
/// known: then certificates are bound to none.
pub(super) async fn addresses(service: &LocalService) -> Vec<IpAddr> {
    if let Some(own) = &service.source_addresses {
        return own.iter().copied().take(ADDRESSES_MAX).collect();
    }
    let BackendAddress::Tcp(address) = &service.backend else {
        return Vec::new();
    };
    let looking = tokio::net::lookup_host((address.host(), address.port()));
    let found: Vec<SocketAddr> = match tokio::time::timeout(LOOK_UP_TIMEOUT, looking).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(_)) | Err(_) => return Vec::new(),
    };
    let mut sources = BTreeSet::new();
    for backend in found.into_iter().take(ADDRESSES_MAX) {
        match towards(backend).await {
            Some(source) => drop(sources.insert(source)),
            // Bound to some of them, it would fail by way of the others.
            None => return Vec::new(),
        }
    }
    sources.into_iter().collect()
}

/// The address of this host that the system takes towards another one. Nothing is sent.
async fn towards(backend: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match backend {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = tokio::net::UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(backend).await.ok()?;
    let source = socket.local_addr().ok()?.ip().to_canonical();
    (!source.is_unspecified()).then_some(source)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::Introduction;
    use crate::config::Ceiling;

    fn service(backend: &str, source_addresses: Option<Vec<IpAddr>>) -> LocalService {
        LocalService {
            backend: BackendAddress::parse(backend).unwrap(),
            ssh: None,
            introduction: Introduction::None,
            ceiling: Ceiling::default(),
            postgres: crate::handlers::PostgresSettings::default(),
            source_addresses,
        }
    }

    #[tokio::test]
    async fn a_backend_on_this_host_sees_the_loopback_address() {
        let found = addresses(&service("127.0.0.1:22", None)).await;
        assert_eq!(found, [IpAddr::from([127, 0, 0, 1])]);
    }

    #[tokio::test]
    async fn the_agents_own_file_has_the_last_word() {
        let own = vec![IpAddr::from([203, 0, 113, 7])];
        assert_eq!(addresses(&service("127.0.0.1:22", Some(own.clone()))).await, own);
        assert!(
            addresses(&service("127.0.0.1:22", Some(Vec::new())))
                .await
                .is_empty()
        );
        assert!(addresses(&service("unix:/run/ssh", None)).await.is_empty());
    }
}
