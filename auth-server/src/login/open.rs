//! A browser opens the login's page and is sent to the provider.

use iap_identity::LoginId;

use super::provider::{Asking, Provider};
use super::secrets::Secret;
use super::step::{Cookies, SetCookie, StepError, not_in};
use super::{Logins, prompts};
use crate::store::{LoginChange, LoginMethod, LoginRow, LoginState};

/// What to show a browser that opens a login.
pub enum Opened {
    /// Several providers, none named.
    Choose(Vec<Choice>),
    /// Off to the provider, with a cookie to come back with.
    Go {
        /// The provider's authorization endpoint.
        url: String,
        /// The cookie that binds the login to this browser.
        cookie: SetCookie,
    },
}

/// A provider to choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The connector's name.
    pub connector: String,
    /// The provider's host.
    pub host: String,
}

impl Logins {
    /// Opens a login with the secret in its URL, or (headless) with the cookie of the typed code.
    ///
    /// # Errors
    /// When the login is unknown or beyond this step, or the provider cannot be found.
    pub async fn open(
        &self,
        id: LoginId,
        secret: Option<&str>,
        cookies: &Cookies,
        connector: Option<&str>,
    ) -> Result<Opened, StepError> {
        let row = self.live(id).await?.ok_or(StepError::Unknown)?;
        let opening = match row.method {
            LoginMethod::Browser | LoginMethod::NoBrowser => secret.map(Secret::presented),
            // A link that carries the code would make the person skip the question who sent it.
            LoginMethod::Headless => cookies.of_code(id),
        };
        if !opening.is_some_and(|opening| opening.matches(row.user_code_hash.as_ref())) {
            return Err(StepError::Unknown);
        }
        match row.state {
            LoginState::Started | LoginState::AtProvider => {}
            LoginState::Exchanging
            | LoginState::Identified
            | LoginState::Approved
            | LoginState::Finished
            | LoginState::Denied => return Err(not_in(row.state)),
        }
        match connector.or(row.connector.as_deref()) {
            Some(name) => {
                let provider = self.provider(name).ok_or(StepError::UnknownConnector)?;
                self.send_to(provider, &row).await
            }
            None => Ok(Opened::Choose(self.choices())),
        }
    }

    /// The providers, for a page with a choice.
    pub(super) fn choices(&self) -> Vec<Choice> {
        self.providers
            .iter()
            .map(|provider| Choice {
                connector: provider.name().to_owned(),
                host: provider.host(),
            })
            .collect()
    }

    async fn send_to(&self, provider: &Provider, row: &LoginRow) -> Result<Opened, StepError> {
        let context = &self.context;
        let (cookie, state) = (Secret::fresh(&context.random)?, Secret::fresh(&context.random)?);
        let redirect_uri = self.redirect_uri();
        let asking = Asking {
            redirect_uri: &redirect_uri,
            state: &state,
            cookie: &cookie,
            prompt_login: prompts(row),
            acr_values: provider.acr_values(&row.proof),
        };
        let url = match provider.authorization_url(&asking).await {
            Ok(url) => url,
            Err(error) => return Err(self.provider_failed(row, provider.name(), error).await),
        };
        let change = LoginChange::SentToProvider {
            connector: provider.name().to_owned(),
            state_hash: state.hash(),
            cookie_hash: cookie.hash(),
        };
        let now = context.clock.now();
        let sent = context
            .store
            .advance_login(row.login_id, row.state, now, change)
            .await?;
        let sent = sent.ok_or(StepError::Taken)?;
        let cookie = SetCookie::login(sent.login_id, cookie, now, sent.expires_at);
        Ok(Opened::Go {
            url: url.into(),
            cookie,
        })
    }
}
