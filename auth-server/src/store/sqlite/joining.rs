//! Redeeming a token: the checks, the use, the new host and its grants belong to one transaction.

use iap_identity::{AgentId, ServiceName};
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, SqliteExecutor, Transaction};
use time::OffsetDateTime;

use super::columns::{Columns, json, milliseconds};
use crate::store::{AgentRow, Hash, ProxyRow, StoreError, TokenKind, TokenRefusal, TokenRow};

pub(super) fn token_from(row: &SqliteRow) -> Result<TokenRow, StoreError> {
    let columns = Columns::new("token", row);
    Ok(TokenRow {
        token_id: columns.uuid("token_id")?,
        secret_hash: columns.hash("secret_hash")?,
        kind: columns.named("kind", TokenKind::parse)?,
        services: columns.json("services")?,
        uses: columns.number("uses")?,
        uses_left: columns.number("uses_left")?,
        created_by: columns.text("created_by")?,
        created_at: columns.time("created_at")?,
        expires_at: columns.time("expires_at")?,
    })
}

/// The token that this secret redeems now. Expiry is told before use, so that an old token says the same whether
/// it was used or not.
pub(super) async fn redeemable(
    executor: impl SqliteExecutor<'_>,
    secret_hash: &Hash,
    kind: TokenKind,
    now: OffsetDateTime,
) -> Result<Result<TokenRow, TokenRefusal>, StoreError> {
    let row = sqlx::query("SELECT * FROM tokens WHERE secret_hash = ?")
        .bind(secret_hash.as_slice())
        .fetch_optional(executor)
        .await?;
    let Some(row) = row else {
        return Ok(Err(TokenRefusal::Unknown));
    };
    let token = token_from(&row)?;
    Ok(if token.kind != kind {
        Err(TokenRefusal::Unknown)
    } else if token.expires_at <= now {
        Err(TokenRefusal::Expired)
    } else if token.uses_left == 0 {
        Err(TokenRefusal::Used)
    } else {
        Ok(token)
    })
}

/// Takes one use.
pub(super) async fn redeem(
    transaction: &mut Transaction<'static, Sqlite>,
    secret_hash: &Hash,
    kind: TokenKind,
    now: OffsetDateTime,
) -> Result<Result<TokenRow, TokenRefusal>, StoreError> {
    let token = match redeemable(&mut **transaction, secret_hash, kind, now).await? {
        Ok(token) => token,
        Err(refusal) => return Ok(Err(refusal)),
    };
    sqlx::query("UPDATE tokens SET uses_left = uses_left - 1 WHERE token_id = ?")
        .bind(token.token_id.as_bytes().as_slice())
        .execute(&mut **transaction)
        .await?;
    Ok(Ok(token))
}

pub(super) async fn enrol_agent(
    transaction: &mut Transaction<'static, Sqlite>,
    agent: &AgentRow,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO agents (agent_id, host_name, version, joined_at, last_seen, serial, not_after, proxies,
            local_services, live_sessions)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(agent.agent_id.as_bytes().as_slice())
    .bind(&agent.host_name)
    .bind(&agent.version)
    .bind(milliseconds(agent.joined_at))
    .bind(agent.last_seen.map(milliseconds))
    .bind(&agent.serial)
    .bind(agent.not_after.map(milliseconds))
    .bind(json(&agent.proxies)?)
    .bind(json(&agent.local_services)?)
    .bind(i64::from(agent.live_sessions))
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

pub(super) async fn enrol_proxy(
    transaction: &mut Transaction<'static, Sqlite>,
    proxy: &ProxyRow,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO proxies (proxy_id, host_name, version, joined_at, last_seen, public_address)
         VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(proxy.proxy_id.as_bytes().as_slice())
    .bind(&proxy.host_name)
    .bind(&proxy.version)
    .bind(milliseconds(proxy.joined_at))
    .bind(proxy.last_seen.map(milliseconds))
    .bind(&proxy.public_address)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

pub(super) async fn grant(
    transaction: &mut Transaction<'static, Sqlite>,
    service: &ServiceName,
    agent: AgentId,
) -> Result<(), StoreError> {
    sqlx::query("INSERT OR IGNORE INTO service_agents (service, agent_id) VALUES (?, ?)")
        .bind(service.as_str())
        .bind(agent.as_bytes().as_slice())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}
