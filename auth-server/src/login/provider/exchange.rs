//! The second half: an authorization code becomes tokens, tokens become an identity.

use std::sync::Arc;

use openidconnect::url::{Url, form_urlencoded};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use time::OffsetDateTime;

use super::super::claims::{Claims, OtherClaims};
use super::super::outbound::{Answer, Ask};
use super::refresh::ProviderGrant;
use super::token::NonceRule;
use super::{Asking, Description, Provider, ProviderError};
use crate::store::Identity;

/// The longest error text of a provider that is shown or recorded.
const DESCRIPTION_CHARS_MAX: usize = 200;
/// How far the provider's clock may be behind ours when it says that the person has just authenticated.
const AUTHENTICATION_SKEW_SECONDS: i64 = 60;

/// What the provider's callback brought.
pub(crate) struct Answered<'a> {
    /// The authorization code.
    pub(crate) code: &'a str,
    /// RFC 9207: who answers.
    pub(crate) issuer: Option<&'a str>,
    /// When the login was started: with `prompt_login` the person must have authenticated since.
    pub(crate) started_at: OffsetDateTime,
}

/// Who came back, and the grant with which the provider can be asked again.
pub(crate) struct Identified {
    /// Who it is.
    pub(crate) identity: Identity,
    /// None where the provider gave no refresh token.
    pub(crate) grant: Option<ProviderGrant>,
}

#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    pub(super) access_token: Option<String>,
    pub(super) id_token: Option<String>,
    pub(super) refresh_token: Option<String>,
}

#[derive(Deserialize)]
struct TokenRefusal {
    error: String,
    error_description: Option<String>,
}

#[derive(Deserialize)]
struct UserInfo {
    sub: String,
    email: Option<String>,
    email_verified: Option<bool>,
    preferred_username: Option<String>,
    #[serde(flatten)]
    other: OtherClaims,
}

impl Provider {
    /// Who it is that came back with this code.
    ///
    /// # Errors
    /// When the provider cannot be asked, or anything it says is not as it must be.
    pub(crate) async fn identify(
        &self,
        asking: &Asking<'_>,
        answered: &Answered<'_>,
        now: OffsetDateTime,
    ) -> Result<Identified, ProviderError> {
        let (claims, grant) = self.vouched(asking, answered).await?;
        Ok(Identified {
            identity: claims.identity(&self.connector, &self.owned, now)?,
            grant,
        })
    }

    /// What the provider says of whoever came back with this code, verified.
    ///
    /// # Errors
    /// When the provider cannot be asked, or its answer is not as it must be.
    pub(crate) async fn claims(
        &self,
        asking: &Asking<'_>,
        answered: &Answered<'_>,
    ) -> Result<Claims, ProviderError> {
        let (claims, _) = self.vouched(asking, answered).await?;
        Ok(claims)
    }

    async fn vouched(
        &self,
        asking: &Asking<'_>,
        answered: &Answered<'_>,
    ) -> Result<(Claims, Option<ProviderGrant>), ProviderError> {
        let description = self.description().await?;
        self.check_who_answers(&description, answered.issuer)?;
        let tokens = self.redeem(&description, asking, answered.code).await?;
        let id_token = tokens.id_token.ok_or(ProviderError::Missing("ID token"))?;
        let nonce = asking.cookie.nonce(asking.state);
        let authenticated_since = asking
            .prompt_login
            .then(|| answered.started_at - time::Duration::seconds(AUTHENTICATION_SKEW_SECONDS));
        let mut claims = self
            .verified(
                &description,
                &id_token,
                NonceRule::Is(&nonce),
                authenticated_since,
            )
            .await?;
        claims.was_prompted = asking.prompt_login;
        let grant = tokens
            .refresh_token
            .and_then(|token| ProviderGrant::new(token, nonce, claims.subject.clone()));
        if claims.lacks(&self.connector)
            && let Some(access_token) = &tokens.access_token
        {
            let info = self
                .user_info(&description, access_token, &claims.subject)
                .await?;
            claims.fill_from(info);
        }
        Ok((claims, grant))
    }

