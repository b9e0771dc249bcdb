//! Asking the identity provider about a login again: at each renewal, and now and then in between.
//!
//! Three things can come of it. The provider vouches: groups and names are what it says now, and sessions
//! that they no longer allow are cut. It cannot be asked: what was read last stands. It has withdrawn its
//! grant (`invalid_grant`): the login is locked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use iap_audit::{Event, EventKind, UserRecord};
use iap_identity::{LockKind, LoginId};
use time::OffsetDateTime;
use tokio::sync::OwnedMutexGuard;

use super::Logins;
use super::provider::{Provider, ProviderError, ProviderGrant, Refreshed};
use crate::context::AppContext;
use crate::locks::{self, NewLock};
use crate::rpc::RpcError;
use crate::store::{GenerationRow, GrantRow, Identity, StoreError, UserRow};

/// Renewals of one login within this time ask the provider once.
const VOUCHED_FOR_SECONDS: i64 = 2;
/// How long a renewal waits for the provider before it goes on with what was read last.
const RENEWAL_WAITS: Duration = Duration::from_secs(8);
/// The pause after a check that did not get through; doubled each time, up to the time between two checks.
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_DOUBLINGS_MAX: u32 = 6;
/// Logins whose turns are remembered before those that nobody waits for are forgotten.
const TURNS_SWEPT_AT: usize = 1024;
/// Logins remembered as unanswered; beyond it all are asked once more.
const UNANSWERED_MAX: usize = 65_536;
/// How often ending a login is tried while renewals overtake it.
const ENDINGS_MAX: u32 = 5;
/// The longest part of a provider's words that stands in a lock's reason.
const WORDS_BYTES_MAX: usize = 240;

/// What the provider of a login says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vouching {
    /// There is no refresh token: what the login brought stands until its deadline.
    NotAsked,
    /// It vouches; groups and names are up to date.
    Vouched,
    /// It could not be asked: what was read last stands.
    Kept,
    /// It answers, but in a way that would not let anybody log in: why, for the person.
    Refused(String),
    /// It has withdrawn its grant, and the login is locked: the lock's reason.
    Locked(String),
}

/// One at a time: questions about a login, because a refresh token that rotates can be used only once; changes of
/// what is known about a person.
#[derive(Debug)]
pub(super) struct Turns<K>(Mutex<BTreeMap<K, Weak<tokio::sync::Mutex<()>>>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Clone> Turns<K> {
    pub(super) async fn take(&self, id: &K) -> OwnedMutexGuard<()> {
        let turn = self.of(id);
        turn.lock_owned().await
    }

    fn of(&self, id: &K) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= TURNS_SWEPT_AT {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        match turns.get(id).and_then(Weak::upgrade) {
            Some(turn) => turn,
            None => {
                let turn = Arc::default();
                turns.insert(id.clone(), Arc::downgrade(&turn));
                turn
            }
        }
    }
}

/// Logins whose providers could not be asked: told apart from those whose providers answered, but
/// would not let anybody log in, which the store counts as failures too. After a start everybody is asked once.
#[derive(Debug, Default)]
pub(super) struct Unanswered(Mutex<BTreeSet<LoginId>>);

impl Unanswered {
    fn note(&self, id: LoginId) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= UNANSWERED_MAX {
            known.clear();
        }
        known.insert(id);
    }

    fn is_before_next_check(&self, row: &GrantRow, now: OffsetDateTime) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = row.failures > 0 && now < row.next_check && known.contains(&row.login_id);
        if !waits {
            known.remove(&row.login_id);
        }
        waits
    }
}

