//! A new host joins with a token and leaves with an identity.

use iap_audit::EventKind;
use iap_identity::{AgentId, JoinToken, ProxyId, Request};
use iap_proto::v1;

use crate::authority::issued_to_wire;
use crate::context::AppContext;
use crate::feed::Affects;
use crate::rpc::RpcError;
use crate::store::{AgentRow, Hash, ProxyRow, TokenKind, TokenRefusal, TokenRow};

const HOST_NAME_BYTES_MAX: usize = 255;
const VERSION_BYTES_MAX: usize = 64;

/// An agent joins: it gets an id, the token's services, a certificate and everything to start from.
pub async fn join_agent(
    context: &AppContext,
    request: v1::JoinRequest,
    client_ip: std::net::IpAddr,
) -> Result<v1::JoinedAgent, RpcError> {
    let joining = Joining::read(&request)?;
    let now = context.clock.now();
    let agent = AgentRow {
        agent_id: AgentId::from_uuid(context.random.uuid_v7(now)?),
        host_name: request.host_name,
        version: request.version,
        joined_at: now,
        last_seen: Some(now),
        serial: None,
        not_after: None,
        proxies: Vec::new(),
        local_services: Vec::new(),
        live_sessions: 0,
    };
    let token = match context.store.join_agent(&joining.secret_hash, &agent).await? {
        Ok(token) => token,
        Err(refusal) => return Err(refuse(context, TokenKind::Agent, refusal, client_ip).await),
    };
    let id = agent.agent_id;
    context.feed.owe(Affects::Snapshot);
    admit(context, &token, &id.to_string(), &agent.host_name, client_ip).await?;
    let issued = context.authority.issue_agent(id, 1, joining.request).await?;
    context.feed.publish_snapshot().await?;
    Ok(v1::JoinedAgent {
        agent_id: id.as_bytes().to_vec(),
        issued: Some(issued_to_wire(&issued)),
        bundle: Some(context.feed.bundle()),
        snapshot: Some(context.feed.snapshot().signed.clone()),
        locks: Some(context.feed.published_locks().signed.clone()),
    })
}

/// A proxy joins. Its address becomes known when it first watches.
pub async fn join_proxy(
    context: &AppContext,
    request: v1::JoinRequest,
    client_ip: std::net::IpAddr,
) -> Result<v1::JoinedProxy, RpcError> {
    let joining = Joining::read(&request)?;
    let now = context.clock.now();
    let proxy = ProxyRow {
        proxy_id: ProxyId::from_uuid(context.random.uuid_v7(now)?),
        host_name: request.host_name,
        version: request.version,
        joined_at: now,
        last_seen: Some(now),
        public_address: None,
    };
    let token = match context.store.join_proxy(&joining.secret_hash, &proxy).await? {
        Ok(token) => token,
        Err(refusal) => return Err(refuse(context, TokenKind::Proxy, refusal, client_ip).await),
    };
    let id = proxy.proxy_id;
    admit(context, &token, &id.to_string(), &proxy.host_name, client_ip).await?;
    let issued = context.authority.issue_proxy(id, joining.request).await?;
    Ok(v1::JoinedProxy {
        proxy_id: id.as_bytes().to_vec(),
        issued: Some(issued_to_wire(&issued)),
        bundle: Some(context.feed.bundle()),
        locks: Some(context.feed.published_locks().signed.clone()),
    })
}

/// What a host brings. Read before the token is touched, so that a bad request does not use it up.
struct Joining {
    secret_hash: Hash,
    request: Request,
}

impl Joining {
    fn read(request: &v1::JoinRequest) -> Result<Self, RpcError> {
        let printable = |text: &str| !text.chars().any(char::is_control);
        if request.host_name.len() > HOST_NAME_BYTES_MAX || !printable(&request.host_name) {
            return Err(RpcError::invalid(format!(
                "a host name has at most {HOST_NAME_BYTES_MAX} bytes"
            )));
        }
        if request.version.len() > VERSION_BYTES_MAX || !printable(&request.version) {
            return Err(RpcError::invalid(format!(
                "a version has at most {VERSION_BYTES_MAX} bytes"
            )));
        }
        Ok(Self {
            secret_hash: JoinToken::hash_of(&request.secret),
            request: Request::parse(&request.csr).map_err(RpcError::invalid)?,
        })
    }
}

async fn admit(
    context: &AppContext,
    token: &TokenRow,
    id: &str,
    host_name: &str,
    client_ip: std::net::IpAddr,
) -> Result<(), RpcError> {
    let services: Vec<&str> = token.services.iter().map(|service| service.as_str()).collect();
    let event = context
        .audit
        .event(EventKind::JoinSuccess)?
        .field("kind", token.kind.as_str())
        .field("joined", id)
        .field("host_name", host_name)
        .field("token_id", token.token_id.to_string())
        .field("services", services)
        .field("client_ip", client_ip.to_string());
    Ok(context.audit.record(event).await?)
}

/// Strangers' guesses are only logged; the use of a token that once was good is recorded.
async fn refuse(
    context: &AppContext,
    kind: TokenKind,
    refusal: TokenRefusal,
    client_ip: std::net::IpAddr,
) -> RpcError {
    tracing::info!(%client_ip, kind = kind.as_str(), %refusal, "join refused");
    match refusal {
        TokenRefusal::Unknown => {}
        TokenRefusal::Expired | TokenRefusal::Used => {
            let recorded = match context.audit.event(EventKind::JoinFailure) {
                Ok(event) => {
                    let event = event
                        .field("kind", kind.as_str())
                        .field("client_ip", client_ip.to_string());
                    context.audit.record(event.reason(&refusal.to_string())).await
                }
                Err(error) => Err(error.into()),
            };
            if let Err(error) = recorded {
                return error.into();
            }
        }
    }
    RpcError::denied(refusal.to_string())
}
