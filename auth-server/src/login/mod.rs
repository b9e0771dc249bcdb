//! Login through OpenID Connect providers: from a key's hash to a certificate that says who holds the key.
//!
//! One login, in reading order: `start` (iapctl asks) → `open` (a browser comes, and goes to the provider)
//! → `callback` (the provider's answer) → `approve` (our page, one POST) → `finish` (the one-time code and
//! the key's proof of possession become a certificate). `device` and `wait` are the headless detour.
//! Afterwards `vouch` asks the provider again, at renewals and for `recheck`; `regroup` is what follows from it.
//! `provider` is the relying party, `outbound` its only way to the network, `secrets` what a login hangs on,
//! `seal` keeps refresh tokens.
//!
//! What a thief of each secret has: with the URL alone, a login that ends at its owner's loopback port; with
//! the browser's cookie, the right to approve; with the one-time code, nothing without the key.

mod addresses;
mod approve;
mod callback;
mod claims;
mod device;
mod finish;
mod open;
mod outbound;
mod provider;
mod recheck;
mod regroup;
mod rpc;
mod seal;
mod secrets;
mod start;
mod step;
mod trial;
mod tries;
mod vouch;
mod wait;
mod words;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use iap_audit::{EventKind, UserRecord};
use iap_identity::{LoginId, UserId};
use time::Duration;
use tokio::sync::watch;

use crate::context::AppContext;
use crate::store::{LoginChange, LoginMethod, LoginRow, LoginState, StoreError};

pub use approve::{Approval, Decision, Outcome};
pub use callback::ProviderAnswer;
pub use claims::ClaimsError;
pub use finish::{FinishError, Finished};
pub use open::{Choice, Opened};
pub use outbound::OutboundError;
pub use provider::ProviderError;
pub use rpc::LoginRpc;
pub use seal::{KEY_FILE, SealKeys};
pub use start::{StartError, StartRequest, Started};
pub use step::{Cookies, StepError};
pub use trial::{Finding, Trial, TrialError, TriedOut};
pub(crate) use tries::Tries;
pub use vouch::Vouching;
pub(crate) use vouch::ourselves;
pub use wait::{WaitError, Waited};

use provider::Provider;
use vouch::{Turns, Unanswered};

/// From start to the end of the approval, in the browser.
const LOGIN_LIFE: Duration = Duration::minutes(10);
/// The same, for a code typed on another device.
const HEADLESS_LIFE: Duration = Duration::minutes(5);
/// From approval to `Login.Finish`.
const CODE_LIFE: Duration = Duration::minutes(2);
/// How long an expired login is remembered, so that a late replay can still be attributed.
const REMEMBERED: Duration = Duration::hours(1);
/// Wrong user codes from one source before it has to wait.
const USER_CODE_TRIES_MAX: u32 = 5;
/// Started logins from one source before it has to wait.
const STARTS_MAX: u32 = 300;
/// Wrong one-time codes from one source, of whatever logins, before it has to wait.
const CODE_TRIES_MAX: u32 = 100;
/// The time in which the three above are counted.
const TRIES_WINDOW: std::time::Duration = std::time::Duration::from_secs(300);
/// Wrong one-time codes, poll secrets and callbacks of one login before it is over.
const LOGIN_TRIES_MAX: u32 = 5;

/// The login service: everything behind `Login` at `auth.<cluster>` and behind the pages at `<cluster>`.
#[derive(Debug)]
pub struct Logins {
    context: Arc<AppContext>,
    providers: Vec<Provider>,
    /// Bumped whenever a login of this process changes; the store is asked now and then for the others.
    changed: watch::Sender<u64>,
    user_codes: Tries,
    starts: Tries,
    codes: Tries,
    turns: Turns<LoginId>,
    person_turns: Turns<UserId>,
    unanswered: Unanswered,
}