    /// RFC 9207 §2.4: an answer that names another issuer belongs to another provider's login.
    fn check_who_answers(
        &self,
        description: &Description,
        issuer: Option<&str>,
    ) -> Result<(), ProviderError> {
        match issuer {
            Some(issuer) if issuer == self.connector.issuer => Ok(()),
            None if !description.names_issuer => Ok(()),
            Some(_) | None => Err(ProviderError::MixedUp),
        }
    }

    async fn redeem(
        &self,
        description: &Description,
        asking: &Asking<'_>,
        code: &str,
    ) -> Result<TokenAnswer, ProviderError> {
        let verifier = asking.cookie.pkce_verifier(asking.state);
        let form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", asking.redirect_uri),
            ("code_verifier", &verifier),
        ];
        let endpoint = &description.token_endpoint;
        Ok(self
            .post_as_client(description, endpoint, form)
            .await?
            .document()?)
    }

    /// Sends a form as the client we are (RFC 6749 §2.3.1); an OAuth error is an error here.
    pub(super) async fn post_as_client<'a>(
        &'a self,
        description: &Description,
        endpoint: &Url,
        mut form: Vec<(&'a str, &'a str)>,
    ) -> Result<Answer, ProviderError> {
        let client_id = self.connector.client_id.as_str();
        let secret = self
            .connector
            .client_secret
            .as_ref()
            .map(|secret| secret.expose_secret());
        let credentials = secret.map(|secret| (form_encoded(client_id), form_encoded(secret)));
        let basic = match (secret, &credentials) {
            (Some(secret), _) if description.secret_in_form => {
                form.extend([("client_id", client_id), ("client_secret", secret)]);
                None
            }
            (Some(_), Some((user, password))) => Some((user.as_str(), password.as_str())),
            (Some(_), None) | (None, _) => {
                form.push(("client_id", client_id));
                None
            }
        };
        let answer = self
            .outbound
            .send(endpoint, Ask::PostForm { form: &form, basic })
            .await?;
        if answer.status.is_client_error()
            && let Ok(refusal) = serde_json::from_slice::<TokenRefusal>(&answer.body)
        {
            return Err(refusal_error(
                &refusal.error,
                refusal.error_description.as_deref(),
            ));
        }
        Ok(answer)
    }

    /// Verifies the ID token; once more with new keys if it was signed by one we do not know.
    pub(super) async fn verified(
        &self,
        description: &Arc<Description>,
        id_token: &str,
        nonce: NonceRule<'_>,
        authenticated_since: Option<OffsetDateTime>,
    ) -> Result<Claims, ProviderError> {
        let verify = |description: &Description| {
            super::token::verify(
                &self.connector,
                &description.keys,
                id_token,
                nonce,
                authenticated_since,
            )
        };
        match verify(description) {
            Err(super::token::TokenError::UnknownKey) => match self.description_with_new_keys().await? {
                Some(renewed) => Ok(verify(&renewed)?),
                None => Ok(verify(&*self.description().await?)?),
            },
            verdict => Ok(verdict?),
        }
    }

    pub(super) async fn user_info(
        &self,
        description: &Description,
        access_token: &str,
        subject: &str,
    ) -> Result<Claims, ProviderError> {
        let Some(endpoint) = &description.userinfo_endpoint else {
            return Ok(Claims::default());
        };
        let info: UserInfo = self
            .outbound
            .document(endpoint, Ask::GetWithToken(access_token))
            .await?;
        if info.sub != subject {
            return Err(ProviderError::OtherSubject);
        }
        Ok(Claims {
            subject: info.sub,
            email: info.email,
            email_verified: info.email_verified.unwrap_or(false),
            preferred_username: info.preferred_username,
            other: info.other.0,
            ..Claims::default()
        })
    }
}

/// A refusal in the provider's words, cut to a readable length and cleared of control characters.
pub(crate) fn refusal_error(error: &str, description: Option<&str>) -> ProviderError {
    let plain = |text: &str| -> String {
        text.chars()
            .filter(|letter| !letter.is_control())
            .take(DESCRIPTION_CHARS_MAX)
            .collect()
    };
    ProviderError::Refused {
        error: plain(error),
        description: description.map(plain),
    }
}

/// RFC 6749 §2.3.1: both halves of the Basic credentials are form-encoded first.
fn form_encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

impl From<super::token::TokenError> for ProviderError {
    fn from(error: super::token::TokenError) -> Self {
        ProviderError::Token(error.to_string())
    }
}
