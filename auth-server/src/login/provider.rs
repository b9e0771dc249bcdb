//! One OpenID Connect provider, as its relying party: discovery, the authorization URL, and the exchange
//! of a code for an [`Identity`] (OpenID Connect Core 1.0 §3.1).

mod examine;
mod exchange;
mod refresh;
mod token;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openidconnect::core::CoreJsonWebKeySet;
use openidconnect::url::Url;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;

use super::addresses::Reach;
use super::claims::ClaimsError;
use super::outbound::{Ask, Outbound, OutboundError};
use super::secrets::{Secret, pkce_challenge};
use crate::config::{ConnectorConfig, ConnectorKind};
use crate::store::ProofAsked;

pub(crate) use examine::Examined;
pub(crate) use exchange::{Answered, Identified, refusal_error};
pub(crate) use refresh::{ProviderGrant, Refreshed};

/// How long ago a person may have signed in at the provider where nothing fresh is asked for: a year, which is as good
/// as any time.
const STANDING_SESSION_SECONDS_MAX: u32 = 365 * 24 * 3600;

/// How long a discovery document and its keys are used before they are fetched again.
const DESCRIPTION_AGE_MAX: Duration = Duration::from_secs(3600);
/// A token signed by an unknown key makes us fetch the keys again, this often at most: whoever can send
/// us tokens must not be able to make us hammer the provider.
const KEYS_REFETCH_INTERVAL: Duration = Duration::from_secs(60);
/// How long a failed discovery is remembered, so that a slow provider is not asked by everybody at once.
const FAILURE_AGE_MAX: Duration = Duration::from_secs(5);
/// The scope that asks for a refresh token (OpenID Connect Core §11).
const OFFLINE_ACCESS: &str = "offline_access";
/// The most keys of a provider that are looked at.
const KEYS_MAX: usize = 100;

/// Why a provider did not tell us who it is.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProviderError {
    /// It cannot be asked, or answered out of bounds.
    #[error("{0}")]
    Outbound(Arc<OutboundError>),
    /// Its discovery document is for another issuer (OpenID Connect Discovery §4.3).
    #[error("the discovery document is for the issuer `{found}`, but the connector says `{expected}`")]
    WrongIssuer {
        /// As configured.
        expected: String,
        /// As found.
        found: String,
    },
    /// The callback came from another provider than the one asked (RFC 9207).
    #[error("the answer came from another provider than the one that was asked")]
    MixedUp,
    /// The provider, or the person there, said no.
    #[error("the identity provider answered `{error}`{}", .description.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    Refused {
        /// The error code of RFC 6749.
        error: String,
        /// The provider's words.
        description: Option<String>,
    },
    /// A token response without what OpenID Connect requires.
    #[error("the identity provider sent no {0}")]
    Missing(&'static str),
    /// The ID token is forged, for somebody else, for another login, or too old.
    #[error("the ID token is refused: {0}")]
    Token(String),
    /// The userinfo endpoint spoke of somebody else (OpenID Connect Core §5.3.2).
    #[error("the userinfo endpoint speaks of another subject than the ID token")]
    OtherSubject,
    /// The claims do not make an identity that may log in.
    #[error("{0}")]
    Claims(#[from] ClaimsError),
}

impl From<OutboundError> for ProviderError {
    fn from(error: OutboundError) -> Self {
        ProviderError::Outbound(Arc::new(error))
    }
}

impl ProviderError {
    /// What goes into the audit record's reason: one word per kind.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            ProviderError::Outbound(error) => match **error {
                OutboundError::Forbidden { .. } | OutboundError::Redirected { .. } => "provider_forbidden",
                OutboundError::NotUrl(_) | OutboundError::NotHttps(_) => "provider_forbidden",
                OutboundError::TooLarge { .. } | OutboundError::Unreadable { .. } => "provider_answer",
                OutboundError::Status { .. } => "provider_answer",
                OutboundError::TimedOut { .. } | OutboundError::Unreachable { .. } => "provider_unreachable",
                OutboundError::Client(_) => "provider_unreachable",
            },
            ProviderError::WrongIssuer { .. } => "provider_wrong_issuer",
            ProviderError::MixedUp => "provider_mixed_up",
            ProviderError::Refused { .. } => "provider_refused",
            ProviderError::Missing(_) => "provider_answer",
            ProviderError::Token(_) => "id_token",
            ProviderError::OtherSubject => "userinfo_subject",
            ProviderError::Claims(ClaimsError::NoGroupsClaim { .. }) => "groups_claim_missing",
            ProviderError::Claims(ClaimsError::GroupsLeftOut { .. }) => "groups_left_out",
            ProviderError::Claims(_) => "claims",
        }
    }

    /// For the person: says whose fault it is, quotes no internals.
    pub(crate) fn for_person(&self) -> String {
        match self {
            ProviderError::Outbound(error) => match **error {
                OutboundError::TimedOut { .. } => "it did not answer in time".to_owned(),
                OutboundError::Unreachable { .. } | OutboundError::Client(_) => {
                    "it cannot be reached".to_owned()
                }
                OutboundError::TooLarge { .. } => "its answer is far too large".to_owned(),
                OutboundError::Redirected { .. } => {
                    "it answered with a redirect, which is not followed".to_owned()
                }
                OutboundError::Forbidden { .. } | OutboundError::NotHttps(_) | OutboundError::NotUrl(_) => {
                    "it points to an address that is not allowed".to_owned()
                }
                OutboundError::Status { .. } | OutboundError::Unreadable { .. } => {
                    "its answer cannot be understood".to_owned()
                }
            },
            ProviderError::WrongIssuer { .. } => "it says that it is another provider".to_owned(),
            ProviderError::Refused { .. }
            | ProviderError::MixedUp
            | ProviderError::Missing(_)
            | ProviderError::Token(_)
            | ProviderError::OtherSubject
            | ProviderError::Claims(_) => self.to_string(),
        }
    }
}

