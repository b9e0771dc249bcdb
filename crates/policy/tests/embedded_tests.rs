//! The `[[test]]`s of a document.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use iap_policy::{Protocol, TestsPassed};
use support::{load, on_big_stack, refusal, service};

const RULES: &str = r#"
[[rule]]
name     = "engineers reach staging"
effect   = "allow"
users    = { groups = ["engineering"] }
services = { labels = { env = "staging" } }
logins   = ["readonly", "{{user.local}}"]
when     = 'user.auth_age < duration("4h")'

[[rule]]
name     = "not from there"
effect   = "deny"
users    = { names = ["*"] }
services = { names = ["*"] }
when     = 'in_cidr(client.ip, ["203.0.113.0/24"])'
"#;

fn with_test(test: &str) -> String {
    format!("{RULES}\n[[test]]\n{test}\n")
}

fn outcome(test: &str) -> Result<TestsPassed, String> {
    let document = with_test(test);
    on_big_stack(|| {
        let services = [service("db-staging", Protocol::Postgres, &[("env", "staging")])];
        load(&document)
            .run_tests_with(&services)
            .map_err(|failures| failures[0].to_string())
    })
}

const ALICE: &str = "user = { name = \"alice@example.com\", groups = [\"engineering\"] }\n";

#[test]
fn passing_tests_are_counted() {
    for test in [
        "service = \"db-staging\"\nlogin = \"readonly\"\nexpect = \"allow\"",
        "service = \"db-staging\"\nexpect = \"allow\"\nrule = \"engineers reach staging\"",
        "service = \"db-staging\"\nlogin = \"root\"\nexpect = \"deny\"",
        "service = \"db-staging\"\nclient_ip = \"203.0.113.9\"\nexpect = \"deny\"\nrule = \"not from there\"",
        "service = \"db-staging\"\nlabels = { env = \"prod\" }\nexpect = \"deny\"",
        "service = \"new-db\"\nlabels = { env = \"staging\" }\nlogin = \"alice\"\nexpect = \"allow\"",
        "service = \"db-staging\"\nprotocol = \"tcp\"\nexpect = \"deny\"",
        "service = \"db-staging\"\nnow = 2026-05-05T10:00:00Z\nexpect = \"allow\"",
    ] {
        assert_eq!(
            outcome(&format!("{ALICE}{test}")),
            Ok(TestsPassed { count: 1 }),
            "{test}"
        );
    }
    let old = "user = { name = \"alice@example.com\", groups = [\"okta:engineering\"], auth_age = \"5h\" }";
    assert!(outcome(&format!("{old}\nservice = \"db-staging\"\nexpect = \"deny\"")).is_ok());
}

#[test]
fn a_failing_test_is_named_and_explained() {
    let test = format!(
        "name = \"bob too\"\n{ALICE}service = \"db-staging\"\nclient_ip = \"203.0.113.9\"\nexpect = \"allow\""
    );
    let failure = outcome(&test).unwrap_err();
    assert!(
        failure
            .starts_with("test \"bob too\" (line 17) expects allow but got deny by rule \"not from there\""),
        "{failure}"
    );
    assert!(
        failure.contains("in_cidr(client.ip, [\"203.0.113.0/24\"]) = true"),
        "{failure}"
    );
    assert!(failure.contains("client.ip = \"203.0.113.9\""), "{failure}");
}

#[test]
fn a_test_that_expects_another_rule_fails() {
    let failure = outcome(&format!(
        "{ALICE}service = \"db-staging\"\nexpect = \"allow\"\nrule = \"x\""
    ))
    .unwrap_err();
    assert!(
        failure.contains("expects allow by rule \"x\" but got allow by rule \"engineers reach staging\""),
        "{failure}"
    );
}

#[test]
fn every_failing_test_is_reported() {
    let document = with_test(&format!(
        "{ALICE}service = \"db-staging\"\nexpect = \"deny\"\n[[test]]\n{ALICE}service = \"web\"\nexpect = \"allow\""
    ));
    let failures = on_big_stack(|| load(&document).run_tests().unwrap_err());
    // Without the registry, db-staging has no labels, so the first passes.
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].test, "test 2");
}

#[test]
fn malformed_tests_are_refused() {
    let document = with_test(
        "user = { groups = [\"a\"] }\nservice = \"Not A Name\"\nexpect = \"maybe\"\nclient_ip = \"x\"\nprotocol = \"ftp\"\nsurprise = 1",
    );
    let errors = on_big_stack(|| refusal(&document)).to_string();
    for expected in [
        "`name` is missing",
        "service name",
        "\"maybe\"",
        "no address",
        "no protocol",
        "unknown key \"surprise\"",
    ] {
        assert!(errors.contains(expected), "{expected} is not in:\n{errors}");
    }
}
