//! What rules mean: effects, selectors, conditions, limits.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::time::Duration;

use iap_identity::Class;
use iap_policy::{Connectors, Decision, DenialCode, Feature, Grant, Policy, Protocol, UserFacts};
use support::{Ask, ask, grant, load, load_as, now, on_big_stack, service, user, with_condition};

const STAGING: &str = r#"
[[rule]]
name      = "engineers reach staging databases"
effect    = "allow"
users     = { groups = ["engineering"] }
services  = { labels = { env = "staging" } }
logins    = ["readonly", "{{user.local}}"]
databases = ["*"]
when      = 'user.auth_age < duration("4h") && !in_cidr(client.ip, ["203.0.113.0/24"])'
limits    = { session = "8h", idle = "30m" }
features  = ["postgres.options"]

[[rule]]
name     = "contractors stay out"
effect   = "deny"
users    = { groups = ["contractors"] }
services = { names = ["*"] }
"#;

fn staging(groups: &[&str]) -> Ask {
    ask(
        user("alice@example.com", groups),
        service("db-staging", Protocol::Postgres, &[("env", "staging")]),
    )
}

fn granted(ask: &Ask, policy: &Policy) -> Grant {
    match ask.decide(policy) {
        Decision::Grant(grant) => grant,
        Decision::Denial(denial) => panic!("{denial:?}"),
    }
}

#[test]
fn what_no_rule_allows_is_denied() {
    on_big_stack(|| {
        assert_eq!(
            staging(&[]).answer(&load(STAGING)),
            Err(DenialCode::NoRuleMatches)
        );
        assert_eq!(
            staging(&["engineering"]).answer(&load("")),
            Err(DenialCode::NoRuleMatches)
        );
    });
}

#[test]
fn a_matching_allow_rule_grants_and_states_its_limits() {
    on_big_stack(|| {
        let policy = load(STAGING).with_version(41);
        let grant = granted(&staging(&["engineering"]).with_login("readonly"), &policy);
        assert_eq!(grant.rule(), "engineers reach staging databases");
        assert_eq!(grant.policy_version(), 41);
        assert_eq!(grant.login().unwrap().as_str(), "readonly");
        assert_eq!(grant.limits().session, Some(Duration::from_secs(8 * 3600)));
        assert_eq!(grant.limits().idle, Some(Duration::from_secs(30 * 60)));
        assert!(grant.features().has(Feature::PostgresOptions));
        assert!(!grant.features().has(Feature::PostgresReplication));
        assert!(grant.time_dependent());
    });
}

#[test]
fn a_deny_rule_wins_wherever_it_stands() {
    on_big_stack(|| {
        let denial = staging(&["engineering", "contractors"])
            .with_login("readonly")
            .denial(&load(STAGING));
        assert_eq!(denial.code, DenialCode::DeniedByRule);
        assert_eq!(denial.rule.as_deref(), Some("contractors stay out"));
    });
}

#[test]
fn the_users_text_does_not_tell_a_deny_rule_from_a_missing_one() {
    on_big_stack(|| {
        let policy = load(STAGING);
        let denied = staging(&["engineering", "contractors"])
            .with_login("readonly")
            .denial(&policy);
        let missing = staging(&[]).with_login("readonly").denial(&policy);
        assert_eq!(
            denied.text,
            "Policy does not allow alice@example.com to reach db-staging as readonly."
        );
        assert_eq!(denied.text, missing.text);
        assert_ne!(denied.detail, missing.detail);
    });
}

#[test]
fn conditions_look_at_the_time_and_the_address() {
    on_big_stack(|| {
        let policy = load(STAGING);
        let question = || staging(&["engineering"]).with_login("readonly");
        assert!(question().is_allowed(&policy));
        assert!(
            !question()
                .at(now() + time::Duration::hours(4))
                .is_allowed(&policy)
        );
        assert!(!question().coming_from("203.0.113.9").is_allowed(&policy));
        assert!(
            !question().coming_from("::ffff:203.0.113.9").is_allowed(&policy),
            "IPv4-mapped forms are folded"
        );
        assert!(question().coming_from("2001:db8::1").is_allowed(&policy));
    });
}

