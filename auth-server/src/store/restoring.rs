//! A database that comes from a backup: a new epoch, and what is known of the records that are missing.

use async_trait::async_trait;
use iap_identity::AuthId;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;

/// What a restore writes into the database it found in a backup.
#[derive(Clone, Debug)]
pub struct Restore {
    /// The id under which this server goes on: the old one's records end with the backup.
    pub auth_id: AuthId,
    /// When the backup was made.
    pub backup_at: OffsetDateTime,
    /// Now.
    pub restored_at: OffsetDateTime,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The new epoch.
    pub epoch: u64,
    /// Join tokens that can no longer be used.
    pub tokens: u64,
    /// Logins that have ended: their holders log in again.
    pub logins: u64,
    /// Records that the backup held, of all sources.
    pub records: u64,
}

/// How far a source's records went in the backup that this database comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredSource {
    /// Its newest record in the backup; 0 for none.
    pub source_seq: u64,
    /// When the backup was made.
    pub backup_at: OffsetDateTime,
    /// When it was restored.
    pub restored_at: OffsetDateTime,
}

/// Restoring.
#[async_trait]
pub trait RestoreStore: Send + Sync + 'static {
    /// Begins a new epoch in a database from a backup, in one transaction. Whatever could be used a second time
    /// is withdrawn: join tokens, logins under way, and all logins, because a certificate that was renewed after
    /// the backup must not look like a stolen one.
    ///
    /// The epoch is the time in seconds where that is larger than the next number, so that the same backup
    /// restored twice does not make the same epoch twice.
    async fn begin_epoch(&self, restore: &Restore) -> Result<Restored, StoreError>;

    /// What the backup held of a source; nothing when this database was never restored.
    async fn restored_source(&self, source: Uuid) -> Result<Option<RestoredSource>, StoreError>;
}
