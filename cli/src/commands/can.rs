//! `iapctl can USER SERVICE`.

use clap::Args;
use iap_proto::v1;

use super::records;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::exit::ExitStatus;

/// `can`.
#[derive(Debug, Args)]
pub struct CanArguments {
    /// The user's name
    user: String,
    /// The service's name
    service: String,
    /// As which login
    #[arg(short, long)]
    login: Option<String>,
    /// Which database
    #[arg(short, long)]
    database: Option<String>,
    /// From which address
    #[arg(long, value_name = "IP")]
    client_ip: Option<std::net::IpAddr>,
    /// What if the user were in these groups
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    groups: Vec<String>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(arguments: CanArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let service = api::service_name(&arguments.service)?;
    let request = v1::ExplainRequest {
        user: super::policy::other_than_self(context, &arguments.user).await?,
        groups: arguments.groups,
        service: service.as_str().to_owned(),
        login: arguments.login.unwrap_or_default(),
        database: arguments.database.unwrap_or_default(),
        client_ip: arguments.client_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        policy_toml: String::new(),
    };
    let reply = api::ask(context, async |auth| auth.user().explain(request.clone()).await).await?;
    if arguments.output.is_json() {
        let mut explanation = records::parse(&reply.json)?;
        if let Some(object) = explanation.as_object_mut() {
            object.insert("allowed".to_owned(), reply.allowed.into());
        }
        context.printer.json(&explanation)?;
    } else {
        let answer = if reply.allowed { "yes" } else { "no" };
        context
            .printer
            .result(&format!("{answer}\n{}", reply.text.trim_end()))?;
    }
    Ok(if reply.allowed {
        ExitStatus::Done
    } else {
        ExitStatus::Denied
    })
}
