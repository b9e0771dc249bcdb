//! The provider's answer comes back through the browser.

use std::sync::Arc;

use iap_identity::LoginId;

use super::provider::{Answered, Asking, Identified, ProviderError, refusal_error};
use super::secrets::Secret;
use super::step::{Cookies, StepError, not_in};
use super::{Logins, prompts};
use crate::spans;
use crate::store::{LoginChange, LoginRow, LoginState};

/// The query of the callback (OpenID Connect Core §3.1.2.5, RFC 9207).
#[derive(Clone, Debug, Default)]
pub struct ProviderAnswer {
    /// Binds the answer to a login.
    pub state: Option<String>,
    /// The authorization code.
    pub code: Option<String>,
    /// Who answers.
    pub issuer: Option<String>,
    /// The provider's error code, instead of a code.
    pub error: Option<String>,
    /// The provider's words.
    pub error_description: Option<String>,
}

impl Logins {
    /// Takes the provider's answer: afterwards the login waits for approval. The exchange with the provider is
    /// carried to its end even if the browser goes away, because a code works once.
    ///
    /// # Errors
    /// When the answer is not for this browser's login, is used already, or the provider is not believed.
    /// What the provider says wrongly ends the login.
    pub async fn answer(
        self: &Arc<Self>,
        answer: &ProviderAnswer,
        cookies: &Cookies,
    ) -> Result<LoginId, StepError> {
        let state = Secret::presented(answer.state.as_deref().unwrap_or_default());
        let Some(row) = self.context.store.login_by_state(&state.hash()).await? else {
            self.note_wrong_state(cookies).await;
            return Err(StepError::UnknownAnswer);
        };
        if row.expires_at <= self.context.clock.now() {
            return Err(StepError::Unknown);
        }
        let cookie = cookies
            .of_login(row.login_id)
            .filter(|cookie| cookie.matches(row.cookie_hash.as_ref()));
        let Some(cookie) = cookie else {
            self.count_wrong(
                &row,
                "other_browser",
                "the provider's answer came in another browser",
            )
            .await;
            return Err(StepError::OtherBrowser);
        };
        if row.state != LoginState::AtProvider {
            return Err(not_in(row.state));
        }
        let row = self.claim(&row, &state, &cookie).await?;
        let (logins, answer) = (Arc::clone(self), answer.clone());
        let identifying = tokio::spawn(async move { logins.identify(row, &answer, &state, &cookie).await });
        identifying.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a provider's answer could not be exchanged");
            Err(StepError::Unavailable)
        })
    }

    /// Before anything is asked of the provider: whoever opens the page again while the answer is exchanged must
    /// not put another browser in the place of the one that signed in.
    async fn claim(&self, row: &LoginRow, state: &Secret, cookie: &Secret) -> Result<LoginRow, StepError> {
        let change = LoginChange::Answered {
            state_hash: state.hash(),
            cookie_hash: cookie.hash(),
        };
        let now = self.context.clock.now();
        let store = &self.context.store;
        let claimed = store
            .advance_login(row.login_id, LoginState::AtProvider, now, change)
            .await?;
        claimed.ok_or(StepError::Taken)
    }

    async fn identify(
        &self,
        row: LoginRow,
        answer: &ProviderAnswer,
        state: &Secret,
        cookie: &Secret,
    ) -> Result<LoginId, StepError> {
        let context = &self.context;
        let name = row.connector.clone().unwrap_or_default();
        let provider = self.provider(&name).ok_or(StepError::UnknownConnector)?;
        let redirect_uri = self.redirect_uri();
        let asking = Asking {
            redirect_uri: &redirect_uri,
            state,
            cookie,
            prompt_login: prompts(&row),
            acr_values: provider.acr_values(&row.proof),
        };
        let recorder = spans::of_login(&context.traces, &row.login_id);
        let mark = recorder.mark();
        let identity = match code(answer) {
            Ok(code) => {
                let answered = Answered {
                    code,
                    issuer: answer.issuer.as_deref(),
                    started_at: row.created_at,
                };
                provider.identify(&asking, &answered, context.clock.now()).await
            }
            Err(refusal) => Err(refusal),
        };
        let Identified { identity, grant } = match identity {
            Ok(identified) => identified,
            Err(error) => return Err(self.provider_failed(&row, &name, error).await),
        };
        // Only a provider's word lets anything of it out.
        recorder.phase("identity provider", mark, |details| {
            details.text("iap.connector", &name)
        });
        recorder.send_phases(spans::LOGIN);
        if let Some(grant) = grant {
            self.keep_grant(&row, &identity, &grant).await?;
        }
        let change = LoginChange::Identified(Box::new(identity));
        let now = context.clock.now();
        let identified = context
            .store
            .advance_login(row.login_id, LoginState::Exchanging, now, change)
            .await?;
        identified.map(|row| row.login_id).ok_or(StepError::Taken)
    }

    /// Ends the login, with the provider's failure in the record and in words for the person.
    pub(super) async fn provider_failed(
        &self,
        row: &LoginRow,
        connector: &str,
        error: ProviderError,
    ) -> StepError {
        tracing::warn!(login_id = %row.login_id, connector, %error, "an identity provider did not vouch");
        let failed = StepError::Provider {
            connector: connector.to_owned(),
            error,
        };
        if let StepError::Provider { error, .. } = &failed {
            self.deny(row, error.reason(), &failed.to_string()).await;
        }
        failed
    }

    /// An answer with a `state` we do not know, in a browser that is in the midst of a login: somebody may
    /// be trying to slip an answer in.
    async fn note_wrong_state(&self, cookies: &Cookies) {
        for id in cookies.logins() {
            let Ok(Some(row)) = self.live(id).await else {
                continue;
            };
            let ours = cookies
                .of_login(id)
                .is_some_and(|cookie| cookie.matches(row.cookie_hash.as_ref()));
            if ours && row.state == LoginState::AtProvider {
                self.count_wrong(
                    &row,
                    "wrong_state",
                    "an answer came with a state that was not sent",
                )
                .await;
            }
        }
    }
}

fn code(answer: &ProviderAnswer) -> Result<&str, ProviderError> {
    match (&answer.error, &answer.code) {
        (Some(error), _) => Err(refusal_error(error, answer.error_description.as_deref())),
        (None, Some(code)) => Ok(code),
        (None, None) => Err(ProviderError::Missing("authorization code")),
    }
}
