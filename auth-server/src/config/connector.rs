//! `[[connector]]`: one identity provider, with what its kind needs checked before anybody logs in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use iap_runtime::config::ConfigErrors;
use iap_runtime::files;
use secrecy::SecretString;
use serde::Deserialize;

/// The largest file with a client secret.
const CLIENT_SECRET_BYTES_MAX: usize = 4096;
/// The most entries of `group_names`.
const GROUP_NAMES_MAX: usize = 2_000;
/// The one issuer of Google accounts.
const GOOGLE_ISSUER: &str = "https://accounts.google.com";
/// Hosts of Entra ID's tenants, the national clouds included.
const ENTRA_HOSTS: [&str; 3] = [
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "login.partner.microsoftonline.cn",
];
/// Domains in which anybody may have an address.
const PUBLIC_MAIL_DOMAINS: [&str; 6] = [
    "gmail.com",
    "googlemail.com",
    "outlook.com",
    "hotmail.com",
    "live.com",
    "yahoo.com",
];
/// What Okta calls a login with two factors.
const OKTA_TWO_FACTORS: &str = "urn:okta:loa:2fa:any";

/// Whose habits a provider has; `docs/idp/` has a page for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectorKind {
    /// What OpenID Connect says and no more.
    Oidc,
    /// Okta: groups by a claim that is filtered there.
    Okta,
    /// Microsoft Entra ID: people are `tid` and `oid`, groups are object ids and may be left out.
    Entra,
    /// Google: no groups in tokens, accounts belong to a hosted domain.
    Google,
    /// Keycloak: groups by a mapper, as full paths.
    Keycloak,
}

/// One OpenID Connect provider.
#[derive(Clone, Debug)]
pub struct ConnectorConfig {
    /// The prefix of its groups; one LDH label.
    pub name: String,
    /// Whose habits it has.
    pub kind: ConnectorKind,
    /// The issuer URL, exactly as the provider's tokens say it.
    pub issuer: String,
    /// Our client id there.
    pub client_id: String,
    /// Our client secret there; none for public clients.
    pub client_secret: Option<SecretString>,
    /// Scopes asked for; always contains `openid`.
    pub scopes: Vec<String>,
    /// The claim that lists the groups, a path of names with dots between them where it lies deeper; none when
    /// logins bring no groups.
    pub groups_claim: Option<String>,
    /// What groups are called here, by what the provider calls them. Where it is set, no other group counts.
    pub group_names: BTreeMap<String, String>,
    /// Mail domains the connector owns, lower case: an email counts only if verified and in one of them.
    pub domains: BTreeSet<String>,
    /// Values of `acr` that mean several factors; the first is asked for when a rule needs them.
    pub mfa_acr: Vec<String>,
    /// The issuer's own host may be at a private address; without it only public addresses are reached.
    pub allow_private: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct RawConnector {
    name: String,
    kind: Option<ConnectorKind>,
    issuer: Option<String>,
    client_id: String,
    client_secret_file: Option<PathBuf>,
    scopes: Option<Vec<String>>,
    groups: Option<GroupsFrom>,
    groups_claim: Option<String>,
    #[serde(default)]
    group_names: BTreeMap<String, String>,
    #[serde(default)]
    domains: Vec<String>,
    mfa_acr: Option<Vec<String>>,
    #[serde(default)]
    allow_private: bool,
}

/// Where a login's groups come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum GroupsFrom {
    /// A claim; without it nobody logs in.
    Claim,
    /// Nowhere: rules name people and domains.
    None,
}

impl ConnectorConfig {
    /// The tenant in an issuer of Entra ID, `https://login.microsoftonline.com/TENANT/v2.0`.
    pub(crate) fn entra_tenant(&self) -> Option<&str> {
        entra_tenant(&self.issuer)
    }

    /// The one group claim that Entra ID fills with object ids, or leaves out when they are many.
    pub(crate) fn reads_entra_groups(&self) -> bool {
        self.kind == ConnectorKind::Entra && self.groups_claim.as_deref() == Some("groups")
    }
}

/// All connectors, with every mistake at its key.
pub(super) fn check(
    raw: &[RawConnector],
    development: bool,
    errors: &mut ConfigErrors,
) -> Vec<ConnectorConfig> {
    let mut names = BTreeSet::new();
    raw.iter()
        .enumerate()
        .map(|(index, connector)| {
            if !names.insert(connector.name.as_str()) {
                errors.push(
                    &format!("connector.{index}.name"),
                    format!("{:?} is used twice", connector.name),
                );
            }
            Checking {
                raw: connector,
                index,
                errors,
            }
            .connector(development)
        })
        .collect()
}

