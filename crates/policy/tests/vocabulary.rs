//! Groups newer than a certificate: a deny rule matches, an allow rule does not, and renewing is the answer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use iap_policy::{Connectors, DenialCode, Protocol, Vocabulary};
use support::{Ask, ask, grant, group, load, load_as, on_big_stack, service, user};

fn rule(name: &str, effect: &str, users: &str, more: &str) -> String {
    format!(
        "[[rule]]\nname = \"{name}\"\neffect = \"{effect}\"\nusers = {{ {users} }}\nservices = {{ names = [\"*\"] }}\n{more}\n"
    )
}

/// A certificate of vocabulary 1; `okta:new` was first named by version 2.
fn question(groups: &[&str]) -> Ask {
    ask(user("alice", groups), service("web", Protocol::Http, &[])).with_vocabulary(&[
        ("okta:old", 1),
        ("okta:new", 2),
        ("corp:new", 2),
    ])
}

#[test]
fn an_allow_that_depends_on_a_newer_group_asks_for_renewal() {
    on_big_stack(|| {
        let policy = load(&rule("allow", "allow", "groups = [\"new\"]", ""));
        let denial = question(&[]).denial(&policy);
        assert_eq!(
            (denial.code, denial.rule.as_deref()),
            (DenialCode::RenewNeeded, Some("allow"))
        );
        let mut renewed = question(&[]);
        renewed.user.groups_vocabulary = Some(2);
        assert_eq!(renewed.answer(&policy), Err(DenialCode::NoRuleMatches));
        renewed.user.groups.push(group("okta:new"));
        assert!(renewed.is_allowed(&policy));
    });
}

#[test]
fn an_old_group_that_is_missing_is_missing() {
    on_big_stack(|| {
        let policy = load(&rule("allow", "allow", "groups = [\"old\"]", ""));
        assert_eq!(question(&[]).answer(&policy), Err(DenialCode::NoRuleMatches));
    });
}

#[test]
fn renewal_is_not_asked_for_when_it_cannot_help() {
    on_big_stack(|| {
        let false_condition = load(&rule(
            "allow",
            "allow",
            "groups = [\"new\"]",
            "when = \"user.name == 'bob'\"",
        ));
        assert_eq!(
            question(&[]).answer(&false_condition),
            Err(DenialCode::NoRuleMatches)
        );
        let another_way = load(&format!(
            "{}{}",
            rule("new", "allow", "groups = [\"new\"]", ""),
            rule("old", "allow", "groups = [\"old\"]", "")
        ));
        assert_eq!(question(&["old"]).answer(&another_way), grant("old", None));
        let other_connector = load(&rule("allow", "allow", "groups = [\"corp:new\"]", ""));
        assert_eq!(
            question(&[]).answer(&other_connector),
            Err(DenialCode::NoRuleMatches)
        );
        let denied = load(&format!(
            "{}{}",
            rule("new", "allow", "groups = [\"new\"]", ""),
            rule("deny", "deny", "groups = [\"old\"]", "")
        ));
        assert_eq!(question(&["old"]).answer(&denied), Err(DenialCode::DeniedByRule));
        let lonely_deny = load(&rule("deny", "deny", "groups = [\"new\"]", ""));
        assert_eq!(question(&[]).answer(&lonely_deny), Err(DenialCode::NoRuleMatches));
    });
}

#[test]
fn a_deny_that_depends_on_a_newer_group_denies_until_renewal() {
    on_big_stack(|| {
        let policy = load(&format!(
            "{}{}",
            rule("all", "allow", "names = [\"*\"]", ""),
            rule("deny", "deny", "groups = [\"new\"]", "")
        ));
        let denial = question(&[]).denial(&policy);
        assert_eq!(
            (denial.code, denial.rule.as_deref()),
            (DenialCode::RenewNeeded, Some("deny"))
        );
        let mut renewed = question(&[]);
        renewed.user.groups_vocabulary = Some(2);
        assert_eq!(renewed.answer(&policy), grant("all", None));
    });
}

#[test]
fn a_condition_about_a_newer_group_is_treated_like_a_selector() {
    on_big_stack(|| {
        let policy = load(&format!(
            "{}{}",
            rule("all", "allow", "names = [\"*\"]", ""),
            rule(
                "deny",
                "deny",
                "names = [\"*\"]",
                "when = \"!('okta:new' in user.groups)\""
            )
        ));
        assert_eq!(question(&[]).answer(&policy), Err(DenialCode::RenewNeeded));
        let policy = load(&rule(
            "allow",
            "allow",
            "names = [\"*\"]",
            "when = \"'new' in user.groups\"",
        ));
        assert_eq!(question(&[]).answer(&policy), Err(DenialCode::RenewNeeded));
        assert_eq!(
            policy.vocabulary_groups().into_iter().collect::<Vec<_>>(),
            [group("okta:new")]
        );
    });
}

#[test]
fn bare_groups_of_an_unknown_connector_are_found_in_the_vocabulary() {
    on_big_stack(|| {
        let policy = load_as(
            &rule("allow", "allow", "groups = [\"new\"]", ""),
            Connectors::Unknown,
        );
        assert_eq!(question(&[]).answer(&policy), Err(DenialCode::RenewNeeded));
    });
}

#[test]
fn a_vocabulary_grows_with_the_policy_and_tells_the_connector() {
    let first = Vocabulary::default().advance([group("okta:a"), group("okta:b")], 3);
    assert_eq!(first.single_connector(), Some("okta"));
    assert_eq!(
        Connectors::of_vocabulary(&first),
        Connectors::One("okta".to_owned())
    );
    let second = first.advance([group("okta:b"), group("corp:c")], 4);
    let versions: Vec<_> = second
        .iter()
        .map(|(name, version)| (name.as_str(), version))
        .collect();
    assert_eq!(versions, [("corp:c", 4), ("okta:b", 3)]);
    assert_eq!(second.single_connector(), None);
    assert_eq!(Connectors::of_vocabulary(&second), Connectors::Unknown);
}
