//! Services as the centre keeps them: read from TOML, checked as a whole, pushed to agents.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use iap_audit::{EventKind, UserRecord};
use iap_identity::{AgentId, LoginName, ServiceName};
use iap_policy::{Protocol, ServiceFacts};
use iap_proto::{AuditMode, RecordingMode, ServiceRecord, Strictness, WireError};
use iap_runtime::config::ConfigDuration;
use serde::Deserialize;

use crate::context::AppContext;
use crate::feed::Affects;
use crate::rpc::RpcError;
use crate::store::{GrantedService, ServiceChange, ServiceRow, ServicesApplied};

const DOCUMENT_BYTES_MAX: usize = 1 << 20;
const SERVICES_MAX: usize = 10_000;
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 128;
const TEXT_BYTES_MAX: usize = 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    service: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    protocol: Option<String>,
    #[serde(default)]
    inspect: bool,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    contact: String,
    agents: Option<Vec<String>>,
    default_login: Option<String>,
    audit: Option<String>,
    recording: Option<String>,
    lock_feed_max_age: Option<ConfigDuration>,
    snapshot_max_age: Option<ConfigDuration>,
    grace: Option<ConfigDuration>,
}

/// Applies a document in the name of `author`: creates and replaces, never removes.
pub async fn apply(
    context: &AppContext,
    author: &UserRecord,
    document: &str,
) -> Result<ServicesApplied, RpcError> {
    let changes = parse(document).map_err(RpcError::invalid)?;
    refuse_unknown_agents(context, &changes).await?;
    let known = context.store.services().await?;
    let mut differs = false;
    for change in &changes {
        let Some(how) = difference(&known, change) else {
            continue;
        };
        differs = true;
        // Before the effect: what cannot be recorded does not happen.
        let event = context.audit.event(EventKind::ServiceApplied)?;
        let event = event.user(author).service(&change.row.name).field("change", how);
        context.audit.record(event).await?;
    }
    let (store, now) = (Arc::clone(&context.store), context.clock.now());
    let applying = async move { store.apply_services(&changes, now).await };
    let affects = match differs {
        true => Affects::Snapshot,
        false => Affects::Nothing,
    };
    Ok(context.feed.change(affects, applying).await?)
}

/// What applying the change does to what is stored; nothing, when it is so already.
fn difference(known: &[GrantedService], change: &ServiceChange) -> Option<&'static str> {
    let Some(stored) = known.iter().find(|stored| stored.row.name == change.row.name) else {
        return Some("created");
    };
    let same_agents = change
        .agents
        .as_ref()
        .is_none_or(|agents| *agents == stored.agents);
    (stored.row != change.row || !same_agents).then_some("updated")
}

/// Removes a service in the name of `author`.
pub async fn remove(context: &AppContext, author: &UserRecord, name: &str) -> Result<(), RpcError> {
    let name = ServiceName::parse(name).map_err(RpcError::invalid)?;
    let not_found = || RpcError::not_found(format!("there is no service {name}"));
    let known = context.store.services().await?;
    if !known.iter().any(|service| service.row.name == name) {
        return Err(not_found());
    }
    let event = context.audit.event(EventKind::ServiceRemoved)?;
    context.audit.record(event.user(author).service(&name)).await?;
    let (store, removed) = (Arc::clone(&context.store), name.clone());
    let removing = async move { store.remove_service(&removed).await };
    match context.feed.change(Affects::Snapshot, removing).await? {
        true => Ok(()),
        false => Err(not_found()),
    }
}

/// A stored service as agents and policy know it.
pub fn record_of(service: &GrantedService) -> Result<ServiceRecord, WireError> {
    let GrantedService { row, agents } = service;
    let damaged = |field, problem: &dyn std::fmt::Display| WireError::new(field, problem);
    Ok(ServiceRecord {
        facts: ServiceFacts {
            name: row.name.clone(),
            protocol: Protocol::parse(&row.protocol).map_err(|error| damaged("protocol", &error))?,
            inspect: row.inspect,
            labels: row.labels.clone(),
            default_login: row
                .default_login
                .as_deref()
                .map(|login| LoginName::parse(login).map_err(|error| damaged("default_login", &error)))
                .transpose()?,
        },
        description: row.description.clone(),
        contact: row.contact.clone(),
        agents: agents.iter().copied().collect(),
        audit: AuditMode::parse(&row.audit).ok_or_else(|| damaged("audit", &row.audit))?,
        recording: row.recording.as_deref().and_then(RecordingMode::parse),
        strictness: Strictness {
            lock_feed_max_age: row.lock_feed_seconds.map(seconds),
            snapshot_max_age: row.snapshot_seconds.map(seconds),
            grace: row.grace_seconds.map(seconds),
        },
    })
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(u64::from(count))
}