/// A provider, with its discovery document and keys cached.
#[derive(Debug)]
pub(crate) struct Provider {
    connector: ConnectorConfig,
    /// Mail domains of all connectors.
    owned: BTreeSet<String>,
    outbound: Outbound,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    description: Option<(Instant, Arc<Description>)>,
    failure: Option<(Instant, ProviderError)>,
    keys_asked: Option<Instant>,
}

/// What the provider says of itself.
#[derive(Clone, Debug)]
struct Description {
    authorization_endpoint: Url,
    token_endpoint: Url,
    userinfo_endpoint: Option<Url>,
    revocation_endpoint: Option<Url>,
    jwks_uri: Url,
    secret_in_form: bool,
    /// RFC 9207: every answer names its issuer.
    names_issuer: bool,
    keys: CoreJsonWebKeySet,
}

/// The parts of a discovery document that matter here (OpenID Connect Discovery §3).
#[derive(Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    userinfo_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    jwks_uri: String,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// What one authorization request carries.
pub(crate) struct Asking<'a> {
    /// Our callback.
    pub(crate) redirect_uri: &'a str,
    /// The OIDC `state`.
    pub(crate) state: &'a Secret,
    /// The browser's cookie, from which nonce and PKCE verifier are derived.
    pub(crate) cookie: &'a Secret,
    /// Whether the person must prove who they are anew.
    pub(crate) prompt_login: bool,
    /// Authentication context classes, of which one is to be reached, the preferred first.
    pub(crate) acr_values: Vec<String>,
}

impl Provider {
    pub(crate) fn new(
        connector: ConnectorConfig,
        owned: BTreeSet<String>,
        development: bool,
    ) -> Result<Self, OutboundError> {
        let reach = reach(&connector, development);
        Ok(Self {
            outbound: Outbound::new(reach)?,
            connector,
            owned,
            known: Mutex::default(),
        })
    }

