//! `iap.v1.Proxy`: proxies renew themselves and follow the feed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use iap_identity::{ProxyId, Request as CertificateRequest};
use iap_proto::v1;
use iap_runtime::net::HostPort;
use iap_runtime::shutdown::Shutdown;
use tonic::{Request, Response, Status};

use super::{Caller, Presented, RpcError};
use crate::authority::issued_to_wire;
use crate::context::AppContext;
use crate::feed::Affects;
use crate::feed::frame::{self, NoEvents};
use crate::feed::stream::follow;

const VERSION_BYTES_MAX: usize = 64;
/// A proxy whose address changes again within this time waits for the next beat: it must not keep the whole fleet
/// busy with snapshots.
const OUT_OF_TURN_AGAIN: Duration = Duration::from_secs(60);

/// The RPCs of proxies.
#[derive(Debug)]
pub(super) struct ProxyRpc {
    context: Arc<AppContext>,
    shutdown: Shutdown,
    announced: Announced,
}

/// When each enrolled proxy's address was last pushed out of turn.
#[derive(Debug, Default)]
struct Announced(Mutex<BTreeMap<ProxyId, Instant>>);

impl Announced {
    /// Whether the proxy's change is worth a snapshot of its own; otherwise it goes out with the next beat.
    fn is_seldom(&self, id: ProxyId, now: Instant) -> bool {
        let mut announced = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < OUT_OF_TURN_AGAIN;
        if announced.get(&id).is_some_and(is_recent) {
            return false;
        }
        announced.insert(id, now);
        true
    }
}

fn not_enrolled() -> RpcError {
    RpcError::denied("this proxy is not enrolled")
}

impl ProxyRpc {
    pub(super) fn new(context: Arc<AppContext>, shutdown: Shutdown) -> Self {
        Self {
            context,
            shutdown,
            announced: Announced::default(),
        }
    }

    /// A proxy's address goes to agents and clients once it is known, and again when it changes.
    async fn learn_address(&self, caller: &Caller, request: &v1::ProxyWatchRequest) -> Result<(), RpcError> {
        let address = Some(request.public_address.as_str()).filter(|address| !address.is_empty());
        if let Some(address) = address {
            HostPort::parse(address).map_err(RpcError::invalid)?;
        }
        if request.version.len() > VERSION_BYTES_MAX {
            return Err(RpcError::invalid(format!(
                "a version has at most {VERSION_BYTES_MAX} bytes"
            )));
        }
        let (id, now) = (caller.proxy()?.id, self.context.clock.now());
        let store = &self.context.store;
        if store.proxy(id).await?.is_none() {
            return Err(not_enrolled());
        }
        if store.proxy_reported(id, &request.version, address, now).await? {
            self.context.feed.owe(Affects::Snapshot);
            if self.announced.is_seldom(id, Instant::now()) {
                self.context.feed.publish_owed().await?;
            }
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl v1::proxy_server::Proxy for ProxyRpc {
    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::Issued>, Status> {
        let id = Caller::of(&request)?.proxy()?.id;
        if self
            .context
            .store
            .proxy(id)
            .await
            .map_err(RpcError::from)?
            .is_none()
        {
            return Err(not_enrolled().into());
        }
        let csr = CertificateRequest::parse(&request.get_ref().csr).map_err(RpcError::invalid)?;
        let issued = self
            .context
            .authority
            .issue_proxy(id, csr)
            .await
            .map_err(RpcError::from)?;
        Ok(Response::new(issued_to_wire(&issued)))
    }

    type WatchStream = NoEvents;

    async fn watch(&self, request: Request<v1::ProxyWatchRequest>) -> Result<Response<NoEvents>, Status> {
        let caller = Caller::of(&request)?;
        self.learn_address(&caller, request.get_ref()).await?;
        let Presented::Valid { peer, .. } = &caller.connection.certificate else {
            return Err(RpcError::denied("only proxies may do this").into());
        };
        let watching = self.context.feed.watchers().enter(*caller.proxy()?.id.as_uuid());
        let (feed, clock) = (&self.context.feed, self.context.clock.clone());
        Ok(frame::pack(follow(
            feed,
            clock,
            Arc::clone(peer),
            watching,
            self.shutdown.clone(),
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_keeps_changing_is_pushed_out_of_turn_once_a_minute() {
        let announced = Announced::default();
        let [one, other] = [1, 2].map(|number| ProxyId::from_uuid(uuid::Uuid::from_u128(number)));
        let now = Instant::now();
        assert!(announced.is_seldom(one, now));
        assert!(!announced.is_seldom(one, now + Duration::from_secs(59)));
        assert!(announced.is_seldom(other, now));
        assert!(announced.is_seldom(one, now + OUT_OF_TURN_AGAIN));
    }
}