#[test]
fn every_variable_has_its_value() {
    on_big_stack(|| {
        let mut alice = user("alice@example.com", &["sre"]);
        alice.mfa_time = Some(now() - time::Duration::minutes(3));
        let question = ask(
            alice,
            service("db-1", Protocol::Postgres, &[("env", "prod"), ("a.b", "c")]),
        )
        .with_login("app")
        .on_database("orders");
        for condition in [
            "user.name == 'alice@example.com'",
            "user.local == 'alice'",
            "user.id == 'u-alice@example.com'",
            "'okta:sre' in user.groups && 'sre' in user.groups",
            "user.kind == 'user'",
            "user.idp == 'okta'",
            "user.login_method == 'browser'",
            "user.auth_age == duration('10m')",
            "user.mfa_age == duration('180s')",
            "has(user.mfa_age)",
            "client.ip == '198.51.100.7'",
            "service.name == 'db-1'",
            "service.protocol == 'postgres'",
            "service.labels.env == 'prod'",
            "service.labels['a.b'] == 'c'",
            "'env' in service.labels && !('team' in service.labels)",
            "has(service.labels.env) && !has(service.labels.team)",
            "login == 'app'",
            "database == 'orders'",
            "now == timestamp('2026-01-01T12:00:00Z')",
            "now.getDayOfWeek() == 4 && now.getHours('Europe/Berlin') == 13",
            "now - duration('1h') < now && now > timestamp('2025-12-31T00:00:00+02:00')",
            "user.name.matches('^[a-z]+@example[.]com$')",
            "user.groups.exists(g, g.startsWith('okta:s'))",
            "size(user.groups) == 2",
        ] {
            assert!(
                question.is_allowed(&load(&with_condition("allow", condition))),
                "{condition}"
            );
            let negated = format!("!({condition})");
            let answer = question.answer(&load(&with_condition("allow", &negated)));
            // A new login would make an age another one, and let the negated condition hold.
            let denial = match condition.split_once("_age ==") {
                Some((of, _)) => DenialCode::StepUpNeeded(iap_policy::StepUp {
                    mfa: of.ends_with("mfa"),
                    acr: None,
                }),
                None => DenialCode::NoRuleMatches,
            };
            assert_eq!(answer, Err(denial), "{negated}");
        }
    });
}

#[test]
fn a_second_factor_never_shown_fails_the_condition_that_asks_for_its_age() {
    on_big_stack(|| {
        let question = staging(&[]).with_login("app");
        let policy = load(&with_condition("allow", "user.mfa_age < duration('1h')"));
        let several_factors = iap_policy::StepUp { mfa: true, acr: None };
        assert_eq!(
            question.answer(&policy),
            Err(DenialCode::StepUpNeeded(several_factors))
        );
        let policy = load(&with_condition("allow", "!has(user.mfa_age)"));
        assert!(question.is_allowed(&policy));
    });
}

#[test]
fn an_age_is_never_negative() {
    on_big_stack(|| {
        let policy = load(&with_condition("allow", "user.auth_age == duration('0s')"));
        assert!(
            staging(&[])
                .with_login("app")
                .at(now() - time::Duration::hours(1))
                .is_allowed(&policy)
        );
    });
}

#[test]
fn only_conditions_of_matching_rules_make_a_decision_time_dependent() {
    on_big_stack(|| {
        let document = r#"
            [[rule]]
            name = "web"
            effect = "allow"
            users = { names = ["*"] }
            services = { names = ["web"] }
            [[rule]]
            name = "elsewhere"
            effect = "deny"
            users = { names = ["*"] }
            services = { names = ["db"] }
            when = "now > timestamp('2030-01-01T00:00:00Z')"
            [[rule]]
            name = "timed deny"
            effect = "deny"
            users = { groups = ["night"] }
            services = { names = ["web"] }
            when = "now.getHours() < 6"
        "#;
        let policy = load(document);
        let web = |groups: &[&str]| ask(user("alice", groups), service("web", Protocol::Http, &[]));
        assert!(!granted(&web(&[]), &policy).time_dependent());
        assert!(granted(&web(&["night"]), &policy).time_dependent());
    });
}

