//! What the steps in the browser share: cookies, and the reasons a step is not taken.

use iap_identity::LoginId;
use time::OffsetDateTime;

use super::provider::ProviderError;
use super::secrets::Secret;
use crate::context::NoRandomness;
use crate::store::{LoginState, StoreError};

/// The most cookies of a request that are looked at.
const COOKIES_MAX: usize = 64;
/// The cookie of a browser that went to the provider; the login's id follows.
const LOGIN_COOKIE: &str = "__Host-iap-login-";
/// The cookie of a browser in which a login's user code was typed.
const CODE_COOKIE: &str = "__Host-iap-code-";

/// Why a page cannot go on. The page says what failed, why, and what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StepError {
    /// No such login, a wrong secret, or over its time. These look alike on purpose.
    #[error("this login is unknown, or its time is over")]
    Unknown,
    /// The step was taken already, or another one is due.
    #[error("this step of the login has been taken already")]
    Taken,
    /// The cookie that binds the login to a browser is missing or another one's.
    #[error("this login was begun in another browser")]
    OtherBrowser,
    /// The provider's answer does not belong to a login of ours.
    #[error("the identity provider's answer does not belong to a login that is under way here")]
    UnknownAnswer,
    /// The provider could not be asked, refused, or is not believed.
    #[error("the identity provider `{connector}` did not vouch for you: {}", .error.for_person())]
    Provider {
        /// Which.
        connector: String,
        /// Why.
        error: ProviderError,
    },
    /// A connector that is not configured.
    #[error("there is no identity provider of that name here")]
    UnknownConnector,
    /// The approval was not sent by our page.
    #[error("the approval was not sent by the approval page")]
    Forged,
    /// A user code that is not of a login under way.
    #[error("no login waits for this code")]
    WrongCode,
    /// Too many wrong user codes.
    #[error("too many wrong codes were typed")]
    TooManyTries,
    /// Ours, passing.
    #[error("the auth server cannot go on at the moment")]
    Unavailable,
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "a login's step failed");
        StepError::Unavailable
    }
}

impl From<NoRandomness> for StepError {
    fn from(error: NoRandomness) -> Self {
        tracing::error!(%error, "a login's step failed");
        StepError::Unavailable
    }
}

/// A cookie that a page sets.
pub struct SetCookie {
    name: String,
    value: Secret,
    seconds: i64,
}

impl SetCookie {
    pub(super) fn login(login: LoginId, value: Secret, now: OffsetDateTime, until: OffsetDateTime) -> Self {
        Self {
            name: format!("{LOGIN_COOKIE}{login}"),
            value,
            seconds: (until - now).whole_seconds(),
        }
    }

    pub(super) fn code(login: LoginId, value: Secret, now: OffsetDateTime, until: OffsetDateTime) -> Self {
        Self {
            name: format!("{CODE_COOKIE}{login}"),
            value,
            seconds: (until - now).whole_seconds(),
        }
    }

    /// The header's value. `__Host-`: this host alone, whole, over TLS (RFC 6265bis §4.1.3.2). `Lax`,
    /// because the provider's redirect comes from another site.
    pub fn header(&self) -> String {
        let Self { name, value, seconds } = self;
        format!(
            "{name}={}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax",
            value.expose()
        )
    }
}

/// The cookies of a request.
#[derive(Default)]
pub struct Cookies(Vec<(String, String)>);

impl Cookies {
    /// Reads `Cookie` headers.
    pub fn read<'a>(headers: impl Iterator<Item = &'a str>) -> Self {
        let pairs = headers
            .flat_map(|header| header.split(';'))
            .take(COOKIES_MAX)
            .filter_map(|pair| {
                let (name, value) = pair.trim().split_once('=')?;
                Some((name.to_owned(), value.to_owned()))
            });
        Self(pairs.collect())
    }

    pub(super) fn of_login(&self, login: LoginId) -> Option<Secret> {
        self.value(&format!("{LOGIN_COOKIE}{login}"))
    }

    pub(super) fn of_code(&self, login: LoginId) -> Option<Secret> {
        self.value(&format!("{CODE_COOKIE}{login}"))
    }

    /// The logins this browser says it is in the midst of.
    pub(super) fn logins(&self) -> impl Iterator<Item = LoginId> {
        self.0
            .iter()
            .filter_map(|(name, _)| LoginId::parse(name.strip_prefix(LOGIN_COOKIE)?).ok())
    }

    fn value(&self, wanted: &str) -> Option<Secret> {
        self.0
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| Secret::presented(value))
    }
}

/// What a page that comes too late, or twice, is told.
pub(super) fn not_in(state: LoginState) -> StepError {
    match state {
        LoginState::Started
        | LoginState::AtProvider
        | LoginState::Exchanging
        | LoginState::Identified
        | LoginState::Approved
        | LoginState::Finished => StepError::Taken,
        LoginState::Denied => StepError::Unknown,
    }
}
