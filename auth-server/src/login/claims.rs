//! From a provider's claims to an [`Identity`]: who it is, by which name, in which groups.

use std::collections::{BTreeMap, BTreeSet};

use iap_identity::{GroupName, UserId};
use openidconnect::AdditionalClaims;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::config::ConnectorConfig;
use crate::store::Identity;

/// The longest display name that is taken over.
const NAME_BYTES_MAX: usize = 128;
/// The longest subject; OpenID Connect Core §2 allows 255 ASCII characters.
const SUBJECT_BYTES_MAX: usize = 255;
/// The most groups of one person; certificates carry those that the policy names.
const GROUPS_MAX: usize = 2_000;
/// Issuers of Entra ID, where `sub` differs for each application: `tid` and `oid` name the person.
const ENTRA_ISSUERS: [&str; 2] = ["https://login.microsoftonline.com/", "https://sts.windows.net/"];

/// Every claim the `openidconnect` crate has no field for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct OtherClaims(pub(crate) BTreeMap<String, Value>);

impl AdditionalClaims for OtherClaims {}

/// What a verified ID token and, where it was asked, the userinfo endpoint say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    pub(crate) subject: String,
    pub(crate) email: Option<String>,
    pub(crate) email_verified: bool,
    pub(crate) preferred_username: Option<String>,
    pub(crate) acr: Option<String>,
    pub(crate) amr: Vec<String>,
    pub(crate) other: BTreeMap<String, Value>,
}

/// Why a person who proved who they are cannot log in all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// The connector says there are groups, the provider sent none.
    #[error(
        "the identity provider sent no `{claim}` claim, so nobody's groups are known; an administrator must make \
         the provider send it, or set the right `groups_claim` for the connector `{connector}` (\"\" if it has none)"
    )]
    NoGroupsClaim {
        /// The connector.
        connector: String,
        /// The claim's configured name.
        claim: String,
    },
    /// The groups claim is neither a text nor a list of texts.
    #[error(
        "the `{claim}` claim is not a list of names; `groups_claim` of the connector `{connector}` names the wrong claim"
    )]
    UnreadableGroups {
        /// The connector.
        connector: String,
        /// The claim's configured name.
        claim: String,
    },
    /// More groups than a login may bring.
    #[error("the identity provider named more than {GROUPS_MAX} groups; let it send fewer")]
    TooManyGroups,
    /// A group with an unusable name.
    #[error("the identity provider named a group that cannot be used: {0}")]
    GroupName(String),
    /// Neither a usable email nor a `preferred_username`.
    #[error(
        "the identity provider told no name: the email is not verified or not in a domain of the connector \
         `{connector}` (`domains`), and there is no `preferred_username`"
    )]
    NoName {
        /// The connector.
        connector: String,
    },
    /// A `preferred_username` that reads like the email of a domain that some connector owns, although this
    /// connector did not verify such an email: it would pass for somebody else.
    #[error(
        "the identity provider's `preferred_username` is an email that the provider did not verify, in a domain \
         that a connector owns (`domains`)"
    )]
    UnverifiedEmailAsName,
    /// A name with control characters, or far too long.
    #[error("the identity provider told a {0} that cannot be used")]
    Unusable(&'static str),
}

impl Claims {
    /// Whether the userinfo endpoint may know something that the ID token left out.
    pub(crate) fn lacks(&self, connector: &ConnectorConfig) -> bool {
        let groups = connector
            .groups_claim
            .as_ref()
            .is_some_and(|claim| !self.other.contains_key(claim));
        groups || (self.email.is_none() && self.preferred_username.is_none())
    }

    /// Fills gaps from the userinfo endpoint; what the signed ID token says stands.
    pub(crate) fn fill_from(&mut self, info: Claims) {
        if self.email.is_none() {
            self.email = info.email;
            self.email_verified = info.email_verified;
        }
        self.preferred_username = self.preferred_username.take().or(info.preferred_username);
        for (name, value) in info.other {
            self.other.entry(name).or_insert(value);
        }
    }

    /// Who it is, as the certificate will say. `owned` are the mail domains of all connectors.
    ///
    /// # Errors
    /// When groups or name cannot be told; the reason names the setting to change.
    pub(crate) fn identity(
        self,
        connector: &ConnectorConfig,
        owned: &BTreeSet<String>,
        now: OffsetDateTime,
    ) -> Result<Identity, ClaimsError> {
        let groups = groups(&self, connector)?;
        let email = owned_email(&self, connector);
        let name = name(&self, email.as_deref(), connector, owned)?;
        let subject = subject(&self, connector)?;
        let user_id = UserId::derive(&connector.name, &connector.issuer, &subject);
        Ok(Identity {
            user_id,
            connector: connector.name.clone(),
            issuer: connector.issuer.clone(),
            subject,
            name,
            email,
            groups,
            auth_time: now,
            // RFC 8176 §2: "mfa" is the one value that says that several factors were used.
            mfa_time: self.amr.iter().any(|method| method == "mfa").then_some(now),
            acr: self.acr,
        })
    }
}

