//! What the provider remembers: codes and access tokens, for minutes, in memory.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::signing::SigningKey;
use super::{ProviderUser, Settings};

/// How long a code, and an access token, may be used.
const LIFE: Duration = Duration::from_secs(120);
/// The most codes, and access tokens, held at a time.
const HELD_MAX: usize = 10_000;

pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) key: SigningKey,
    codes: Held<Grant>,
    tokens: Held<ProviderUser>,
}

/// An authorization request (OpenID Connect Core §3.1.2.1 and RFC 7636 §4.3).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AuthorizationRequest {
    pub(super) response_type: String,
    pub(super) client_id: String,
    pub(super) redirect_uri: String,
    pub(super) scope: String,
    pub(super) state: String,
    pub(super) nonce: String,
    pub(super) code_challenge: String,
    pub(super) code_challenge_method: String,
}

/// What a code stands for.
pub(super) struct Grant {
    pub(super) request: AuthorizationRequest,
    pub(super) user: ProviderUser,
}

impl State {
    pub(super) fn new(settings: Settings, key: SigningKey) -> Self {
        Self {
            settings,
            key,
            codes: Held::default(),
            tokens: Held::default(),
        }
    }

    /// The user whose email, or the part before the `@`, is this.
    pub(super) fn user(&self, name: &str) -> Option<&ProviderUser> {
        self.settings
            .users
            .iter()
            .find(|user| user.email == name || user.local() == name)
    }

    /// Nothing is sent to an address that the client did not register.
    pub(super) fn accepts(&self, request: &AuthorizationRequest) -> Result<(), &'static str> {
        if request.client_id != self.settings.client_id {
            return Err("unknown client");
        }
        if !self.settings.redirect_uris.contains(&request.redirect_uri) {
            return Err("this redirect address is not registered");
        }
        if request.response_type != "code" || !request.scope.split(' ').any(|scope| scope == "openid") {
            return Err("only the code flow of OpenID Connect is spoken here");
        }
        if request.code_challenge.is_empty() || request.code_challenge_method != "S256" {
            return Err("PKCE with S256 is required");
        }
        Ok(())
    }

    pub(super) fn issue_code(&self, grant: Grant) -> Option<String> {
        self.codes.put(grant)
    }

    /// What the code stands for, once.
    pub(super) fn redeem_code(&self, code: &str) -> Option<Grant> {
        self.codes.take(code)
    }

    pub(super) fn issue_token(&self, user: ProviderUser) -> Option<String> {
        self.tokens.put(user)
    }

    pub(super) fn token_user(&self, token: &str) -> Option<ProviderUser> {
        self.tokens.peek(token)
    }
}

/// Values under random names, forgotten after [`LIFE`].
struct Held<T>(Mutex<HashMap<String, (Instant, T)>>);

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Held<T> {
    /// The value's new name; none when too many are held or there is no randomness.
    fn put(&self, value: T) -> Option<String> {
        let mut random = [0_u8; 32];
        aws_lc_rs::rand::fill(&mut random).ok()?;
        let name = URL_SAFE_NO_PAD.encode(random);
        let mut held = self.0.lock().ok()?;
        held.retain(|_, (since, _)| since.elapsed() < LIFE);
        if held.len() >= HELD_MAX {
            return None;
        }
        held.insert(name.clone(), (Instant::now(), value));
        Some(name)
    }

    fn take(&self, name: &str) -> Option<T> {
        let (since, value) = self.0.lock().ok()?.remove(name)?;
        (since.elapsed() < LIFE).then_some(value)
    }
}

impl<T: Clone> Held<T> {
    fn peek(&self, name: &str) -> Option<T> {
        let held = self.0.lock().ok()?;
        held.get(name)
            .filter(|(since, _)| since.elapsed() < LIFE)
            .map(|(_, value)| value.clone())
    }
}
