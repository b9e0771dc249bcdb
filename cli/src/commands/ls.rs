//! `iapctl ls`.

use clap::Args;

use super::records;
use crate::api;
use crate::arguments::Output;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::identity::{self, Identity};
use crate::services::KnownService;
use crate::table::Listing;

/// `ls`.
#[derive(Debug, Args)]
pub struct LsArguments {
    /// Only services with this word in their name, labels or description
    #[arg(value_name = "WORD")]
    word: Option<String>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(arguments: LsArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let identity = identity::require(context).await?;
    identity::renew_if_due(&identity, context).await;
    let mut services = current(&identity, context).await?;
    if let Some(word) = &arguments.word {
        services.retain(|service| mentions(service, word));
    }
    if arguments.output.is_json() {
        context.printer.json(&services)?;
        return Ok(ExitStatus::Done);
    }
    let mut listing = Listing::new(&["NAME", "PROTOCOL", "LABELS", "LOGINS", "DESCRIPTION"]);
    for service in services {
        let (labels, logins) = (service.labels_text(), service.logins_text());
        listing.row([
            service.name,
            service.protocol,
            labels,
            logins,
            service.description,
        ]);
    }
    records::show_table(context, &listing, "There is no service you may reach.")
}

/// What the auth server says; what it said last when it cannot be reached.
async fn current(identity: &Identity, context: &Context) -> anyhow::Result<Vec<KnownService>> {
    match api::refresh_services(identity).await {
        Ok(services) => Ok(services),
        Err(failure) if failure.status() == ExitStatus::Failed => {
            let remembered = identity.home.services()?;
            if remembered.is_empty() {
                return Err(failure.into());
            }
            context
                .printer
                .warn(&format!("{failure}; this is the list of the last time"));
            Ok(remembered)
        }
        Err(failure) => Err(failure.into()),
    }
}

fn mentions(service: &KnownService, word: &str) -> bool {
    [&service.name, &service.description, &service.labels_text()]
        .iter()
        .any(|text| text.contains(word))
}