fn subject(claims: &Claims, connector: &ConnectorConfig) -> Result<String, ClaimsError> {
    let entra = ENTRA_ISSUERS
        .iter()
        .any(|prefix| connector.issuer.starts_with(prefix));
    let text = |name: &str| claims.other.get(name).and_then(Value::as_str);
    let subject = match (entra, text("tid"), text("oid")) {
        (true, Some(tenant), Some(object)) => format!("{tenant}.{object}"),
        (true, _, _) => return Err(ClaimsError::Unusable("subject without `tid` and `oid`")),
        (false, _, _) => claims.subject.clone(),
    };
    usable(subject, SUBJECT_BYTES_MAX).ok_or(ClaimsError::Unusable("subject"))
}

/// An email counts only if the provider verified it and the connector owns its domain: otherwise anybody
/// could bring a provider that vouches for somebody else's address.
fn owned_email(claims: &Claims, connector: &ConnectorConfig) -> Option<String> {
    let email = claims.email.as_deref().filter(|_| claims.email_verified)?;
    let email = usable(email.to_lowercase(), NAME_BYTES_MAX)?;
    is_in(&email, &connector.domains).then_some(email)
}

/// Whether an email's domain, everything behind the last `@`, is among these.
fn is_in(email: &str, domains: &BTreeSet<String>) -> bool {
    match email.rsplit_once('@') {
        Some((local, domain)) => !local.is_empty() && domains.contains(&domain.to_lowercase()),
        None => false,
    }
}

fn name(
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
        return Err(ClaimsError::UnverifiedEmailAsName);
    }
    usable(name, NAME_BYTES_MAX).ok_or(ClaimsError::Unusable("preferred_username"))
}

