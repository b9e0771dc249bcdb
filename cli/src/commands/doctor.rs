//! `iapctl doctor`.

use std::time::Duration;

use clap::Args;
use iap_proto::v1;
use iap_runtime::doctor::{Finding, Report, Target, check_path, check_private_tree};
use iap_runtime::net::HostPort;
use time::OffsetDateTime;

use crate::api::{self, Auth};
use crate::arguments::Output;
use crate::context::Context;
use crate::duration::rough;
use crate::exit::ExitStatus;
use crate::home::{ClusterHome, ClusterRecord};
use crate::identity::{self, Identity, Standing};

const ANSWER_SECONDS_MAX: Duration = Duration::from_secs(10);

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(arguments: DoctorArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let report = Report::new(examine(context).await?);
    if arguments.output.is_json() {
        context.printer.json(&report)?;
    } else {
        context.printer.result(&report.render())?;
    }
    Ok(match report.healthy {
        true => ExitStatus::Done,
        false => ExitStatus::Failed,
    })
}

async fn examine(context: &Context) -> anyhow::Result<Vec<Finding>> {
    let log_in = "iapctl login CLUSTER";
    let mut findings = vec![check_private_tree(context.home.path(), log_in)];
    let home = match context.cluster_home() {
        Ok(home) => home,
        Err(error) => {
            findings.push(Finding::failed("login", error.to_string(), log_in));
            return Ok(findings);
        }
    };
    let record = match home.record() {
        Ok(Some(record)) => record,
        Ok(None) => {
            let detail = format!("nothing is known of {}", home.cluster());
            findings.push(Finding::failed("login", detail, log_in));
            return Ok(findings);
        }
        Err(error) => {
            findings.push(Finding::failed("login", format!("{error:#}"), log_in));
            return Ok(findings);
        }
    };
    let (identity, finding) = check_login(&home, &record);
    findings.push(finding);
    for address in &record.addresses {
        findings.extend(check_way(&home, &record, address).await);
    }
    if let Some(identity) = identity {
        findings.push(check_auth(&identity).await);
    }
    Ok(findings)
}

fn check_login(home: &ClusterHome, record: &ClusterRecord) -> (Option<Box<Identity>>, Finding) {
    let now = OffsetDateTime::now_utc();
    let again = format!(
        "iapctl login {}",
        record
            .addresses
            .first()
            .map_or(home.cluster().as_str(), String::as_str)
    );
    match identity::load(home, now) {
        Ok(Standing::Valid(identity)) => {
            let detail = format!(
                "{} on {}, for {}",
                identity.peer.name,
                home.cluster(),
                rough(identity.peer.not_after - now)
            );
            (Some(identity), Finding::ok("login", detail))
        }
        Ok(Standing::NoLogin(failure)) => (None, Finding::failed("login", failure.to_string(), again)),
        Err(error) => (None, Finding::failed("login", format!("{error:#}"), again)),
    }
}

async fn check_way(home: &ClusterHome, record: &ClusterRecord, address: &str) -> Vec<Finding> {
    let file = home.file("cluster.json");
    let named_in = format!("`addresses` in {}", file.display());
    match (HostPort::parse(address), record.pin()) {
        (Ok(address), Ok(pin)) => {
            let cluster = home.cluster().clone();
            check_path(&Target {
                address,
                cluster,
                pin,
                named_in,
            })
            .await
        }
        (Err(error), _) => vec![Finding::failed(
            "dns",
            error.to_string(),
            format!("correct {named_in}"),
        )],
        (_, Err(error)) => {
            let fix = format!("correct `pin` in {}", file.display());
            vec![Finding::failed("login", format!("{error:#}"), fix)]
        }
    }
}

/// Whether the auth server takes this login.
async fn check_auth(identity: &Identity) -> Finding {
    let log_in_again = "iapctl logout, then iapctl login; if that fails too, ask an administrator";
    let asking = async {
        let auth = Auth::connect(identity)?;
        let answer = api::answer(auth.user().whoami(v1::Empty {}).await)?;
        Ok::<_, anyhow::Error>(answer)
    };
    match tokio::time::timeout(ANSWER_SECONDS_MAX, asking).await {
        Ok(Ok(_)) => Finding::ok("auth", "the auth server takes this login"),
        Ok(Err(error)) => Finding::failed("auth", format!("{error:#}"), log_in_again),
        Err(_) => {
            let seconds = ANSWER_SECONDS_MAX.as_secs();
            let fix = "sessions go on without the auth server; tell its administrators";
            Finding::failed("auth", format!("no answer within {seconds} s"), fix)
        }
    }
}
