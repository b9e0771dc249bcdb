//! Policy versions, vocabulary, locks and counters in SQLite.

use std::collections::BTreeMap;

use async_trait::async_trait;
use iap_identity::{AuthId, ClusterName, GroupName, Lock, LockKind, Pin};
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::SqliteStore;
use super::columns::{Columns, integer, milliseconds};
use crate::store::{Belonging, Counter, PolicyRow, RuleStore, StoreError};

fn policy_from(row: &SqliteRow) -> Result<PolicyRow, StoreError> {
    let columns = Columns::new("policy", row);
    Ok(PolicyRow {
        version: columns.number("version")?,
        toml: columns.text("toml")?,
        sha256: columns.hash("sha256")?,
        applied_by: columns.text("applied_by")?,
        applied_at: columns.time("applied_at")?,
    })
}

fn lock_from(row: &SqliteRow) -> Result<Lock, StoreError> {
    let columns = Columns::new("lock", row);
    Ok(Lock {
        id: columns.uuid("lock_id")?,
        kind: columns.named("kind", LockKind::parse)?,
        target: columns.text("target")?,
        reason: columns.text("reason")?,
        created_by: columns.text("created_by")?,
        created_at: columns.time("created_at")?,
        expires_at: columns.time_or_none("expires_at")?,
    })
}

fn belonging_from(row: &SqliteRow) -> Result<Belonging, StoreError> {
    let columns = Columns::new("belonging", row);
    Ok(Belonging {
        cluster: columns.parsed("cluster", ClusterName::parse)?,
        auth_id: AuthId::from_uuid(columns.uuid("auth_id")?),
        pin: columns.parsed("pin", Pin::parse)?,
    })
}

#[async_trait]
impl RuleStore for SqliteStore {
    async fn belong(&self, belonging: &Belonging) -> Result<Belonging, StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT OR IGNORE INTO belonging (only_row, cluster, auth_id, pin) VALUES (1, ?, ?, ?)")
            .bind(belonging.cluster.as_str())
            .bind(belonging.auth_id.as_bytes().as_slice())
            .bind(belonging.pin.to_string())
            .execute(&mut *transaction)
            .await?;
        let row = sqlx::query("SELECT * FROM belonging")
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        belonging_from(&row)
    }

    async fn policy(&self) -> Result<Option<PolicyRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM policies ORDER BY version DESC LIMIT 1")
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(policy_from).transpose()
    }

    async fn policy_version(&self, version: u64) -> Result<Option<PolicyRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM policies WHERE version = ?")
            .bind(integer(version))
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(policy_from).transpose()
    }

    async fn apply_policy(
        &self,
        row: &PolicyRow,
        vocabulary: &BTreeMap<GroupName, u64>,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let newest: i64 = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM policies")
            .fetch_one(&mut *transaction)
            .await?;
        if newest + 1 != integer(row.version) {
            return Ok(false);
        }
        sqlx::query(
            "INSERT INTO policies (version, toml, sha256, applied_by, applied_at) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(integer(row.version))
        .bind(&row.toml)
        .bind(row.sha256.as_slice())
        .bind(&row.applied_by)
        .bind(milliseconds(row.applied_at))
        .execute(&mut *transaction)
        .await?;
        sqlx::query("DELETE FROM vocabulary")
            .execute(&mut *transaction)
            .await?;
        for (group, first_version) in vocabulary {
            sqlx::query("INSERT INTO vocabulary (group_name, first_version) VALUES (?, ?)")
                .bind(group.as_str())
                .bind(integer(*first_version))
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    async fn vocabulary(&self) -> Result<BTreeMap<GroupName, u64>, StoreError> {
        let rows = sqlx::query("SELECT * FROM vocabulary")
            .fetch_all(&self.readers)
            .await?;
        rows.iter()
            .map(|row| {
                let columns = Columns::new("vocabulary", row);
                Ok((
                    columns.parsed("group_name", GroupName::parse)?,
                    columns.number("first_version")?,
                ))
            })
            .collect()
    }

    async fn add_lock(&self, lock: &Lock) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO locks (lock_id, kind, target, reason, created_by, created_at, expires_at)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(lock.id.as_bytes().as_slice())
        .bind(lock.kind.as_str())
        .bind(&lock.target)
        .bind(&lock.reason)
        .bind(&lock.created_by)
        .bind(milliseconds(lock.created_at))
        .bind(lock.expires_at.map(milliseconds))
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    async fn remove_lock(&self, id: Uuid) -> Result<Option<Lock>, StoreError> {
        let row = sqlx::query("DELETE FROM locks WHERE lock_id = ? RETURNING *")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.writer)
            .await?;
        row.as_ref().map(lock_from).transpose()
    }

    async fn locks(&self, now: OffsetDateTime) -> Result<Vec<Lock>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM locks WHERE expires_at IS NULL OR expires_at > ? ORDER BY created_at, lock_id",
        )
        .bind(milliseconds(now))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(lock_from).collect()
    }

    async fn probe(&self) -> Result<(), StoreError> {
        sqlx::query("UPDATE counters SET value = value WHERE name = 'epoch'")
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn counter(&self, counter: Counter) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT value FROM counters WHERE name = ?")
            .bind(counter.as_str())
            .fetch_one(&self.readers)
            .await?;
        Columns::new("counter", &row).number("value")
    }

    async fn next(&self, counter: Counter) -> Result<u64, StoreError> {
        let row = sqlx::query("UPDATE counters SET value = value + 1 WHERE name = ? RETURNING value")
            .bind(counter.as_str())
            .fetch_one(&self.writer)
            .await?;
        Columns::new("counter", &row).number("value")
    }
}
