//! Who it is: the subject, which never changes, and the name, which people read.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Claims, ClaimsError, NAME_BYTES_MAX, SUBJECT_BYTES_MAX, usable};
use crate::config::{ConnectorConfig, ConnectorKind};

/// Whether the account is of the organisation that the connector is for. An issuer that serves many says whose
/// account it is in a claim of its own.
pub(super) fn check_organisation(claims: &Claims, connector: &ConnectorConfig) -> Result<(), ClaimsError> {
    match connector.kind {
        ConnectorKind::Entra => check_tenant(claims, connector),
        ConnectorKind::Google => check_hosted_domain(claims, connector),
        ConnectorKind::Oidc | ConnectorKind::Okta | ConnectorKind::Keycloak => Ok(()),
    }
}

fn check_tenant(claims: &Claims, connector: &ConnectorConfig) -> Result<(), ClaimsError> {
    match (connector.entra_tenant(), claims.text("tid")) {
        (Some(expected), Some(found)) if found != expected => Err(ClaimsError::OtherTenant {
            connector: connector.name.clone(),
            found: usable(found.to_owned(), SUBJECT_BYTES_MAX).unwrap_or_default(),
        }),
        (Some(_) | None, _) => Ok(()),
    }
}

/// `hd` is in the token of an account that a Workspace administrator manages. The email alone does not say that:
/// anybody can open an account with an address elsewhere.
fn check_hosted_domain(claims: &Claims, connector: &ConnectorConfig) -> Result<(), ClaimsError> {
    let hosted = claims.text("hd").map(str::to_lowercase);
    match hosted {
        Some(domain) if connector.domains.contains(&domain) => Ok(()),
        other => Err(ClaimsError::OtherDomain {
            connector: connector.name.clone(),
            found: other
                .and_then(|domain| usable(domain, NAME_BYTES_MAX))
                .unwrap_or_else(|| "no organisation".to_owned()),
        }),
    }
}

/// The provider's stable name for the person. Entra ID's `sub` differs for each application: there it is tenant and
/// object.
pub(super) fn subject(claims: &Claims, connector: &ConnectorConfig) -> Result<String, ClaimsError> {
    let subject = match (connector.kind, claims.text("tid"), claims.text("oid")) {
        (ConnectorKind::Entra, Some(tenant), Some(object)) => format!("{tenant}.{object}"),
        (ConnectorKind::Entra, _, _) => {
            return Err(ClaimsError::Unusable("subject without `tid` and `oid`"));
        }
        (
            ConnectorKind::Oidc | ConnectorKind::Okta | ConnectorKind::Google | ConnectorKind::Keycloak,
            _,
            _,
        ) => claims.subject.clone(),
    };
    usable(subject, SUBJECT_BYTES_MAX).ok_or(ClaimsError::Unusable("subject"))
}

/// An email counts only if the provider verified it and the connector owns its domain: otherwise anybody
/// could bring a provider that vouches for somebody else's address.
pub(super) fn owned_email(claims: &Claims, connector: &ConnectorConfig) -> Option<String> {
    let email = claims
        .email
        .as_deref()
        .filter(|_| is_verified(claims, connector))?;
    let email = usable(email.to_lowercase(), NAME_BYTES_MAX)?;
    is_in(&email, &connector.domains).then_some(email)
}

/// Entra ID has no `email_verified`: an administrator of any tenant can write any address into `email`. `xms_edov`
/// says that the domain is one its owner has proven to Microsoft.
fn is_verified(claims: &Claims, connector: &ConnectorConfig) -> bool {
    match connector.kind {
        ConnectorKind::Entra => match claims.other.get("xms_edov") {
            Some(Value::Bool(verified)) => *verified,
            Some(Value::String(text)) => matches!(text.as_str(), "1" | "true"),
            Some(Value::Number(number)) => number.as_u64() == Some(1),
            Some(_) | None => false,
        },
        ConnectorKind::Oidc | ConnectorKind::Okta | ConnectorKind::Google | ConnectorKind::Keycloak => {
            claims.email_verified
        }
    }
}

/// Whether an email's domain, everything behind the last `@`, is among these.
fn is_in(email: &str, domains: &BTreeSet<String>) -> bool {
    match email.rsplit_once('@') {
        Some((local, domain)) => !local.is_empty() && domains.contains(&domain.to_lowercase()),
        None => false,
    }
}

/// The verified email, else the `preferred_username` if it cannot pass for an email of ours.
pub(super) fn name(
    claims: &Claims,
    email: Option<&str>,
    connector: &ConnectorConfig,
    owned: &BTreeSet<String>,
) -> Result<String, ClaimsError> {
    if let Some(email) = email {
        return Ok(email.to_owned());
    }
    let Some(name) = claims.preferred_username.clone() else {
        return Err(ClaimsError::NoName {
            connector: connector.name.clone(),
        });
    };
    if is_in(&name, owned) {
        return Err(match connector.kind {
            ConnectorKind::Entra => ClaimsError::NoVerifiedDomain,
            ConnectorKind::Oidc | ConnectorKind::Okta | ConnectorKind::Google | ConnectorKind::Keycloak => {
                ClaimsError::UnverifiedEmailAsName
            }
        });
    }
    usable(name, NAME_BYTES_MAX).ok_or(ClaimsError::Unusable("preferred_username"))
}
