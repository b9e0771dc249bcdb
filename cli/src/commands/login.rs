//! `iapctl login`.

use clap::Args;
use time::OffsetDateTime;

use super::status;
use crate::address::ClusterAddress;
use crate::arguments::Output;
use crate::context::{Context, is_browser_refused};
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::home::{ClusterHome, ClusterRecord};
use crate::identity::Identity;
use crate::login::{self, Method, Proof};
use crate::renewer;
use crate::trust;

/// `login`.
#[derive(Debug, Args)]
pub struct LoginArguments {
    /// The cluster, with its port if that is not 443 [default: the current cluster]
    #[arg(value_name = "CLUSTER[:PORT]")]
    address: Option<String>,
    /// The cluster's root certificate or its pin (sha256:…)
    #[arg(long, value_name = "FILE|PIN")]
    ca: Option<String>,
    /// Log in with a code on any other device
    #[arg(long, conflicts_with = "no_browser")]
    headless: bool,
    /// Print the address instead of opening a browser
    #[arg(long)]
    no_browser: bool,
    /// Leave nothing running that renews; the certificate is then renewed when it is used
    #[arg(long)]
    no_renew: bool,
    /// Which identity provider, where there are several
    #[arg(long, value_name = "NAME")]
    connector: Option<String>,
    /// Prove anew who you are, whatever session there is at the identity provider
    #[arg(long)]
    fresh: bool,
    /// Prove it with several factors
    #[arg(long)]
    mfa: bool,
    /// Prove it in this authentication context class
    #[arg(long, value_name = "CLASS")]
    acr: Option<String>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(arguments: LoginArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let address = address(&arguments, context)?;
    let trust = trust::establish(
        &context.home.cluster(&address.cluster),
        &address,
        arguments.ca.as_deref(),
    )
    .await?;
    let request = login::LoginRequest {
        method: method(&arguments),
        connector: arguments.connector.clone().unwrap_or_default(),
        proof: Proof {
            fresh: arguments.fresh || arguments.mfa || arguments.acr.is_some(),
            mfa: arguments.mfa,
            acr: arguments.acr.clone(),
        },
        url_on_stdout: !arguments.output.is_json(),
    };
    let home = context.home.cluster(&address.cluster);
    let turn = login::turn(&home, &context.printer).await?;
    // What was asked to be proven is proven here.
    let shared = turn.shared(&home)?.filter(|_| request.proof == Proof::default());
    let identity = match shared {
        Some(shared) => {
            context.printer.talk("Using the login that was just made here.");
            shared
        }
        None => Box::pin(login::run(context, &address, trust, request)).await?,
    };
    drop(turn);
    context.home.make_current(&address.cluster)?;
    let identity = renewed_from_now_on(context, &home, identity, arguments.no_renew).await?;
    if arguments.output.is_json() {
        context.printer.json(&status::record(&identity))?;
        return Ok(ExitStatus::Done);
    }
    context
        .printer
        .talk(&status::sentences(&identity, OffsetDateTime::now_utc()));
    context.printer.talk("Next: iapctl ls, then iapctl connect NAME");
    Ok(ExitStatus::Done)
}

/// Leaves a renewer running, or ends the one that was, as was asked for.
async fn renewed_from_now_on(
    context: &Context,
    home: &ClusterHome,
    mut identity: Identity,
    no_renew: bool,
) -> anyhow::Result<Identity> {
    if identity.record.no_renew != no_renew {
        identity.record.no_renew = no_renew;
        home.change_record(|stored| Ok(stored.map(|record| ClusterRecord { no_renew, ..record })))?;
    }
    if no_renew {
        renewer::stop(home).await;
    }
    login::renewing(context, home, identity).await
}

fn method(arguments: &LoginArguments) -> Method {
    match (arguments.headless, arguments.no_browser || is_browser_refused()) {
        (true, _) => Method::Headless,
        (false, true) => Method::NoBrowser,
        (false, false) => Method::Browser,
    }
}

/// The cluster named, with the port remembered for it if it names none; else the current one.
fn address(arguments: &LoginArguments, context: &Context) -> anyhow::Result<ClusterAddress> {
    let Some(text) = &arguments.address else {
        let home = context
            .cluster_home()
            .map_err(|error| match crate::failure::status_of(&error) {
                ExitStatus::LoginNeeded => Failure::usage("no cluster is named and none is known")
                    .next("iapctl login CLUSTER")
                    .into(),
                ExitStatus::Done
                | ExitStatus::Failed
                | ExitStatus::Usage
                | ExitStatus::Denied
                | ExitStatus::Command(_) => error,
            })?;
        return remembered(&home)?.ok_or_else(|| {
            Failure::usage(format!("nothing is known of {}", home.cluster().as_str()))
                .next("iapctl login CLUSTER")
                .into()
        });
    };
    let named = ClusterAddress::parse(text)?;
    if text
        .trim_end_matches('/')
        .trim_start_matches("https://")
        .contains(':')
    {
        return Ok(named);
    }
    Ok(remembered(&context.home.cluster(&named.cluster))?.unwrap_or(named))
}

fn remembered(home: &ClusterHome) -> anyhow::Result<Option<ClusterAddress>> {
    let record = home.record()?;
    let address = record.and_then(|record| record.addresses.into_iter().next());
    Ok(address
        .map(|address| ClusterAddress::parse(&address))
        .transpose()?)
}
