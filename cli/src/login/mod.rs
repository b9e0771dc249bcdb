//! Logging in: a key is made here, the person proves who they are in a browser, and the auth server
//! certifies the key.
//!
//! `start → (browser, loopback | headless) → finish`. The login is bound to the key's hash from the first
//! message on, so that a code is worth nothing to anybody who does not hold the key.

mod browser;
mod finish;
mod loopback;
mod start;

use std::fs::File;
use std::time::Duration;

use iap_tunnel::StepUp;
use time::OffsetDateTime;

use crate::address::ClusterAddress;
use crate::context::Context;
use crate::failure::Failure;
use crate::home::{ClusterHome, Home};
use crate::identity::{self, Identity, Standing};
use crate::printer::Printer;
use crate::renewer;
use crate::trust::{self, Trust};

pub use finish::store;
pub use start::{Method, Started};

/// A renewal takes the lock for a moment; a login for longer is worth a word.
const QUIET_WAIT: Duration = Duration::from_secs(2);
/// The auth server's clock may be that much behind ours when it says that somebody has just logged in.
const SHARED_SECONDS_MAX: time::Duration = time::Duration::seconds(60);

/// How to log in.
#[derive(Clone, Debug, Default)]
pub struct LoginRequest {
    /// How the person reaches the identity provider.
    pub method: Method,
    /// The identity provider's name; empty for the only one.
    pub connector: String,
    /// What the person is to prove beyond what the provider asks of everybody.
    pub proof: Proof,
    /// Whether the URL may go to stdout as well, for programs.
    pub url_on_stdout: bool,
}

/// What a login is to prove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Who one is, anew, whatever session there is at the provider.
    pub fresh: bool,
    /// With several factors.
    pub mfa: bool,
    /// Of this authentication context class.
    pub acr: Option<String>,
}

impl From<&StepUp> for Proof {
    fn from(needed: &StepUp) -> Self {
        Self {
            fresh: true,
            mfa: needed.mfa,
            acr: needed.acr.clone(),
        }
    }
}

/// Logs in with a person at the other end.
///
/// # Errors
/// Why it failed; denied when the person or the provider said no.
pub async fn run(
    context: &Context,
    address: &ClusterAddress,
    trust: Trust,
    request: LoginRequest,
) -> anyhow::Result<Identity> {
    let home = &context.home;
    let printer = context.printer.clone();
    if request.method == Method::Headless {
        return Box::pin(headless(home, address, trust, &request, &printer)).await;
    }
    let opener = {
        let (printer, request) = (printer.clone(), request.clone());
        async move |started: &Started| {
            browser::show(&printer, &request, started);
            Ok(())
        }
    };
    Box::pin(through_browser(home, address, trust, &request, opener)).await
}

/// Logs in with a program in the browser's place: `browser` is given the URL and does what a person would,
/// at the identity provider named `connector`.
///
/// # Errors
/// Why it failed.
pub async fn run_with_browser(
    home: &Home,
    address: &ClusterAddress,
    trust: Trust,
    connector: &str,
    browser: impl AsyncFnOnce(String) -> anyhow::Result<()>,
) -> anyhow::Result<Identity> {
    let request = LoginRequest {
        method: Method::Browser,
        connector: connector.to_owned(),
        ..LoginRequest::default()
    };
    let opener = async move |started: &Started| browser(started.url.clone()).await;
    Box::pin(through_browser(home, address, trust, &request, opener)).await
}

/// Logs in again to a cluster that is known, as an expired login on a terminal asks for. Several at once
/// share one login: whoever waited for the lock finds it done.
///
/// # Errors
/// Why it failed.
pub async fn again(context: &Context, home: &ClusterHome) -> anyhow::Result<Identity> {
    let turn = turn(home, &context.printer).await?;
    if let Standing::Valid(identity) = identity::load(home, OffsetDateTime::now_utc())? {
        return Ok(*identity);
    }
    renewing(
        context,
        home,
        log_in_again(context, home, turn, Proof::default()).await?,
    )
    .await
}

/// Logs in again although the login is valid: the auth server wants a fresh one. Shared as well: a login that
/// was made while this waited is fresh.
///
/// # Errors
/// Why it failed.
pub async fn forced(context: &Context, home: &ClusterHome) -> anyhow::Result<Identity> {
    let turn = turn(home, &context.printer).await?;
    let is_fresh = |shared: &Identity| shared.peer.auth_time >= turn.asked_at - SHARED_SECONDS_MAX;
    if let Some(shared) = turn.shared(home)?.filter(is_fresh) {
        return Ok(shared);
    }
    let proof = Proof {
        fresh: true,
        ..Proof::default()
    };
    renewing(context, home, log_in_again(context, home, turn, proof).await?).await
}

/// Logs in again with the proof that a rule asks for.
///
/// # Errors
/// Why it failed.
pub async fn step_up(context: &Context, home: &ClusterHome, needed: &StepUp) -> anyhow::Result<Identity> {
    let turn = turn(home, &context.printer).await?;
    renewing(
        context,
        home,
        log_in_again(context, home, turn, needed.into()).await?,
    )
    .await
}