async fn refuse_unknown_agents(context: &AppContext, changes: &[ServiceChange]) -> Result<(), RpcError> {
    let known: BTreeSet<AgentId> = context
        .store
        .agents()
        .await?
        .into_iter()
        .map(|agent| agent.agent_id)
        .collect();
    let unknown: Vec<String> = changes
        .iter()
        .flat_map(|change| change.agents.iter().flatten().map(move |agent| (change, agent)))
        .filter(|(_, agent)| !known.contains(agent))
        .map(|(change, agent)| format!("service {}: no agent {agent} has joined", change.row.name))
        .collect();
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(RpcError::invalid(unknown.join("\n"))),
    }
}

fn parse(document: &str) -> Result<Vec<ServiceChange>, String> {
    if document.len() > DOCUMENT_BYTES_MAX {
        return Err(format!("the document is longer than {DOCUMENT_BYTES_MAX} bytes"));
    }
    let document: Document = toml::from_str(document).map_err(|error| error.to_string())?;
    if document.service.is_empty() {
        return Err("the document has no [[service]]".to_owned());
    }
    if document.service.len() > SERVICES_MAX {
        return Err(format!("the document has more than {SERVICES_MAX} services"));
    }
    let mut problems = Vec::new();
    let mut names = BTreeSet::new();
    let mut changes = Vec::new();
    for entry in document.service {
        if !names.insert(entry.name.clone()) {
            problems.push(format!("service {:?} is there twice", entry.name));
        }
        let name = entry.name.clone();
        match check(entry) {
            Ok(change) => changes.push(change),
            Err(found) => problems.extend(found.iter().map(|problem| format!("service {name:?}: {problem}"))),
        }
    }
    match problems.is_empty() {
        true => Ok(changes),
        false => Err(problems.join("\n")),
    }
}

fn check(entry: Entry) -> Result<ServiceChange, Vec<String>> {
    let mut problems = Vec::new();
    let name = keep(&mut problems, ServiceName::parse(&entry.name));
    let protocol = keep(
        &mut problems,
        Protocol::parse(entry.protocol.as_deref().unwrap_or("tcp")),
    );
    if let Some(login) = &entry.default_login {
        keep(
            &mut problems,
            LoginName::parse(login).map_err(|error| format!("default_login: {error}")),
        );
    }
    let audit = entry.audit.as_deref().unwrap_or("required");
    let audit = AuditMode::parse(audit).filter(|_| !audit.is_empty());
    if audit.is_none() {
        problems.push("audit must be \"required\", \"best_effort\" or \"remote\"".to_owned());
    }
    let texts = [("description", &entry.description), ("contact", &entry.contact)];
    for (key, text) in texts {
        if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
            problems.push(format!(
                "{key} has at most {TEXT_BYTES_MAX} bytes and no control characters"
            ));
        }
    }
    check_labels(&entry.labels, &mut problems);
    let recording = entry.recording.filter(|recording| !recording.is_empty());
    if let Some(mode) = &recording {
        if RecordingMode::parse(mode).is_none() {
            problems.push(format!(
                "recording = {mode:?} is not \"required\" or \"best_effort\""
            ));
        }
        if !(entry.inspect && protocol == Some(Protocol::Ssh)) {
            problems.push("recording is for protocol = \"ssh\" with inspect = true".to_owned());
        }
    }
    let lock_feed_seconds = age("lock_feed_max_age", entry.lock_feed_max_age, &mut problems);
    let snapshot_seconds = age("snapshot_max_age", entry.snapshot_max_age, &mut problems);
    let agents = entry.agents.map(|agents| {
        agents
            .iter()
            .filter_map(|agent| keep(&mut problems, AgentId::parse(agent)))
            .collect::<BTreeSet<_>>()
    });
    let (Some(name), Some(protocol), Some(audit), true) = (name, protocol, audit, problems.is_empty()) else {
        return Err(problems);
    };
    let row = ServiceRow {
        name,
        protocol: protocol.as_str().to_owned(),
        inspect: entry.inspect,
        labels: entry.labels,
        description: entry.description,
        contact: entry.contact,
        default_login: entry.default_login.filter(|login| !login.is_empty()),
        audit: audit.as_str().to_owned(),
        recording,
        lock_feed_seconds,
        snapshot_seconds,
        grace_seconds: entry.grace.map(whole_seconds),
    };
    Ok(ServiceChange { row, agents })
}

