//! `iapctl status`.

use clap::Args;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::arguments::Output;
use crate::context::Context;
use crate::duration::{rfc3339, rough};
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::identity::{self, Identity, Standing};
use crate::renewer;

/// `status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: StatusArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let standing = match context.cluster_home() {
        Ok(home) => Some(identity::load(&home, OffsetDateTime::now_utc())?),
        Err(error) if crate::failure::status_of(&error) == ExitStatus::LoginNeeded => None,
        Err(error) => return Err(error),
    };
    match (standing, arguments.output.is_json()) {
        (Some(Standing::Valid(identity)), true) => {
            context.printer.json(&record(&identity))?;
            Ok(ExitStatus::Done)
        }
        (Some(Standing::Valid(identity)), false) => {
            context
                .printer
                .result(&sentences(&identity, OffsetDateTime::now_utc()))?;
            Ok(ExitStatus::Done)
        }
        (Some(Standing::NoLogin(failure)), json) => not_logged_in(context, failure, json),
        (None, json) => {
            let failure = Failure::login_needed("you are not logged in").next("iapctl login CLUSTER");
            not_logged_in(context, failure, json)
        }
    }
}

fn not_logged_in(context: &Context, failure: Failure, json: bool) -> anyhow::Result<ExitStatus> {
    if json {
        context
            .printer
            .json(&json!({"logged_in": false, "reason": failure.to_string()}))?;
    }
    Err(failure.into())
}

/// The login as JSON; `login` prints the same.
pub(super) fn record(identity: &Identity) -> Value {
    let peer = &identity.peer;
    json!({
        "logged_in": true,
        "cluster": identity.home.cluster().as_str(),
        "addresses": identity.record.addresses,
        "pin": identity.record.pin,
        "user": peer.name,
        "user_id": peer.id.as_str(),
        "groups": peer.groups.iter().map(|group| group.as_str()).collect::<Vec<_>>(),
        "connector": peer.idp.connector,
        "login_id": peer.login_id.as_uuid().to_string(),
        "login_method": peer.login_method,
        "auth_time": rfc3339(peer.auth_time),
        "valid_from": rfc3339(peer.not_before),
        "valid_until": rfc3339(peer.not_after),
        "login_deadline": rfc3339(peer.login_deadline),
        "serial": peer.serial,
        "generation": peer.generation,
        "renewer": renewer::report(&identity.home),
    })
}

/// The login for people; `login` prints the same.
pub(super) fn sentences(identity: &Identity, now: OffsetDateTime) -> String {
    let peer = &identity.peer;
    let groups = peer
        .groups
        .iter()
        .map(|group| group.as_str())
        .collect::<Vec<_>>()
        .join(" ");
    let lines = [
        ("User", peer.name.clone()),
        ("Cluster", identity.home.cluster().as_str().to_owned()),
        ("Proxy", identity.record.addresses.join(" ")),
        ("Groups", groups),
        (
            "Valid",
            format!(
                "for {}, until {}",
                rough(peer.not_after - now),
                local_minute(peer.not_after)
            ),
        ),
        (
            "Login",
            format!(
                "renewable for {}, until {}",
                rough(peer.login_deadline - now),
                local_minute(peer.login_deadline)
            ),
        ),
        ("Renewer", renewer_sentence(&renewer::report(&identity.home), now)),
    ];
    let shown = lines.iter().filter(|(_, value)| !value.is_empty());
    shown
        .map(|(label, value)| format!("{label:<8} {}", crate::table::printable(value)))
        .collect::<Vec<_>>()
        .join("\n")
}

fn renewer_sentence(report: &renewer::Report, now: OffsetDateTime) -> String {
    if !report.running {
        return match &report.ended {
            Some(why) => format!("not running, ended because {why}; iapctl renews when it is used"),
            None => "not running; iapctl renews when it is used".to_owned(),
        };
    }
    let next = report
        .next_renewal
        .as_deref()
        .and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    match (next, &report.problem) {
        (Some(next), None) => format!("running, renews in {}", rough(next - now)),
        (Some(next), Some(why)) => format!("running, tries again in {}: {why}", rough(next - now)),
        (None, Some(why)) => format!("running: {why}"),
        (None, None) => "running, nothing left to renew".to_owned(),
    }
}

fn local_minute(time: OffsetDateTime) -> String {
    rfc3339(time).get(..16).unwrap_or_default().replace('T', " ") + " UTC"
}
