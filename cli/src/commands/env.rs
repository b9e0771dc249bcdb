//! `iapctl env NAME`: the settings for clients that speak TLS themselves.

mod formats;

use clap::{Args, ValueEnum};
use iap_identity::ServiceName;

use crate::address::is_on_this_machine;
use crate::api;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::identity::{self, Identity};
use crate::services::{self, KnownService, POSTGRES};
use formats::Endpoint;

/// `env`.
#[derive(Debug, Args)]
pub struct EnvArguments {
    /// The service's name
    #[arg(value_name = "NAME")]
    service: String,
    /// How the settings are printed
    #[arg(short, long, visible_short_alias = 'o', value_enum, default_value = "shell")]
    format: EnvFormat,
    /// As which login
    #[arg(short, long)]
    login: Option<String>,
    /// Which database [default: the one named like the login]
    #[arg(short, long)]
    database: Option<String>,
}

/// How settings are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EnvFormat {
    /// export NAME='value'
    Shell,
    /// set -gx NAME 'value'
    Fish,
    /// $env:NAME = 'value'
    Powershell,
    /// NAME=value
    Dotenv,
    /// A JDBC URL
    Jdbc,
    /// A URL
    Url,
    /// One JSON object
    Json,
}

pub(super) async fn run(arguments: EnvArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let name = api::service_name(&arguments.service)?;
    let identity = identity::require(context).await?;
    let service = known_service(&identity, &name).await?;
    let endpoint = endpoint(&identity, &name, service.as_ref(), &arguments)?;
    if arguments.format == EnvFormat::Jdbc && endpoint.address.is_some() {
        context.printer.talk(
            "note: Java does not resolve names under .localhost; give the server name an address in /etc/hosts",
        );
    }
    context
        .printer
        .result(&formats::render(&endpoint, arguments.format)?)?;
    Ok(ExitStatus::Done)
}

/// What is known of the service; the auth server is asked only about one not seen before.
async fn known_service(identity: &Identity, name: &ServiceName) -> anyhow::Result<Option<KnownService>> {
    let find =
        |services: Vec<KnownService>| services.into_iter().find(|service| service.name == name.as_str());
    if let Some(service) = find(identity.home.services()?) {
        return Ok(Some(service));
    }
    match api::refresh_services(identity).await {
        Ok(services) => find(services).map(Some).ok_or_else(|| {
            Failure::usage(format!(
                "there is no service '{}' that you may reach",
                name.as_str()
            ))
            .next("iapctl ls")
            .into()
        }),
        Err(_) => Ok(None),
    }
}

fn endpoint(
    identity: &Identity,
    name: &ServiceName,
    service: Option<&KnownService>,
    arguments: &EnvArguments,
) -> anyhow::Result<Endpoint> {
    let cluster = identity.home.cluster();
    let proxy = identity.proxy()?;
    let address = is_on_this_machine(cluster).then(|| "127.0.0.1".to_owned());
    let postgres = match service {
        Some(service) if service.protocol == POSTGRES => Some(postgres_names(identity, service, arguments)?),
        Some(_) | None => None,
    };
    let path = |file: &str| identity.home.file(file).display().to_string();
    Ok(Endpoint {
        host: proxy.host().to_owned(),
        address,
        port: proxy.port(),
        server_name: cluster.service_host(name),
        ca: path("ca.pem"),
        certificate: path("cert.pem"),
        key: path("key.pem"),
        key_pk8: path("key.pk8"),
        postgres,
    })
}

/// The login and the database.
fn postgres_names(
    identity: &Identity,
    service: &KnownService,
    arguments: &EnvArguments,
) -> Result<(String, String), Failure> {
    let login = match &arguments.login {
        Some(login) => login.clone(),
        None => services::default_login(Some(service), &identity.peer.name).map_err(|logins| {
            Failure::usage(format!("'{}' may be reached as several logins", service.name))
                .because(logins.join(", "))
                .next(format!(
                    "iapctl env {} --login {}",
                    service.name,
                    logins.first().map_or("LOGIN", String::as_str)
                ))
        })?,
    };
    let database = arguments.database.clone().unwrap_or_else(|| login.clone());
    Ok((login, database))
}
