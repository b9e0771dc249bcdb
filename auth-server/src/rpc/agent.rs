//! `iap.v1.Agent`: agents renew themselves and their leaves, follow the feed, and send their records.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use iap_identity::{AgentPeer, Request as CertificateRequest, ServiceName};
use iap_proto::v1;
use iap_runtime::shutdown::Shutdown;
use tonic::{Request, Response, Status, Streaming};

use super::{Caller, Presented, RpcError, backend};
use crate::audit::ingest::{Ingest, IngestError};
use crate::authority::issued_to_wire;
use crate::context::AppContext;
use crate::feed::frame::{self, NoEvents};
use crate::feed::stream::follow;
use crate::recordings;
use crate::store::{AgentReport, ConnectedProxy};

const NAMES_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 255;

/// The RPCs of agents.
#[derive(Debug)]
pub(super) struct AgentRpc {
    context: Arc<AppContext>,
    ingest: Ingest,
    shutdown: Shutdown,
}

impl AgentRpc {
    pub(super) fn new(context: Arc<AppContext>, ingest: Ingest, shutdown: Shutdown) -> Self {
        Self {
            context,
            ingest,
            shutdown,
        }
    }

    async fn refuse_unknown(&self, agent: &AgentPeer) -> Result<(), RpcError> {
        match self.context.store.agent(agent.id).await? {
            Some(_) => Ok(()),
            None => Err(RpcError::denied(
                "this agent is not enrolled: join again with a new token",
            )),
        }
    }

    async fn report(&self, agent: &AgentPeer, report: &AgentReport) -> Result<(), RpcError> {
        let now = self.context.clock.now();
        Ok(self.context.store.agent_reported(agent.id, report, now).await?)
    }
}

#[tonic::async_trait]
impl v1::agent_server::Agent for AgentRpc {
    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::Issued>, Status> {
        let caller = Caller::of(&request)?;
        let (agent, _) = caller.agent()?;
        self.refuse_unknown(agent).await?;
        let csr = CertificateRequest::parse(&request.get_ref().csr).map_err(RpcError::invalid)?;
        let generation = agent.generation.saturating_add(1);
        let issued = self
            .context
            .authority
            .issue_agent(agent.id, generation, csr)
            .await;
        Ok(Response::new(issued_to_wire(&issued.map_err(RpcError::from)?)))
    }

    async fn service_leaf(
        &self,
        request: Request<v1::ServiceLeafRequest>,
    ) -> Result<Response<v1::Issued>, Status> {
        let caller = Caller::of(&request)?;
        let (agent, _) = caller.agent()?;
        let service = ServiceName::parse(&request.get_ref().service).map_err(RpcError::invalid)?;
        if !self
            .context
            .store
            .is_granted(agent.id, &service)
            .await
            .map_err(RpcError::from)?
        {
            return Err(
                RpcError::denied(format!("the service {service} is not granted to this agent")).into(),
            );
        }
        let csr = CertificateRequest::parse(&request.get_ref().csr).map_err(RpcError::invalid)?;
        let issued = self
            .context
            .authority
            .issue_service_leaf(agent.id, &service, csr)
            .await;
        Ok(Response::new(issued_to_wire(&issued.map_err(RpcError::from)?)))
    }

    type WatchStream = NoEvents;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<NoEvents>, Status> {
        let caller = Caller::of(&request)?;
        let (agent, _) = caller.agent()?;
        self.refuse_unknown(agent).await?;
        let report = AgentReport {
            version: Some(short(&request.get_ref().version)?),
            local_services: Some(names(&request.get_ref().services)?),
            ..AgentReport::default()
        };
        self.report(agent, &report).await?;
        let Presented::Valid { peer, .. } = &caller.connection.certificate else {
            return Err(RpcError::denied("an expired certificate is good for renewal only").into());
        };
        let watching = self.context.feed.watchers().enter(*agent.id.as_uuid());
        let (feed, clock) = (&self.context.feed, self.context.clock.clone());
        Ok(frame::pack(follow(
            feed,
            clock,
            Arc::clone(peer),
            watching,
            self.shutdown.clone(),
        )))
    }

