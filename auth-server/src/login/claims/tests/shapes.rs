//! The tokens that the providers' documentation shows, through the connectors that `docs/idp` shows.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::super::{Claims, ClaimsError};
use crate::config::{Config, ConnectorConfig};
use crate::store::Identity;

const PAGES: [&str; 5] = ["oidc", "okta", "entra", "google", "keycloak"];

fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn page(name: &str) -> String {
    std::fs::read_to_string(repository().join(format!("docs/idp/{name}.md"))).unwrap()
}

fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    page.split(&fence)
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

/// The page's connector, with everything the page adds to it but the file of the secret, which is not on this machine.
fn documented(name: &str) -> ConnectorConfig {
    let tables: Vec<String> = blocks(&page(name), "toml")
        .into_iter()
        .filter(|block| !block.contains("[[rule]]") && !block.starts_with("mfa_acr"))
        .collect();
    let table: Vec<String> = tables
        .join("\n")
        .lines()
        .filter(|line| !line.starts_with("client_secret_file"))
        .map(str::to_owned)
        .collect();
    let text = format!(
        "cluster = \"iap.example.com\"\ndata_dir = \"/var/lib/iap-auth\"\nlisten = \"127.0.0.1:8443\"\n{}",
        table.join("\n")
    );
    let config = Config::parse(&text, name).unwrap_or_else(|errors| panic!("docs/idp/{name}.md: {errors}"));
    assert_eq!(config.connectors.len(), 1, "docs/idp/{name}.md");
    config.connectors.into_iter().next().unwrap()
}

fn token(name: &str) -> Map<String, Value> {
    let file = repository().join(format!("auth-server/tests/fixtures/idp/{name}.json"));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// The token, with these claims instead; `null` takes one out.
fn changed(name: &str, changes: Value) -> Map<String, Value> {
    let mut token = token(name);
    for (claim, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(token.remove(claim)),
            value => drop(token.insert(claim.clone(), value.clone())),
        }
    }
    token
}

fn identity(connector: &ConnectorConfig, token: &Map<String, Value>) -> Result<Identity, ClaimsError> {
    Claims::of_payload(token).identity(connector, &connector.domains, OffsetDateTime::UNIX_EPOCH)
}

fn log_in(name: &str, changes: Value) -> Result<Identity, ClaimsError> {
    identity(&documented(name), &changed(name, changes))
}

fn groups(identity: &Identity) -> Vec<&str> {
    identity.groups.iter().map(AsRef::as_ref).collect()
}

#[test]
fn every_page_has_a_connector_that_is_accepted() {
    for name in PAGES {
        let connector = documented(name);
        let kind = format!("{:?}", connector.kind).to_lowercase();
        assert_eq!(kind, name);
    }
}

#[test]
fn the_pages_show_the_tokens_that_are_tried_here() {
    for name in PAGES.into_iter().skip(1) {
        let shown = blocks(&page(name), "json");
        let shown: Value = serde_json::from_str(shown.first().unwrap()).unwrap();
        assert_eq!(shown, Value::Object(token(name)), "docs/idp/{name}.md");
    }
}

#[test]
fn the_rules_on_googles_page_are_a_policy() {
    let rules: Vec<String> = blocks(&page("google"), "toml")
        .into_iter()
        .filter(|block| block.contains("[[rule]]"))
        .collect();
    assert_eq!(rules.len(), 1);
    let source = rules.join("\n");
    iap_runtime::big_stack::run(move || iap_policy::Policy::load(&source).map(|policy| policy.rule_count()))
        .map(|count| assert_eq!(count, 2))
        .unwrap();
}

#[test]
fn okta_names_people_by_email_and_tells_of_two_factors() {
    let alice = log_in("okta", json!({})).unwrap();
    assert_eq!(alice.name, "alice@example.com");
    assert_eq!(alice.subject, "00uid4BxXw6I6TV4m0g3");
    assert_eq!(groups(&alice), ["okta:Engineering", "okta:Everyone"]);
    assert!(alice.mfa_time.is_some());
    let by_acr = log_in("okta", json!({"amr": null})).unwrap();
    assert!(by_acr.mfa_time.is_some(), "by its acr");
    let one = log_in("okta", json!({"amr": ["pwd"], "acr": "urn:okta:loa:1fa:any"})).unwrap();
    assert_eq!(one.mfa_time, None);
}

