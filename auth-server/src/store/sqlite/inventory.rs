//! Services, agents, proxies and tokens in SQLite.

use std::collections::BTreeMap;

use async_trait::async_trait;
use iap_identity::{AgentId, ProxyId, ServiceName};
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::SqliteStore;
use super::columns::{Columns, json, milliseconds};
use super::joining;
use crate::store::{
    AgentReport, AgentRow, GrantedService, Hash, InventoryStore, ProxyRow, ServiceChange, ServiceRow,
    ServicesApplied, StoreError, TokenKind, TokenRefusal, TokenRow,
};

fn agent_from(row: &SqliteRow) -> Result<AgentRow, StoreError> {
    let columns = Columns::new("agent", row);
    Ok(AgentRow {
        agent_id: AgentId::from_uuid(columns.uuid("agent_id")?),
        host_name: columns.text("host_name")?,
        version: columns.text("version")?,
        joined_at: columns.time("joined_at")?,
        last_seen: columns.time_or_none("last_seen")?,
        serial: columns.text_or_none("serial")?,
        not_after: columns.time_or_none("not_after")?,
        proxies: columns.json("proxies")?,
        local_services: columns.json("local_services")?,
        live_sessions: columns.number("live_sessions")?,
    })
}

fn proxy_from(row: &SqliteRow) -> Result<ProxyRow, StoreError> {
    let columns = Columns::new("proxy", row);
    Ok(ProxyRow {
        proxy_id: ProxyId::from_uuid(columns.uuid("proxy_id")?),
        host_name: columns.text("host_name")?,
        version: columns.text("version")?,
        joined_at: columns.time("joined_at")?,
        last_seen: columns.time_or_none("last_seen")?,
        public_address: columns.text_or_none("public_address")?,
    })
}

async fn stored_service(
    transaction: &mut Transaction<'static, Sqlite>,
    name: &ServiceName,
) -> Result<Option<ServiceRow>, StoreError> {
    let row = sqlx::query("SELECT record FROM services WHERE name = ?")
        .bind(name.as_str())
        .fetch_optional(&mut **transaction)
        .await?;
    row.as_ref()
        .map(|row| Columns::new("service", row).json("record"))
        .transpose()
}

async fn stored_agents(
    transaction: &mut Transaction<'static, Sqlite>,
    name: &ServiceName,
) -> Result<Vec<AgentId>, StoreError> {
    let rows = sqlx::query("SELECT agent_id FROM service_agents WHERE service = ? ORDER BY agent_id")
        .bind(name.as_str())
        .fetch_all(&mut **transaction)
        .await?;
    rows.iter()
        .map(|row| {
            Columns::new("grant", row)
                .uuid("agent_id")
                .map(AgentId::from_uuid)
        })
        .collect()
}

async fn put_service(
    transaction: &mut Transaction<'static, Sqlite>,
    row: &ServiceRow,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO services (name, record, updated_at) VALUES (?, ?, ?)
         ON CONFLICT (name) DO UPDATE SET record = excluded.record, updated_at = excluded.updated_at",
    )
    .bind(row.name.as_str())
    .bind(json(row)?)
    .bind(milliseconds(now))
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

async fn replace_agents(
    transaction: &mut Transaction<'static, Sqlite>,
    change: &ServiceChange,
) -> Result<(), StoreError> {
    let Some(agents) = &change.agents else {
        return Ok(());
    };
    sqlx::query("DELETE FROM service_agents WHERE service = ?")
        .bind(change.row.name.as_str())
        .execute(&mut **transaction)
        .await?;
    for agent in agents {
        joining::grant(transaction, &change.row.name, *agent).await?;
    }
    Ok(())
}

#[async_trait]
impl InventoryStore for SqliteStore {
    async fn apply_services(
        &self,
        changes: &[ServiceChange],
        now: OffsetDateTime,
    ) -> Result<ServicesApplied, StoreError> {
        let mut transaction = self.begin().await?;
        let mut applied = ServicesApplied::default();
        for change in changes {
            let name = change.row.name.clone();
            let before = stored_service(&mut transaction, &name).await?;
            let granted = stored_agents(&mut transaction, &name).await?;
            let same_agents = change
                .agents
                .as_ref()
                .is_none_or(|agents| agents.iter().eq(&granted));
            let list = match &before {
                None => &mut applied.created,
                Some(before) if *before == change.row && same_agents => &mut applied.unchanged,
                Some(_) => &mut applied.updated,
            };
            list.push(name);
            put_service(&mut transaction, &change.row, now).await?;
            replace_agents(&mut transaction, change).await?;
        }
        transaction.commit().await?;
        Ok(applied)
    }

    async fn remove_service(&self, name: &ServiceName) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM services WHERE name = ?")
            .bind(name.as_str())
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn services(&self) -> Result<Vec<GrantedService>, StoreError> {
        let mut transaction = self.readers.begin().await?;
        let services = sqlx::query("SELECT record FROM services ORDER BY name")
            .fetch_all(&mut *transaction)
            .await?;
        let grants = sqlx::query("SELECT service, agent_id FROM service_agents")
            .fetch_all(&mut *transaction)
            .await?;
        let mut all = BTreeMap::new();
        for row in &services {
            let row: ServiceRow = Columns::new("service", row).json("record")?;
            all.insert(
                row.name.clone(),
                GrantedService {
                    row,
                    agents: Default::default(),
                },
            );
        }
        for row in &grants {
            let columns = Columns::new("grant", row);
            let name = columns.parsed("service", ServiceName::parse)?;
            let agent = AgentId::from_uuid(columns.uuid("agent_id")?);
            if let Some(service) = all.get_mut(&name) {
                service.agents.insert(agent);
            }
        }
        Ok(all.into_values().collect())
    }

