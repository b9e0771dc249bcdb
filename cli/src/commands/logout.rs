//! `iapctl logout`.

use std::time::Duration;

use clap::Args;
use iap_proto::v1;
use serde_json::json;
use time::OffsetDateTime;

use crate::api::Auth;
use crate::arguments::Output;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::home::ClusterHome;
use crate::identity::{self, Standing};
use crate::renewer::{self, Stopped};

/// How long the auth server may take to hear of it.
const TELL_SECONDS_MAX: u64 = 5;
/// How long a login or renewal under way elsewhere is waited for.
const LOCK_SECONDS_MAX: u64 = 5;

/// `logout`.
#[derive(Debug, Args)]
pub struct LogoutArguments {
    /// Forget the cluster and its pin too
    #[arg(long)]
    forget: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(arguments: LogoutArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let home = match context.cluster_home() {
        Ok(home) => home,
        Err(error) if crate::failure::status_of(&error) == ExitStatus::LoginNeeded => {
            return ended(context, arguments.output, None, &[]);
        }
        Err(error) => return Err(error),
    };
    let mut undone = Vec::new();
    if home.is_there() {
        undone.extend(stop_renewer(&home).await);
        // So that no renewal puts files back; one that hangs is not waited for.
        let lock = tokio::time::timeout(Duration::from_secs(LOCK_SECONDS_MAX), home.lock()).await;
        undone.extend(tell(&home).await);
        let removed = home.remove_generation()?;
        drop(lock);
        if arguments.forget {
            home.forget()?;
        }
        let cluster = removed.then(|| home.cluster().as_str());
        return ended(context, arguments.output, cluster, &undone);
    }
    ended(context, arguments.output, None, &undone)
}

async fn stop_renewer(home: &ClusterHome) -> Option<String> {
    match renewer::stop(home).await {
        Stopped::NotRunning | Stopped::Ended => None,
        Stopped::StillRunning => {
            Some("the renewer is still at work; it ends when it sees that the login is gone".to_owned())
        }
    }
}

/// Ends the login at the auth server, which locks it and forgets its refresh token; what could not be done.
async fn tell(home: &ClusterHome) -> Option<String> {
    let by_itself = "the certificate is removed here, and the login ends by itself";
    match identity::load(home, OffsetDateTime::now_utc()) {
        Ok(Standing::Valid(identity)) => {
            let telling = tell_with(&identity);
            match tokio::time::timeout(Duration::from_secs(TELL_SECONDS_MAX), telling).await {
                Ok(Ok(())) => None,
                // It is locked or ended there already.
                Ok(Err(error)) if is_over(&error) => None,
                Ok(Err(error)) => Some(format!(
                    "the auth server could not be told ({error:#}); {by_itself}"
                )),
                Err(_) => Some(format!(
                    "the auth server could not be told (no answer within {TELL_SECONDS_MAX} s); {by_itself}"
                )),
            }
        }
        Ok(Standing::NoLogin(_)) if home.has_generation() => Some(format!(
            "the auth server could not be told, because the certificate has expired; {by_itself}"
        )),
        Ok(Standing::NoLogin(_)) => None,
        Err(error) => Some(format!(
            "the auth server could not be told ({error:#}); {by_itself}"
        )),
    }
}

fn is_over(error: &anyhow::Error) -> bool {
    match crate::failure::status_of(error) {
        ExitStatus::Denied | ExitStatus::LoginNeeded => true,
        ExitStatus::Done | ExitStatus::Failed | ExitStatus::Usage | ExitStatus::Command(_) => false,
    }
}

/// Says which cluster's login was ended, if there was one, and what could not be done.
fn ended(
    context: &Context,
    output: Output,
    cluster: Option<&str>,
    undone: &[String],
) -> anyhow::Result<ExitStatus> {
    for what in undone {
        context.printer.warn(what);
    }
    context.printer.talk(&match cluster {
        Some(cluster) => format!("Logged out of {cluster}."),
        None => "You are not logged in.".to_owned(),
    });
    if output.is_json() {
        context.printer.json(&json!({
            "logged_out": cluster.is_some(),
            "cluster": cluster,
            "not_done": undone,
        }))?;
    }
    Ok(ExitStatus::Done)
}

async fn tell_with(identity: &identity::Identity) -> anyhow::Result<()> {
    let auth = Auth::connect(identity)?;
    crate::api::answer(auth.user().logout(v1::Empty {}).await)?;
    Ok(())
}
