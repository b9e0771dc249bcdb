//! What the auth server remembers, behind one trait per subject; `sqlite` is the default engine.
//!
//! Contracts that every engine keeps: a method that returns has committed durably; a method is one
//! transaction; secrets arrive here as SHA-256, or sealed under a key that is not in the database.

mod erasures;
mod grants;
mod inventory;
mod logins;
mod records;
mod restoring;
mod rules;
pub mod sqlite;

pub use erasures::{Erasing, Erasure, ErasureStore, PayloadPlace, Payloads, PayloadsOf};
pub use grants::{GrantRow, GrantStore};
pub use inventory::{
    AgentReport, AgentRow, ConnectedProxy, GrantedService, InventoryStore, ProxyRow, ServiceChange,
    ServiceRow, ServicesApplied, TokenKind, TokenRefusal, TokenRow,
};
pub use logins::{
    AnsweredRequest, GenerationRow, Identity, LoginChange, LoginMethod, LoginRow, LoginState, LoginStore,
    ProofAsked, UserRow,
};
pub use records::{
    Appended, ERASED_FIELD, Fault, NewRecord, RecordRange, RecordStore, SessionChange, SessionFilter,
    SessionRow, StoredRecord,
};
pub use restoring::{Restore, RestoreStore, Restored, RestoredSource};
pub use rules::{Belonging, Counter, PolicyRow, RuleStore};

use std::sync::Arc;

/// SHA-256 of a token, a code, a cookie or a key: the only form in which secrets are stored.
pub type Hash = [u8; 32];

/// The whole store.
pub trait Store:
    LoginStore
    + GrantStore
    + InventoryStore
    + RuleStore
    + RecordStore
    + ErasureStore
    + RestoreStore
    + std::fmt::Debug
{
}
impl<T> Store for T where
    T: LoginStore
        + GrantStore
        + InventoryStore
        + RuleStore
        + RecordStore
        + ErasureStore
        + RestoreStore
        + std::fmt::Debug
{
}

/// A store shared between tasks.
pub type SharedStore = Arc<dyn Store>;

/// SHA-256, as secrets are stored and compared.
pub fn hash_of(secret: &[u8]) -> Hash {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret);
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// The store could not do what was asked. Always our fault, never the caller's.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine refused, or the disk did.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the database's schema could not be migrated: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A row does not hold what this program writes.
    #[error("the database holds a damaged {what}: {why}")]
    Damaged {
        /// The kind of row.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A file beside the database is not as it must be.
    #[error("{0}")]
    File(String),
}

impl StoreError {
    pub(crate) fn damaged(what: &'static str, why: impl std::fmt::Display) -> Self {
        StoreError::Damaged {
            what,
            why: why.to_string(),
        }
    }
}
