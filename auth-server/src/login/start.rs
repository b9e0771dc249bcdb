//! `Login.Start`: a program names the hash of its key and gets a URL or a code for a person.

use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use iap_identity::LoginId;
use time::OffsetDateTime;

use super::secrets::Secret;
use super::{HEADLESS_LIFE, LOGIN_LIFE, Logins, REMEMBERED, source_of, words};
use crate::context::NoRandomness;
use crate::store::{Hash, LoginMethod, LoginRow, LoginState, ProofAsked, StoreError};

/// The longest host name and user name, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// The longest version text, in bytes.
const VERSION_BYTES_MAX: usize = 64;
/// The longest authentication context class, in bytes.
const ACR_BYTES_MAX: usize = 255;
/// How often expired logins are swept out, in seconds.
const SWEEP_INTERVAL_SECONDS: i64 = 60;

/// What a program says when it starts a login. All of it is unauthenticated and shown as such.
#[derive(Clone, Debug, Default)]
pub struct StartRequest {
    /// The method's name.
    pub method: String,
    /// The connector wanted; empty: the only one, or chosen on the page.
    pub connector: String,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub key_thumbprint: Vec<u8>,
    /// The machine.
    pub host_name: String,
    /// The local account.
    pub user_name: String,
    /// The loopback port that waits for the code; 0 for headless.
    pub redirect_port: u32,
    /// The program's version.
    pub client_version: String,
    /// What the person is to prove.
    pub proof: ProofAsked,
}

/// A login under way.
pub struct Started {
    /// Its id.
    pub login_id: LoginId,
    /// What the browser opens.
    pub url: String,
    /// Three words for comparison.
    pub words: String,
    /// Headless: what is typed on another device, grouped.
    pub user_code: Option<String>,
    /// Proves who may wait for the outcome.
    pub poll_secret: String,
    /// When it is over.
    pub expires_at: OffsetDateTime,
}

/// Why no login was started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// A field that cannot be right.
    #[error("`{field}` is not usable: {why}")]
    Malformed {
        /// Which.
        field: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// The method is switched off.
    #[error("the login method `{method}` is switched off here; use {allowed}")]
    MethodOff {
        /// Asked for.
        method: &'static str,
        /// What is on.
        allowed: String,
    },
    /// No such connector.
    #[error("there is no identity provider `{0}` here; there is {1}")]
    UnknownConnector(String, String),
    /// Nothing to log in through.
    #[error(
        "no identity provider is configured; an administrator must add a [[connector]] to the auth server"
    )]
    NoConnector,
    /// Too many from one source.
    #[error("too many logins were started from this address; wait a few minutes")]
    TooMany,
    /// Ours, passing.
    #[error("the auth server cannot start a login at the moment")]
    Unavailable,
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "a login could not be started");
        StartError::Unavailable
    }
}

impl From<NoRandomness> for StartError {
    fn from(error: NoRandomness) -> Self {
        tracing::error!(%error, "a login could not be started");
        StartError::Unavailable
    }
}

/// A request that makes sense.
struct Asked {
    method: LoginMethod,
    connector: Option<String>,
    key_thumbprint: Hash,
    redirect_port: u16,
}

impl Logins {
    /// Starts a login for whoever can prove possession of the key later.
    ///
    /// # Errors
    /// When the request makes no sense, is not allowed here, or comes too often.
    pub async fn start(&self, request: StartRequest, client: IpAddr) -> Result<Started, StartError> {
        let asked = self.understand(&request)?;
        self.starts
            .count(source_of(client), Instant::now())
            .map_err(|_| StartError::TooMany)?;
        let context = &self.context;
        let now = context.clock.now();
        self.sweep(now).await;
        let login_id = LoginId::from_uuid(context.random.uuid_v7(now)?);
        let poll_secret = Secret::fresh(&context.random)?;
        let (opening, life) = match asked.method {
            LoginMethod::Headless => (Secret::fresh_user_code(&context.random)?, HEADLESS_LIFE),
            LoginMethod::Browser | LoginMethod::NoBrowser => (Secret::fresh(&context.random)?, LOGIN_LIFE),
        };
        let row = LoginRow {
            login_id,
            state: LoginState::Started,
            method: asked.method,
            connector: asked.connector,
            proof: request.proof.clone(),
            key_thumbprint: asked.key_thumbprint,
            host_name: shown(&request.host_name, NAME_BYTES_MAX),
            user_name: shown(&request.user_name, NAME_BYTES_MAX),
            redirect_port: asked.redirect_port,
            client_version: shown(&request.client_version, VERSION_BYTES_MAX),
            client_address: client.to_canonical(),
            words: words::three(&context.random)?,
            created_at: now,
            expires_at: now + life,
            user_code_hash: Some(opening.hash()),
            poll_secret_hash: Some(poll_secret.hash()),
            state_hash: None,
            cookie_hash: None,
            code_hash: None,
            identity: None,
            denial: None,
            tries: 0,
        };
        context.store.create_login(&row).await?;
        Ok(self.started(row, &opening, &poll_secret))
    }

