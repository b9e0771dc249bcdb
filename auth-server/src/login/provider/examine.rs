//! What can be seen of a provider before anybody signs in.

use openidconnect::JsonWebKey as _;
use openidconnect::core::CoreJwsSigningAlgorithm;
use serde::Deserialize;
use time::OffsetDateTime;

use super::super::outbound::{Answer, Ask};
use super::token::ALGORITHMS;
use super::{Provider, ProviderError};

/// A provider, looked at.
#[derive(Clone, Debug)]
pub(crate) struct Examined {
    /// Where its discovery document is.
    pub(crate) discovery: String,
    /// Where its keys are.
    pub(crate) keys: String,
    /// The ids of its keys.
    pub(crate) key_ids: Vec<String>,
    /// The algorithms with which it signs ID tokens, as it says.
    pub(crate) algorithms: Vec<String>,
    /// Those of them that are accepted here.
    pub(crate) accepted: Vec<String>,
    /// Whether it says that it knows PKCE with S256.
    pub(crate) has_pkce: bool,
    /// How far its clock is ahead of ours, in seconds, if it says what time it is.
    pub(crate) ahead_seconds: Option<i64>,
}

#[derive(Deserialize)]
struct Advertised {
    #[serde(default)]
    id_token_signing_alg_values_supported: Vec<String>,
    #[serde(default)]
    code_challenge_methods_supported: Vec<String>,
}

impl Provider {
    /// Fetches its discovery document and keys, and compares clocks.
    ///
    /// # Errors
    /// When it cannot be asked, or is another provider than the connector says.
    pub(crate) async fn examine(&self, now: OffsetDateTime) -> Result<Examined, ProviderError> {
        let discovery = self.discovery()?;
        let answer: Answer = self.outbound.send(&discovery, Ask::Get).await?;
        let ahead_seconds = answer.date.map(|date| (date - now).whole_seconds());
        let advertised: Advertised = answer.document()?;
        let description = self.description().await?;
        let algorithms = advertised.id_token_signing_alg_values_supported;
        let known: Vec<String> = ALGORITHMS.iter().filter_map(written).collect();
        Ok(Examined {
            discovery: discovery.into(),
            keys: description.jwks_uri.clone().into(),
            key_ids: description
                .keys
                .keys()
                .iter()
                .filter_map(|key| key.key_id().map(|id| id.to_string()))
                .collect(),
            accepted: algorithms
                .iter()
                .filter(|name| known.contains(name))
                .cloned()
                .collect(),
            algorithms,
            has_pkce: advertised
                .code_challenge_methods_supported
                .iter()
                .any(|method| method == "S256"),
            ahead_seconds,
        })
    }
}

/// The name of RFC 7518 §3.1.
fn written(algorithm: &CoreJwsSigningAlgorithm) -> Option<String> {
    let value = serde_json::to_value(algorithm).ok()?;
    value.as_str().map(str::to_owned)
}
