//! Explanations name the deciding rule, each condition's value, and what it looked at.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use iap_policy::{Effect, Explanation, Protocol};
use support::{Ask, ask, load, on_big_stack, service, user};

const DOCUMENT: &str = r#"
[[rule]]
name = "fresh logins"
effect = "allow"
users = { groups = ["sre"] }
services = { labels = { env = "prod" } }
logins = ["app"]
when = 'user.auth_age < duration("1h") && service.labels.env == "prod"'

[[rule]]
name = "elsewhere"
effect = "allow"
users = { groups = ["sre"] }
services = { names = ["web"] }

[[rule]]
name = "needs a second factor"
effect = "deny"
users = { names = ["*"] }
services = { labels = { env = "prod" } }
when = 'user.mfa_age > duration("12h")'
"#;

fn explain(question: &Ask) -> Explanation {
    on_big_stack(|| {
        load(DOCUMENT)
            .with_version(9)
            .explain(&question.question(), &question.vocabulary)
    })
}

fn question() -> Ask {
    ask(
        user("alice", &["sre"]),
        service("db", Protocol::Postgres, &[("env", "prod")]),
    )
}

#[test]
fn a_denial_names_the_rule_and_why_its_condition_failed() {
    let explanation = explain(&question().with_login("app"));
    assert_eq!(explanation.effect, Effect::Deny);
    assert_eq!(explanation.code.as_deref(), Some("step_up_needed"));
    assert_eq!(explanation.rule.as_deref(), Some("needs a second factor"));
    assert_eq!(explanation.policy_version, 9);
    assert_eq!(
        explanation.rules.len(),
        2,
        "rules about other services are left out"
    );
    let deny = &explanation.rules[1];
    assert!(deny.decides);
    assert!(
        deny.condition
            .as_ref()
            .unwrap()
            .value
            .starts_with("error: there is no mfa_age"),
        "{deny:?}"
    );
}

#[test]
fn a_grant_shows_the_values_its_condition_looked_at() {
    let mut asked = question();
    asked.user.mfa_time = Some(asked.now);
    let explanation = explain(&asked);
    assert_eq!(explanation.effect, Effect::Allow);
    assert_eq!(explanation.login.as_deref(), Some("app"));
    assert!(explanation.time_dependent);
    let condition = explanation.rules[0].condition.as_ref().unwrap();
    assert_eq!(condition.value, "true");
    let shown: Vec<(&str, &str)> = condition
        .variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(
        shown,
        [("service.labels.env", "\"prod\""), ("user.auth_age", "600s")]
    );
    let text = explanation.render();
    assert!(
        text.starts_with("allowed: alice on db as app: rule \"fresh logins\" allows\n"),
        "{text}"
    );
    assert!(
        text.contains("allow \"fresh logins\" (line 2)  <- decides\n"),
        "{text}"
    );
}

#[test]
fn an_explanation_is_json_with_stable_keys() {
    let value = serde_json::to_value(explain(&question().with_login("root"))).unwrap();
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "code",
            "detail",
            "effect",
            "login",
            "policy_version",
            "rule",
            "rules",
            "service",
            "time_dependent",
            "user"
        ]
    );
    assert_eq!(value["effect"], "deny");
    assert_eq!(value["rules"][0]["login_matches"], false);
}
