//! `Login.Await`: the program that asked learns how it went, and a headless one gets its code.

use std::time::Duration;

use iap_identity::LoginId;
use tokio::time::{Instant, timeout_at};

use super::secrets::Secret;
use super::{CODE_LIFE, Logins};
use crate::context::NoRandomness;
use crate::store::{LoginChange, LoginMethod, LoginRow, LoginState, StoreError};

/// The longest one call waits.
const WAIT_MAX: Duration = Duration::from_secs(25);
/// How often the store is asked for what another auth server did.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// How a login stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Nothing yet: call again.
    Pending,
    /// Approved. Headless: with the one-time code; otherwise the code went through the browser.
    Approved(Option<String>),
    /// Over, with the reason.
    Denied(String),
    /// Nobody came in time.
    Expired,
}

/// Why nobody can wait for this login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// No such login, or the secret is wrong; these look alike.
    #[error("there is no such login")]
    Unknown,
    /// Ours, passing.
    #[error("the auth server cannot answer at the moment")]
    Unavailable,
}

impl From<StoreError> for WaitError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "a login could not be waited for");
        WaitError::Unavailable
    }
}

impl From<NoRandomness> for WaitError {
    fn from(_: NoRandomness) -> Self {
        WaitError::Unavailable
    }
}

impl Logins {
    /// Waits until the login is approved or over, at most [`WAIT_MAX`].
    ///
    /// # Errors
    /// When login and secret do not belong together.
    pub async fn wait(&self, id: LoginId, poll_secret: &[u8]) -> Result<Waited, WaitError> {
        let secret = Secret::presented(std::str::from_utf8(poll_secret).map_err(|_| WaitError::Unknown)?);
        let mut changed = self.changed.subscribe();
        let until = Instant::now() + WAIT_MAX;
        loop {
            let row = self.context.store.login(id).await?;
            let row = row
                .filter(|row| secret.matches(row.poll_secret_hash.as_ref()))
                .ok_or(WaitError::Unknown)?;
            match self.standing(&row).await? {
                Waited::Pending if Instant::now() >= until => return Ok(Waited::Pending),
                Waited::Pending => {}
                known => return Ok(known),
            }
            let next = until.min(Instant::now() + POLL_INTERVAL);
            // Woken or not: the store knows.
            let _ = timeout_at(next, changed.changed()).await;
        }
    }

    async fn standing(&self, row: &LoginRow) -> Result<Waited, WaitError> {
        let expired = row.expires_at <= self.context.clock.now();
        match row.state {
            LoginState::Approved if expired => Ok(Waited::Expired),
            LoginState::Approved => self.approved(row).await,
            LoginState::Denied => Ok(Waited::Denied(row.denial.clone().unwrap_or_default())),
            LoginState::Finished => Ok(Waited::Denied("its code has been used".to_owned())),
            LoginState::Started
            | LoginState::AtProvider
            | LoginState::Exchanging
            | LoginState::Identified => Ok(match expired {
                true => Waited::Expired,
                false => Waited::Pending,
            }),
        }
    }

    /// Makes the code for the one who may have it. Asked again, it makes another, and the first is void.
    async fn approved(&self, row: &LoginRow) -> Result<Waited, WaitError> {
        match row.method {
            LoginMethod::Browser | LoginMethod::NoBrowser => Ok(Waited::Approved(None)),
            LoginMethod::Headless => {
                let now = self.context.clock.now();
                let code = Secret::fresh_code(&self.context.random, now + CODE_LIFE)?;
                let change = LoginChange::Approved {
                    code_hash: code.hash(),
                };
                let store = &self.context.store;
                let kept = store
                    .advance_login(row.login_id, LoginState::Approved, now, change)
                    .await?;
                Ok(match kept {
                    Some(_) => Waited::Approved(Some(code.expose().to_owned())),
                    None => Waited::Pending,
                })
            }
        }
    }
}