fn groups(claims: &Claims, connector: &ConnectorConfig) -> Result<Vec<GroupName>, ClaimsError> {
    let Some(claim) = &connector.groups_claim else {
        return Ok(Vec::new());
    };
    let unreadable = || ClaimsError::UnreadableGroups {
        connector: connector.name.clone(),
        claim: claim.clone(),
    };
    let names: Vec<&str> = match claims.other.get(claim) {
        Some(Value::Array(names)) => names
            .iter()
            .map(|name| name.as_str().ok_or_else(unreadable))
            .collect::<Result<_, _>>()?,
        Some(Value::String(name)) => vec![name],
        Some(_) => return Err(unreadable()),
        None => {
            return Err(ClaimsError::NoGroupsClaim {
                connector: connector.name.clone(),
                claim: claim.clone(),
            });
        }
    };
    if names.len() > GROUPS_MAX {
        return Err(ClaimsError::TooManyGroups);
    }
    let mut groups = names
        .into_iter()
        .map(|name| GroupName::parse(&format!("{}:{name}", connector.name)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| ClaimsError::GroupName(error.to_string()))?;
    groups.sort();
    groups.dedup();
    Ok(groups)
}

fn usable(text: String, bytes_max: usize) -> Option<String> {
    let fits = !text.is_empty() && text.len() <= bytes_max && text.trim() == text;
    (fits && !text.chars().any(char::is_control)).then_some(text)
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
    use serde_json::json;

    fn connector() -> ConnectorConfig {
        ConnectorConfig {
            name: "okta".to_owned(),
            issuer: "https://sso.example.com".to_owned(),
            client_id: "iap".to_owned(),
            client_secret: None,
            scopes: vec!["openid".to_owned()],
            groups_claim: Some("groups".to_owned()),
            domains: ["example.com".to_owned()].into(),
            allow_private: false,
        }
    }

    fn claims(groups: Value) -> Claims {
        Claims {
            subject: "00u1".to_owned(),
            email: Some("Alice@Example.com".to_owned()),
            email_verified: true,
            preferred_username: Some("alice".to_owned()),
            other: BTreeMap::from([("groups".to_owned(), groups)]),
            ..Claims::default()
        }
    }

    fn identity(claims: Claims) -> Result<Identity, ClaimsError> {
        claims.identity(&connector(), &connector().domains, OffsetDateTime::UNIX_EPOCH)
    }

    #[test]
    fn a_verified_email_in_an_owned_domain_is_the_name() {
        let identity = identity(claims(json!(["b", "a", "a"]))).unwrap();
        assert_eq!(identity.name, "alice@example.com");
        assert_eq!(identity.email.as_deref(), Some("alice@example.com"));
        let groups: Vec<String> = identity.groups.iter().map(ToString::to_string).collect();
        assert_eq!(groups, ["okta:a", "okta:b"]);
    }

    #[test]
    fn an_unverified_email_is_not_the_name() {
        let identity = identity(Claims {
            email_verified: false,
            ..claims(json!([]))
        })
        .unwrap();
        assert_eq!((identity.name.as_str(), identity.email), ("alice", None));
    }

    #[test]
    fn an_email_in_a_foreign_domain_is_not_the_name() {
        let email = Some("alice@attacker.test".to_owned());
        let identity = identity(Claims {
            email,
            ..claims(json!([]))
        })
        .unwrap();
        assert_eq!((identity.name.as_str(), identity.email), ("alice", None));
    }

    #[test]
    fn a_preferred_username_cannot_pretend_to_be_an_owned_email() {
        let pretending = Claims {
            email: None,
            preferred_username: Some("admin@Example.com".to_owned()),
            ..claims(json!([]))
        };
        assert!(matches!(
            identity(pretending),
            Err(ClaimsError::UnverifiedEmailAsName)
        ));
    }

    #[test]
    fn a_preferred_username_cannot_pretend_to_be_an_email_of_another_connector() {
        let pretending = Claims {
            email: None,
            preferred_username: Some("admin@corp.test".to_owned()),
            ..claims(json!([]))
        };
        let owned = ["example.com".to_owned(), "corp.test".to_owned()].into();
        let refused = pretending.identity(&connector(), &owned, OffsetDateTime::UNIX_EPOCH);
        assert!(matches!(refused, Err(ClaimsError::UnverifiedEmailAsName)));
    }

    #[test]
    fn without_any_name_nobody_logs_in() {
        let nameless = Claims {
            email: None,
            preferred_username: None,
            ..claims(json!([]))
        };
        assert!(matches!(identity(nameless), Err(ClaimsError::NoName { .. })));
    }

    #[test]
    fn a_missing_groups_claim_refuses_and_names_the_setting() {
        let error = identity(Claims {
            other: BTreeMap::new(),
            ..claims(json!([]))
        })
        .unwrap_err();
        assert!(
            error.to_string().contains("groups_claim") && error.to_string().contains("okta"),
            "{error}"
        );
    }

    #[test]
    fn groups_that_are_no_list_of_names_refuse() {
        for wrong in [json!({"a": 1}), json!([1]), json!(null)] {
            assert!(matches!(
                identity(claims(wrong)),
                Err(ClaimsError::UnreadableGroups { .. })
            ));
        }
        assert!(matches!(
            identity(claims(json!(["a\u{7}"]))),
            Err(ClaimsError::GroupName(_))
        ));
    }

    #[test]
    fn a_connector_without_groups_needs_no_claim() {
        let connector = ConnectorConfig {
            groups_claim: None,
            ..connector()
        };
        let without = Claims {
            other: BTreeMap::new(),
            ..claims(json!([]))
        };
        assert!(
            without
                .identity(&connector, &connector.domains, OffsetDateTime::UNIX_EPOCH)
                .unwrap()
                .groups
                .is_empty()
        );
    }

    #[test]
    fn the_signed_token_stands_and_userinfo_fills_gaps() {
        let mut token = Claims {
            preferred_username: None,
            ..claims(json!(["signed"]))
        };
        let info = Claims {
            email: Some("mallory@example.com".to_owned()),
            ..claims(json!(["unsigned"]))
        };
        token.fill_from(info);
        let identity = identity(token).unwrap();
        assert_eq!(identity.name, "alice@example.com");
        assert_eq!(identity.groups[0].to_string(), "okta:signed");
    }

    #[test]
    fn entra_names_people_by_tenant_and_object() {
        let entra = ConnectorConfig {
            issuer: "https://login.microsoftonline.com/t/v2.0".to_owned(),
            ..connector()
        };
        let mut with_ids = claims(json!([]));
        with_ids.other.insert("tid".to_owned(), json!("t"));
        with_ids.other.insert("oid".to_owned(), json!("o"));
        assert_eq!(
            with_ids
                .identity(&entra, &entra.domains, OffsetDateTime::UNIX_EPOCH)
                .unwrap()
                .subject,
            "t.o"
        );
        assert!(
            claims(json!([]))
                .identity(&entra, &entra.domains, OffsetDateTime::UNIX_EPOCH)
                .is_err()
        );
    }
}
