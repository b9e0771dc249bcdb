//! A connector tried out by its operator: a real sign-in, or a token from a file, up to the identity that a login
//! would give, and no further: nothing is stored, nothing issued.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openidconnect::url::Url;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::claims::{Claims, ClaimsError};
use super::outbound::OutboundError;
use super::provider::{Answered, Asking, Examined, Provider, ProviderError, refusal_error};
use super::secrets::Secret;
use crate::config::{Config, ConnectorConfig};
use crate::context::{NoRandomness, Random};
use crate::store::Identity;

/// How far the clocks may be apart before a login fails.
const CLOCK_SECONDS_MAX: i64 = 60;
/// Claims that prove something to whoever holds them, or only make noise.
const SECRET_CLAIMS: [&str; 9] = [
    "nonce", "at_hash", "c_hash", "s_hash", "jti", "sid", "aio", "uti", "rh",
];
const REDACTED: &str = "(redacted)";

/// One connector on trial.
pub struct Trial {
    connector: ConnectorConfig,
    owned: BTreeSet<String>,
    provider: Provider,
    redirect_uri: String,
    cookie: Secret,
    state: Secret,
    started_at: OffsetDateTime,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// Whether it is as it must be.
    pub good: bool,
    /// What was seen, and what to do.
    pub seen: String,
}

/// What a sign-in or a file came to.
#[derive(Clone, Debug)]
pub struct TriedOut {
    /// What the provider says, in order, without what proves something.
    pub claims: Map<String, Value>,
    /// Who that is.
    pub identity: Result<Identity, ClaimsError>,
}

