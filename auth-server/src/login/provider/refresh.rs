//! Asking a provider again about somebody who logged in before (OpenID Connect Core §12), and telling it
//! that nobody will (RFC 7009).

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::super::claims::Claims;
use super::exchange::TokenAnswer;
use super::token::NonceRule;
use super::{Provider, ProviderError};
use crate::store::Identity;

/// The longest refresh token that is kept. Those of the large providers have one to three kilobytes.
const REFRESH_TOKEN_BYTES_MAX: usize = 16 * 1024;
/// RFC 6749 §5.2: the refresh token is invalid, expired or revoked.
const INVALID_GRANT: &str = "invalid_grant";

/// A refresh token, and what its answers are checked against.
pub(crate) struct ProviderGrant {
    token: SecretString,
    nonce: String,
    subject: String,
}

/// [`ProviderGrant`] as it is sealed.
#[derive(Serialize, Deserialize)]
struct Written<'a> {
    token: std::borrow::Cow<'a, str>,
    nonce: std::borrow::Cow<'a, str>,
    subject: std::borrow::Cow<'a, str>,
}

/// What a refresh brought, before anything in it is believed.
pub(crate) struct Refreshed {
    tokens: TokenAnswer,
}

impl ProviderGrant {
    /// None for a token too long to be kept: the login is then one without.
    pub(crate) fn new(token: String, nonce: String, subject: String) -> Option<Self> {
        (1..=REFRESH_TOKEN_BYTES_MAX)
            .contains(&token.len())
            .then(|| Self {
                token: SecretString::from(token),
                nonce,
                subject,
            })
    }

    /// For sealing.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let written = Written {
            token: self.token.expose_secret().into(),
            nonce: self.nonce.as_str().into(),
            subject: self.subject.as_str().into(),
        };
        // Three texts always make a JSON object.
        serde_json::to_vec(&written).unwrap_or_default()
    }

    /// What was sealed.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let written: Written<'_> = serde_json::from_slice(bytes).ok()?;
        Self::new(
            written.token.into_owned(),
            written.nonce.into_owned(),
            written.subject.into_owned(),
        )
    }
}

impl Refreshed {
    /// The grant as it goes on: providers that rotate send a new token, and the old one is worth nothing.
    pub(crate) fn rotated(&self, grant: &ProviderGrant) -> Option<ProviderGrant> {
        let token = self.tokens.refresh_token.clone()?;
        if token == grant.token.expose_secret() {
            return None;
        }
        ProviderGrant::new(token, grant.nonce.clone(), grant.subject.clone())
    }
}

impl ProviderError {
    /// Whether the provider has withdrawn the grant: the one answer that ends a login.
    pub(crate) fn is_withdrawn(&self) -> bool {
        matches!(self, ProviderError::Refused { error, .. } if error == INVALID_GRANT)
    }

    /// Whether the provider could not be asked, or is out of order; asking again later may help.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            ProviderError::Outbound(_) | ProviderError::Missing(_) => true,
            ProviderError::Refused { error, .. } => error != INVALID_GRANT,
            ProviderError::WrongIssuer { .. }
            | ProviderError::MixedUp
            | ProviderError::Token(_)
            | ProviderError::OtherSubject
            | ProviderError::Claims(_) => false,
        }
    }
}

impl Provider {
    /// Uses the refresh token. Whatever becomes of the answer, a new token in it has to be kept first.
    ///
    /// # Errors
    /// When the provider cannot be asked, or refuses.
    pub(crate) async fn refresh(&self, grant: &ProviderGrant) -> Result<Refreshed, ProviderError> {
        let description = self.description().await?;
        let form = vec![
            ("grant_type", "refresh_token"),
            ("refresh_token", grant.token.expose_secret()),
        ];
        let answer = self
            .post_as_client(&description, &description.token_endpoint, form)
            .await?;
        Ok(Refreshed {
            tokens: answer.document()?,
        })
    }

    /// Who the provider says it is now: from the new ID token where it sends one, else from the userinfo
    /// endpoint.
    ///
    /// # Errors
    /// When neither speaks of the person who logged in, or what they say makes no identity.
    pub(crate) async fn read(
        &self,
        refreshed: &Refreshed,
        grant: &ProviderGrant,
        now: OffsetDateTime,
    ) -> Result<Identity, ProviderError> {
        let description = self.description().await?;
        let mut claims = match &refreshed.tokens.id_token {
            Some(id_token) => {
                let nonce = NonceRule::IsIfPresent(&grant.nonce);
                self.verified(&description, id_token, nonce, None).await?
            }
            None => Claims {
                subject: grant.subject.clone(),
                ..Claims::default()
            },
        };
        if claims.subject != grant.subject {
            return Err(ProviderError::OtherSubject);
        }
        if claims.lacks(&self.connector)
            && let Some(access_token) = &refreshed.tokens.access_token
        {
            let info = self.user_info(&description, access_token, &grant.subject).await?;
            claims.fill_from(info);
        }
        Ok(claims.identity(&self.connector, &self.owned, now)?)
    }

    /// Tells the provider that the token will not be used any more. Says whether it has an endpoint for that.
    ///
    /// # Errors
    /// When the provider cannot be asked, or refuses.
    pub(crate) async fn revoke(&self, grant: &ProviderGrant) -> Result<bool, ProviderError> {
        let description = self.description().await?;
        let Some(endpoint) = &description.revocation_endpoint else {
            return Ok(false);
        };
        let form = vec![
            ("token", grant.token.expose_secret()),
            ("token_type_hint", "refresh_token"),
        ];
        let answer = self.post_as_client(&description, endpoint, form).await?;
        match answer.status.is_success() {
            true => Ok(true),
            false => Err(answer.refused().into()),
        }
    }
}
