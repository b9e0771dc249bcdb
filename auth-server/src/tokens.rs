//! Join tokens: made once, shown once, kept as a hash.

use std::time::Duration;

use iap_audit::{EventKind, UserRecord};
use iap_identity::{JoinToken, ServiceName};
use iap_proto::v1;
use serde_json::json;
use uuid::Uuid;

use crate::authority::format_time;
use crate::context::AppContext;
use crate::rpc::RpcError;
use crate::store::{TokenKind, TokenRow};

const LIFE_DEFAULT: Duration = Duration::from_secs(30 * 60);
const LIFE_MAX: Duration = Duration::from_secs(7 * 86_400);
const USES_MAX: u32 = 1000;
const SERVICES_MAX: usize = 256;

/// Makes a token in the name of `author`.
pub async fn create(
    context: &AppContext,
    author: &UserRecord,
    request: v1::TokenCreateRequest,
) -> Result<v1::TokenCreateReply, RpcError> {
    let kind = TokenKind::parse(&request.kind)
        .ok_or_else(|| RpcError::invalid(format!("{:?} is neither agent nor proxy", request.kind)))?;
    let services = services(context, kind, &request.services).await?;
    let uses = if request.uses == 0 { 1 } else { request.uses };
    if uses > USES_MAX {
        return Err(RpcError::invalid(format!(
            "a token can be used at most {USES_MAX} times"
        )));
    }
    let life = match request.ttl_seconds {
        0 => LIFE_DEFAULT,
        seconds => Duration::from_secs(u64::from(seconds)),
    };
    if life > LIFE_MAX {
        return Err(RpcError::invalid("a token lives at most 7 days"));
    }
    let now = context.clock.now();
    let token = JoinToken::new(context.authority.pin(), context.random.bytes()?);
    let row = TokenRow {
        token_id: context.random.uuid_v7(now)?,
        secret_hash: token.secret_hash(),
        kind,
        services,
        uses,
        uses_left: uses,
        created_by: author.name.clone(),
        created_at: now,
        expires_at: now + life,
    };
    let names: Vec<&str> = row.services.iter().map(ServiceName::as_str).collect();
    let event = context
        .audit
        .event(EventKind::TokenCreated)?
        .user(author)
        .field("token_id", row.token_id.to_string())
        .field("token_kind", kind.as_str())
        .field("services", names)
        .field("uses", uses)
        .field("expires", format_time(row.expires_at));
    context.audit.record(event).await?;
    context.store.create_token(&row).await?;
    Ok(v1::TokenCreateReply {
        token_id: row.token_id.to_string(),
        token: token.expose(),
        expires_unix_ms: iap_proto::convert::time_to_wire(row.expires_at),
    })
}

/// The tokens that can still be used, as JSON.
pub async fn list(context: &AppContext) -> Result<String, RpcError> {
    let tokens = context.store.tokens(context.clock.now()).await?;
    let tokens: Vec<_> = tokens
        .iter()
        .map(|token| {
            json!({
                "token_id": token.token_id.to_string(),
                "kind": token.kind.as_str(),
                "services": token.services,
                "uses": token.uses,
                "uses_left": token.uses_left,
                "created_by": token.created_by,
                "created": format_time(token.created_at),
                "expires": format_time(token.expires_at),
            })
        })
        .collect();
    Ok(serde_json::Value::from(tokens).to_string())
}

/// Removes a token in the name of `author`.
pub async fn remove(context: &AppContext, author: &UserRecord, id: &str) -> Result<(), RpcError> {
    let id = Uuid::try_parse(id).map_err(|_| RpcError::invalid(format!("{id:?} is no token's id")))?;
    let not_found = || RpcError::not_found(format!("there is no token {id}"));
    let usable = context.store.tokens(context.clock.now()).await?;
    if !usable.iter().any(|token| token.token_id == id) {
        return Err(not_found());
    }
    let event = context
        .audit
        .event(EventKind::TokenRemoved)?
        .user(author)
        .field("token_id", id.to_string());
    context.audit.record(event).await?;
    match context.store.remove_token(id).await? {
        true => Ok(()),
        false => Err(not_found()),
    }
}

async fn services(
    context: &AppContext,
    kind: TokenKind,
    names: &[String],
) -> Result<Vec<ServiceName>, RpcError> {
    if kind == TokenKind::Proxy && !names.is_empty() {
        return Err(RpcError::invalid(
            "a proxy serves no services: leave --service out",
        ));
    }
    if names.len() > SERVICES_MAX {
        return Err(RpcError::invalid(format!(
            "a token names at most {SERVICES_MAX} services"
        )));
    }
    let known = context.store.services().await?;
    let mut services = Vec::with_capacity(names.len());
    for name in names {
        let name = ServiceName::parse(name).map_err(RpcError::invalid)?;
        if !known.iter().any(|service| service.row.name == name) {
            let text = format!("there is no service {name}: create it first with `iapctl services apply`");
            return Err(RpcError::not_found(text));
        }
        services.push(name);
    }
    Ok(services)
}
