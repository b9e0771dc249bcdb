//! `iap.v1.Login` on the wire.

use std::net::IpAddr;
use std::sync::Arc;

use iap_audit::UserRecord;
use iap_identity::{LoginId, Request as CertificateRequest};
use iap_proto::v1;
use tonic::{Request, Response, Status};

use super::{FinishError, Finished, Logins, StartError, StartRequest, WaitError, Waited};
use crate::authority::issued_to_wire;
use crate::policies::facts_of_login;
use crate::rpc::{Caller, ErrorCode, RpcError};
use crate::ssh_access::{self, Person};
use crate::store::ProofAsked;

/// The RPCs of a login.
#[derive(Clone, Debug)]
pub struct LoginRpc {
    logins: Arc<Logins>,
}

impl LoginRpc {
    /// The RPCs of this service.
    pub fn new(logins: Arc<Logins>) -> Self {
        Self { logins }
    }

    async fn finished(
        &self,
        finished: &Finished,
        client: IpAddr,
        ssh: Option<CertificateRequest>,
    ) -> v1::LoginFinished {
        let context = self.logins.context();
        let visible = context
            .policies
            .visible(context, facts_of_login(&finished.login), client)
            .await;
        let login = &finished.login;
        let facts = facts_of_login(login);
        let person = Person {
            user: UserRecord {
                id: login.user_id.to_string(),
                name: login.name.clone(),
                kind: "user".to_owned(),
            },
            login_id: login.login_id,
            local: facts.local().to_owned(),
            not_after: finished.issued.not_after(),
        };
        v1::LoginFinished {
            ssh: ssh_access::of(context, &person, &visible, ssh.as_ref()).await,
            issued: Some(issued_to_wire(&finished.issued)),
            login_deadline_unix_ms: iap_proto::convert::time_to_wire(finished.login.login_deadline),
            bundle: Some(context.feed.bundle()),
            services: visible
                .into_iter()
                .filter_map(|visible| visible.service)
                .collect(),
        }
    }
}

#[tonic::async_trait]
impl v1::login_server::Login for LoginRpc {
    async fn start(&self, request: Request<v1::LoginStart>) -> Result<Response<v1::LoginStarted>, Status> {
        let client = Caller::of(&request)?.connection.address.ip();
        let asked = request.into_inner();
        let asked = StartRequest {
            method: asked.method,
            connector: asked.connector,
            key_thumbprint: asked.key_thumbprint,
            host_name: asked.host_name,
            user_name: asked.user_name,
            redirect_port: asked.redirect_port,
            client_version: asked.client_version,
            proof: ProofAsked {
                fresh: asked.fresh,
                mfa: asked.mfa,
                acr: Some(asked.acr).filter(|acr| !acr.is_empty()),
            },
        };
        let started = self.logins.start(asked, client).await.map_err(RpcError::from)?;
        Ok(Response::new(v1::LoginStarted {
            login_id: started.login_id.as_bytes().to_vec(),
            url: started.url,
            words: started.words,
            user_code: started.user_code.unwrap_or_default(),
            poll_secret: started.poll_secret.into_bytes(),
            expires_unix_ms: iap_proto::convert::time_to_wire(started.expires_at),
        }))
    }

    async fn r#await(&self, request: Request<v1::LoginAwait>) -> Result<Response<v1::LoginAwaited>, Status> {
        let asked = request.into_inner();
        let waited = self
            .logins
            .wait(login_id(&asked.login_id)?, &asked.poll_secret)
            .await;
        let (state, code, message) = match waited.map_err(RpcError::from)? {
            Waited::Pending => ("pending", None, String::new()),
            Waited::Approved(code) => ("approved", code, String::new()),
            Waited::Denied(why) => ("denied", None, why),
            Waited::Expired => ("expired", None, "nobody approved the login in time".to_owned()),
        };
        let code = code.unwrap_or_default();
        Ok(Response::new(v1::LoginAwaited {
            state: state.to_owned(),
            code,
            message,
        }))
    }

    async fn finish(&self, request: Request<v1::LoginFinish>) -> Result<Response<v1::LoginFinished>, Status> {
        let client = Caller::of(&request)?.connection.address.ip();
        let asked = request.into_inner();
        let ssh = ssh_access::request(&asked.ssh_csr).map_err(RpcError::invalid)?;
        let finished = self
            .logins
            .finish(login_id(&asked.login_id)?, &asked.code, &asked.csr, client)
            .await;
        let finished = finished.map_err(RpcError::from)?;
        Ok(Response::new(self.finished(&finished, client, ssh).await))
    }
}

fn login_id(bytes: &[u8]) -> Result<LoginId, RpcError> {
    LoginId::from_bytes(bytes).map_err(RpcError::invalid)
}

impl From<StartError> for RpcError {
    fn from(error: StartError) -> Self {
        let code = match &error {
            StartError::Malformed { .. } => ErrorCode::Invalid,
            StartError::MethodOff { .. } | StartError::TooMany => ErrorCode::Denied,
            StartError::UnknownConnector(..) | StartError::NoConnector => ErrorCode::NotFound,
            StartError::Unavailable => ErrorCode::Internal,
        };
        RpcError::new(code, error.to_string())
    }
}

impl From<WaitError> for RpcError {
    fn from(error: WaitError) -> Self {
        let code = match error {
            WaitError::Unknown => ErrorCode::NotFound,
            WaitError::Unavailable => ErrorCode::Internal,
        };
        RpcError::new(code, error.to_string())
    }
}

impl From<FinishError> for RpcError {
    fn from(error: FinishError) -> Self {
        let code = match &error {
            FinishError::Refused | FinishError::Locked(..) => ErrorCode::Denied,
            FinishError::TooMany(_) | FinishError::TooManyTries => ErrorCode::TooMany,
            FinishError::Request(_) => ErrorCode::Invalid,
            FinishError::Unavailable => ErrorCode::Internal,
        };
        RpcError::new(code, error.to_string())
    }
}