impl Logins {
    /// A service for the connectors in the configuration. Nothing is fetched before the first login.
    ///
    /// # Errors
    /// When the operating system's trusted roots cannot be read.
    pub fn new(context: Arc<AppContext>) -> Result<Self, OutboundError> {
        let owned: BTreeSet<String> = context
            .config
            .connectors
            .iter()
            .flat_map(|connector| connector.domains.clone())
            .collect();
        let development = context.config.development;
        let providers = context
            .config
            .connectors
            .iter()
            .map(|connector| Provider::new(connector.clone(), owned.clone(), development))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            context,
            providers,
            changed: watch::Sender::new(0),
            user_codes: Tries::new(USER_CODE_TRIES_MAX, TRIES_WINDOW),
            starts: Tries::new(STARTS_MAX, TRIES_WINDOW),
            codes: Tries::new(CODE_TRIES_MAX, TRIES_WINDOW),
            turns: Turns::default(),
            person_turns: Turns::default(),
            unanswered: Unanswered::default(),
        })
    }

    /// What the pages need besides logins.
    pub fn context(&self) -> &Arc<AppContext> {
        &self.context
    }

    fn provider(&self, name: &str) -> Option<&Provider> {
        self.providers.iter().find(|provider| provider.name() == name)
    }

    /// Our callback, as registered at every provider.
    fn redirect_uri(&self) -> String {
        format!("{}/login/callback", self.context.config.web_url())
    }

    /// The login of that id, if it is known and not over its time.
    async fn live(&self, id: LoginId) -> Result<Option<LoginRow>, StoreError> {
        let now = self.context.clock.now();
        Ok(self
            .context
            .store
            .login(id)
            .await?
            .filter(|row| row.expires_at > now))
    }

    /// Ends a login with a reason for the record and words for the person. Of several who end it at once,
    /// one writes the record.
    async fn deny(&self, row: &LoginRow, reason: &str, why: &str) {
        let change = LoginChange::Denied { why: why.to_owned() };
        let now = self.context.clock.now();
        match self
            .context
            .store
            .advance_login(row.login_id, row.state, now, change)
            .await
        {
            Ok(Some(_)) => {
                self.changed.send_modify(|version| *version += 1);
                self.record_failure(row, reason, why).await;
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, login_id = %row.login_id, "a login could not be ended"),
        }
    }

    /// Records what went wrong without ending the login, at most [`LOGIN_TRIES_MAX`] times; the last one ends it.
    /// Nothing is written beyond them, however often strangers come back.
    async fn count_wrong(&self, row: &LoginRow, reason: &str, why: &str) {
        if row.tries >= LOGIN_TRIES_MAX {
            return;
        }
        match self.context.store.count_login_try(row.login_id).await {
            Ok(tries) if tries < LOGIN_TRIES_MAX => self.record_failure(row, reason, why).await,
            Ok(LOGIN_TRIES_MAX) => match row.state {
                LoginState::Finished | LoginState::Denied => self.record_failure(row, reason, why).await,
                LoginState::Started
                | LoginState::AtProvider
                | LoginState::Exchanging
                | LoginState::Identified
                | LoginState::Approved => self.deny(row, reason, why).await,
            },
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, login_id = %row.login_id, "a wrong try could not be counted")
            }
        }
    }

    /// Writes `login.failure`. A failure that cannot be recorded still fails, so the error only goes to the log.
    async fn record_failure(&self, row: &LoginRow, reason: &str, detail: &str) {
        tracing::info!(login_id = %row.login_id, reason, detail, "login failed");
        let event = match self.context.audit.event(EventKind::LoginFailure) {
            Ok(event) => event,
            Err(error) => return tracing::error!(%error, "no record of a failed login"),
        };
        let mut event = described(event, row).reason(reason).field("detail", detail);
        if let Some(identity) = &row.identity {
            event = event.user(&user_record(identity));
        }
        if let Err(error) = self.context.audit.record(event).await {
            tracing::error!(%error, login_id = %row.login_id, "no record of a failed login");
        }
    }
}

/// The fields that every record of a login has.
fn described(event: iap_audit::Event, row: &LoginRow) -> iap_audit::Event {
    let event = event
        .login_id(&row.login_id)
        .field("login_method", row.method.as_str())
        .field("client_ip", row.client_address.to_canonical().to_string())
        .field("host_name", row.host_name.as_str());
    match &row.connector {
        Some(connector) => event.field("connector", connector.as_str()),
        None => event,
    }
}

fn user_record(identity: &crate::store::Identity) -> UserRecord {
    UserRecord {
        id: identity.user_id.to_string(),
        name: identity.name.clone(),
        kind: "user".to_owned(),
    }
}

/// The key under which a source's tries are counted: an IPv4 address, or an IPv6 /64.
pub(crate) fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::MAX << 64);
            IpAddr::V6(network.into())
        }
    }
}

/// Whether the person must prove to the provider anew who they are: because that was asked for, or because a
/// code typed elsewhere may have been handed over by somebody else. A provider's standing session would wave
/// either through.
fn prompts(row: &LoginRow) -> bool {
    match row.method {
        LoginMethod::Headless => true,
        LoginMethod::Browser | LoginMethod::NoBrowser => row.proof.is_anything(),
    }
}
