//! `iap.v1.Join`: new hosts, with a token.

use std::sync::Arc;

use iap_proto::v1;
use tonic::{Request, Response, Status};

use super::Caller;
use crate::context::AppContext;
use crate::join;

/// The RPCs of a join.
#[derive(Debug)]
pub(super) struct JoinRpc {
    context: Arc<AppContext>,
}

impl JoinRpc {
    pub(super) fn new(context: Arc<AppContext>) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl v1::join_server::Join for JoinRpc {
    async fn join_agent(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinedAgent>, Status> {
        let client_ip = Caller::of(&request)?.connection.address.ip();
        Ok(Response::new(
            join::join_agent(&self.context, request.into_inner(), client_ip).await?,
        ))
    }

    async fn join_proxy(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinedProxy>, Status> {
        let client_ip = Caller::of(&request)?.connection.address.ip();
        Ok(Response::new(
            join::join_proxy(&self.context, request.into_inner(), client_ip).await?,
        ))
    }
}