    async fn is_granted(&self, agent: AgentId, service: &ServiceName) -> Result<bool, StoreError> {
        let found: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM service_agents WHERE service = ? AND agent_id = ?")
                .bind(service.as_str())
                .bind(agent.as_bytes().as_slice())
                .fetch_optional(&self.readers)
                .await?;
        Ok(found.is_some())
    }

    async fn create_token(&self, row: &TokenRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO tokens (token_id, secret_hash, kind, services, uses, uses_left, created_by, created_at, expires_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(row.token_id.as_bytes().as_slice())
        .bind(row.secret_hash.as_slice())
        .bind(row.kind.as_str())
        .bind(json(&row.services)?)
        .bind(i64::from(row.uses))
        .bind(i64::from(row.uses_left))
        .bind(&row.created_by)
        .bind(milliseconds(row.created_at))
        .bind(milliseconds(row.expires_at))
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    async fn tokens(&self, now: OffsetDateTime) -> Result<Vec<TokenRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM tokens WHERE uses_left > 0 AND expires_at > ? ORDER BY created_at, token_id",
        )
        .bind(milliseconds(now))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(joining::token_from).collect()
    }

    async fn remove_token(&self, token_id: Uuid) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM tokens WHERE token_id = ?")
            .bind(token_id.as_bytes().as_slice())
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn join_agent(
        &self,
        secret_hash: &Hash,
        agent: &AgentRow,
    ) -> Result<Result<TokenRow, TokenRefusal>, StoreError> {
        // Strangers' guesses must not queue for the only writer.
        let kind = TokenKind::Agent;
        if let Err(refusal) = joining::redeemable(&self.readers, secret_hash, kind, agent.joined_at).await? {
            return Ok(Err(refusal));
        }
        let mut transaction = self.begin().await?;
        let token = match joining::redeem(&mut transaction, secret_hash, kind, agent.joined_at).await? {
            Ok(token) => token,
            Err(refusal) => return Ok(Err(refusal)),
        };
        joining::enrol_agent(&mut transaction, agent).await?;
        for service in &token.services {
            if stored_service(&mut transaction, service).await?.is_some() {
                joining::grant(&mut transaction, service, agent.agent_id).await?;
            }
        }
        transaction.commit().await?;
        Ok(Ok(token))
    }

    async fn join_proxy(
        &self,
        secret_hash: &Hash,
        proxy: &ProxyRow,
    ) -> Result<Result<TokenRow, TokenRefusal>, StoreError> {
        // Strangers' guesses must not queue for the only writer.
        let kind = TokenKind::Proxy;
        if let Err(refusal) = joining::redeemable(&self.readers, secret_hash, kind, proxy.joined_at).await? {
            return Ok(Err(refusal));
        }
        let mut transaction = self.begin().await?;
        let token = match joining::redeem(&mut transaction, secret_hash, kind, proxy.joined_at).await? {
            Ok(token) => token,
            Err(refusal) => return Ok(Err(refusal)),
        };
        joining::enrol_proxy(&mut transaction, proxy).await?;
        transaction.commit().await?;
        Ok(Ok(token))
    }

    async fn agents(&self) -> Result<Vec<AgentRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM agents ORDER BY agent_id")
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(agent_from).collect()
    }

    async fn agent(&self, id: AgentId) -> Result<Option<AgentRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM agents WHERE agent_id = ?")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(agent_from).transpose()
    }

    async fn agent_reported(
        &self,
        id: AgentId,
        report: &AgentReport,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE agents SET last_seen = ?, version = coalesce(?, version), proxies = coalesce(?, proxies),
                local_services = coalesce(?, local_services), live_sessions = coalesce(?, live_sessions)
             WHERE agent_id = ?",
        )
        .bind(milliseconds(now))
        .bind(&report.version)
        .bind(report.proxies.as_ref().map(json).transpose()?)
        .bind(report.local_services.as_ref().map(json).transpose()?)
        .bind(report.live_sessions.map(i64::from))
        .bind(id.as_bytes().as_slice())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    async fn agent_certified(
        &self,
        id: AgentId,
        serial: &str,
        not_after: OffsetDateTime,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE agents SET serial = ?, not_after = ? WHERE agent_id = ?")
            .bind(serial)
            .bind(milliseconds(not_after))
            .bind(id.as_bytes().as_slice())
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    async fn proxies(&self) -> Result<Vec<ProxyRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM proxies ORDER BY proxy_id")
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(proxy_from).collect()
    }

    async fn proxy(&self, id: ProxyId) -> Result<Option<ProxyRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM proxies WHERE proxy_id = ?")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(proxy_from).transpose()
    }

    async fn proxy_reported(
        &self,
        id: ProxyId,
        version: &str,
        public_address: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let before: Option<Option<String>> =
            sqlx::query_scalar("SELECT public_address FROM proxies WHERE proxy_id = ?")
                .bind(id.as_bytes().as_slice())
                .fetch_optional(&mut *transaction)
                .await?;
        sqlx::query(
            "UPDATE proxies SET last_seen = ?, version = ?, public_address = coalesce(?, public_address)
             WHERE proxy_id = ?",
        )
        .bind(milliseconds(now))
        .bind(version)
        .bind(public_address)
        .bind(id.as_bytes().as_slice())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(public_address.is_some() && before.is_some_and(|before| before.as_deref() != public_address))
    }
}
