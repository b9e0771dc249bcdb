//! Copies of the database while it is in use, and the new epoch of one that comes from a copy.

use std::path::Path;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use uuid::Uuid;

use super::columns::{Columns, milliseconds};
use super::{BUSY_TIMEOUT, SqliteStore, create_new_private};
use crate::store::{Restore, RestoreStore, Restored, RestoredSource, StoreError};

/// More versions of the policy than were applied since any backup. A certificate says up to which version it knows
/// groups: one from before the restore must not seem to know those that a later policy names first.
const POLICY_VERSIONS_SKIPPED: i64 = 10_000;

impl SqliteStore {
    /// Writes a consistent copy of the database in `from` to `to` (0600, must not exist), while others use it:
    /// what was committed before the call is in it.
    ///
    /// # Errors
    /// When either cannot be used.
    pub async fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
        create_new_private(to)?;
        // No migration: the running server may be of another version.
        let options = SqliteConnectOptions::new()
            .filename(from)
            .create_if_missing(false)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await?;
        let copied = sqlx::query("VACUUM INTO ?")
            .bind(to.display().to_string())
            .execute(&pool)
            .await;
        pool.close().await;
        Ok(copied.map(|_| ())?)
    }

    /// Refuses a file whose pages contradict each other.
    ///
    /// # Errors
    /// With SQLite's findings.
    pub async fn check_integrity(&self) -> Result<(), StoreError> {
        let findings: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(5)")
            .fetch_all(&self.readers)
            .await?;
        match findings.as_slice() {
            [only] if only == "ok" => Ok(()),
            _ => Err(StoreError::damaged("database", findings.join("; "))),
        }
    }
}

#[async_trait]
impl RestoreStore for SqliteStore {
    async fn begin_epoch(&self, restore: &Restore) -> Result<Restored, StoreError> {
        let mut transaction = self.begin().await?;
        let at = milliseconds(restore.restored_at);
        let epoch: i64 = sqlx::query_scalar(
            "UPDATE counters SET value = max(value + 1, ?) WHERE name = 'epoch' RETURNING value",
        )
        .bind(at / 1000)
        .fetch_one(&mut *transaction)
        .await?;
        sqlx::query("UPDATE belonging SET auth_id = ?")
            .bind(restore.auth_id.as_bytes().as_slice())
            .execute(&mut *transaction)
            .await?;
        for statement in [
            "DELETE FROM restored",
            "DELETE FROM restored_sources",
            "INSERT INTO restored_sources SELECT source, max(source_seq) FROM records GROUP BY source",
        ] {
            sqlx::query(statement).execute(&mut *transaction).await?;
        }
        sqlx::query("INSERT INTO restored (only_row, backup_at, restored_at) VALUES (1, ?, ?)")
            .bind(milliseconds(restore.backup_at))
            .bind(at)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO policies (version, toml, sha256, applied_by, applied_at)
             SELECT version + ?, toml, sha256, applied_by, applied_at FROM policies ORDER BY version DESC LIMIT 1",
        )
        .bind(POLICY_VERSIONS_SKIPPED)
        .execute(&mut *transaction)
        .await?;
        let records: i64 = sqlx::query_scalar("SELECT count(*) FROM records")
            .fetch_one(&mut *transaction)
            .await?;
        let mut emptied = [0; CLEARED_TABLES.len()];
        for ((_, statement), count) in CLEARED_TABLES.iter().zip(&mut emptied) {
            *count = sqlx::query(*statement)
                .execute(&mut *transaction)
                .await?
                .rows_affected();
        }
        transaction.commit().await?;
        let [tokens, _under_way, logins, _grants] = emptied;
        Ok(Restored {
            epoch: u64::try_from(epoch).unwrap_or(u64::MAX),
            tokens,
            logins,
            records: u64::try_from(records).unwrap_or(0),
        })
    }

    async fn restored_source(&self, source: Uuid) -> Result<Option<RestoredSource>, StoreError> {
        let row = sqlx::query(
            "SELECT backup_at, restored_at,
                    coalesce((SELECT source_seq FROM restored_sources WHERE source = ?), 0) AS source_seq
             FROM restored",
        )
        .bind(source.as_bytes().as_slice())
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref()
            .map(|row| {
                let columns = Columns::new("restore", row);
                Ok(RestoredSource {
                    source_seq: columns.number("source_seq")?,
                    backup_at: columns.time("backup_at")?,
                    restored_at: columns.time("restored_at")?,
                })
            })
            .transpose()
    }
}

/// Tables that a restore empties: what they hold could be used again although it was used, or withdrawn, after
/// the backup.
pub(super) const CLEARED_TABLES: [(&str, &str); 4] = [
    ("tokens", "DELETE FROM tokens"),
    ("logins", "DELETE FROM logins"),
    ("generations", "DELETE FROM generations"),
    // Providers that rotate refresh tokens take an old one for a stolen one.
    ("grants", "DELETE FROM grants"),
];

/// Tables that a restore keeps as the backup has them.
#[cfg(test)]
pub(super) const KEPT_TABLES: [&str; 18] = [
    "payloads",
    "erasures",
    "erased_payloads",
    "erased_recordings",
    "counters",
    "belonging",
    "users",
    "agents",
    "proxies",
    "services",
    "service_agents",
    "policies",
    "vocabulary",
    "locks",
    "records",
    "sessions",
    "restored",
    "restored_sources",
];
