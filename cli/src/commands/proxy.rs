//! `iapctl proxy NAME...|--all`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use clap::Args;
use iap_identity::ServiceName;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::connect::interrupted;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::identity::{self, Identity};
use crate::services::KnownService;
use crate::session::{LocalListener, Serving, Sessions, Wanted, stable_port};
use crate::table::Listing;

/// `proxy`.
#[derive(Debug, Args)]
pub struct ProxyArguments {
    /// The services' names
    #[arg(value_name = "NAME", required_unless_present = "all")]
    services: Vec<String>,
    /// Every service you may reach
    #[arg(long, conflicts_with = "services")]
    all: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(arguments: ProxyArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let identity = identity::require(context).await?;
    let (known, fresh) = known(&identity).await?;
    let names = if arguments.all {
        all(&known)?
    } else {
        named(&arguments.services)?
    };
    if fresh {
        refuse_unknown(&names, &known)?;
    }
    let mut listeners = Vec::new();
    for name in names {
        let port = stable_port(&identity.home, &name).await?;
        let listener = LocalListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        listeners.push((name, listener));
    }
    print(context, arguments.output, &listeners, &known)?;
    serve(context, &identity, &known, listeners).await
}

/// Every listener until Ctrl-C; then they all end together.
async fn serve(
    context: &Context,
    identity: &Identity,
    known: &[KnownService],
    listeners: Vec<(ServiceName, LocalListener)>,
) -> anyhow::Result<ExitStatus> {
    let (stop, stopped) = watch::channel(false);
    let mut serving = tokio::task::JoinSet::new();
    for (service, listener) in listeners {
        let protocol = protocol(known, &service);
        let wanted = Wanted {
            service,
            login: None,
            database: None,
        };
        let sessions = Arc::new(Sessions::new(context, identity.clone(), wanted));
        let one = Arc::new(Serving::new(sessions, context.printer.clone(), &protocol, None));
        let mut stopped = stopped.clone();
        serving.spawn(one.run(listener, async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        }));
    }
    interrupted().await?;
    let _ = stop.send(true);
    while serving.join_next().await.is_some() {}
    Ok(ExitStatus::Done)
}

/// What the auth server says, else what it said last; and whether it said so now.
async fn known(identity: &Identity) -> anyhow::Result<(Vec<KnownService>, bool)> {
    match api::refresh_services(identity).await {
        Ok(services) => Ok((services, true)),
        Err(_) => Ok((identity.home.services()?, false)),
    }
}

/// A listener that could only ever refuse is better refused now.
fn refuse_unknown(names: &[ServiceName], known: &[KnownService]) -> Result<(), Failure> {
    let unknown = names
        .iter()
        .find(|name| known.iter().all(|known| known.name != name.as_str()));
    match unknown {
        Some(name) => Err(Failure::usage(format!(
            "there is no service '{}' that you may reach",
            name.as_str()
        ))
        .next("iapctl ls")),
        None => Ok(()),
    }
}

fn all(known: &[KnownService]) -> anyhow::Result<Vec<ServiceName>> {
    if known.is_empty() {
        return Err(Failure::usage("there is no service you may reach")
            .next("iapctl ls")
            .into());
    }
    Ok(known
        .iter()
        .map(|service| api::service_name(&service.name))
        .collect::<Result<_, _>>()?)
}

fn named(names: &[String]) -> Result<Vec<ServiceName>, Failure> {
    let mut services = names
        .iter()
        .map(|name| api::service_name(name))
        .collect::<Result<Vec<_>, _>>()?;
    services.sort();
    services.dedup();
    Ok(services)
}

fn protocol(known: &[KnownService], name: &ServiceName) -> String {
    let found = known.iter().find(|service| service.name == name.as_str());
    found.map(|service| service.protocol.clone()).unwrap_or_default()
}

fn print(
    context: &Context,
    output: Output,
    listeners: &[(ServiceName, LocalListener)],
    known: &[KnownService],
) -> anyhow::Result<()> {
    if output.is_json() {
        let entry = |(name, listener): &(ServiceName, LocalListener)| {
            json!({
                "service": name.as_str(),
                "protocol": protocol(known, name),
                "host": listener.address.ip().to_string(),
                "port": listener.address.port(),
                "address": listener.address.to_string(),
            })
        };
        context
            .printer
            .json(&Value::Array(listeners.iter().map(entry).collect()))?;
    } else {
        let mut listing = Listing::new(&["SERVICE", "PROTOCOL", "ADDRESS"]);
        for (name, listener) in listeners {
            listing.row([
                name.as_str().to_owned(),
                protocol(known, name),
                listener.address.to_string(),
            ]);
        }
        context.printer.result(&listing.render())?;
    }
    context.printer.talk("Press Ctrl-C to end.");
    Ok(())
}