#[test]
fn okta_without_the_filtered_claim_lets_nobody_in() {
    let error = log_in("okta", json!({"groups": null})).unwrap_err();
    assert!(
        matches!(error, ClaimsError::NoGroupsClaim { .. }) && error.to_string().contains("groups_claim"),
        "{error}"
    );
}

#[test]
fn entra_people_are_tenant_and_object_and_groups_have_the_names_given_here() {
    let abe = log_in("entra", json!({})).unwrap();
    assert_eq!(
        abe.subject,
        "9122040d-6c67-4c5b-b112-36a304b66dad.00000000-0000-0000-66f3-3332eca7ea81"
    );
    assert_eq!(abe.name, "abeli@contoso.com");
    assert_eq!(
        groups(&abe),
        ["entra:engineering"],
        "the group without a name here is left out"
    );
    let elsewhere = log_in("entra", json!({"sub": "another application's"})).unwrap();
    assert_eq!(elsewhere.user_id, abe.user_id);
    let renamed = log_in("entra", json!({"email": "abe@contoso.com"})).unwrap();
    assert_eq!(renamed.user_id, abe.user_id, "a changed email changes nothing");
}

#[test]
fn entra_groups_without_names_here_are_object_ids() {
    let connector = ConnectorConfig {
        group_names: Default::default(),
        ..documented("entra")
    };
    let abe = identity(&connector, &token("entra")).unwrap();
    assert_eq!(
        groups(&abe),
        [
            "entra:02505e09-b2a2-4d59-a9d7-6bdf0a8e2ff6",
            "entra:8d2f3c52-6b1e-4d0b-9f52-5f3a7d6f41c4"
        ]
    );
}

#[test]
fn entra_groups_by_name_are_refused_and_application_roles_are_not() {
    let error = log_in("entra", json!({"groups": ["engineering"]})).unwrap_err();
    assert!(matches!(error, ClaimsError::GroupByName { .. }), "{error}");
    let roles = ConnectorConfig {
        groups_claim: Some("roles".to_owned()),
        group_names: Default::default(),
        ..documented("entra")
    };
    let abe = identity(&roles, &changed("entra", json!({"roles": ["engineering"]}))).unwrap();
    assert_eq!(groups(&abe), ["entra:engineering"]);
}

#[test]
fn entra_groups_that_were_left_out_are_named_so_in_both_forms() {
    let overage = identity(&documented("entra"), &token("entra-overage")).unwrap_err();
    assert!(matches!(overage, ClaimsError::GroupsLeftOut { .. }), "{overage}");
    assert!(overage.to_string().contains("Groups assigned to the application"));
    let implicit = log_in("entra", json!({"groups": null, "hasgroups": true})).unwrap_err();
    assert!(
        matches!(implicit, ClaimsError::GroupsLeftOut { .. }),
        "{implicit}"
    );
    let none = log_in("entra", json!({"groups": null})).unwrap_err();
    assert!(matches!(none, ClaimsError::NoGroupsClaim { .. }), "{none}");
}

#[test]
fn an_entra_email_counts_only_if_its_domain_is_proven() {
    let unproven = log_in("entra", json!({"xms_edov": null})).unwrap_err();
    assert_eq!(unproven, ClaimsError::NoVerifiedDomain);
    let denied = log_in("entra", json!({"xms_edov": false})).unwrap_err();
    assert_eq!(denied, ClaimsError::NoVerifiedDomain);
    assert!(
        log_in("entra", json!({"xms_edov": "1"})).is_ok(),
        "as it comes in some tokens"
    );
}

#[test]
fn a_token_of_another_tenant_is_refused() {
    let other = json!({"tid": "72f988bf-86f1-41af-91ab-2d7cd011db47"});
    let error = log_in("entra", other).unwrap_err();
    assert!(matches!(error, ClaimsError::OtherTenant { .. }), "{error}");
}

