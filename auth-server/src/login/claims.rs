//! From a provider's claims to an [`Identity`]: who it is, by which name, in which groups.
//!
//! Pure: what a provider says goes in, who may log in comes out. `person` is the subject and the name, `groups` the
//! groups; what one kind of provider does differently is there, beside what it differs from.

mod groups;
mod payload;
mod person;

use std::collections::{BTreeMap, BTreeSet};

use iap_identity::UserId;
use openidconnect::AdditionalClaims;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::config::{ConnectorConfig, ConnectorKind};
use crate::store::Identity;

/// The longest display name that is taken over.
const NAME_BYTES_MAX: usize = 128;
/// The longest subject; OpenID Connect Core §2 allows 255 ASCII characters.
const SUBJECT_BYTES_MAX: usize = 255;
/// The longest authentication context class that is taken over.
const ACR_BYTES_MAX: usize = 255;
/// The most groups of one person; certificates carry those that the policy names.
const GROUPS_MAX: usize = 2_000;

/// How long ago a person signed in whose provider does not tell and was not asked to let them sign in anew: not lately.
const UNTOLD_AGE: time::Duration = time::Duration::DAY;

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
    /// When the person proved who they are, if the provider says.
    pub(crate) auth_time: Option<OffsetDateTime>,
    /// Whether the provider was asked to let the person sign in anew (`prompt=login`).
    pub(crate) was_prompted: bool,
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
         the provider send it, or set the right `groups_claim` for the connector `{connector}` (`groups = \"none\"` if it has none)"
    )]
    NoGroupsClaim {
        /// The connector.
        connector: String,
        /// The claim's configured name.
        claim: String,
    },
    /// Entra ID leaves the claim out of the token of a person in more than 200 groups.
    #[error(
        "Entra ID left the groups out of the token, because the person is in more than it sends; an administrator must \
         choose \"Groups assigned to the application\" in the application's token configuration, or send application roles \
         and set groups_claim = \"roles\" for the connector `{connector}`"
    )]
    GroupsLeftOut {
        /// The connector.
        connector: String,
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
    /// Names of groups where only ids are safe: in Entra ID many may make a group of any name.
    #[error(
        "Entra ID sent the group `{group}` by name, and names of groups are not unique there; an administrator must send \
         group ids, and may give them names with `group_names` of the connector `{connector}`"
    )]
    GroupByName {
        /// The connector.
        connector: String,
        /// The group.
        group: String,
    },
    /// Groups without their path, where two may have one name.
    #[error(
        "Keycloak sent the group `{group}` without its path; an administrator must switch on \"Full group path\" in the \
         groups mapper of the connector `{connector}`"
    )]
    GroupWithoutPath {
        /// The connector.
        connector: String,
        /// The group.
        group: String,
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
    /// The same from Entra ID, which verifies an email only by a claim that has to be asked for.
    #[error(
        "Entra ID does not say that it verified the email, and `preferred_username` can be changed; an administrator must add \
         the optional claims `email` and `xms_edov` to the application's ID token"
    )]
    NoVerifiedDomain,
    /// A token of a tenant that is not the connector's.
    #[error("the token is of the tenant `{found}`, and the connector `{connector}` is for another")]
    OtherTenant {
        /// The connector.
        connector: String,
        /// The tenant in the token.
        found: String,
    },
    /// A Google account outside the connector's domains, or of no organisation at all.
    #[error(
        "the Google account is of {found}, which is not among the `domains` of the connector `{connector}`; use an account of the organisation"
    )]
    OtherDomain {
        /// The connector.
        connector: String,
        /// The account's domain, in words.
        found: String,
    },
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
            .is_some_and(|claim| self.at(claim).is_none());
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

    /// The claim of that name, else the one at that path (`realm_access.roles`).
    fn at(&self, claim: &str) -> Option<&Value> {
        self.other.get(claim).or_else(|| {
            let mut steps = claim.split('.');
            let first = self.other.get(steps.next()?)?;
            steps.try_fold(first, |value, step| value.get(step))
        })
    }

    fn text(&self, claim: &str) -> Option<&str> {
        self.other.get(claim).and_then(Value::as_str)
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
        person::check_organisation(&self, connector)?;
        let groups = groups::of(&self, connector)?;
        let email = person::owned_email(&self, connector);
        let name = person::name(&self, email.as_deref(), connector, owned)?;
        let subject = person::subject(&self, connector)?;
        // Google never tells, knows no `prompt=login`, and shows its consent page at each login.
        let is_seen = self.was_prompted || connector.kind == ConnectorKind::Google;
        let auth_time = match (self.auth_time, is_seen) {
            // A provider's clock may be ahead of ours; nobody has authenticated in the future.
            (Some(told), _) => told.min(now),
            // All that such a provider can be asked for.
            (None, true) => now,
            // A standing session may be that old, and older.
            (None, false) => now - UNTOLD_AGE,
        };
        let is_known = self.auth_time.is_some() || self.was_prompted;
        let acr = self.class(connector);
        let user_id = UserId::derive(&connector.name, &connector.issuer, &subject);
        Ok(Identity {
            user_id,
            connector: connector.name.clone(),
            issuer: connector.issuer.clone(),
            subject,
            name,
            email,
            groups,
            auth_time,
            mfa_time: (is_known && self.used_several_factors(acr.as_ref(), connector)).then_some(auth_time),
            acr,
        })
    }

    /// RFC 8176 §2: "mfa" is the one value that says that several factors were used; an `acr` says so where the
    /// connector knows it.
    fn used_several_factors(&self, acr: Option<&String>, connector: &ConnectorConfig) -> bool {
        self.amr.iter().any(|method| method == "mfa")
            || acr.is_some_and(|acr| connector.mfa_acr.contains(acr))
    }

    /// The authentication context class. Entra ID lists those reached in `acrs`; one that means several factors
    /// says the most.
    fn class(&self, connector: &ConnectorConfig) -> Option<String> {
        let listed = match connector.kind {
            ConnectorKind::Entra => self.other.get("acrs").and_then(Value::as_array),
            ConnectorKind::Oidc | ConnectorKind::Okta | ConnectorKind::Google | ConnectorKind::Keycloak => {
                None
            }
        };
        let listed: Vec<&str> = listed.into_iter().flatten().filter_map(Value::as_str).collect();
        let strongest = connector
            .mfa_acr
            .iter()
            .find(|acr| listed.contains(&acr.as_str()))
            .map(String::as_str);
        let class = strongest.or_else(|| listed.first().copied());
        let class = class.map(str::to_owned).or_else(|| self.acr.clone())?;
        usable(class, ACR_BYTES_MAX)
    }
}

fn usable(text: String, bytes_max: usize) -> Option<String> {
    let fits = !text.is_empty() && text.len() <= bytes_max && text.trim() == text;
    (fits && !text.chars().any(char::is_control)).then_some(text)
}

#[cfg(test)]
mod tests;