/// The right to log in to a cluster, one at a time on this home.
pub struct Turn {
    _lock: File,
    asked_at: OffsetDateTime,
    waited: bool,
}

/// Waits until nobody else logs in or renews here.
///
/// # Errors
/// When the home cannot be used.
pub async fn turn(home: &ClusterHome, printer: &Printer) -> anyhow::Result<Turn> {
    let asked_at = OffsetDateTime::now_utc();
    if let Some(lock) = home.try_lock()? {
        return Ok(Turn {
            _lock: lock,
            asked_at,
            waited: false,
        });
    }
    let waiting = home.lock();
    tokio::pin!(waiting);
    let lock = match tokio::time::timeout(QUIET_WAIT, &mut waiting).await {
        Ok(lock) => lock?,
        Err(_) => {
            printer.talk("Another iapctl is logging in here; waiting for it.");
            waiting.await?
        }
    };
    Ok(Turn {
        _lock: lock,
        asked_at,
        waited: true,
    })
}

impl Turn {
    /// The login that somebody else made while this waited.
    ///
    /// # Errors
    /// When the home cannot be read.
    pub fn shared(&self, home: &ClusterHome) -> anyhow::Result<Option<Identity>> {
        if !self.waited {
            return Ok(None);
        }
        match identity::load(home, OffsetDateTime::now_utc())? {
            Standing::Valid(identity) if begun(&identity) >= self.asked_at - SHARED_SECONDS_MAX => {
                Ok(Some(*identity))
            }
            Standing::Valid(_) | Standing::NoLogin(_) => Ok(None),
        }
    }
}

/// When a login was begun; its id is a UUIDv7. The provider may have seen the person long before.
fn begun(identity: &Identity) -> OffsetDateTime {
    let stamp = identity.peer.login_id.as_uuid().get_timestamp();
    let seconds = stamp.and_then(|stamp| i64::try_from(stamp.to_unix().0).ok());
    seconds
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(identity.peer.auth_time)
}

/// Leaves a renewer running, unless the person does not want one. A login without one is a login all the same.
///
/// # Errors
/// When the home cannot be read.
pub async fn renewing(context: &Context, home: &ClusterHome, identity: Identity) -> anyhow::Result<Identity> {
    if home.record()?.is_none_or(|record| !record.no_renew)
        && let Err(error) = renewer::start(&context.home, home).await
    {
        context
            .printer
            .warn(&format!("nothing renews in the background: {error:#}"));
    }
    Ok(identity)
}

async fn log_in_again(
    context: &Context,
    home: &ClusterHome,
    _turn: Turn,
    proof: Proof,
) -> anyhow::Result<Identity> {
    let record = home.record()?;
    let first = record.and_then(|record| record.addresses.into_iter().next());
    let Some(first) = first else {
        return Err(Failure::login_needed("you are not logged in")
            .next("iapctl login CLUSTER")
            .into());
    };
    let address = ClusterAddress::parse(&first)?;
    let trust = trust::establish(home, &address, None).await?;
    let request = LoginRequest {
        connector: identity::last_peer(home).map_or_else(String::new, |peer| peer.idp.connector),
        proof,
        ..LoginRequest::default()
    };
    Box::pin(run(context, &address, trust, request)).await
}

async fn through_browser(
    home: &Home,
    address: &ClusterAddress,
    trust: Trust,
    request: &LoginRequest,
    opener: impl AsyncFnOnce(&Started) -> anyhow::Result<()>,
) -> anyhow::Result<Identity> {
    let listener = loopback::Listener::bind().await?;
    let started = start::start(address, &trust, request, listener.port()).await?;
    let expected = loopback::Expected::of(&started, &trust);
    let remaining = started.remaining();
    let code = tokio::time::timeout(remaining, async {
        let waiting = listener.wait(&expected);
        tokio::pin!(waiting);
        let refusal = start::await_refusal(&started);
        tokio::pin!(refusal);
        tokio::select! {
            code = &mut waiting => return code,
            error = &mut refusal => return Err(error),
            opened = opener(&started) => opened?,
        }
        tokio::select! {
            code = &mut waiting => code,
            error = &mut refusal => Err(error),
        }
    });
    let code = code.await.map_err(|_| expired())??;
    finish::finish(home, address, &trust, started, code).await
}

async fn headless(
    home: &Home,
    address: &ClusterAddress,
    trust: Trust,
    request: &LoginRequest,
    printer: &Printer,
) -> anyhow::Result<Identity> {
    let started = start::start(address, &trust, request, 0).await?;
    browser::show_code(printer, address, &started);
    let remaining = started.remaining();
    let code = tokio::time::timeout(remaining, start::await_approval(&started))
        .await
        .map_err(|_| expired())??;
    finish::finish(home, address, &trust, started, code).await
}

fn expired() -> Failure {
    Failure::failed("the login was not completed in time").next("iapctl login")
}
