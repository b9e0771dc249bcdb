//! Expressions of `audit search`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use iap_policy::filter::{Filter, FilterError};
use serde_json::{Value, json};
use support::on_big_stack;

fn record() -> Value {
    json!({
        "time": "2026-01-01T12:00:00.000Z",
        "event": "session.start",
        "user": { "name": "alice@example.com", "groups": ["okta:sre"] },
        "service": "db-prod",
        "bytes_in": 1234,
        "end": null,
        "decision": { "effect": "allow", "rule": "SRE reach production" },
        "statement": "DELETE FROM orders"
    })
}

fn matches(expression: &str) -> bool {
    on_big_stack(|| {
        Filter::parse(expression)
            .unwrap_or_else(|error| panic!("{expression}: {error}"))
            .matches(&record())
    })
}

#[test]
fn bare_words_match_any_text_field() {
    for expression in [
        "alice",
        "db-prod",
        "session.start",
        "sre PRODUCTION",
        "alice@example.com delete",
    ] {
        assert!(matches(expression), "{expression}");
    }
    for expression in ["bob", "alice bob", "1234", "statement"] {
        assert!(!matches(expression), "{expression}");
    }
}

#[test]
fn expressions_look_at_fields() {
    for expression in [
        r#"user.name == "alice@example.com" && statement.contains("DELETE")"#,
        "bytes_in > 1000",
        "'okta:sre' in user.groups",
        "decision.effect == 'allow' || no_such_field == 1",
        "timestamp(time) > timestamp('2025-01-01T00:00:00Z')",
        "has(user.name) && !has(user.email)",
        "end == null",
        "service.matches('^db-')",
        "user.groups.exists(g, g.endsWith(':sre'))",
    ] {
        assert!(matches(expression), "{expression}");
    }
    for expression in ["bytes_in > 10000", "user.name == 'bob'", "service == 'web'"] {
        assert!(!matches(expression), "{expression}");
    }
}

#[test]
fn a_record_that_lacks_a_field_does_not_match() {
    for expression in [
        "no_such_field == 1",
        "no_such_field != 1",
        "user.email != 'x'",
        "!(user.email == 'x')",
        "service.name == 'db'",
    ] {
        assert!(!matches(expression), "{expression}");
    }
}

#[test]
fn expressions_are_capped_like_conditions() {
    let refused = |expression: &str| on_big_stack(|| Filter::parse(expression).unwrap_err());
    assert_eq!(refused("  "), FilterError::Empty);
    assert_eq!(refused(&"a ".repeat(600)), FilterError::TooLong);
    for expression in [
        format!("1{} == 1", "+1".repeat(60)),
        "(".repeat(100),
        "a.all(x, a.all(y, x == y))".to_owned(),
        "user.name ==".to_owned(),
        "service + 1 == ''".to_owned() + " && 'x'",
        "nosuch(service)".to_owned(),
    ] {
        assert!(
            matches!(refused(&expression), FilterError::Refused(_)),
            "{expression}"
        );
    }
}
