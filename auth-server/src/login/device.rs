//! The headless detour, first half: a code typed on another device opens the login there.

use std::net::IpAddr;
use std::time::Instant;

use super::open::Choice;
use super::secrets::Secret;
use super::step::{SetCookie, StepError, not_in};
use super::{Logins, source_of};
use crate::store::{LoginMethod, LoginRow, LoginState};

/// A login found by its code: what asked, and how to go on.
pub struct Found {
    /// The login.
    pub login: LoginRow,
    /// Where to sign in.
    pub choices: Vec<Choice>,
    /// Lets this browser open the login.
    pub cookie: SetCookie,
}

impl Logins {
    /// Finds the login that waits for a typed code.
    ///
    /// # Errors
    /// When no login waits for it, or too many wrong codes came from there.
    pub async fn device(&self, typed: &str, client: IpAddr) -> Result<Found, StepError> {
        let (source, instant) = (source_of(client), Instant::now());
        self.user_codes
            .check(source, instant)
            .map_err(|_| StepError::TooManyTries)?;
        let code = Secret::typed(typed);
        let now = self.context.clock.now();
        let found = self.context.store.login_by_user_code(&code.hash(), now).await?;
        let Some(login) = found.filter(|login| login.method == LoginMethod::Headless) else {
            tracing::info!(client = %source, "a wrong user code was typed");
            // The check above has answered; this only uses the try up.
            let _ = self.user_codes.count(source, instant);
            return Err(StepError::WrongCode);
        };
        match login.state {
            LoginState::Started | LoginState::AtProvider => {}
            LoginState::Exchanging
            | LoginState::Identified
            | LoginState::Approved
            | LoginState::Finished
            | LoginState::Denied => return Err(not_in(login.state)),
        }
        let mut choices = self.choices();
        if let Some(asked) = &login.connector {
            choices.retain(|choice| choice.connector == *asked);
        }
        let cookie = SetCookie::code(login.login_id, code, now, login.expires_at);
        Ok(Found {
            login,
            choices,
            cookie,
        })
    }
}
