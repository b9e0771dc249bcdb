//! `iap.v1.Join`: new hosts, with a token.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iap_proto::v1;
use tonic::{Request, Response, Status};

use super::{Caller, ErrorCode, RpcError};
use crate::context::AppContext;
use crate::join;
use crate::login::{Tries, source_of};

/// Refused joins from one source before it has to wait.
const REFUSALS_MAX: u32 = 100;
/// The time in which they are counted.
const REFUSALS_WINDOW: Duration = Duration::from_secs(300);

/// The RPCs of a join.
#[derive(Debug)]
pub(super) struct JoinRpc {
    context: Arc<AppContext>,
    refusals: Tries,
}

impl JoinRpc {
    pub(super) fn new(context: Arc<AppContext>) -> Self {
        Self {
            context,
            refusals: Tries::new(REFUSALS_MAX, REFUSALS_WINDOW),
        }
    }

    /// Joins, unless too many from there were refused lately: each may cost a look into the database, and a
    /// record.
    async fn counted<T>(
        &self,
        client_ip: IpAddr,
        joining: impl Future<Output = Result<T, RpcError>>,
    ) -> Result<T, RpcError> {
        let source = source_of(client_ip);
        self.refusals.check(source, Instant::now()).map_err(|_| {
            let text = "too many joins from this address were refused; wait a few minutes";
            RpcError::new(ErrorCode::TooMany, text)
        })?;
        let joined = joining.await;
        if let Err(error) = &joined
            && error.code == ErrorCode::Denied
        {
            // The check above has answered; this only uses the try up.
            let _ = self.refusals.count(source, Instant::now());
        }
        joined
    }
}

#[tonic::async_trait]
impl v1::join_server::Join for JoinRpc {
    async fn join_agent(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinedAgent>, Status> {
        let client_ip = Caller::of(&request)?.connection.address.ip();
        let joining = join::join_agent(&self.context, request.into_inner(), client_ip);
        Ok(Response::new(self.counted(client_ip, joining).await?))
    }

    async fn join_proxy(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinedProxy>, Status> {
        let client_ip = Caller::of(&request)?.connection.address.ip();
        let joining = join::join_proxy(&self.context, request.into_inner(), client_ip);
        Ok(Response::new(self.counted(client_ip, joining).await?))
    }
}