#[test]
fn google_accounts_of_the_organisation_log_in_without_groups() {
    let smith = log_in("google", json!({})).unwrap();
    assert_eq!(smith.name, "jsmith@example.com");
    assert!(smith.groups.is_empty());
}

#[test]
fn google_accounts_of_others_are_refused() {
    let private = log_in("google", json!({"hd": null})).unwrap_err();
    assert!(
        private.to_string().contains("no organisation"),
        "an address in the domain is not enough: {private}"
    );
    let foreign = log_in("google", json!({"hd": "other.example"})).unwrap_err();
    assert!(foreign.to_string().contains("other.example"), "{foreign}");
}

#[test]
fn keycloak_groups_are_paths_and_acr_tells_of_two_factors() {
    let alice = log_in("keycloak", json!({})).unwrap();
    assert_eq!(alice.name, "alice@example.com");
    assert_eq!(
        groups(&alice),
        ["keycloak:/engineering", "keycloak:/engineering/databases"]
    );
    assert!(alice.mfa_time.is_some());
    assert_eq!(log_in("keycloak", json!({"acr": "1"})).unwrap().mfa_time, None);
}

#[test]
fn keycloak_groups_without_their_path_are_refused() {
    let error = log_in("keycloak", json!({"groups": ["engineering"]})).unwrap_err();
    assert!(error.to_string().contains("Full group path"), "{error}");
}

#[test]
fn keycloak_roles_are_groups_where_the_connector_says_so() {
    let roles = ConnectorConfig {
        groups_claim: Some("realm_access.roles".to_owned()),
        ..documented("keycloak")
    };
    let alice = identity(&roles, &token("keycloak")).unwrap();
    assert_eq!(groups(&alice), ["keycloak:dba", "keycloak:offline_access"]);
}

/// Every trouble on the pages is one of our sentences.
#[test]
fn the_troubles_on_the_pages_are_our_own_words() {
    let named = |connector: &str| {
        let (connector, claim) = (connector.to_owned(), "groups".to_owned());
        let group = "engineering".to_owned();
        [
            ClaimsError::NoGroupsClaim {
                connector: connector.clone(),
                claim: claim.clone(),
            },
            ClaimsError::GroupsLeftOut {
                connector: connector.clone(),
            },
            ClaimsError::UnreadableGroups {
                connector: connector.clone(),
                claim,
            },
            ClaimsError::GroupByName {
                connector: connector.clone(),
                group: group.clone(),
            },
            ClaimsError::GroupWithoutPath {
                connector: connector.clone(),
                group,
            },
            ClaimsError::TooManyGroups,
            ClaimsError::NoName {
                connector: connector.clone(),
            },
            ClaimsError::UnverifiedEmailAsName,
            ClaimsError::NoVerifiedDomain,
            ClaimsError::OtherTenant {
                connector: connector.clone(),
                found: "t".to_owned(),
            },
            ClaimsError::OtherDomain {
                connector: connector.clone(),
                found: "no organisation".to_owned(),
            },
            ClaimsError::OtherDomain {
                connector,
                found: "other.example".to_owned(),
            },
        ]
        .map(|error| error.to_string())
    };
    let elsewhere = [
        "the discovery document is for the issuer `a`, but the connector says `b`",
        "the identity provider answered `invalid_scope`",
        "`sso.internal` is at a private or reserved address, which is refused",
        "Google's tokens carry no groups: say groups = \"none\"",
    ];
    for name in PAGES {
        let page = page(name);
        let (_, troubles) = page.split_once("## Troubleshooting").unwrap();
        let troubles: Vec<&str> = troubles
            .lines()
            .filter_map(|line| line.strip_prefix("- **")?.split_once("**"))
            .map(|(trouble, _)| trouble)
            .collect();
        assert!(troubles.len() >= 3, "docs/idp/{name}.md");
        for trouble in troubles {
            let ours = named(name).iter().any(|text| text.contains(trouble))
                || elsewhere.iter().any(|text| text.contains(trouble));
            assert!(ours, "docs/idp/{name}.md: {trouble}");
        }
    }
}
