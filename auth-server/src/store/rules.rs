//! Policy versions, the vocabulary of groups, locks, and the counters that number what is signed.

use std::collections::BTreeMap;

use async_trait::async_trait;
use iap_identity::{AuthId, ClusterName, GroupName, Lock, Pin};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Hash, StoreError};

/// One applied policy document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRow {
    /// Starts at 1, grows by one.
    pub version: u64,
    /// The document, byte for byte.
    pub toml: String,
    /// Its SHA-256.
    pub sha256: Hash,
    /// Who applied it.
    pub applied_by: String,
    /// When.
    pub applied_at: OffsetDateTime,
}

/// What the database and the keys beside it agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Belonging {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// This auth server's id.
    pub auth_id: AuthId,
    /// The root's pin.
    pub pin: Pin,
}

/// Numbers that only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Grows when a database is restored from a backup.
    Epoch,
    /// The newest signed snapshot.
    SnapshotVersion,
    /// The newest signed lock list.
    LockVersion,
    /// The newest trust bundle.
    BundleVersion,
}

impl Counter {
    /// The name in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Counter::Epoch => "epoch",
            Counter::SnapshotVersion => "snapshot_version",
            Counter::LockVersion => "lock_version",
            Counter::BundleVersion => "bundle_version",
        }
    }
}

/// Policy, vocabulary, locks, counters.
#[async_trait]
pub trait RuleStore: Send + Sync + 'static {
    /// Binds a new database to its keys, or returns what it is bound to.
    async fn belong(&self, belonging: &Belonging) -> Result<Belonging, StoreError>;

    /// The applied policy; none before the first.
    async fn policy(&self) -> Result<Option<PolicyRow>, StoreError>;

    /// A version of the policy.
    async fn policy_version(&self, version: u64) -> Result<Option<PolicyRow>, StoreError>;

    /// Makes `row` the applied policy and replaces the vocabulary, if the applied version is still
    /// `row.version - 1`; says whether it was.
    async fn apply_policy(
        &self,
        row: &PolicyRow,
        vocabulary: &BTreeMap<GroupName, u64>,
    ) -> Result<bool, StoreError>;

    /// The policy version that first named each group.
    async fn vocabulary(&self) -> Result<BTreeMap<GroupName, u64>, StoreError>;

    /// Keeps a lock.
    async fn add_lock(&self, lock: &Lock) -> Result<(), StoreError>;

    /// Removes a lock; returns it if it existed.
    async fn remove_lock(&self, id: Uuid) -> Result<Option<Lock>, StoreError>;

    /// The locks in force at `now`, the oldest first.
    async fn locks(&self, now: OffsetDateTime) -> Result<Vec<Lock>, StoreError>;

    /// Writes what is there already: whether anything can be written.
    async fn probe(&self) -> Result<(), StoreError>;

    /// Waits for what is under way and closes the files: from then on each other call fails.
    async fn close(&self);

    /// Reads a counter.
    async fn counter(&self, counter: Counter) -> Result<u64, StoreError>;

    /// Adds one to a counter and returns the new value.
    async fn next(&self, counter: Counter) -> Result<u64, StoreError>;
}
