//! `iapctl who-can SERVICE`.

use clap::Args;
use iap_proto::v1;
use serde_json::Value;

use super::records;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::table::Listing;

/// `who-can`.
#[derive(Debug, Args)]
pub struct WhoCanArguments {
    /// The service's name
    service: String,
    /// From which address [default: yours]
    #[arg(long, value_name = "IP")]
    client_ip: Option<std::net::IpAddr>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(arguments: WhoCanArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let service = api::service_name(&arguments.service)?;
    let request = v1::WhoCanRequest {
        service: service.as_str().to_owned(),
        client_ip: arguments.client_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    };
    let reply = api::ask(context, async |auth| auth.admin().who_can(request.clone()).await).await?;
    let answer = records::parse(&reply.json)?;
    if arguments.output.is_json() {
        context.printer.json(&answer)?;
        return Ok(ExitStatus::Done);
    }
    let mut users = Listing::new(&["USER", "LOGINS", "DATABASES", "GROUPS", "LAST LOGIN"]);
    for user in list(&answer, "users") {
        users.row([
            text(user, "user"),
            words(user, "logins"),
            words(user, "databases"),
            words(user, "groups"),
            text(user, "last_login"),
        ]);
    }
    let nobody = "Nobody who ever logged in may reach it now.";
    let status = records::show_table(context, &users, nobody)?;
    context
        .printer
        .talk("By these rules, which also hold for whoever logs in for the first time:");
    let mut rules = Listing::new(&["RULE", "EFFECT", "USERS", "LOGINS", "WHEN"]);
    for rule in list(&answer, "rules") {
        rules.row([
            text(rule, "name"),
            text(rule, "effect"),
            selector(rule),
            words(rule, "logins"),
            text(rule, "condition"),
        ]);
    }
    records::show_table(context, &rules, "No rule is about this service.")?;
    Ok(status)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, key: &str) -> String {
    value
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn words(value: &Value, key: &str) -> String {
    let words: Vec<&str> = list(value, key).filter_map(Value::as_str).collect();
    words.join(" ")
}

/// `groups engineering ops; names alice@example.com`, or `everybody`.
fn selector(rule: &Value) -> String {
    let part = |key: &str, label: &str| {
        let given = rule.get(key).is_some_and(Value::is_array);
        given.then(|| format!("{label} {}", words(rule, key)))
    };
    let parts: Vec<String> = [part("users", "names"), part("groups", "groups")]
        .into_iter()
        .flatten()
        .collect();
    match parts.is_empty() {
        true => "everybody".to_owned(),
        false => parts.join("; "),
    }
}
