//! The groups a provider names.

use std::collections::BTreeSet;

use iap_identity::GroupName;
use serde_json::Value;

use super::{Claims, ClaimsError, GROUPS_MAX};
use crate::config::{ConnectorConfig, ConnectorKind};

/// All groups, as `connector:group`, in order and each once.
pub(super) fn of(claims: &Claims, connector: &ConnectorConfig) -> Result<Vec<GroupName>, ClaimsError> {
    let Some(claim) = &connector.groups_claim else {
        return Ok(Vec::new());
    };
    let names = named(claims, connector, claim)?;
    if names.len() > GROUPS_MAX {
        return Err(ClaimsError::TooManyGroups);
    }
    for name in &names {
        check_form(name, connector)?;
    }
    let groups = names
        .into_iter()
        .filter_map(|name| known_as(name, connector))
        .map(|name| GroupName::new(&connector.name, name))
        .collect::<Result<BTreeSet<_>, _>>()
        .map_err(|error| ClaimsError::GroupName(error.to_string()))?;
    Ok(groups.into_iter().collect())
}

fn named<'a>(
    claims: &'a Claims,
    connector: &ConnectorConfig,
    claim: &str,
) -> Result<Vec<&'a str>, ClaimsError> {
    let unreadable = || ClaimsError::UnreadableGroups {
        connector: connector.name.clone(),
        claim: claim.to_owned(),
    };
    match claims.at(claim) {
        Some(Value::Array(names)) => names
            .iter()
            .map(|name| name.as_str().ok_or_else(unreadable))
            .collect(),
        Some(Value::String(name)) => Ok(vec![name]),
        Some(_) => Err(unreadable()),
        None if connector.reads_entra_groups() && were_left_out(claims) => Err(ClaimsError::GroupsLeftOut {
            connector: connector.name.clone(),
        }),
        None => Err(ClaimsError::NoGroupsClaim {
            connector: connector.name.clone(),
            claim: claim.to_owned(),
        }),
    }
}

/// Microsoft identity platform, "Groups overage claim": `_claim_names` points to Graph; in the implicit flow
/// `hasgroups` says so.
fn were_left_out(claims: &Claims) -> bool {
    let pointed_to = claims
        .other
        .get("_claim_names")
        .is_some_and(|names| names.get("groups").is_some());
    let announced = match claims.other.get("hasgroups") {
        Some(Value::Bool(announced)) => *announced,
        Some(Value::String(text)) => text == "true",
        Some(_) | None => false,
    };
    pointed_to || announced
}

/// Names that others than administrators can choose, or that two groups may share, are no ground for a decision.
fn check_form(name: &str, connector: &ConnectorConfig) -> Result<(), ClaimsError> {
    let (connector_name, group) = (connector.name.clone(), name.to_owned());
    match connector.kind {
        ConnectorKind::Entra if connector.reads_entra_groups() && uuid::Uuid::try_parse(name).is_err() => {
            Err(ClaimsError::GroupByName {
                connector: connector_name,
                group,
            })
        }
        ConnectorKind::Keycloak
            if connector.groups_claim.as_deref() == Some("groups") && !name.starts_with('/') =>
        {
            Err(ClaimsError::GroupWithoutPath {
                connector: connector_name,
                group,
            })
        }
        ConnectorKind::Oidc
        | ConnectorKind::Okta
        | ConnectorKind::Entra
        | ConnectorKind::Google
        | ConnectorKind::Keycloak => Ok(()),
    }
}

/// What the group is called here; nothing where the connector names groups and not this one.
fn known_as<'a>(name: &'a str, connector: &'a ConnectorConfig) -> Option<&'a str> {
    if connector.group_names.is_empty() {
        return Some(name);
    }
    connector.group_names.get(name).map(String::as_str)
}
