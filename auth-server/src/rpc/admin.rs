//! `iap.v1.Admin`: each call with the verb its row in the table names.

use std::sync::Arc;
use std::time::Duration;

use iap_identity::{LockKind, ServiceName, SessionId};
use iap_proto::{WireError, v1};
use serde_json::{Value, json};
use tokio_stream::Iter;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Caller, RpcError, backend};
use crate::audit::{erase, search};
use crate::authority::format_time;
use crate::context::AppContext;
use crate::locks::{self, NewLock};
use crate::policies::service_named;
use crate::store::{AgentRow, GrantedService};
use crate::{services, tokens};

/// A killed session has long ended by then.
const KILL_LIFE: Duration = Duration::from_secs(24 * 3600);
const LOCK_LIFE_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

/// The RPCs of administrators.
#[derive(Debug)]
pub(super) struct AdminRpc {
    context: Arc<AppContext>,
}

impl AdminRpc {
    pub(super) fn new(context: Arc<AppContext>) -> Self {
        Self { context }
    }

    async fn kill(&self, caller: &Caller, request: v1::SessionKillRequest) -> Result<v1::Lock, RpcError> {
        let id = SessionId::from_bytes(&request.session_id).map_err(RpcError::invalid)?;
        let session = self.context.store.session(id).await?;
        let session = session.ok_or_else(|| RpcError::not_found(format!("there is no session {id}")))?;
        if session.end.is_some() {
            return Err(RpcError::conflict(format!("session {id} is over already")));
        }
        let reason = match request.reason.trim() {
            "" => "ended by an administrator".to_owned(),
            reason => reason.to_owned(),
        };
        let new = NewLock {
            kind: LockKind::Session,
            target: id.to_string(),
            reason,
            life: Some(KILL_LIFE),
        };
        let lock = locks::add(&self.context, &caller.user()?.record(), new).await?;
        Ok(v1::Lock::from(&lock))
    }

    async fn agents(&self) -> Result<String, RpcError> {
        let granted = self.context.store.services().await?;
        let agents = self.context.store.agents().await?;
        let now = self.context.clock.now();
        let render = |agent: &AgentRow| {
            let connected = self.context.feed.watchers().contains(*agent.agent_id.as_uuid());
            let last_seen = if connected { Some(now) } else { agent.last_seen };
            json!({
                "agent_id": agent.agent_id.to_string(),
                "host": agent.host_name,
                "services": services_of(agent, &granted),
                "local_services": agent.local_services,
                "connected": connected,
                "last_seen": last_seen.map(format_time),
                "joined": format_time(agent.joined_at),
                "proxies": if connected { agent.proxies.as_slice() } else { &[] },
                "live_sessions": if connected { agent.live_sessions } else { 0 },
                "version": agent.version,
                "certificate_expires": agent.not_after.map(format_time),
            })
        };
        Ok(Value::Array(agents.iter().map(render).collect()).to_string())
    }

    async fn listed_services(&self) -> Result<Vec<v1::Service>, RpcError> {
        let stored = self.context.store.services().await?;
        let wire =
            |service: &GrantedService| services::record_of(service).map(|record| v1::Service::from(&record));
        stored
            .iter()
            .map(wire)
            .collect::<Result<_, WireError>>()
            .map_err(RpcError::internal)
    }

