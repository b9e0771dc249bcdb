//! What lets us ask identity providers about logins again: refresh tokens, sealed.

use async_trait::async_trait;
use iap_identity::{LoginId, UserId};
use time::OffsetDateTime;

use super::StoreError;

/// A provider's word that we may ask about a login again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRow {
    /// The login.
    pub login_id: LoginId,
    /// Whose it is.
    pub user_id: UserId,
    /// The connector whose provider gave it.
    pub connector: String,
    /// The refresh token and what its answers are checked against, sealed.
    pub sealed: Vec<u8>,
    /// The login's hard end, after which it is forgotten; until the login is finished, the end of its approval.
    pub deadline: OffsetDateTime,
    /// When the provider last vouched for the login; none before the first renewal.
    pub refreshed_at: Option<OffsetDateTime>,
    /// When it is asked next, if no renewal asks before.
    pub next_check: OffsetDateTime,
    /// How often in a row it could not be asked.
    pub failures: u32,
}

/// Grants of providers.
#[async_trait]
pub trait GrantStore: Send + Sync + 'static {
    /// Keeps a grant, in place of an earlier one of the same login.
    async fn keep_grant(&self, row: &GrantRow) -> Result<(), StoreError>;

    /// The login's grant.
    async fn grant(&self, id: LoginId) -> Result<Option<GrantRow>, StoreError>;

    /// The login was finished: its grant lasts until `deadline`. Says whether there is one.
    async fn extend_grant(
        &self,
        id: LoginId,
        deadline: OffsetDateTime,
        next_check: OffsetDateTime,
    ) -> Result<bool, StoreError>;

    /// Replaces what is sealed, as providers rotate refresh tokens. Says whether there still is a grant.
    async fn reseal_grant(&self, id: LoginId, sealed: &[u8]) -> Result<bool, StoreError>;

    /// The provider was asked: when it vouched last, when to ask again, and how often it could not be asked.
    async fn grant_checked(
        &self,
        id: LoginId,
        refreshed_at: Option<OffsetDateTime>,
        next_check: OffsetDateTime,
        failures: u32,
    ) -> Result<(), StoreError>;

    /// Up to `limit` grants of a connector that are to be checked at `now`, the longest due first.
    async fn due_grants(
        &self,
        connector: &str,
        now: OffsetDateTime,
        limit: u32,
    ) -> Result<Vec<GrantRow>, StoreError>;

    /// Up to `limit` grants of logins that are over at `now`.
    async fn expired_grants(&self, now: OffsetDateTime, limit: u32) -> Result<Vec<GrantRow>, StoreError>;

    /// Forgets a grant; says whether there was one.
    async fn drop_grant(&self, id: LoginId) -> Result<bool, StoreError>;

    /// The same, only if its deadline has passed: a login may be finished, and so prolonged, at any moment.
    async fn drop_expired_grant(&self, id: LoginId, now: OffsetDateTime) -> Result<bool, StoreError>;
}
