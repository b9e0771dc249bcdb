//! Claims of a provider that says one thing at a time, and the tokens that the providers' documentation shows.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod shapes;

use super::*;
use serde_json::json;

fn connector() -> ConnectorConfig {
    ConnectorConfig {
        name: "okta".to_owned(),
        kind: ConnectorKind::Oidc,
        issuer: "https://sso.example.com".to_owned(),
        client_id: "iap".to_owned(),
        client_secret: None,
        scopes: vec!["openid".to_owned()],
        groups_claim: Some("groups".to_owned()),
        group_names: BTreeMap::new(),
        mfa_acr: Vec::new(),
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
        kind: ConnectorKind::Entra,
        groups_claim: None,
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

#[test]
fn the_providers_time_of_authentication_counts_and_never_lies_ahead() {
    let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
    let at = |seconds: Option<i64>, was_prompted| {
        let claims = Claims {
            was_prompted,
            auth_time: seconds.map(|at| OffsetDateTime::from_unix_timestamp(at).unwrap()),
            amr: vec!["mfa".to_owned()],
            ..claims(json!([]))
        };
        let identity = claims.identity(&connector(), &connector().domains, now).unwrap();
        let is_known = seconds.is_some() || was_prompted;
        assert_eq!(identity.mfa_time, is_known.then_some(identity.auth_time));
        identity.auth_time.unix_timestamp()
    };
    assert_eq!(at(Some(990_000), false), 990_000);
    assert_eq!(
        at(Some(1_000_050), false),
        1_000_000,
        "its clock is ahead of ours"
    );
    assert_eq!(at(None, true), 1_000_000, "it was to let the person sign in anew");
    assert_eq!(at(None, false), 913_600, "a standing session may be old");
}

#[test]
fn the_class_that_means_several_factors_is_the_one_told() {
    let connector = ConnectorConfig {
        kind: ConnectorKind::Entra,
        issuer: "https://login.microsoftonline.com/t/v2.0".to_owned(),
        groups_claim: None,
        mfa_acr: vec!["c1".to_owned()],
        ..connector()
    };
    let mut claims = Claims {
        was_prompted: true,
        ..claims(json!([]))
    };
    for (name, value) in [
        ("tid", json!("t")),
        ("oid", json!("o")),
        ("acrs", json!(["p1", "c1"])),
        ("xms_edov", json!(true)),
    ] {
        claims.other.insert(name.to_owned(), value);
    }
    let identity = claims
        .identity(&connector, &connector.domains, OffsetDateTime::UNIX_EPOCH)
        .unwrap();
    assert_eq!(identity.acr.as_deref(), Some("c1"));
    assert!(identity.mfa_time.is_some());
}