    /// The same with another time limit, for tests.
    #[cfg(test)]
    pub(crate) fn with_time(connector: ConnectorConfig, time: Duration) -> Self {
        #![allow(clippy::unwrap_used)]
        let outbound = Outbound::with_time(reach(&connector, true), time).unwrap();
        let owned = connector.domains.clone();
        Self {
            outbound,
            connector,
            owned,
            known: Mutex::default(),
        }
    }

    /// The connector's name.
    pub(crate) fn name(&self) -> &str {
        &self.connector.name
    }

    /// What to ask for in `acr_values` when this is to be proven.
    pub(crate) fn acr_values(&self, proof: &ProofAsked) -> Vec<String> {
        let several_factors = self.connector.mfa_acr.first().filter(|_| proof.mfa);
        proof.acr.iter().chain(several_factors).cloned().collect()
    }

    /// The host a person is sent to, for buttons.
    pub(crate) fn host(&self) -> String {
        let host = Url::parse(&self.connector.issuer)
            .ok()
            .and_then(|url| url.host_str().map(str::to_owned));
        host.unwrap_or_else(|| self.connector.issuer.clone())
    }

    /// Where the browser goes to authenticate.
    ///
    /// # Errors
    /// When the provider cannot be discovered.
    pub(crate) async fn authorization_url(&self, asking: &Asking<'_>) -> Result<Url, ProviderError> {
        let description = self.description().await?;
        let mut url = description.authorization_endpoint.clone();
        let mut query = url.query_pairs_mut();
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.connector.client_id)
            .append_pair("redirect_uri", asking.redirect_uri)
            .append_pair("scope", &self.connector.scopes.join(" "))
            .append_pair("state", asking.state.expose())
            .append_pair("nonce", &asking.cookie.nonce(asking.state))
            .append_pair(
                "code_challenge",
                &pkce_challenge(&asking.cookie.pkce_verifier(asking.state)),
            )
            .append_pair("code_challenge_method", "S256");
        let mut prompts = Vec::new();
        // OpenID Connect Core §3.1.2.1: asked for any `max_age`, a provider has to tell `auth_time`.
        let max_age = match asking.prompt_login {
            true => 0,
            false => STANDING_SESSION_SECONDS_MAX,
        };
        query.append_pair("max_age", &max_age.to_string());
        if asking.prompt_login {
            prompts.push("login");
        }
        if self.connector.kind == ConnectorKind::Google {
            query.append_pair("access_type", "offline");
        }
        if self.consents_for_refresh() {
            prompts.push("consent");
        }
        if !prompts.is_empty() {
            query.append_pair("prompt", &prompts.join(" "));
        }
        if let Some(first) = asking.acr_values.first() {
            match self.connector.kind {
                // Its classes are Conditional Access contexts, which only a claims request reaches.
                ConnectorKind::Entra => {
                    let acrs = json!({"id_token": {"acrs": {"essential": true, "value": first}}});
                    query.append_pair("claims", &acrs.to_string());
                }
                ConnectorKind::Oidc
                | ConnectorKind::Okta
                | ConnectorKind::Google
                | ConnectorKind::Keycloak => {
                    query.append_pair("acr_values", &asking.acr_values.join(" "));
                }
            }
        }
        drop(query);
        Ok(url)
    }

    /// Whether a refresh token is given only to those who consent each time: OpenID Connect Core §11 wants it
    /// with `offline_access`, and Google gives one at the first consent alone. Okta, Entra ID and Keycloak have
    /// the consent of an administrator, and would only bother the person.
    fn consents_for_refresh(&self) -> bool {
        match self.connector.kind {
            ConnectorKind::Google => true,
            ConnectorKind::Oidc => self.connector.scopes.iter().any(|scope| scope == OFFLINE_ACCESS),
            ConnectorKind::Okta | ConnectorKind::Entra | ConnectorKind::Keycloak => false,
        }
    }

    async fn description(&self) -> Result<Arc<Description>, ProviderError> {
        let mut known = self.known.lock().await;
        if let Some((since, description)) = &known.description
            && since.elapsed() < DESCRIPTION_AGE_MAX
        {
            return Ok(Arc::clone(description));
        }
        if let Some((since, failure)) = &known.failure
            && since.elapsed() < FAILURE_AGE_MAX
        {
            return Err(failure.clone());
        }
        match self.discover().await {
            Ok(description) => {
                let description = Arc::new(description);
                *known = Known {
                    description: Some((Instant::now(), Arc::clone(&description))),
                    ..Known::default()
                };
                Ok(description)
            }
            Err(failure) => {
                known.failure = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// The description with keys fetched anew, unless they were a moment ago.
    async fn description_with_new_keys(&self) -> Result<Option<Arc<Description>>, ProviderError> {
        let mut known = self.known.lock().await;
        let Some((since, description)) = known.description.clone() else {
            return Ok(None);
        };
        if known
            .keys_asked
            .is_some_and(|asked| asked.elapsed() < KEYS_REFETCH_INTERVAL)
        {
            return Ok(None);
        }
        known.keys_asked = Some(Instant::now());
        let keys = self.keys(&description.jwks_uri).await?;
        let description = Arc::new(Description {
            keys,
            ..(*description).clone()
        });
        known.description = Some((since, Arc::clone(&description)));
        Ok(Some(description))
    }

    /// Where the discovery document is (OpenID Connect Discovery §4).
    fn discovery(&self) -> Result<Url, ProviderError> {
        let issuer = self.connector.issuer.trim_end_matches('/');
        self.endpoint(&format!("{issuer}/.well-known/openid-configuration"))
    }

    async fn discover(&self) -> Result<Description, ProviderError> {
        let issuer = &self.connector.issuer;
        let address = self.discovery()?;
        let document: Document = self.outbound.document(&address, Ask::Get).await?;
        if document.issuer != *issuer {
            return Err(ProviderError::WrongIssuer {
                expected: issuer.clone(),
                found: document.issuer,
            });
        }
        let jwks_uri = self.endpoint(&document.jwks_uri)?;
        Ok(Description {
            authorization_endpoint: self.endpoint(&document.authorization_endpoint)?,
            token_endpoint: self.endpoint(&document.token_endpoint)?,
            userinfo_endpoint: document
                .userinfo_endpoint
                .as_deref()
                .map(|url| self.endpoint(url))
                .transpose()?,
            revocation_endpoint: document
                .revocation_endpoint
                .as_deref()
                .map(|url| self.endpoint(url))
                .transpose()?,
            secret_in_form: wants_secret_in_form(document.token_endpoint_auth_methods_supported.as_deref()),
            names_issuer: document.authorization_response_iss_parameter_supported,
            keys: self.keys(&jwks_uri).await?,
            jwks_uri,
        })
    }

    /// The keys, from the address that the issuer's own document names and no other.
    async fn keys(&self, jwks_uri: &Url) -> Result<CoreJsonWebKeySet, ProviderError> {
        let keys: CoreJsonWebKeySet = self.outbound.document(jwks_uri, Ask::Get).await?;
        if keys.keys().len() > KEYS_MAX {
            return Err(OutboundError::TooLarge {
                url: jwks_uri.clone(),
            }
            .into());
        }
        Ok(keys)
    }

    fn endpoint(&self, text: &str) -> Result<Url, ProviderError> {
        let url = Url::parse(text).map_err(|_| OutboundError::NotUrl(text.to_owned()))?;
        self.outbound.check(&url)?;
        Ok(url)
    }
}

fn reach(connector: &ConnectorConfig, development: bool) -> Reach {
    let host = Url::parse(&connector.issuer)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned));
    Reach {
        development,
        private_host: host.filter(|_| connector.allow_private),
    }
}

/// `client_secret_basic` is the default (OpenID Connect Discovery §3) and preferred.
fn wants_secret_in_form(methods: Option<&[String]>) -> bool {
    methods.is_some_and(|methods| {
        !methods.iter().any(|method| method == "client_secret_basic")
            && methods.iter().any(|method| method == "client_secret_post")
    })
}
