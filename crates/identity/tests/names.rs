//! Names have one valid form, and only that form exists.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use iap_identity::uri::{IdentityUri, Subject};
use iap_identity::{
    AgentId, BotName, Class, ClassSet, ClusterName, GroupName, LoginId, LoginName, ServerName,
    ServerNameError, ServiceName, UserId,
};
use proptest::prelude::*;

const AGENT: &str = "0190f3a2-7c5e-7b8a-9d0e-1f2a3b4c5d6e";

fn cluster() -> ClusterName {
    ClusterName::parse("iap.example.com").unwrap()
}

#[test]
fn cluster_names_are_lower_case_host_names_of_at_most_64_bytes() {
    for good in [
        "iap.example.com",
        "iap.localhost",
        "a",
        "x-1.y2",
        "xn--bcher-kva.example",
    ] {
        assert_eq!(ClusterName::parse(good).unwrap().as_str(), good);
    }
    let long = format!("{}.{}", "a".repeat(32), "b".repeat(32));
    for bad in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "A.example",
        "a_b.example",
        "-a.example",
        "a-.example",
        "10.0.0.1",
        "a b",
        "a/b",
        "ä.example",
        "a\0b",
        "*.example",
        &long,
    ] {
        assert!(ClusterName::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn service_names_are_one_label_and_not_reserved() {
    for good in ["db-prod", "echo", "a", "1", &"a".repeat(63)] {
        assert_eq!(ServiceName::parse(good).unwrap().as_str(), good);
    }
    for bad in [
        "",
        "auth",
        "proxy",
        "agent",
        "www",
        "a.b",
        "DB",
        "-a",
        "a-",
        "a_b",
        "*",
        "a\0",
        " a",
        &"a".repeat(64),
    ] {
        assert!(ServiceName::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_refused_name_is_shown_shortened_with_the_reason() {
    let error = ServiceName::parse("auth").unwrap_err();
    assert_eq!(error.to_string(), "service name \"auth\" is reserved");
    let long = ServiceName::parse(&"x".repeat(10_000)).unwrap_err().to_string();
    assert!(
        long.len() < 150 && long.ends_with("is longer than 63 bytes"),
        "{long}"
    );
}

#[test]
fn groups_carry_their_connector() {
    let group = GroupName::new("okta", "on-call: EU").unwrap();
    assert_eq!((group.connector(), group.group()), ("okta", "on-call: EU"));
    for bad in [
        "",
        "okta",
        ":x",
        "okta:",
        "okta:a\nb",
        &format!("okta:{}", "x".repeat(124)),
    ] {
        assert!(GroupName::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn logins_are_short_and_printable() {
    for good in ["postgres", "app user", "DOMAIN\\bob", "ä", &"x".repeat(63)] {
        assert!(LoginName::parse(good).is_ok(), "{good:?}");
    }
    for bad in ["", "a\0b", "a\n", &"x".repeat(64)] {
        assert!(LoginName::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn user_ids_are_derived_as_another_implementation_derives_them() {
    // Computed with hashlib and base64 of another language.
    let id = UserId::derive("okta", "https://idp.example.com", "00u1abcd");
    assert_eq!(id.as_str(), "u-4nhyosmcjyuhq3ne2jqdmrhtnu");
    assert_eq!(
        UserId::derive("", "", "").as_str(),
        "u-cxwhx4fva4zljh4cfdqh2jbwkm"
    );
    assert_eq!(UserId::parse(id.as_str()).unwrap(), id);
}

#[test]
fn moving_a_letter_between_connector_issuer_and_subject_makes_another_user() {
    assert_eq!(
        UserId::derive("a", "bc", "d").as_str(),
        "u-6fosfhfztcclioz6xas5rbwg3e"
    );
    assert_eq!(
        UserId::derive("ab", "c", "d").as_str(),
        "u-725s7rpcw7yi72x4lv5sq2e3e4"
    );
}

#[test]
fn user_ids_have_one_spelling() {
    for bad in [
        "",
        "u-",
        "4nhyosmcjyuhq3ne2jqdmrhtnu",
        "u-4NHYOSMCJYUHQ3NE2JQDMRHTNU",
        "u-4nhyosmcjyuhq3ne2jqdmrhtn",
        "u-4nhyosmcjyuhq3ne2jqdmrhtnuu",
        "u-4nhyosmcjyuhq3ne2jqdmrhtnv",
        "u-4nhyosmcjyuhq3ne2jqdmrhtn1",
    ] {
        assert!(UserId::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn ids_are_lower_case_hyphenated_uuids_or_16_bytes() {
    let id = AgentId::parse(AGENT).unwrap();
    assert_eq!(id.to_string(), AGENT);
    assert_eq!(AgentId::from_bytes(id.as_bytes()).unwrap(), id);
    for bad in [
        AGENT.to_uppercase(),
        AGENT.replace('-', ""),
        format!("{{{AGENT}}}"),
        String::new(),
    ] {
        assert!(AgentId::parse(&bad).is_err(), "{bad:?}");
    }
    assert!(LoginId::from_bytes(&[0; 15]).is_err());
}

#[test]
fn server_names_lead_to_their_doors() {
    let parse = |sni: &str| ServerName::parse(sni, &cluster());
    let agent = AgentId::parse(AGENT).unwrap();
    let doors = [
        ("iap.example.com".to_owned(), ServerName::Cluster),
        ("auth.iap.example.com".to_owned(), ServerName::Auth),
        ("proxy.iap.example.com".to_owned(), ServerName::Proxy),
        (
            "db-prod.iap.example.com".to_owned(),
            ServerName::Service(ServiceName::parse("db-prod").unwrap()),
        ),
        (format!("{AGENT}.agent.iap.example.com"), ServerName::Agent(agent)),
    ];
    for (host, door) in doors {
        assert_eq!(parse(&host), Ok(door.clone()));
        assert_eq!(
            parse(&host.to_uppercase()),
            Ok(door.clone()),
            "DNS names compare without case"
        );
        assert_eq!(door.host(&cluster()), host);
    }
}

#[test]
fn server_names_that_are_no_doors_are_told_apart() {
    let parse = |sni: &str| ServerName::parse(sni, &cluster()).unwrap_err();
    for reserved in [
        "agent.iap.example.com",
        "www.iap.example.com",
        "WWW.iap.example.com",
    ] {
        assert_eq!(parse(reserved), ServerNameError::Reserved, "{reserved}");
    }
    for unknown in [
        "example.com",
        "db.iap.example.org",
        "xiap.example.com",
        "a.b.iap.example.com",
        "db.auth.iap.example.com",
        "no-uuid.agent.iap.example.com",
        "10.0.0.1",
    ] {
        assert_eq!(parse(unknown), ServerNameError::Unknown, "{unknown}");
    }
    for malformed in [
        "",
        ".",
        "iap.example.com.",
        ".iap.example.com",
        "db\0.iap.example.com",
        "db_.iap.example.com",
        "*.iap.example.com",
        "db .iap.example.com",
        "-db.iap.example.com",
        &format!("{}.iap.example.com", "a".repeat(300)),
        &format!("{}iap.example.com", "a.".repeat(140)),
    ] {
        assert_eq!(parse(malformed), ServerNameError::Malformed, "{malformed:?}");
    }
}

#[test]
fn identity_uris_have_one_spelling() {
    for good in [
        "iap://iap.example.com/user/u-4nhyosmcjyuhq3ne2jqdmrhtnu",
        "iap://iap.example.com/bot/deployer",
        "spiffe://iap.example.com/agent/0190f3a2-7c5e-7b8a-9d0e-1f2a3b4c5d6e",
        "spiffe://iap.example.com/proxy/0190f3a2-7c5e-7b8a-9d0e-1f2a3b4c5d6e",
        "spiffe://iap.example.com/auth/0190f3a2-7c5e-7b8a-9d0e-1f2a3b4c5d6e",
        "spiffe://iap.example.com/ns/prod/sa/web",
    ] {
        assert_eq!(IdentityUri::parse(good).unwrap().to_string(), good);
    }
    for bad in [
        "",
        "iap://iap.example.com",
        "iap://iap.example.com/",
        "iap://iap.example.com/user/alice",
        "iap://iap.example.com/agent/0190f3a2-7c5e-7b8a-9d0e-1f2a3b4c5d6e",
        "IAP://iap.example.com/bot/x",
        "spiffe://iap.example.com/user/u-4nhyosmcjyuhq3ne2jqdmrhtnu/",
        "spiffe://iap.example.com/agent/web",
        "spiffe://iap.example.com/agent",
        "spiffe://iap.example.com/auth/",
        "spiffe://iap.example.com/a//b",
        "spiffe://iap.example.com/a/../agent",
        "spiffe://iap.example.com/a%2f",
        "https://iap.example.com/bot/x",
        "iap://user@iap.example.com/bot/x",
        "iap://iap.example.com:443/bot/x",
        "iap://iap.example.com/bot/x?y",
    ] {
        assert_eq!(IdentityUri::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn a_workload_cannot_be_named_like_a_part_of_the_plane() {
    for path in ["agent/x", "proxy", "auth/a/b"] {
        let uri = IdentityUri {
            cluster: cluster(),
            subject: Subject::Workload(path.to_owned()),
        };
        assert_eq!(IdentityUri::parse(&uri.to_string()), None);
    }
}

#[test]
fn class_sets_hold_exactly_their_classes() {
    let set = ClassSet::of(&[Class::User, Class::Agent]);
    let held: Vec<Class> = Class::ALL
        .into_iter()
        .filter(|class| set.contains(*class))
        .collect();
    assert_eq!(held, [Class::User, Class::Agent]);
    assert!(
        Class::ALL
            .into_iter()
            .all(|class| !ClassSet::NONE.contains(class))
    );
    for class in Class::ALL {
        assert_eq!(Class::parse(class.as_str()), Some(class));
    }
}

#[test]
fn names_travel_as_text_through_serde_and_are_checked_on_the_way_in() {
    let name: ServiceName = serde_json::from_str("\"db-prod\"").unwrap();
    assert_eq!(serde_json::to_string(&name).unwrap(), "\"db-prod\"");
    assert!(serde_json::from_str::<ServiceName>("\"auth\"").is_err());
    assert!(serde_json::from_str::<AgentId>("\"x\"").is_err());
}

proptest! {
    #[test]
    fn every_service_name_survives_the_way_through_sni(name in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?") {
        let Ok(service) = ServiceName::parse(&name) else { return Ok(()) };
        let host = cluster().service_host(&service);
        prop_assert_eq!(ServerName::parse(&host, &cluster()), Ok(ServerName::Service(service)));
    }

    #[test]
    fn any_text_is_refused_or_kept_as_it_is(text in any::<String>()) {
        for kept in [
            ClusterName::parse(&text).map(|name| name.to_string()),
            ServiceName::parse(&text).map(|name| name.to_string()),
            BotName::parse(&text).map(|name| name.to_string()),
            GroupName::parse(&text).map(|name| name.to_string()),
            LoginName::parse(&text).map(|name| name.to_string()),
            UserId::parse(&text).map(|name| name.to_string()),
            AgentId::parse(&text).map(|name| name.to_string()),
        ].into_iter().flatten() {
            prop_assert_eq!(&kept, &text);
        }
        let _ = ServerName::parse(&text, &cluster());
    }

    #[test]
    fn derived_user_ids_are_valid(connector: String, issuer: String, subject: String) {
        let id = UserId::derive(&connector, &issuer, &subject);
        prop_assert_eq!(UserId::parse(id.as_str()).unwrap(), id);
    }

    #[test]
    fn identity_uris_are_read_as_they_are_written(path in "[a-zA-Z0-9._-]{1,12}(/[a-zA-Z0-9._-]{1,12}){0,3}") {
        let uri = format!("spiffe://iap.example.com/{path}");
        if let Some(read) = IdentityUri::parse(&uri) {
            prop_assert_eq!(read.to_string(), uri);
        }
    }
}
