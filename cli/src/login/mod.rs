//! Logging in: a key is made here, the person proves who they are in a browser, and the auth server
//! certifies the key.
//!
//! `start → (browser, loopback | headless) → finish`. The login is bound to the key's hash from the first
//! message on, so that a code is worth nothing to anybody who does not hold the key.

mod browser;
mod finish;
mod loopback;
mod start;

use time::OffsetDateTime;

use crate::address::ClusterAddress;
use crate::context::Context;
use crate::failure::Failure;
use crate::home::Home;
use crate::identity::{self, Identity, Standing};
use crate::printer::Printer;
use crate::trust::{self, Trust};

pub use finish::store;
pub use start::{Method, Started};

/// How to log in.
#[derive(Clone, Debug, Default)]
pub struct LoginRequest {
    /// How the person reaches the identity provider.
    pub method: Method,
    /// The identity provider's name; empty for the only one.
    pub connector: String,
    /// Whether the URL may go to stdout as well, for programs.
    pub url_on_stdout: bool,
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
pub async fn again(context: &Context, home: &crate::home::ClusterHome) -> anyhow::Result<Identity> {
    let _lock = home.lock().await?;
    if let Standing::Valid(identity) = identity::load(home, OffsetDateTime::now_utc())? {
        return Ok(*identity);
    }
    forced(context, home).await
}

/// Logs in again although the login is valid: the auth server wants a fresh one.
///
/// # Errors
/// Why it failed.
pub async fn forced(context: &Context, home: &crate::home::ClusterHome) -> anyhow::Result<Identity> {
    let record = home.record()?;
    let first = record.and_then(|record| record.addresses.into_iter().next());
    let Some(first) = first else {
        return Err(Failure::login_needed("you are not logged in")
            .next("iapctl login CLUSTER")
            .into());
    };
    let address = ClusterAddress::parse(&first)?;
    let trust = trust::establish(home, &address, None).await?;
    Box::pin(run(context, &address, trust, LoginRequest::default())).await
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
