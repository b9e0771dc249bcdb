//! `iap.v1.Proxy`: proxies renew themselves and follow the feed.

use std::sync::Arc;

use iap_identity::Request as CertificateRequest;
use iap_proto::v1;
use iap_runtime::net::HostPort;
use iap_runtime::shutdown::Shutdown;
use tonic::{Request, Response, Status};

use super::{Caller, Presented, RpcError};
use crate::authority::issued_to_wire;
use crate::context::AppContext;
use crate::feed::FeedError;
use crate::feed::stream::{FeedStream, follow};

const VERSION_BYTES_MAX: usize = 64;

/// The RPCs of proxies.
#[derive(Debug)]
pub(super) struct ProxyRpc {
    context: Arc<AppContext>,
    shutdown: Shutdown,
}

impl ProxyRpc {
    pub(super) fn new(context: Arc<AppContext>, shutdown: Shutdown) -> Self {
        Self { context, shutdown }
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
        if self
            .context
            .store
            .proxy_reported(id, &request.version, address, now)
            .await?
        {
            self.context
                .feed
                .publish_snapshot()
                .await
                .map_err(|error: FeedError| RpcError::internal(error))?;
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
            return Err(RpcError::denied("this proxy is not enrolled").into());
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

    type WatchStream = FeedStream;

    async fn watch(&self, request: Request<v1::ProxyWatchRequest>) -> Result<Response<FeedStream>, Status> {
        let caller = Caller::of(&request)?;
        self.learn_address(&caller, request.get_ref()).await?;
        let Presented::Valid { peer, .. } = &caller.connection.certificate else {
            return Err(RpcError::denied("only proxies may do this").into());
        };
        let watching = self.context.feed.watchers().enter(*caller.proxy()?.id.as_uuid());
        let (feed, clock) = (&self.context.feed, self.context.clock.clone());
        Ok(Response::new(follow(
            feed,
            clock,
            Arc::clone(peer),
            watching,
            self.shutdown.clone(),
        )))
    }
}
