//! Verification of an ID token (OpenID Connect Core §3.1.3.7), with the `openidconnect` crate's verifier.
//!
//! Only asymmetric algorithms are allowed, and the verifier is never given the client secret: a token
//! without signature, or with an HMAC keyed by something public, has nothing to be verified with.

use openidconnect::core::{
    CoreGenderClaim, CoreJsonWebKey, CoreJsonWebKeySet, CoreJweContentEncryptionAlgorithm,
    CoreJwsSigningAlgorithm,
};
use openidconnect::{
    ClaimsVerificationError, ClientId, IdToken, IdTokenClaims, IdTokenVerifier, IssuerUrl, Nonce,
    SignatureVerificationError,
};
use time::OffsetDateTime;

use super::super::claims::{Claims, OtherClaims};
use crate::config::ConnectorConfig;
use crate::store::hash_of;

/// Signatures that are accepted.
pub(super) const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];
/// How far in the future a provider's clock may be.
const ISSUED_AHEAD_SECONDS_MAX: i64 = 300;

/// What the nonce has to be.
#[derive(Clone, Copy)]
pub(super) enum NonceRule<'a> {
    /// This one: the token answers a login.
    Is(&'a str),
    /// This one, or none: the token came of a refresh (OpenID Connect Core §12.2).
    IsIfPresent(&'a str),
}

/// Why an ID token is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    /// Signed by a key that is not in the set we have: it may be a new one.
    #[error("no key of the provider made its signature")]
    UnknownKey,
    /// Not a signed token.
    #[error("it is not a signed token ({0})")]
    Unreadable(String),
    /// Signature or claims are wrong.
    #[error("{0}")]
    Wrong(String),
    /// The configured issuer is not a URL.
    #[error("the connector's issuer is not a URL")]
    Issuer,
}

type SignedToken =
    IdToken<OtherClaims, CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm>;
type SignedClaims = IdTokenClaims<OtherClaims, CoreGenderClaim>;
type Verifier<'a> = IdTokenVerifier<'a, CoreJsonWebKey>;

/// What the token says, once it is known to be the provider's, for us, for this login, and current.
/// `authenticated_since`: if the provider says when the person authenticated, it must be since then.
pub(super) fn verify(
    connector: &ConnectorConfig,
    keys: &CoreJsonWebKeySet,
    id_token: &str,
    nonce: NonceRule<'_>,
    authenticated_since: Option<OffsetDateTime>,
) -> Result<Claims, TokenError> {
    let token: SignedToken = id_token
        .parse()
        .map_err(|error: serde_json::Error| unreadable(&error))?;
    let issuer = IssuerUrl::new(connector.issuer.clone()).map_err(|_| TokenError::Issuer)?;
    let verifier =
        Verifier::new_public_client(ClientId::new(connector.client_id.clone()), issuer, keys.clone())
            .set_allowed_algs(ALGORITHMS)
            .set_issue_time_verifier_fn(|issued| {
                let ahead = issued.timestamp() - OffsetDateTime::now_utc().unix_timestamp();
                if ahead > ISSUED_AHEAD_SECONDS_MAX {
                    Err("it was issued in the future".to_owned())
                } else {
                    Ok(())
                }
            })
            .set_auth_time_verifier_fn(move |told| match (authenticated_since, told) {
                (None, _) => Ok(()),
                (Some(since), Some(at)) if at.timestamp() >= since.unix_timestamp() => Ok(()),
                (Some(_), Some(_)) => Err("the person was asked to sign in anew and did not".to_owned()),
                // Not every provider says; asking with `prompt=login` is then all that can be done.
                (Some(_), None) => Ok(()),
            });
    let claims = token
        .claims(&verifier, |told: Option<&Nonce>| nonce.check(told))
        .map_err(|error| wrong(&error))?;
    check_authorized_party(claims, &connector.client_id)?;
    Ok(taken_over(claims))
}

impl NonceRule<'_> {
    fn check(self, told: Option<&Nonce>) -> Result<(), String> {
        match (self, told) {
            (NonceRule::Is(expected) | NonceRule::IsIfPresent(expected), Some(nonce)) => {
                match hash_of(nonce.secret().as_bytes()) == hash_of(expected.as_bytes()) {
                    true => Ok(()),
                    false => Err("nonce mismatch".to_owned()),
                }
            }
            (NonceRule::IsIfPresent(_), None) => Ok(()),
            (NonceRule::Is(_), None) => Err("missing nonce claim".to_owned()),
        }
    }
}

/// §3.1.3.7 step 5, which the crate leaves to its callers.
fn check_authorized_party(claims: &SignedClaims, client_id: &str) -> Result<(), TokenError> {
    match claims.authorized_party() {
        Some(party) if party.as_str() != client_id => Err(TokenError::Wrong(
            "it was issued to another client (`azp`)".to_owned(),
        )),
        Some(_) | None => Ok(()),
    }
}

fn taken_over(claims: &SignedClaims) -> Claims {
    Claims {
        subject: claims.subject().as_str().to_owned(),
        email: claims.email().map(|email| email.as_str().to_owned()),
        email_verified: claims.email_verified().unwrap_or(false),
        preferred_username: claims.preferred_username().map(|name| name.as_str().to_owned()),
        auth_time: claims
            .auth_time()
            .and_then(|at| OffsetDateTime::from_unix_timestamp(at.timestamp()).ok()),
        was_prompted: false,
        acr: claims.auth_context_ref().map(|class| class.as_str().to_owned()),
        amr: claims
            .auth_method_refs()
            .into_iter()
            .flatten()
            .map(|method| method.as_str().to_owned())
            .collect(),
        other: claims.additional_claims().0.clone(),
    }
}

fn unreadable(error: &serde_json::Error) -> TokenError {
    TokenError::Unreadable(error.to_string())
}

fn wrong(error: &ClaimsVerificationError) -> TokenError {
    match error {
        ClaimsVerificationError::SignatureVerification(SignatureVerificationError::NoMatchingKey) => {
            TokenError::UnknownKey
        }
        ClaimsVerificationError::SignatureVerification(signature) => TokenError::Wrong(signature.to_string()),
        other => TokenError::Wrong(other.to_string()),
    }
}