    async fn policy(&self, version: u64) -> Result<v1::PolicyGetReply, RpcError> {
        let row = match version {
            0 => self.context.store.policy().await?,
            version => self.context.store.policy_version(version).await?,
        };
        let row = match (row, version) {
            (Some(row), _) => row,
            (None, 0) => return Err(RpcError::not_found("no policy has been applied yet")),
            (None, version) => {
                return Err(RpcError::not_found(format!(
                    "there is no policy version {version}"
                )));
            }
        };
        Ok(v1::PolicyGetReply {
            version: row.version,
            policy_toml: row.toml,
            applied_by: row.applied_by,
            applied_unix_ms: iap_proto::convert::time_to_wire(row.applied_at),
        })
    }
}

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl v1::admin_server::Admin for AdminRpc {
    async fn services_apply(
        &self,
        request: Request<v1::ServicesApplyRequest>,
    ) -> Reply<v1::ServicesApplyReply> {
        let author = Caller::of(&request)?.user()?.record();
        let applied = services::apply(&self.context, &author, &request.get_ref().services_toml).await?;
        let names = |names: Vec<ServiceName>| names.iter().map(ToString::to_string).collect();
        Ok(Response::new(v1::ServicesApplyReply {
            created: names(applied.created),
            updated: names(applied.updated),
            unchanged: names(applied.unchanged),
        }))
    }

    async fn services_list(&self, _request: Request<v1::Empty>) -> Reply<v1::ServicesListReply> {
        Ok(Response::new(v1::ServicesListReply {
            services: self.listed_services().await?,
        }))
    }

    async fn services_remove(&self, request: Request<v1::NameRequest>) -> Reply<v1::Empty> {
        let author = Caller::of(&request)?.user()?.record();
        services::remove(&self.context, &author, &request.get_ref().name).await?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn policy_apply(&self, request: Request<v1::PolicyApplyRequest>) -> Reply<v1::PolicyApplyReply> {
        let caller = Caller::of(&request)?;
        let applied = self
            .context
            .policies
            .apply(&self.context, caller.user()?, request.into_inner())
            .await?;
        Ok(Response::new(applied))
    }

    async fn policy_get(&self, request: Request<v1::PolicyGetRequest>) -> Reply<v1::PolicyGetReply> {
        Ok(Response::new(self.policy(request.get_ref().version).await?))
    }

    async fn token_create(&self, request: Request<v1::TokenCreateRequest>) -> Reply<v1::TokenCreateReply> {
        let author = Caller::of(&request)?.user()?.record();
        Ok(Response::new(
            tokens::create(&self.context, &author, request.into_inner()).await?,
        ))
    }

    async fn tokens_list(&self, _request: Request<v1::Empty>) -> Reply<v1::JsonReply> {
        Ok(Response::new(v1::JsonReply {
            json: tokens::list(&self.context).await?,
            more: false,
        }))
    }

    async fn token_remove(&self, request: Request<v1::NameRequest>) -> Reply<v1::Empty> {
        let author = Caller::of(&request)?.user()?.record();
        tokens::remove(&self.context, &author, &request.get_ref().name).await?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn lock_add(&self, request: Request<v1::LockAddRequest>) -> Reply<v1::Lock> {
        let author = Caller::of(&request)?.user()?.record();
        let request = request.into_inner();
        let kind = LockKind::parse(&request.kind)
            .ok_or_else(|| RpcError::invalid(format!("{:?} cannot be locked", request.kind)))?;
        let life = Some(Duration::from_secs(request.ttl_seconds)).filter(|life| !life.is_zero());
        if life.is_some_and(|life| life > LOCK_LIFE_MAX) {
            return Err(
                RpcError::invalid("a lock lives at most ten years; without a time it has no end").into(),
            );
        }
        let new = NewLock {
            kind,
            target: request.target,
            reason: request.reason,
            life,
        };
        let lock = locks::add(&self.context, &author, new).await?;
        Ok(Response::new(v1::Lock::from(&lock)))
    }

    async fn locks_list(&self, _request: Request<v1::Empty>) -> Reply<v1::LocksReply> {
        let now = self.context.clock.now();
        let locks = self.context.store.locks(now).await.map_err(RpcError::from)?;
        Ok(Response::new(v1::LocksReply {
            locks: locks.iter().map(v1::Lock::from).collect(),
        }))
    }

    async fn lock_remove(&self, request: Request<v1::NameRequest>) -> Reply<v1::Empty> {
        let author = Caller::of(&request)?.user()?.record();
        let name = &request.get_ref().name;
        let id = Uuid::try_parse(name).map_err(|_| RpcError::invalid(format!("{name:?} is no lock's id")))?;
        locks::remove(&self.context, &author, id).await?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn session_kill(&self, request: Request<v1::SessionKillRequest>) -> Reply<v1::Lock> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.kill(&caller, request.into_inner()).await?))
    }

    async fn agents_list(&self, _request: Request<v1::Empty>) -> Reply<v1::JsonReply> {
        Ok(Response::new(v1::JsonReply {
            json: self.agents().await?,
            more: false,
        }))
    }

    async fn who_can(&self, request: Request<v1::WhoCanRequest>) -> Reply<v1::JsonReply> {
        let client_ip = Caller::of(&request)?.connection.address.ip();
        let policies = &self.context.policies;
        let json = policies
            .who_can(&self.context, client_ip, request.into_inner())
            .await?;
        Ok(Response::new(v1::JsonReply { json, more: false }))
    }

    async fn service_authorities(
        &self,
        request: Request<v1::NameRequest>,
    ) -> Reply<v1::ServiceAuthoritiesReply> {
        let name = ServiceName::parse(&request.get_ref().name).map_err(RpcError::invalid)?;
        let service = service_named(&self.context, &name)?;
        let keys = self.context.authority.services.of(&service.name).await;
        let keys = keys.map_err(RpcError::internal)?;
        Ok(Response::new(v1::ServiceAuthoritiesReply {
            client: keys.client.der().to_vec(),
            ssh_user: keys.ssh_user.to_bytes(),
            ssh_host: keys.ssh_host.to_bytes(),
        }))
    }

    async fn ssh_host_sign(&self, request: Request<v1::SshHostSignRequest>) -> Reply<v1::SshHostSignReply> {
        let author = Caller::of(&request)?.user()?.record();
        let signed = backend::sign_ssh_host(&self.context, &author, request.get_ref()).await?;
        Ok(Response::new(signed))
    }

    type AuditSearchStream = Iter<std::vec::IntoIter<Result<v1::JsonReply, Status>>>;

    async fn audit_search(&self, request: Request<v1::AuditSearchRequest>) -> Reply<Self::AuditSearchStream> {
        let caller = Caller::of(&request)?;
        let found = search::search(&self.context, caller.user()?, request.into_inner()).await?;
        let mut replies: Vec<_> = found
            .records
            .into_iter()
            .map(|json| v1::JsonReply { json, more: false })
            .collect();
        if let Some(last) = replies.last_mut() {
            last.more = found.more;
        }
        let replies: Vec<_> = replies.into_iter().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(replies)))
    }

    async fn audit_erase(&self, request: Request<v1::AuditEraseRequest>) -> Reply<v1::AuditEraseReply> {
        let caller = Caller::of(&request)?;
        let erased = erase::erase(&self.context, caller.user()?, request.into_inner()).await?;
        Ok(Response::new(erased))
    }
}

fn services_of(agent: &AgentRow, granted: &[GrantedService]) -> Vec<String> {
    let has = |service: &&GrantedService| service.agents.contains(&agent.agent_id);
    granted
        .iter()
        .filter(has)
        .map(|service| service.row.name.to_string())
        .collect()
}