    fn started(&self, row: LoginRow, opening: &Secret, poll_secret: &Secret) -> Started {
        let web = self.context.config.web_url();
        let (url, user_code) = match row.method {
            LoginMethod::Headless => (format!("{web}/device"), Some(opening.grouped())),
            LoginMethod::Browser | LoginMethod::NoBrowser => (
                format!("{web}/login/{}?s={}", row.login_id, opening.expose()),
                None,
            ),
        };
        Started {
            login_id: row.login_id,
            url,
            words: row.words,
            user_code,
            poll_secret: poll_secret.expose().to_owned(),
            expires_at: row.expires_at,
        }
    }

    fn understand(&self, request: &StartRequest) -> Result<Asked, StartError> {
        let malformed = |field, why| StartError::Malformed { field, why };
        let method = LoginMethod::parse(&request.method)
            .ok_or(malformed("method", "browser, no-browser and headless are known"))?;
        self.check_method(method)?;
        let key_thumbprint = Hash::try_from(request.key_thumbprint.as_slice())
            .map_err(|_| malformed("key_thumbprint", "a SHA-256 has 32 bytes"))?;
        let port = u16::try_from(request.redirect_port)
            .map_err(|_| malformed("redirect_port", "a TCP port is at most 65535"))?;
        let redirect_port = match (method, port) {
            (LoginMethod::Headless, _) => 0,
            (LoginMethod::Browser | LoginMethod::NoBrowser, 0) => {
                return Err(malformed(
                    "redirect_port",
                    "a loopback port must wait for the code",
                ));
            }
            (LoginMethod::Browser | LoginMethod::NoBrowser, port) => port,
        };
        let unusable = |acr: &str| {
            acr.is_empty()
                || acr.len() > ACR_BYTES_MAX
                || acr.contains(|letter: char| letter.is_whitespace() || letter.is_control())
        };
        if request.proof.acr.as_deref().is_some_and(unusable) {
            return Err(malformed(
                "acr",
                "one class, without spaces, of at most 255 bytes",
            ));
        }
        let connector = self.connector_asked(&request.connector)?;
        Ok(Asked {
            method,
            connector,
            key_thumbprint,
            redirect_port,
        })
    }

    fn check_method(&self, method: LoginMethod) -> Result<(), StartError> {
        let allowed = &self.context.config.login.methods;
        if allowed.contains(&method) {
            return Ok(());
        }
        let allowed: Vec<&str> = allowed.iter().map(|method| method.as_str()).collect();
        Err(StartError::MethodOff {
            method: method.as_str(),
            allowed: allowed.join(" or "),
        })
    }

    fn connector_asked(&self, name: &str) -> Result<Option<String>, StartError> {
        let names: Vec<&str> = self.providers.iter().map(|provider| provider.name()).collect();
        match (name, names.as_slice()) {
            (_, []) => Err(StartError::NoConnector),
            ("", [only]) => Ok(Some((*only).to_owned())),
            ("", _) => Ok(None),
            (name, names) if names.contains(&name) => Ok(Some(name.to_owned())),
            (name, names) => Err(StartError::UnknownConnector(
                shown(name, NAME_BYTES_MAX),
                names.join(", "),
            )),
        }
    }

    /// Forgets logins long over; now and then, on the way.
    async fn sweep(&self, now: OffsetDateTime) {
        static SWEPT: AtomicI64 = AtomicI64::new(0);
        let (swept, second) = (SWEPT.load(Ordering::Relaxed), now.unix_timestamp());
        if (second - swept).abs() < SWEEP_INTERVAL_SECONDS
            || SWEPT
                .compare_exchange(swept, second, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        if let Err(error) = self.context.store.forget_logins(now - REMEMBERED).await {
            tracing::warn!(%error, "old logins could not be forgotten");
        }
    }
}

/// A text from somewhere, fit to be shown: no control characters (nor those that turn text around), not long.
fn shown(text: &str, bytes_max: usize) -> String {
    let turns = |letter: char| matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    let mut shown = String::new();
    for letter in text
        .chars()
        .filter(|letter| !letter.is_control() && !turns(*letter))
    {
        if shown.len() + letter.len_utf8() > bytes_max {
            break;
        }
        shown.push(letter);
    }
    shown
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;

    #[test]
    fn what_is_shown_is_short_and_cannot_turn_text_around() {
        assert_eq!(shown("lap\u{202e}top\n\u{0}", 64), "laptop");
        assert_eq!(shown(&"ä".repeat(64), 64).len(), 64);
    }
}
