//! The development plane's identity provider: a small OpenID Connect provider without passwords.
//!
//! Whoever can reach it can be anybody, so it exists for loopback alone: [`serve`] refuses any other issuer
//! and any other listener. It speaks the authorization code flow with PKCE to one confidential client.

mod endpoints;
mod pages;
mod signing;
mod state;

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use reqwest::Url;
use tokio::net::TcpListener;

use self::signing::SigningKey;
use self::state::State;

/// Someone who can log in by pressing a button.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderUser {
    /// Also the subject: stable across restarts.
    pub email: String,
    /// The `groups` claim.
    pub groups: Vec<String>,
}

impl ProviderUser {
    /// A user with a verified email.
    pub fn new(email: &str, groups: Vec<String>) -> Self {
        Self {
            email: email.to_owned(),
            groups,
        }
    }

    /// The part before the `@`: `preferred_username`, and what the login form sends.
    pub fn local(&self) -> &str {
        self.email.split('@').next().unwrap_or(&self.email)
    }
}

/// What the provider serves.
#[derive(Clone)]
pub struct Settings {
    /// `http://127.0.0.1:PORT`; only loopback is accepted.
    pub issuer: String,
    /// The one client.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
    /// Where codes may be sent, compared as exact text.
    pub redirect_uris: Vec<String>,
    /// Who can log in.
    pub users: Vec<ProviderUser>,
}

/// Why the provider does not run.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The issuer is not on this machine.
    #[error("the development identity provider only serves loopback, not `{0}`: it asks for no password")]
    NotLoopback(String),
    /// The signing key could not be made.
    #[error("no signing key for the development identity provider: {0}")]
    Key(String),
    /// The listener failed.
    #[error("the development identity provider cannot listen: {0}")]
    Listen(#[from] std::io::Error),
}

/// Serves the provider until `shutdown` completes.
///
/// # Errors
/// When issuer or listener are not loopback, or listening fails.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ProviderError> {
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        return Err(ProviderError::NotLoopback(address.to_string()));
    }
    if !is_loopback(&settings.issuer) {
        return Err(ProviderError::NotLoopback(settings.issuer));
    }
    let state = Arc::new(State::new(settings, SigningKey::generate()?));
    axum::serve(listener, endpoints::router(state))
        .with_graceful_shutdown(shutdown)
        .await?;
    Ok(())
}

fn is_loopback(issuer: &str) -> bool {
    let Ok(url) = Url::parse(issuer) else {
        return false;
    };
    let host = url.host_str().unwrap_or_default();
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