    async fn append_audit(&self, request: Request<v1::AuditBatch>) -> Result<Response<v1::AuditAck>, Status> {
        let caller = Caller::of(&request)?;
        let (agent, leaf) = caller.agent()?;
        let leaf = leaf.ok_or_else(|| RpcError::denied("an expired certificate is good for renewal only"))?;
        let appended = self.ingest.append(agent.id, leaf, request.get_ref()).await;
        Ok(Response::new(v1::AuditAck {
            agent_seq: appended.map_err(RpcError::from)?,
        }))
    }

    async fn upload_recording(
        &self,
        request: Request<Streaming<v1::RecordingPart>>,
    ) -> Result<Response<v1::RecordingHeld>, Status> {
        let caller = Caller::of(&request)?;
        let agent = caller.agent()?.0.clone();
        let held = recordings::receive(&self.context, &agent, request.into_inner()).await?;
        Ok(Response::new(held))
    }

    async fn status(&self, request: Request<v1::AgentStatus>) -> Result<Response<v1::Empty>, Status> {
        let caller = Caller::of(&request)?;
        let (agent, _) = caller.agent()?;
        let status = request.get_ref();
        let report = AgentReport {
            version: None,
            proxies: Some(proxies(status)?),
            local_services: Some(names(&status.services)?),
            live_sessions: Some(status.live_sessions),
        };
        let sources = ssh_sources(&status.ssh_sources)?;
        self.report(agent, &report).await?;
        self.context.authority.ssh_sources.report(agent.id, sources);
        Ok(Response::new(v1::Empty {}))
    }

    async fn backend_credentials(
        &self,
        request: Request<v1::BackendCredentialsRequest>,
    ) -> Result<Response<v1::BackendCredentialsReply>, Status> {
        let caller = Caller::of(&request)?;
        let (agent, _) = caller.agent()?;
        let reply = backend::credentials(&self.context, agent, request.get_ref()).await?;
        Ok(Response::new(reply))
    }
}

/// Older agents name addresses alone.
fn proxies(status: &v1::AgentStatus) -> Result<Vec<ConnectedProxy>, RpcError> {
    if status.proxies.is_empty() {
        let addresses = names(&status.connected_proxies)?;
        return Ok(addresses.into_iter().map(ConnectedProxy::plain).collect());
    }
    if status.proxies.len() > NAMES_MAX {
        return Err(RpcError::invalid(format!(
            "at most {NAMES_MAX} proxies can be reported"
        )));
    }
    let proxy = |proxy: &v1::ProxyConnection| {
        Ok(ConnectedProxy {
            address: short(&proxy.address)?,
            control: short(&proxy.control)?,
            data: short(&proxy.data)?,
        })
    };
    status.proxies.iter().map(proxy).collect()
}

fn ssh_sources(given: &[v1::ServiceSources]) -> Result<BTreeMap<ServiceName, Vec<IpAddr>>, RpcError> {
    if given.len() > NAMES_MAX {
        return Err(RpcError::invalid(format!(
            "at most {NAMES_MAX} services can be reported"
        )));
    }
    let read = |one: &v1::ServiceSources| {
        let name = ServiceName::parse(&one.service).map_err(RpcError::invalid)?;
        Ok((name, backend::source_addresses(&one.addresses)?))
    };
    given.iter().map(read).collect()
}

fn names(given: &[String]) -> Result<Vec<String>, RpcError> {
    if given.len() > NAMES_MAX {
        return Err(RpcError::invalid(format!(
            "at most {NAMES_MAX} names can be reported"
        )));
    }
    given.iter().map(|name| short(name)).collect()
}

fn short(text: &str) -> Result<String, RpcError> {
    if text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(RpcError::invalid(format!(
            "a name has at most {NAME_BYTES_MAX} bytes"
        )));
    }
    Ok(text.to_owned())
}

impl From<IngestError> for RpcError {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::Invalid(_) | IngestError::Record { .. } => RpcError::invalid(error),
            IngestError::Overtaken => RpcError::conflict(error.to_string()),
            IngestError::Store(_) | IngestError::Alarm(_) => RpcError::internal(error),
        }
    }
}
