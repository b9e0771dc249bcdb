//! `iapctl logout`.

use std::time::Duration;

use clap::Args;
use iap_proto::v1;
use time::OffsetDateTime;

use crate::api::Auth;
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
}

pub(super) async fn run(arguments: LogoutArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let home = match context.cluster_home() {
        Ok(home) => home,
        Err(error) if crate::failure::status_of(&error) == ExitStatus::LoginNeeded => {
            context.printer.talk("You are not logged in.");
            return Ok(ExitStatus::Done);
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
    let cluster = home.cluster().as_str();
    context.printer.talk(&if removed {
        format!("Logged out of {cluster}.")
    } else {
        "You are not logged in.".to_owned()
    });
    Ok(ExitStatus::Done)
}

async fn tell(identity: &identity::Identity) -> anyhow::Result<()> {
    let auth = Auth::connect(identity)?;
    crate::api::answer(auth.user().logout(v1::Empty {}).await)?;
    Ok(())
}