/// One table being checked.
struct Checking<'a> {
    raw: &'a RawConnector,
    index: usize,
    errors: &'a mut ConfigErrors,
}

impl Checking<'_> {
    fn wrong(&mut self, field: &str, what: impl Into<String>) {
        let key = format!("connector.{}.{field}", self.index);
        self.errors.push(&key, what.into());
    }

    fn connector(mut self, development: bool) -> ConnectorConfig {
        let raw = self.raw;
        let label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if raw.name.is_empty() || raw.name.len() > 32 || !raw.name.bytes().all(label) {
            self.wrong("name", "must be 1 to 32 lower-case letters, digits and hyphens");
        }
        if raw.client_id.is_empty() {
            self.wrong("client_id", "must not be empty");
        }
        let kind = self.kind();
        let issuer = self.issuer(kind, development);
        let domains = self.domains(kind);
        self.check_group_names();
        ConnectorConfig {
            name: raw.name.clone(),
            kind,
            issuer,
            client_id: raw.client_id.clone(),
            client_secret: self.secret(),
            scopes: scopes(kind, raw.scopes.as_deref()),
            groups_claim: self.groups_claim(kind),
            group_names: raw.group_names.clone(),
            domains,
            mfa_acr: self.mfa_acr(kind),
            allow_private: raw.allow_private,
        }
    }

    /// An issuer of Entra ID is one whatever the table says: its `sub` differs for each application.
    fn kind(&mut self) -> ConnectorKind {
        let entra = self
            .raw
            .issuer
            .as_deref()
            .is_some_and(|issuer| host(issuer).is_some_and(|host| is_entra_host(&host)));
        match (self.raw.kind, entra) {
            (None, true) => ConnectorKind::Entra,
            (None, false) => ConnectorKind::Oidc,
            (Some(kind), false) | (Some(kind @ ConnectorKind::Entra), true) => kind,
            (Some(other), true) => {
                self.wrong("kind", "must be \"entra\": the issuer is Microsoft's");
                other
            }
        }
    }

    fn issuer(&mut self, kind: ConnectorKind, development: bool) -> String {
        let issuer = match (&self.raw.issuer, kind) {
            (Some(issuer), _) => issuer.clone(),
            (None, ConnectorKind::Google) => GOOGLE_ISSUER.to_owned(),
            (None, _) => {
                self.wrong("issuer", "missing, and only kind = \"google\" has a default");
                return String::new();
            }
        };
        if !issuer_is_allowed(&issuer, development) {
            self.wrong("issuer", "must be an https:// URL without query and fragment");
        } else if let Some(what) = issuer_does_not_suit(kind, &issuer, development) {
            self.wrong("issuer", what);
        }
        issuer
    }

    fn domains(&mut self, kind: ConnectorKind) -> BTreeSet<String> {
        let domains: BTreeSet<String> = self
            .raw
            .domains
            .iter()
            .map(|domain| domain.to_ascii_lowercase())
            .collect();
        if kind == ConnectorKind::Google {
            if domains.is_empty() {
                self.wrong(
                    "domains",
                    "must name your Google Workspace domains: without them everybody with a Google account could log in",
                );
            }
            if let Some(public) = PUBLIC_MAIL_DOMAINS
                .into_iter()
                .find(|domain| domains.contains(*domain))
            {
                self.wrong("domains", format!("{public} is open to everybody"));
            }
        }
        domains
    }

    fn groups_claim(&mut self, kind: ConnectorKind) -> Option<String> {
        let raw = self.raw;
        match (raw.groups, raw.groups_claim.as_deref()) {
            (Some(GroupsFrom::None), None | Some("")) | (None, Some("")) => None,
            (Some(GroupsFrom::None), Some(_)) => {
                self.wrong("groups", "\"none\" and a `groups_claim` contradict each other");
                None
            }
            (Some(GroupsFrom::Claim), Some("")) => {
                self.wrong("groups", "\"claim\" needs the claim's name in `groups_claim`");
                None
            }
            (None, None) if kind == ConnectorKind::Google => {
                self.wrong(
                    "groups",
                    "Google's tokens carry no groups: say groups = \"none\", and let rules name people (users = { names = [...] }) or \
                     domains (when = 'user.name.endsWith(\"@example.com\")')",
                );
                None
            }
            (Some(GroupsFrom::Claim) | None, claim) => Some(claim.unwrap_or("groups").to_owned()),
        }
    }

    fn check_group_names(&mut self) {
        let names = &self.raw.group_names;
        if names.len() > GROUP_NAMES_MAX {
            self.wrong("group_names", format!("has more than {GROUP_NAMES_MAX} entries"));
        }
        let mut seen = BTreeSet::new();
        let bad = names
            .iter()
            .find(|(_, name)| {
                let unusable = iap_identity::GroupName::new(&self.raw.name, name).is_err();
                unusable || !seen.insert(name.as_str())
            })
            .map(|(group, name)| format!("{group:?}: {name:?} is used twice or cannot name a group"));
        if let Some(bad) = bad {
            self.wrong("group_names", bad);
        }
    }

    fn mfa_acr(&mut self, kind: ConnectorKind) -> Vec<String> {
        let Some(values) = &self.raw.mfa_acr else {
            return match kind {
                ConnectorKind::Okta => vec![OKTA_TWO_FACTORS.to_owned()],
                ConnectorKind::Oidc
                | ConnectorKind::Entra
                | ConnectorKind::Google
                | ConnectorKind::Keycloak => Vec::new(),
            };
        };
        if values
            .iter()
            .any(|value| value.is_empty() || value.contains(char::is_whitespace))
        {
            self.wrong("mfa_acr", "values of `acr` are not empty and have no spaces");
        }
        values.clone()
    }

    fn secret(&mut self) -> Option<SecretString> {
        let path = self.raw.client_secret_file.as_deref()?;
        match read_secret(path) {
            Ok(secret) => Some(secret),
            Err(error) => {
                self.wrong("client_secret_file", error);
                None
            }
        }
    }
}