impl Logins {
    /// Asks about a login that is about to be renewed, for a bounded time. The question itself is carried to
    /// its end even if nobody waits any more, because its answer may hold a new refresh token.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn vouch_for_renewal(self: &Arc<Self>, id: LoginId) -> Result<Vouching, RpcError> {
        let logins = Arc::clone(self);
        let asking = tokio::spawn(async move { logins.vouch(id).await });
        match tokio::time::timeout(RENEWAL_WAITS, asking).await {
            Ok(Ok(vouching)) => vouching,
            Ok(Err(error)) => Err(RpcError::internal(error)),
            Err(_) => Ok(Vouching::Kept),
        }
    }

    /// Asks the provider about a login, unless it has just been asked.
    pub(super) async fn vouch(&self, id: LoginId) -> Result<Vouching, RpcError> {
        let _turn = self.turns.take(&id).await;
        let Some(row) = self.context.store.grant(id).await? else {
            return Ok(Vouching::NotAsked);
        };
        let now = self.context.clock.now();
        let is_fresh = |at: OffsetDateTime| (now - at).whole_seconds() < VOUCHED_FOR_SECONDS && at <= now;
        if row.failures == 0 && row.refreshed_at.is_some_and(is_fresh) {
            return Ok(Vouching::Vouched);
        }
        // Its provider did not answer a moment ago, and is asked again when that is due: not at each renewal.
        if self.unanswered.is_before_next_check(&row, now) {
            return Ok(Vouching::Kept);
        }
        let Some(grant) = self.opened(&row) else {
            return self.lost(&row).await;
        };
        let Some(provider) = self.provider(&row.connector) else {
            let text = format!(
                "the identity provider `{}` is not configured any more",
                row.connector
            );
            return Ok(Vouching::Refused(text));
        };
        match provider.refresh(&grant).await {
            Ok(refreshed) => self.answered(provider, &row, &grant, &refreshed).await,
            Err(error) if error.is_withdrawn() => self.withdrawn(&row, &error).await,
            Err(error) => self.unanswered(&row, &error).await,
        }
    }

    /// Seals the grant that a provider's callback brought. It lasts as long as the login's approval may, and
    /// then as long as the login.
    pub(super) async fn keep_grant(
        &self,
        login: &crate::store::LoginRow,
        identity: &Identity,
        grant: &ProviderGrant,
    ) -> Result<(), StoreError> {
        let Ok(sealed) = self.context.seal_keys.seal(login.login_id, &grant.to_bytes()) else {
            tracing::error!(login_id = %login.login_id, "a refresh token could not be sealed and is not kept");
            return Ok(());
        };
        let row = GrantRow {
            login_id: login.login_id,
            user_id: identity.user_id.clone(),
            connector: identity.connector.clone(),
            sealed,
            deadline: login.expires_at,
            refreshed_at: None,
            next_check: login.expires_at,
            failures: 0,
        };
        self.context.store.keep_grant(&row).await
    }

    /// Forgets a login's grant, if it has one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget(self: &Arc<Self>, id: LoginId) -> Result<(), StoreError> {
        let _turn = self.turns.take(&id).await;
        match self.context.store.grant(id).await? {
            Some(row) => self.forget_grant(row).await,
            None => Ok(()),
        }
    }

    /// Forgets a login's grant and tells the provider so, without making anybody wait for it.
    pub(super) async fn forget_grant(self: &Arc<Self>, row: GrantRow) -> Result<(), StoreError> {
        self.context.store.drop_grant(row.login_id).await?;
        self.revoke(row);
        Ok(())
    }

    /// Forgets a grant whose deadline has passed, unless its login was finished meanwhile.
    pub(super) async fn forget_expired_grant(self: &Arc<Self>, row: GrantRow) -> Result<(), StoreError> {
        let now = self.context.clock.now();
        if self.context.store.drop_expired_grant(row.login_id, now).await? {
            self.revoke(row);
        }
        Ok(())
    }

    fn revoke(self: &Arc<Self>, row: GrantRow) {
        let logins = Arc::clone(self);
        tokio::spawn(async move {
            let (Some(grant), Some(provider)) = (logins.opened(&row), logins.provider(&row.connector)) else {
                return;
            };
            let connector = row.connector.as_str();
            match provider.revoke(&grant).await {
                Ok(true) => tracing::debug!(login_id = %row.login_id, connector, "revoked a refresh token"),
                Ok(false) => tracing::debug!(connector, "the provider has no revocation endpoint"),
                Err(error) => {
                    tracing::warn!(login_id = %row.login_id, connector, %error, "a refresh token could not be revoked")
                }
            }
        });
    }

    fn opened(&self, row: &GrantRow) -> Option<ProviderGrant> {
        let opened = self.context.seal_keys.open(row.login_id, &row.sealed);
        match opened {
            Ok(bytes) => ProviderGrant::from_bytes(&bytes),
            Err(error) => {
                tracing::error!(login_id = %row.login_id, %error, "a refresh token does not open");
                None
            }
        }
    }

    /// Nobody can ask about this login any more, so it is not renewed: it was given its long life because
    /// somebody could.
    async fn lost(&self, row: &GrantRow) -> Result<Vouching, RpcError> {
        self.end_generations(row.login_id).await?;
        self.context.store.drop_grant(row.login_id).await?;
        Ok(Vouching::Refused(
            "the auth server can no longer ask the identity provider about this login".to_owned(),
        ))
    }

    /// No certificate of this login is renewed any more, whatever becomes of locks.
    ///
    /// # Errors
    /// When the store fails, or renewals keep coming in between.
    pub async fn end_generations(&self, id: LoginId) -> Result<(), RpcError> {
        let store = &self.context.store;
        for _ in 0..ENDINGS_MAX {
            let Some(generations) = store.generations(id).await?.filter(|row| row.ended_at.is_none()) else {
                return Ok(());
            };
            let ended = GenerationRow {
                ended_at: Some(self.context.clock.now()),
                ..generations.clone()
            };
            if store.replace_generations(&generations, &ended).await? {
                return Ok(());
            }
        }
        Err(RpcError::conflict(
            "the login was renewed at the same time; try again",
        ))
    }

    /// The new token is stored before anything else is done with the answer.
    async fn answered(
        &self,
        provider: &Provider,
        row: &GrantRow,
        grant: &ProviderGrant,
        refreshed: &Refreshed,
    ) -> Result<Vouching, RpcError> {
        let rotated = refreshed.rotated(grant);
        if rotated.is_some() || self.context.seal_keys.is_outdated(&row.sealed) {
            let bytes = rotated.as_ref().unwrap_or(grant).to_bytes();
            let sealed = self.context.seal_keys.seal(row.login_id, &bytes);
            let sealed = sealed.map_err(RpcError::internal)?;
            self.context.store.reseal_grant(row.login_id, &sealed).await?;
        }
        let now = self.context.clock.now();
        match provider.read(refreshed, grant, now).await {
            Ok(identity) if identity.user_id == row.user_id => {
                self.vouched(row, identity, now).await?;
                Ok(Vouching::Vouched)
            }
            Ok(_) => self.unusable(row, &ProviderError::OtherSubject).await,
            Err(error) if error.is_passing() => self.unanswered(row, &error).await,
            Err(error) => self.unusable(row, &error).await,
        }
    }

    async fn vouched(&self, row: &GrantRow, identity: Identity, now: OffsetDateTime) -> Result<(), RpcError> {
        let store = &self.context.store;
        if let Some(known) = store.user(&row.user_id).await? {
            let current = UserRow {
                name: identity.name,
                email: identity.email,
                groups: identity.groups,
                groups_as_of: now,
                ..known
            };
            self.keep_person(row.login_id, current).await?;
        }
        let next_check = now + self.spread(self.context.config.login.recheck)?;
        store
            .grant_checked(row.login_id, Some(now), next_check, 0)
            .await?;
        Ok(())
    }

    /// The provider is down or out of order: nothing is taken away for that.
    async fn unanswered(&self, row: &GrantRow, error: &ProviderError) -> Result<Vouching, RpcError> {
        self.count_failure(row, error).await?;
        self.unanswered.note(row.login_id);
        Ok(Vouching::Kept)
    }

    async fn unusable(&self, row: &GrantRow, error: &ProviderError) -> Result<Vouching, RpcError> {
        self.count_failure(row, error).await?;
        Ok(Vouching::Refused(format!(
            "the identity provider `{}` does not vouch for this login any more: {}",
            row.connector,
            error.for_person()
        )))
    }

    async fn count_failure(&self, row: &GrantRow, error: &ProviderError) -> Result<(), RpcError> {
        let failures = row.failures.saturating_add(1);
        tracing::warn!(
            login_id = %row.login_id, connector = row.connector, failures, %error,
            "an identity provider could not be asked about a login"
        );
        let doubled = RETRY_FIRST * 2_u32.pow(row.failures.min(RETRY_DOUBLINGS_MAX));
        let pause = doubled.min(self.context.config.login.recheck);
        let next_check = self.context.clock.now() + self.spread(pause)?;
        let store = &self.context.store;
        Ok(store
            .grant_checked(row.login_id, row.refreshed_at, next_check, failures)
            .await?)
    }

    /// The record first, then the lock, and only then is the grant forgotten: whatever fails is done again
    /// at the next check, which gets the same answer.
    async fn withdrawn(&self, row: &GrantRow, error: &ProviderError) -> Result<Vouching, RpcError> {
        let context = &self.context;
        let words = shortened(&error.to_string());
        tracing::info!(login_id = %row.login_id, connector = row.connector, words, "a login was withdrawn by its provider");
        let generations = context.store.generations(row.login_id).await?;
        // Ended after the record: a lock that could not be added is tried again without another one.
        if generations.is_none_or(|generations| generations.ended_at.is_none()) {
            let event = context.audit.event(EventKind::LoginWithdrawn)?;
            let event = self.about(event, row).await?.reason(&words);
            context.audit.record(event).await?;
        }
        let reason = format!(
            "the identity provider `{}` withdrew this login ({words}); log in again",
            row.connector
        );
        let left = row.deadline - context.clock.now();
        let lock = NewLock {
            kind: LockKind::Login,
            target: row.login_id.to_string(),
            reason,
            life: Some(left.try_into().unwrap_or_default()),
        };
        self.end_generations(row.login_id).await?;
        let lock = locks::add_by_rule(context, &ourselves(context), lock).await?;
        context.store.drop_grant(row.login_id).await?;
        Ok(Vouching::Locked(lock.reason))
    }

    /// The fields that every record about a grant has.
    pub(super) async fn about(&self, event: Event, row: &GrantRow) -> Result<Event, StoreError> {
        let known = self.context.store.user(&row.user_id).await?;
        let user = UserRecord {
            id: row.user_id.to_string(),
            name: known.map(|user| user.name).unwrap_or_default(),
            kind: "user".to_owned(),
        };
        Ok(event
            .user(&user)
            .login_id(&row.login_id)
            .field("connector", row.connector.as_str()))
    }

    /// A time that differs by up to a tenth from login to login, so that those of one morning do not ask all
    /// at once for ever.
    pub(super) fn spread(&self, time: Duration) -> Result<Duration, RpcError> {
        let drawn = u32::from(u16::from_be_bytes(self.context.random.bytes()?));
        let fifth = time / 5;
        Ok(time - time / 10 + fifth * drawn / u32::from(u16::MAX))
    }
}

/// How records and locks name the auth server when it acts by itself.
pub(crate) fn ourselves(context: &AppContext) -> UserRecord {
    UserRecord {
        id: context.authority.keys.auth_id.to_string(),
        name: "iap-auth".to_owned(),
        kind: "auth".to_owned(),
    }
}

fn shortened(words: &str) -> String {
    let end = words.floor_char_boundary(WORDS_BYTES_MAX);
    words.get(..end).unwrap_or_default().to_owned()
}
