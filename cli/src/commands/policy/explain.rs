//! `iapctl policy explain [USER] SERVICE`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::Args;
use iap_proto::v1;

use super::super::records;
use super::local;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::failure::Failure;

/// `policy explain`.
#[derive(Debug, Args)]
#[command(override_usage = "iapctl policy explain [OPTIONS] [USER] SERVICE")]
pub struct ExplainArguments {
    /// The service, or the user and the service
    #[arg(value_name = "USER SERVICE", num_args = 0..=2)]
    names: Vec<String>,
    /// The user [default: you]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// What if the user were in these groups
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    groups: Vec<String>,
    /// As which login
    #[arg(short, long)]
    login: Option<String>,
    /// Which database
    #[arg(short, long)]
    database: Option<String>,
    /// From which address
    #[arg(long, value_name = "IP")]
    client_ip: Option<IpAddr>,
    /// What if this document were in force
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(arguments: ExplainArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let (user, service) = names(&arguments)?;
    let service = api::service_name(&service)?;
    let policy_toml = arguments.file.as_deref().map(api::read_document).transpose()?;
    if let (Some(path), Some(document), Some(user), false) =
        (&arguments.file, &policy_toml, &user, arguments.groups.is_empty())
        && let Some(known) = known_here(context, service.as_str())
    {
        let question = local::WhatIf {
            user: user.clone(),
            groups: arguments.groups.clone(),
            service: known,
            login: arguments.login.clone(),
            database: arguments.database.clone(),
            client_ip: arguments.client_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        };
        let (json, text) = local::explain(path, document, question).await?;
        return print(context, arguments.output, &json, &text);
    }
    let request = v1::ExplainRequest {
        user: match user {
            Some(user) => super::other_than_self(context, &user).await?,
            None => String::new(),
        },
        groups: arguments.groups,
        service: service.as_str().to_owned(),
        login: arguments.login.unwrap_or_default(),
        database: arguments.database.unwrap_or_default(),
        client_ip: arguments.client_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        policy_toml: policy_toml.unwrap_or_default(),
    };
    let reply = api::ask(context, async |auth| auth.user().explain(request.clone()).await).await?;
    let json = records::parse(&reply.json)?;
    if !reply.allowed && json.get("code").is_some_and(serde_json::Value::is_null) {
        context
            .printer
            .talk("Which rules were looked at is shown to those with the admin verb policy.read.");
    }
    print(context, arguments.output, &json, &reply.text)
}

fn print(
    context: &Context,
    output: Output,
    json: &serde_json::Value,
    text: &str,
) -> anyhow::Result<ExitStatus> {
    if output.is_json() {
        context.printer.json(json)?;
    } else {
        context.printer.result(text)?;
    }
    Ok(ExitStatus::Done)
}

/// Positional and named arguments say the same; the service is the last position.
fn names(arguments: &ExplainArguments) -> Result<(Option<String>, String), Failure> {
    let mut positional = arguments.names.clone();
    let service = arguments.service.clone().or_else(|| positional.pop());
    let user = arguments.user.clone().or_else(|| positional.pop());
    match service {
        Some(service) if positional.is_empty() => Ok((user, service)),
        Some(_) => Err(Failure::usage("the user or the service is named twice")),
        None => Err(Failure::usage("no service is named")),
    }
    .map_err(|failure| failure.next("iapctl policy explain [USER] SERVICE"))
}

fn known_here(context: &Context, service: &str) -> Option<crate::services::KnownService> {
    let services = context.cluster_home().ok()?.services().ok()?;
    services.into_iter().find(|known| known.name == service)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: ExplainArguments,
    }

    fn parsed(words: &[&str]) -> Result<(Option<String>, String), Failure> {
        names(
            &Line::try_parse_from([&["explain"], words].concat())
                .unwrap()
                .arguments,
        )
    }

    #[test]
    fn user_and_service_may_be_named_or_positional() {
        let both = (Some("bob".to_owned()), "web".to_owned());
        assert_eq!(parsed(&["bob", "web"]).unwrap(), both);
        assert_eq!(parsed(&["--user", "bob", "web"]).unwrap(), both);
        assert_eq!(parsed(&["--service", "web", "bob"]).unwrap(), both);
        assert_eq!(parsed(&["web"]).unwrap(), (None, "web".to_owned()));
        assert!(parsed(&[]).is_err());
        assert!(parsed(&["--user", "bob", "eve", "web"]).is_err());
    }
}