fn scopes(kind: ConnectorKind, named: Option<&[String]>) -> Vec<String> {
    let default: &[&str] = match kind {
        // Okta's organisation-wide server sends groups only to those who ask for them.
        ConnectorKind::Okta => &["openid", "email", "profile", "groups"],
        // Every application there may have a refresh token, and none gets one that does not ask.
        ConnectorKind::Entra => &["openid", "email", "profile", "offline_access"],
        ConnectorKind::Oidc | ConnectorKind::Google | ConnectorKind::Keycloak => {
            &["openid", "email", "profile"]
        }
    };
    let mut scopes = named.map_or_else(
        || default.iter().map(|scope| (*scope).to_owned()).collect(),
        <[_]>::to_vec,
    );
    if !scopes.iter().any(|scope| scope == "openid") {
        scopes.insert(0, "openid".to_owned());
    }
    scopes
}

fn issuer_is_allowed(issuer: &str, development: bool) -> bool {
    let Ok(url) = reqwest::Url::parse(issuer) else {
        return false;
    };
    let plain = url.query().is_none() && url.fragment().is_none() && url.host_str().is_some();
    plain && (url.scheme() == "https" || (development && is_loopback(&url) && url.scheme() == "http"))
}

/// What is wrong with an issuer for its kind. A development plane stands providers in on loopback.
fn issuer_does_not_suit(kind: ConnectorKind, issuer: &str, development: bool) -> Option<&'static str> {
    let url = reqwest::Url::parse(issuer).ok()?;
    if development && is_loopback(&url) {
        return None;
    }
    let host = url.host_str().unwrap_or_default();
    match kind {
        ConnectorKind::Oidc => None,
        ConnectorKind::Okta if host.contains("-admin.") => Some(
            "is the administrators' address; the issuer is https://ORG.okta.com or https://ORG.okta.com/oauth2/default",
        ),
        ConnectorKind::Okta => None,
        ConnectorKind::Entra if entra_tenant(issuer).is_none() => Some(
            "must be https://login.microsoftonline.com/TENANT-ID/v2.0 with your tenant's id: under `common`, \
             `organizations` and `consumers` the tokens are every tenant's",
        ),
        ConnectorKind::Entra => None,
        ConnectorKind::Google if issuer != GOOGLE_ISSUER => Some("of Google is https://accounts.google.com"),
        ConnectorKind::Google => None,
        ConnectorKind::Keycloak if !url.path().contains("/realms/") => {
            Some("must be https://HOST/realms/REALM, as the realm's endpoint configuration says it")
        }
        ConnectorKind::Keycloak => None,
    }
}

fn entra_tenant(issuer: &str) -> Option<&str> {
    let (host, path) = issuer.strip_prefix("https://")?.split_once('/')?;
    let tenant = path.strip_suffix("/v2.0")?;
    (is_entra_host(host) && uuid::Uuid::try_parse(tenant).is_ok()).then_some(tenant)
}

fn is_entra_host(host: &str) -> bool {
    // Tokens of version 1 name the second host.
    ENTRA_HOSTS.contains(&host) || host == "sts.windows.net"
}