/// Why a trial ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The connector's name is needed.
    #[error("which connector? Say --connector NAME with one of: {0}")]
    WhichConnector(String),
    /// No such connector.
    #[error("there is no connector `{0}`; there is {1}")]
    NoSuchConnector(String, String),
    /// None at all.
    #[error("the configuration has no [[connector]]; docs/idp has a page for each kind")]
    NoConnector,
    /// What was pasted is not the address of our callback.
    #[error(
        "that is not the address of the page you landed on: it begins with {0} and has `code` and `state`"
    )]
    NotTheCallback(String),
    /// The answer belongs to another try.
    #[error("that address is of another try; use the one that this try led to")]
    OtherTry,
    /// The file holds something else.
    #[error("the file holds no {0}")]
    NotIn(&'static str),
    /// The provider.
    #[error("{0}")]
    Provider(#[from] ProviderError),
    /// No HTTP client.
    #[error("{0}")]
    Outbound(#[from] OutboundError),
    /// No randomness.
    #[error("{0}")]
    Randomness(#[from] NoRandomness),
}

impl Trial {
    /// A trial of the connector of that name, or of the only one.
    ///
    /// # Errors
    /// When it is not clear which connector is meant.
    pub fn new(config: &Config, name: Option<&str>, now: OffsetDateTime) -> Result<Self, TrialError> {
        let names: Vec<&str> = config
            .connectors
            .iter()
            .map(|connector| connector.name.as_str())
            .collect();
        let connector = match (name, config.connectors.as_slice()) {
            (_, []) => return Err(TrialError::NoConnector),
            (None, [only]) => only,
            (None, _) => return Err(TrialError::WhichConnector(names.join(", "))),
            (Some(name), _) => config
                .connector(name)
                .ok_or_else(|| TrialError::NoSuchConnector(name.to_owned(), names.join(", ")))?,
        };
        let owned = config
            .connectors
            .iter()
            .flat_map(|connector| connector.domains.clone());
        let owned: BTreeSet<String> = owned.collect();
        let random = Random::system();
        Ok(Self {
            connector: connector.clone(),
            provider: Provider::new(connector.clone(), owned.clone(), config.development)?,
            owned,
            redirect_uri: format!("{}/login/callback", config.web_url()),
            cookie: Secret::fresh(&random)?,
            state: Secret::fresh(&random)?,
            started_at: now,
        })
    }

    /// The connector on trial.
    pub fn connector(&self) -> &ConnectorConfig {
        &self.connector
    }

    /// What the provider must have been told.
    pub fn redirect_uri(&self) -> &str {
        &self.redirect_uri
    }

    /// Looks at discovery, keys, algorithms and clock.
    ///
    /// # Errors
    /// When the provider cannot be asked.
    pub async fn examine(&self) -> Result<Vec<Finding>, TrialError> {
        let examined = self.provider.examine(OffsetDateTime::now_utc()).await?;
        Ok(findings(&examined))
    }

    /// Where a person signs in.
    ///
    /// # Errors
    /// When the provider cannot be discovered.
    pub async fn url(&self) -> Result<String, TrialError> {
        Ok(self.provider.authorization_url(&self.asking()).await?.into())
    }

    /// Who signed in, by the address of the page they landed on.
    ///
    /// # Errors
    /// When that is not the address, or the provider is not believed.
    pub async fn landed(&self, address: &str, now: OffsetDateTime) -> Result<TriedOut, TrialError> {
        let wrong = || TrialError::NotTheCallback(self.redirect_uri.clone());
        let url = Url::parse(address.trim()).map_err(|_| wrong())?;
        let parameter = |name: &str| {
            url.query_pairs()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        let state = parameter("state").ok_or_else(wrong)?;
        if !Secret::presented(&state).matches(Some(&self.state.hash())) {
            return Err(TrialError::OtherTry);
        }
        if let Some(error) = parameter("error") {
            let description = parameter("error_description");
            return Err(refusal_error(&error, description.as_deref()).into());
        }
        let code = parameter("code").ok_or_else(wrong)?;
        let issuer = parameter("iss");
        let answered = Answered {
            code: &code,
            issuer: issuer.as_deref(),
            started_at: self.started_at,
        };
        let claims = self.provider.claims(&self.asking(), &answered).await?;
        Ok(self.outcome(claims.shown(), claims, now))
    }

    /// Who an ID token is about. Nothing of it is verified.
    ///
    /// # Errors
    /// When it is none.
    pub fn of_token(&self, token: &str, now: OffsetDateTime) -> Result<TriedOut, TrialError> {
        let payload = token
            .trim()
            .split('.')
            .nth(1)
            .ok_or(TrialError::NotIn("signed token"))?;
        let payload = URL_SAFE_NO_PAD
            .decode(payload.trim_end_matches('='))
            .map_err(|_| TrialError::NotIn("signed token"))?;
        self.of_claims(&payload, now)
    }

    /// Who these claims, a JSON object, are about. Nothing of them is verified.
    ///
    /// # Errors
    /// When they are none.
    pub fn of_claims(&self, payload: &[u8], now: OffsetDateTime) -> Result<TriedOut, TrialError> {
        let payload: Map<String, Value> =
            serde_json::from_slice(payload).map_err(|_| TrialError::NotIn("JSON object of claims"))?;
        let claims = Claims::of_payload(&payload);
        Ok(self.outcome(payload, claims, now))
    }

    fn outcome(&self, shown: Map<String, Value>, claims: Claims, now: OffsetDateTime) -> TriedOut {
        TriedOut {
            claims: redacted(shown),
            identity: claims.identity(&self.connector, &self.owned, now),
        }
    }

    fn asking(&self) -> Asking<'_> {
        Asking {
            redirect_uri: &self.redirect_uri,
            state: &self.state,
            cookie: &self.cookie,
            prompt_login: false,
            acr_values: Vec::new(),
        }
    }
}

fn redacted(mut claims: Map<String, Value>) -> Map<String, Value> {
    for (name, value) in &mut claims {
        if SECRET_CLAIMS.contains(&name.as_str()) {
            *value = Value::String(REDACTED.to_owned());
        }
    }
    claims
}

fn findings(examined: &Examined) -> Vec<Finding> {
    let finding = |what, good, seen| Finding { what, good, seen };
    let algorithms = if examined.algorithms.is_empty() {
        finding(
            "algorithms",
            true,
            "the provider does not say; RS256 is what OpenID Connect has by default".to_owned(),
        )
    } else if examined.accepted.is_empty() {
        let seen = format!(
            "{}: none is accepted here; let the provider sign with RS256 or ES256",
            examined.algorithms.join(", ")
        );
        finding("algorithms", false, seen)
    } else {
        finding("algorithms", true, examined.accepted.join(", "))
    };
    let clock = match examined.ahead_seconds {
        None => finding(
            "clock",
            true,
            "the provider does not say what time it is".to_owned(),
        ),
        Some(ahead) if ahead.abs() <= CLOCK_SECONDS_MAX => {
            finding("clock", true, format!("{ahead} s from the provider's"))
        }
        Some(ahead) => finding(
            "clock",
            false,
            format!("the provider's is {ahead} s from ours; set this host's clock (NTP)"),
        ),
    };
    let pkce = if examined.has_pkce {
        "S256"
    } else {
        "not advertised; it is sent all the same"
    };
    let keys = match examined.key_ids.as_slice() {
        [] => format!("{}: none has an id", examined.keys),
        ids => format!("{}: {}", examined.keys, ids.join(", ")),
    };
    vec![
        finding("discovery", true, examined.discovery.clone()),
        finding("keys", true, keys),
        algorithms,
        finding("PKCE", true, pkce.to_owned()),
        clock,
    ]
}
