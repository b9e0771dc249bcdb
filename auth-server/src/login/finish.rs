//! `Login.Finish`: the one-time code and the key's proof of possession become a certificate.

use std::net::IpAddr;
use std::time::Instant;

use iap_audit::EventKind;
use iap_identity::{IdentityProvider, Issued, LockKind, LoginId, Request};
use time::OffsetDateTime;

use super::secrets::Secret;
use super::{Logins, described, source_of, user_record};
use crate::authority::{IssueError, UserLogin};
use crate::spans;
use crate::store::{Identity, LoginChange, LoginRow, LoginState, StoreError, UserRow};

/// A certificate, and what comes with it.
pub struct Finished {
    /// The certificate.
    pub issued: Issued,
    /// Who it is for.
    pub login: UserLogin,
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FinishError {
    /// Wrong, late or used code, another key, unknown login: all alike from outside, told apart in the record.
    #[error("the login was not accepted; start again with `iapctl login`")]
    Refused,
    /// The certificate request itself is unusable.
    #[error("the certificate request is not usable: {0}")]
    Request(String),
    /// The person is locked out.
    #[error("{0} is locked: {1}")]
    Locked(String, String),
    /// The person has had enough certificates for now.
    #[error("{0}")]
    TooMany(String),
    /// Too many wrong codes from one source.
    #[error("too many wrong codes came from this address; wait a few minutes")]
    TooManyTries,
    /// Ours, passing; the code is used up all the same.
    #[error("the auth server cannot issue a certificate at the moment; start again with `iapctl login`")]
    Unavailable,
}

impl From<StoreError> for FinishError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "a login could not be finished");
        FinishError::Unavailable
    }
}

impl Logins {
    /// Redeems a one-time code for a certificate on the key that the login was started with.
    ///
    /// # Errors
    /// When code, key and login do not belong together, or nothing can be issued.
    pub async fn finish(
        &self,
        id: LoginId,
        code: &str,
        csr: &[u8],
        client: IpAddr,
    ) -> Result<Finished, FinishError> {
        let source = source_of(client);
        self.codes
            .check(source, Instant::now())
            .map_err(|_| FinishError::TooManyTries)?;
        let recorder = spans::of_login(&self.context.traces, &id);
        let mark = recorder.mark();
        let row = self.context.store.login(id).await?.ok_or(FinishError::Refused)?;
        let request = Request::parse(csr).map_err(|error| FinishError::Request(error.to_string()))?;
        let row = match self.check_code(row, &Secret::presented(code)).await {
            Ok(row) => row,
            Err(refused) => {
                // The check above has answered; this only uses the try up.
                let _ = self.codes.count(source, Instant::now());
                return Err(refused);
            }
        };
        if request.spki_sha256() != row.key_thumbprint {
            // Whoever holds the code without the key got it from somebody else: it is worth nothing from now on.
            self.deny(
                &row,
                "wrong_key",
                "the code came with another key than the login was started with",
            )
            .await;
            return Err(FinishError::Refused);
        }
        let now = self.context.clock.now();
        let store = &self.context.store;
        let finished = store
            .advance_login(id, LoginState::Approved, now, LoginChange::Finished)
            .await?;
        let Some(row) = finished else {
            self.record_failure(&row, "code_replayed", "the code was used twice at the same time")
                .await;
            return Err(FinishError::Refused);
        };
        let identity = row.identity.clone().ok_or(FinishError::Unavailable)?;
        self.check_locks(&row, &identity, now).await?;
        let finished = self.issue(&row, identity, request, now).await?;
        recorder.phase("issue", mark, |_| {});
        let lead = (now - row.created_at).try_into().unwrap_or_default();
        recorder.finish_with_lead(spans::LOGIN, lead, |details| {
            details.text("iap.login_id", id);
            details.text("iap.login_method", row.method.as_str());
            details.text("iap.connector", row.connector.as_deref().unwrap_or_default());
        });
        Ok(finished)
    }

    async fn check_code(&self, row: LoginRow, code: &Secret) -> Result<LoginRow, FinishError> {
        let now = self.context.clock.now();
        let (reason, why) = match row.state {
            LoginState::Finished => ("code_replayed", "the code was used before"),
            LoginState::Approved if !code.matches(row.code_hash.as_ref()) => {
                ("code_wrong", "the code is wrong")
            }
            LoginState::Approved if code.is_late(now) || row.expires_at <= now => {
                ("code_late", "the code came late")
            }
            LoginState::Approved => return Ok(row),
            LoginState::Started
            | LoginState::AtProvider
            | LoginState::Exchanging
            | LoginState::Identified => ("code_wrong", "a code came before the approval"),
            LoginState::Denied => ("code_late", "a code came after the login was refused"),
        };
        self.count_wrong(&row, reason, why).await;
        Err(FinishError::Refused)
    }

