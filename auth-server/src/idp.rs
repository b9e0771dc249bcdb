//! `iap-auth idp test`: a connector tried out before anybody depends on it.

use std::io::{BufRead as _, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use iap_identity::Class;
use iap_policy::{Policy, UserFacts};
use iap_runtime::big_stack;
use time::OffsetDateTime;

use crate::config::Config;
use crate::local;
use crate::login::{Trial, TriedOut};
use crate::policies::load_options;
use crate::printer;
use crate::store::Identity;

/// The largest file with a token, claims or a policy.
const FILE_BYTES_MAX: u64 = 2 << 20;
/// The longest address that a provider leads to.
const ADDRESS_BYTES_MAX: u64 = 16 * 1024;

/// `idp test`.
#[derive(Debug, Args)]
pub struct TestArguments {
    /// The connector to try [default: the only one]
    #[arg(long, value_name = "NAME")]
    connector: Option<String>,
    /// A JSON object of claims, instead of a sign-in; nothing is verified and nobody is asked
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    claims: Option<PathBuf>,
    /// An ID token, instead of a sign-in; nothing is verified and nobody is asked
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// The policy whose rules are looked through [default: the running server's]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

/// Runs it. Whether somebody could log in.
///
/// # Errors
/// When the trial ends early.
pub async fn test(config: &Config, arguments: &TestArguments) -> anyhow::Result<bool> {
    let trial = Trial::new(config, arguments.connector.as_deref(), OffsetDateTime::now_utc())?;
    printer::connector(trial.connector());
    let outcome = match (&arguments.claims, &arguments.token) {
        (Some(file), _) => trial.of_claims(&read(file)?, OffsetDateTime::now_utc())?,
        (None, Some(file)) => {
            let token = String::from_utf8(read(file)?).context("the token is not UTF-8")?;
            trial.of_token(&token, OffsetDateTime::now_utc())?
        }
        (None, None) => sign_in(&trial).await?,
    };
    printer::claims(&outcome.claims);
    match outcome {
        TriedOut {
            identity: Ok(identity),
            ..
        } => {
            printer::identity(&identity);
            rules(config, arguments.policy.as_deref(), &identity).await?;
            Ok(true)
        }
        TriedOut {
            identity: Err(error), ..
        } => {
            printer::no_identity(&error);
            Ok(false)
        }
    }
}

/// The address of our callback is registered at the provider, so that is where the person lands: on the page of a
/// running server that does not know the login, or on none. Either way the browser shows the address.
async fn sign_in(trial: &Trial) -> anyhow::Result<TriedOut> {
    let findings = trial.examine().await?;
    printer::findings(&findings);
    if let Some(bad) = findings.iter().find(|finding| !finding.good) {
        anyhow::bail!("{}: {}", bad.what, bad.seen);
    }
    printer::sign_in(trial.redirect_uri(), &trial.url().await?);
    let address = tokio::task::spawn_blocking(|| {
        let mut line = Vec::new();
        let mut input = std::io::stdin().lock().take(ADDRESS_BYTES_MAX);
        input.read_until(b'\n', &mut line).map(|_| line)
    });
    let address = String::from_utf8(address.await??).context("the address is not UTF-8")?;
    Ok(trial.landed(&address, OffsetDateTime::now_utc()).await?)
}

/// Which rules are about the person, in the policy of a file or of the running server.
async fn rules(config: &Config, file: Option<&Path>, identity: &Identity) -> anyhow::Result<()> {
    let source = match file {
        Some(file) => String::from_utf8(read(file)?).context("the policy is not UTF-8")?,
        None => match local::ask_for_policy(&config.data_dir).await {
            Ok(source) => source,
            Err(error) => {
                printer::no_rules(&error);
                return Ok(());
            }
        },
    };
    let options = load_options(config);
    let user = facts(identity);
    let about =
        big_stack::run_async(move || Policy::load_with(&source, &options).map(|policy| policy.about(&user)));
    let (rules, admins) = about.await?;
    let is_bootstrap_admin = config.bootstrap_admins.contains(&identity.name);
    printer::rules(&rules, &admins, is_bootstrap_admin);
    Ok(())
}

fn facts(identity: &Identity) -> UserFacts {
    UserFacts {
        id: identity.user_id.to_string(),
        name: identity.name.clone(),
        kind: Class::User,
        groups: identity.groups.clone(),
        groups_vocabulary: None,
        auth_time: Some(identity.auth_time),
        mfa_time: identity.mfa_time,
        acr: identity.acr.clone(),
        idp: identity.connector.clone(),
        login_method: "browser".to_owned(),
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    opened
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", file.display()))?;
    anyhow::ensure!(
        u64::try_from(bytes.len()).unwrap_or(u64::MAX) <= FILE_BYTES_MAX,
        "{} is larger than {FILE_BYTES_MAX} bytes",
        file.display()
    );
    Ok(bytes)
}
