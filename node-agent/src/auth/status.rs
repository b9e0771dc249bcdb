//! Tells the auth server how the agent is, for `agents ls`.

use std::sync::Arc;
use std::time::Duration;

use iap_proto::v1::{AgentStatus, ProxyConnection};
use tokio::sync::watch;

use super::AuthClient;
use crate::control::{Connected, ConnectedProxy};
use crate::credentials::Relayed;
use crate::leaves::Offer;
use crate::session::Registry;

const EVERY: Duration = Duration::from_secs(30);

/// Runs until the offers have no publisher.
pub async fn run(
    client: Arc<AuthClient>,
    connected: Arc<Connected>,
    registry: Arc<Registry>,
    mut offers: watch::Receiver<Arc<Offer>>,
    mut relayed: Relayed,
) {
    let mut changes = connected.changes();
    loop {
        let proxies = connected.list();
        let ssh_sources = relayed.sources().await;
        let services = offers.borrow_and_update().names();
        let status = AgentStatus {
            connected_proxies: proxies.iter().map(|proxy| proxy.address.to_string()).collect(),
            proxies: proxies.iter().map(wire).collect(),
            live_sessions: u32::try_from(registry.len()).unwrap_or(u32::MAX),
            services,
            ssh_sources: ssh_sources.clone(),
        };
        if let Err(error) = client.status(status).await {
            tracing::debug!(%error, "status not delivered");
        }
        tokio::select! {
            changed = offers.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
            () = relayed.changed_from(&ssh_sources) => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

fn wire(proxy: &ConnectedProxy) -> ProxyConnection {
    ProxyConnection {
        address: proxy.address.to_string(),
        control: proxy.way.as_str().to_owned(),
        data: proxy.data.as_str().to_owned(),
    }
}