    async fn check_locks(
        &self,
        row: &LoginRow,
        identity: &Identity,
        now: OffsetDateTime,
    ) -> Result<(), FinishError> {
        let locks = self.context.store.locks(now).await?;
        let hit = locks
            .into_iter()
            .filter(|lock| lock.is_in_force(now))
            .find(|lock| match lock.kind {
                LockKind::User => lock.target == identity.user_id.to_string() || lock.target == identity.name,
                LockKind::Login => lock.target == row.login_id.to_string(),
                LockKind::Session
                | LockKind::Agent
                | LockKind::Proxy
                | LockKind::Device
                | LockKind::Serial => false,
            });
        match hit {
            None => Ok(()),
            Some(lock) => {
                self.record_failure(row, "locked", &lock.reason).await;
                Err(FinishError::Locked(identity.name.clone(), lock.reason))
            }
        }
    }

    async fn issue(
        &self,
        row: &LoginRow,
        mut identity: Identity,
        request: Request,
        now: OffsetDateTime,
    ) -> Result<Finished, FinishError> {
        let deadline = self.deadline(row, now).await?;
        let kept = self
            .keep_person(row.login_id, user_row(&identity, row, now))
            .await
            .map_err(|error| {
                tracing::error!(%error, "a person who logged in could not be kept");
                FinishError::Unavailable
            })?;
        identity.groups = kept.groups;
        let login = self.facts(row, &identity, deadline, kept.groups_as_of);
        let issued = match self.context.authority.issue_user(&login, request).await {
            Ok(issued) => issued,
            Err(error) => {
                self.record_failure(row, "not_issued", &error.to_string()).await;
                return Err(match error {
                    IssueError::Quota(exceeded) => FinishError::TooMany(exceeded.to_string()),
                    IssueError::LoginOver
                    | IssueError::Prepare(_)
                    | IssueError::Unsound(_)
                    | IssueError::Record(_)
                    | IssueError::Store(_)
                    | IssueError::NoRandomness(_) => FinishError::Unavailable,
                });
            }
        };
        self.record_success(row, &identity, &issued).await?;
        Ok(Finished { issued, login })
    }

    /// The login's hard end. Without a refresh token nobody can be asked whether the person still belongs
    /// here, so it comes sooner.
    async fn deadline(&self, row: &LoginRow, now: OffsetDateTime) -> Result<OffsetDateTime, FinishError> {
        let config = &self.context.config.login;
        let deadline = now + config.deadline;
        let next_check = now
            + self
                .spread(config.recheck)
                .map_err(|_| FinishError::Unavailable)?;
        let has_grant = self
            .context
            .store
            .extend_grant(row.login_id, deadline, next_check)
            .await?;
        Ok(match has_grant {
            true => deadline,
            false => now + config.deadline_without_refresh,
        })
    }

    fn facts(
        &self,
        row: &LoginRow,
        identity: &Identity,
        login_deadline: OffsetDateTime,
        groups_as_of: OffsetDateTime,
    ) -> UserLogin {
        UserLogin {
            user_id: identity.user_id.clone(),
            name: identity.name.clone(),
            login_id: row.login_id,
            auth_time: identity.auth_time,
            login_deadline,
            idp: IdentityProvider {
                connector: identity.connector.clone(),
                issuer: identity.issuer.clone(),
                subject: identity.subject.clone(),
                acr: identity.acr.clone(),
            },
            login_method: row.method.as_str().to_owned(),
            mfa_time: identity.mfa_time,
            groups: identity.groups.clone(),
            groups_as_of,
        }
    }

    /// The record comes first: without it the certificate is not handed out.
    async fn record_success(
        &self,
        row: &LoginRow,
        identity: &Identity,
        issued: &Issued,
    ) -> Result<(), FinishError> {
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(%error, "no record of a login; its certificate is withheld");
            FinishError::Unavailable
        };
        let event = self
            .context
            .audit
            .event(EventKind::LoginSuccess)
            .map_err(|error| failed(&error))?;
        let groups: Vec<String> = identity.groups.iter().map(ToString::to_string).collect();
        let event = described(event, row)
            .user(&user_record(identity))
            .serial(issued.serial_hex())
            .field("issuer", identity.issuer.as_str())
            .field("subject", identity.subject.as_str())
            .field("groups", groups);
        self.context
            .audit
            .record(event)
            .await
            .map_err(|error| failed(&error))
    }
}

/// The groups are at least as new as the login's start.
fn user_row(identity: &Identity, row: &LoginRow, now: OffsetDateTime) -> UserRow {
    UserRow {
        user_id: identity.user_id.clone(),
        connector: identity.connector.clone(),
        issuer: identity.issuer.clone(),
        subject: identity.subject.clone(),
        name: identity.name.clone(),
        email: identity.email.clone(),
        groups: identity.groups.clone(),
        groups_as_of: row.created_at,
        last_login: now,
    }
}