fn host(url: &str) -> Option<String> {
    reqwest::Url::parse(url).ok()?.host_str().map(str::to_owned)
}

fn is_loopback(url: &reqwest::Url) -> bool {
    matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"))
}

fn read_secret(path: &Path) -> Result<SecretString, String> {
    let bytes = files::read_private(path).map_err(|error| error.to_string())?;
    if bytes.len() > CLIENT_SECRET_BYTES_MAX {
        return Err(format!(
            "{} is longer than {CLIENT_SECRET_BYTES_MAX} bytes",
            path.display()
        ));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    match text.trim() {
        "" => Err(format!("{} is empty", path.display())),
        secret => Ok(SecretString::from(secret.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use crate::config::Config;

    use super::*;

    fn checked(table: &str) -> Result<ConnectorConfig, String> {
        let text = format!(
            "cluster = \"iap.example.com\"\ndata_dir = \"/var/lib/iap-auth\"\nlisten = \"127.0.0.1:8443\"\n\n[[connector]]\n\
             name = \"sso\"\nclient_id = \"iap\"\n{table}"
        );
        match Config::parse(&text, "auth.toml") {
            Ok(config) => Ok(config.connectors.into_iter().next().unwrap()),
            Err(errors) => Err(errors.to_string()),
        }
    }

    fn refused(table: &str) -> String {
        checked(table).map(|_| ()).unwrap_err()
    }

    #[test]
    fn a_connector_without_a_kind_is_plain_openid_connect_with_a_groups_claim() {
        let plain = checked("issuer = \"https://sso.example.com\"").unwrap();
        assert_eq!(plain.kind, ConnectorKind::Oidc);
        assert_eq!(plain.groups_claim.as_deref(), Some("groups"));
        assert_eq!(plain.scopes, ["openid", "email", "profile"]);
    }

    #[test]
    fn microsofts_issuer_is_entra_and_nothing_else() {
        let issuer =
            "issuer = \"https://login.microsoftonline.com/8e5c2a1e-6c0e-4a53-9a39-0c0b8a3a3a10/v2.0\"";
        let entra = checked(issuer).unwrap();
        assert_eq!(entra.kind, ConnectorKind::Entra);
        assert_eq!(entra.entra_tenant(), Some("8e5c2a1e-6c0e-4a53-9a39-0c0b8a3a3a10"));
        assert!(refused(&format!("kind = \"oidc\"\n{issuer}")).contains("must be \"entra\""));
        for shared in ["common", "organizations", "consumers"] {
            let why = refused(&format!(
                "kind = \"entra\"\nissuer = \"https://login.microsoftonline.com/{shared}/v2.0\""
            ));
            assert!(why.contains("your tenant's id"), "{why}");
        }
    }

    #[test]
    fn google_needs_its_domains_and_the_word_that_there_are_no_groups() {
        let why = refused("kind = \"google\"");
        assert!(
            why.contains("connector.0.groups") && why.contains("connector.0.domains"),
            "{why}"
        );
        let google = checked("kind = \"google\"\ngroups = \"none\"\ndomains = [\"example.com\"]").unwrap();
        assert_eq!(
            (google.issuer.as_str(), google.groups_claim),
            (GOOGLE_ISSUER, None)
        );
        let open = refused("kind = \"google\"\ngroups = \"none\"\ndomains = [\"gmail.com\"]");
        assert!(open.contains("open to everybody"), "{open}");
    }

    #[test]
    fn an_issuer_that_cannot_be_its_kinds_is_refused() {
        let okta = refused("kind = \"okta\"\nissuer = \"https://example-admin.okta.com\"");
        assert!(okta.contains("administrators' address"), "{okta}");
        let keycloak = refused("kind = \"keycloak\"\nissuer = \"https://sso.example.com\"");
        assert!(keycloak.contains("/realms/REALM"), "{keycloak}");
        assert!(refused("kind = \"okta\"").contains("connector.0.issuer"));
    }

    #[test]
    fn a_kind_that_is_not_known_is_told_which_are() {
        let why = refused("kind = \"saml\"\nissuer = \"https://sso.example.com\"");
        assert!(why.contains("keycloak") && why.contains("google"), "{why}");
    }

    #[test]
    fn settings_for_groups_that_contradict_each_other_are_refused() {
        let both = "issuer = \"https://sso.example.com\"\ngroups = \"none\"\ngroups_claim = \"groups\"";
        assert!(refused(both).contains("contradict"));
        let twice =
            "issuer = \"https://sso.example.com\"\ngroup_names = { \"1\" = \"ops\", \"2\" = \"ops\" }";
        assert!(refused(twice).contains("used twice"));
    }
}