#[test]
fn selectors_need_every_key_and_any_value_of_each() {
    on_big_stack(|| {
        let document = r#"
            [[rule]]
            name = "it"
            effect = "allow"
            users = { names = ["alice", "bob"], groups = ["a", "b"] }
            services = { names = ["web", "wiki"], labels = { env = "prod", tier = "1" } }
        "#;
        let policy = load(document);
        let labels = [("env", "prod"), ("tier", "1"), ("more", "x")];
        let web = || service("web", Protocol::Http, &labels);
        assert!(ask(user("alice", &["b"]), web()).is_allowed(&policy));
        assert!(!ask(user("carol", &["b"]), web()).is_allowed(&policy));
        assert!(!ask(user("alice", &["c"]), web()).is_allowed(&policy));
        assert!(!ask(user("alice", &["a"]), service("mail", Protocol::Http, &labels)).is_allowed(&policy));
        assert!(
            !ask(
                user("alice", &["a"]),
                service("web", Protocol::Http, &labels[..1])
            )
            .is_allowed(&policy)
        );
    });
}

#[test]
fn an_allow_is_about_users_unless_it_says_otherwise_and_a_deny_about_everybody() {
    on_big_stack(|| {
        let rule = |name: &str, effect: &str, kinds: &str| {
            format!(
                "[[rule]]\nname = \"{name}\"\neffect = \"{effect}\"\nusers = {{ names = [\"ci\"]{kinds} }}\nservices = {{ names = [\"*\"] }}\n"
            )
        };
        let web = || service("web", Protocol::Http, &[]);
        let bot = || ask(UserFacts::bot("ci"), web());
        assert!(!bot().is_allowed(&load(&rule("a", "allow", ""))));
        let bots = rule("a", "allow", ", kinds = [\"bot\"]");
        assert!(bot().is_allowed(&load(&bots)));
        assert!(
            !ask(user("ci", &[]), web()).is_allowed(&load(&bots)),
            "a user cannot pass as the bot of that name"
        );
        assert_eq!(
            bot().answer(&load(&format!("{bots}{}", rule("d", "deny", "")))),
            Err(DenialCode::DeniedByRule)
        );
        let mut agent = user("ci", &[]);
        agent.kind = Class::Agent;
        assert!(
            !ask(agent, web()).is_allowed(&load(&rule("a", "allow", ""))),
            "agents match nothing"
        );
    });
}

#[test]
fn group_prefixes_may_be_left_out_when_there_is_one_connector() {
    on_big_stack(|| {
        let document = r#"
            [[rule]]
            name = "it"
            effect = "allow"
            users = { groups = ["sre"] }
            services = { names = ["web"] }
        "#;
        let from = |group: &str| {
            let mut alice = user("alice", &[]);
            alice.groups = vec![support::group(group)];
            ask(alice, service("web", Protocol::Http, &[]))
        };
        let one = load(document);
        assert!(from("okta:sre").is_allowed(&one));
        assert!(
            !from("corp:sre").is_allowed(&one),
            "another connector's group of that name is another group"
        );
        let unknown = load_as(document, Connectors::Unknown);
        assert!(from("corp:sre").is_allowed(&unknown));
        let several = iap_policy::LoadOptions {
            connectors: Connectors::Several,
            ..Default::default()
        };
        let errors = Policy::load_with(document, &several).unwrap_err().to_string();
        assert!(errors.contains("needs its connector"), "{errors}");
        let full = load_as(&document.replace("\"sre\"", "\"corp:sre\""), Connectors::Several);
        assert!(from("corp:sre").is_allowed(&full));
        assert!(!from("okta:sre").is_allowed(&full));
    });
}

#[test]
fn the_first_rule_in_the_document_that_allows_decides() {
    on_big_stack(|| {
        let document = r#"
            [[rule]]
            name = "by label"
            effect = "allow"
            users = { names = ["*"] }
            services = { labels = { env = "prod" } }
            limits = { session = "1h" }
            [[rule]]
            name = "by name"
            effect = "allow"
            users = { names = ["*"] }
            services = { names = ["web"] }
            limits = { session = "2h" }
        "#;
        let question = ask(
            user("alice", &[]),
            service("web", Protocol::Http, &[("env", "prod")]),
        );
        assert_eq!(question.answer(&load(document)), grant("by label", None));
        let elsewhere = ask(user("alice", &[]), service("web", Protocol::Http, &[]));
        assert_eq!(elsewhere.answer(&load(document)), grant("by name", None));
    });
}
