//! `iapctl proxy NAME...|--all`.

mod detached;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use clap::Args;
use iap_identity::ServiceName;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::interruption::Interruption;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::identity::{self, Identity};
use crate::services::{KnownService, POSTGRES};
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
    /// Go on in the background once the listeners are there
    #[arg(long)]
    detach: bool,
    /// We are the one in the background
    #[arg(long, hide = true, conflicts_with = "detach")]
    in_background: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(arguments: ProxyArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    if arguments.detach {
        return detach(&arguments, context).await;
    }
    if arguments.in_background {
        leave_the_terminal();
    }
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
        let port = stable_port(&identity.home, &name)?;
        let listener = LocalListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        let listener = if protocol(&known, &name) == POSTGRES {
            listener.with_postgres_socket(&identity.home, &context.printer)
        } else {
            listener
        };
        listeners.push((name, listener));
    }
    let interruption = Interruption::listen()?;
    print(context, arguments.output, &listeners, &known)?;
    serve(context, &identity, &known, listeners, interruption).await
}

/// Starts the same in the background, and says where the listeners are and how they end.
async fn detach(arguments: &ProxyArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    // Who has to log in does so here, where they can be asked.
    let identity = identity::require(context).await?;
    let home = context.home.path().display().to_string();
    let cluster = identity.home.cluster().as_str().to_owned();
    let mut again: Vec<String> = ["--home", &home, "-c", &cluster, "proxy", "--in-background"]
        .map(str::to_owned)
        .to_vec();
    again.extend(["--format", "json"].map(str::to_owned));
    match arguments.all {
        true => again.push("--all".to_owned()),
        false => again.extend(arguments.services.iter().cloned()),
    }
    let started = detached::start(&again, &identity.home).await?;
    if arguments.output.is_json() {
        context.printer.json(&json!({
            "pid": started.pid,
            "listeners": started.listeners,
        }))?;
    } else {
        let mut listing = Listing::new(&["SERVICE", "PROTOCOL", "ADDRESS"]);
        for listener in &started.listeners {
            let text = |key: &str| listener.get(key).and_then(Value::as_str).unwrap_or_default();
            listing.row(["service", "protocol", "address"].map(|key| text(key).to_owned()));
        }
        context.printer.result(&listing.render())?;
    }
    context
        .printer
        .talk(&format!("In the background; ends with: kill {}", started.pid));
    Ok(ExitStatus::Done)
}

/// A session of our own, so that neither Ctrl-C nor the end of the terminal reaches us.
fn leave_the_terminal() {
    #[cfg(unix)]
    // It fails only for the leader of a group, who has none to leave.
    let _ = rustix::process::setsid();
}

/// Every listener until Ctrl-C; then they all end together.
async fn serve(
    context: &Context,
    identity: &Identity,
    known: &[KnownService],
    listeners: Vec<(ServiceName, LocalListener)>,
    interruption: Interruption,
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
    interruption.wait().await;
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
                "socket_folder": listener.socket_folder().map(|folder| folder.display().to_string()),
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
