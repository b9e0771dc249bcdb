//! Grants of providers in SQLite.

use async_trait::async_trait;
use iap_identity::{LoginId, UserId};
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use super::SqliteStore;
use super::columns::{Columns, milliseconds};
use crate::store::{GrantRow, GrantStore, StoreError};

fn grant_from(row: &SqliteRow) -> Result<GrantRow, StoreError> {
    let columns = Columns::new("grant", row);
    Ok(GrantRow {
        login_id: LoginId::from_uuid(columns.uuid("login_id")?),
        user_id: columns.parsed("user_id", UserId::parse)?,
        connector: columns.text("connector")?,
        sealed: columns.bytes("sealed")?,
        deadline: columns.time("deadline")?,
        refreshed_at: columns.time_or_none("refreshed_at")?,
        next_check: columns.time("next_check")?,
        failures: columns.number("failures")?,
    })
}

#[async_trait]
impl GrantStore for SqliteStore {
    async fn keep_grant(&self, row: &GrantRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT OR REPLACE INTO grants
                (login_id, user_id, connector, sealed, deadline, refreshed_at, next_check, failures)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(row.login_id.as_bytes().as_slice())
        .bind(row.user_id.as_str())
        .bind(&row.connector)
        .bind(&row.sealed)
        .bind(milliseconds(row.deadline))
        .bind(row.refreshed_at.map(milliseconds))
        .bind(milliseconds(row.next_check))
        .bind(i64::from(row.failures))
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    async fn grant(&self, id: LoginId) -> Result<Option<GrantRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM grants WHERE login_id = ?")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(grant_from).transpose()
    }

    async fn extend_grant(
        &self,
        id: LoginId,
        deadline: OffsetDateTime,
        next_check: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE grants SET deadline = ?, next_check = ? WHERE login_id = ?")
            .bind(milliseconds(deadline))
            .bind(milliseconds(next_check))
            .bind(id.as_bytes().as_slice())
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn reseal_grant(&self, id: LoginId, sealed: &[u8]) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE grants SET sealed = ? WHERE login_id = ?")
            .bind(sealed)
            .bind(id.as_bytes().as_slice())
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn grant_checked(
        &self,
        id: LoginId,
        refreshed_at: Option<OffsetDateTime>,
        next_check: OffsetDateTime,
        failures: u32,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE grants SET refreshed_at = ?, next_check = ?, failures = ? WHERE login_id = ?")
            .bind(refreshed_at.map(milliseconds))
            .bind(milliseconds(next_check))
            .bind(i64::from(failures))
            .bind(id.as_bytes().as_slice())
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    async fn due_grants(
        &self,
        connector: &str,
        now: OffsetDateTime,
        limit: u32,
    ) -> Result<Vec<GrantRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM grants WHERE connector = ? AND next_check <= ? AND deadline > ?
             ORDER BY next_check LIMIT ?",
        )
        .bind(connector)
        .bind(milliseconds(now))
        .bind(milliseconds(now))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(grant_from).collect()
    }

    async fn expired_grants(&self, now: OffsetDateTime, limit: u32) -> Result<Vec<GrantRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM grants WHERE deadline <= ? ORDER BY deadline LIMIT ?")
            .bind(milliseconds(now))
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(grant_from).collect()
    }

    async fn drop_grant(&self, id: LoginId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM grants WHERE login_id = ?")
            .bind(id.as_bytes().as_slice())
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn drop_expired_grant(&self, id: LoginId, now: OffsetDateTime) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM grants WHERE login_id = ? AND deadline <= ?")
            .bind(id.as_bytes().as_slice())
            .bind(milliseconds(now))
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() == 1)
    }
}
