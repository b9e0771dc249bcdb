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
use crate::identity::{self, Standing};

/// How long the auth server may take to hear of it.
const TELL_SECONDS_MAX: u64 = 3;

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
            return ended(context, arguments.output, None);
        }
        Err(error) => return Err(error),
    };
    if let Ok(Standing::Valid(identity)) = identity::load(&home, OffsetDateTime::now_utc()) {
        let told = tokio::time::timeout(Duration::from_secs(TELL_SECONDS_MAX), tell(&identity)).await;
        if !matches!(told, Ok(Ok(()))) {
            context.printer.warn(
                "the auth server could not be told; the certificate is removed here and expires by itself",
            );
        }
    }
    let removed = home.remove_generation()?;
    if arguments.forget {
        home.forget()?;
    }
    ended(
        context,
        arguments.output,
        removed.then(|| home.cluster().as_str()),
    )
}

/// Says which cluster's login was ended, if there was one.
fn ended(context: &Context, output: Output, cluster: Option<&str>) -> anyhow::Result<ExitStatus> {
    context.printer.talk(&match cluster {
        Some(cluster) => format!("Logged out of {cluster}."),
        None => "You are not logged in.".to_owned(),
    });
    if output.is_json() {
        context
            .printer
            .json(&json!({"logged_out": cluster.is_some(), "cluster": cluster}))?;
    }
    Ok(ExitStatus::Done)
}

async fn tell(identity: &identity::Identity) -> anyhow::Result<()> {
    let auth = Auth::connect(identity)?;
    crate::api::answer(auth.user().logout(v1::Empty {}).await)?;
    Ok(())
}