/// How long a service goes on without the auth server, in seconds.
fn age(key: &str, given: Option<ConfigDuration>, problems: &mut Vec<String>) -> Option<u32> {
    let seconds = whole_seconds(given?);
    if u64::from(seconds) < Strictness::AGE_SECONDS_MIN {
        problems.push(format!(
            "{key} must be at least {}s: beats come every few seconds and may be late",
            Strictness::AGE_SECONDS_MIN
        ));
    }
    Some(seconds)
}

fn whole_seconds(duration: ConfigDuration) -> u32 {
    u32::try_from(duration.get().as_secs()).unwrap_or(u32::MAX)
}

fn check_labels(labels: &BTreeMap<String, String>, problems: &mut Vec<String>) {
    if labels.len() > LABELS_MAX {
        problems.push(format!("has more than {LABELS_MAX} labels"));
    }
    for (key, value) in labels {
        let long = key.is_empty() || key.len() > LABEL_BYTES_MAX || value.len() > LABEL_BYTES_MAX;
        if long || key.chars().chain(value.chars()).any(char::is_control) {
            problems.push(format!(
                "label {key:?}: keys and values have at most {LABEL_BYTES_MAX} bytes"
            ));
        }
    }
}

fn keep<T, E: std::fmt::Display>(problems: &mut Vec<String>, result: Result<T, E>) -> Option<T> {
    result.map_err(|error| problems.push(error.to_string())).ok()
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use super::*;

    #[test]
    fn a_minimal_service_is_tcp_with_a_required_record() {
        let changes = parse("[[service]]\nname = \"echo\"\n").unwrap();
        assert_eq!(changes[0].row.protocol, "tcp");
        assert_eq!(changes[0].row.audit, "required");
        assert_eq!(changes[0].agents, None, "grants are left as they are");
    }

    #[test]
    fn a_service_can_be_stricter_than_its_agents() {
        let text = "[[service]]\nname = \"a\"\naudit = \"remote\"\nlock_feed_max_age = \"5m\"\nsnapshot_max_age = \"30s\"\ngrace = \"0s\"\n";
        let row = &parse(text).unwrap()[0].row;
        assert_eq!(row.audit, "remote");
        let times = [row.lock_feed_seconds, row.snapshot_seconds, row.grace_seconds];
        assert_eq!(times, [Some(300), Some(30), Some(0)]);
    }

    #[test]
    fn the_documented_example_of_a_strict_service_is_accepted() {
        let page = include_str!("../../docs/outages.md");
        let (_, rest) = page.split_once("```toml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        assert_eq!(parse(example).unwrap()[0].row.grace_seconds, Some(30));
    }

    #[test]
    fn the_reference_of_services_lists_what_is_accepted() {
        let refused = parse("[[service]]\nno-such-key = 1").unwrap_err();
        let (_, accepted) = refused.split_once("expected one of ").unwrap();
        let accepted: BTreeSet<&str> = accepted.split('`').skip(1).step_by(2).collect();
        let page = include_str!("../../docs/configuration.md");
        let (_, section) = page.split_once("\n## Services\n").unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let documented: BTreeSet<&str> = rows.filter_map(|row| row.split('`').next()).collect();
        assert_eq!(documented, accepted);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = r#"
            [[service]]
            name = "auth"
            protocol = "gopher"
            [[service]]
            name = "ok"
            agents = ["nobody"]
            audit = "never"
            lock_feed_max_age = "29s"
            [[service]]
            name = "ok"
        "#;
        let problems = parse(text).unwrap_err();
        for expected in [
            "\"auth\"",
            "gopher",
            "nobody",
            "audit must be",
            "is there twice",
            "lock_feed_max_age must be at least 30s",
        ] {
            assert!(problems.contains(expected), "{expected} in {problems}");
        }
    }

    #[test]
    fn unknown_keys_and_empty_documents_are_refused() {
        assert!(
            parse("[[service]]\nname = \"a\"\nbackend = \"h:1\"")
                .unwrap_err()
                .contains("backend")
        );
        assert!(parse("").unwrap_err().contains("no [[service]]"));
    }
}
