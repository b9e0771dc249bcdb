//! Conditions written to hang, crash or mislead whoever evaluates them are refused when they are
//! loaded; those that fail later fail towards denial.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use proptest::prelude::*;
use support::{ask, load, now, on_big_stack, refusal, service, user, with_condition};

use iap_policy::{Policy, Protocol};

fn refused_for(condition: &str) -> String {
    let document = with_condition("allow", condition);
    on_big_stack(|| refusal(&document).to_string())
}

fn assert_refused(condition: &str, reason: &str) {
    let message = refused_for(condition);
    assert!(
        message.contains(reason),
        "{condition}\nexpected: {reason}\ngot: {message}"
    );
    assert!(message.starts_with("line 6: rule \"it\": `when`: "), "{message}");
}

#[test]
fn sixty_chained_additions_are_refused() {
    assert_refused(&format!("1{} == 61", "+1".repeat(60)), "more than 32 operators");
}

#[test]
fn long_selector_chains_are_refused() {
    assert_refused(
        &format!("service.labels{} == ''", ".b".repeat(400)),
        "more than 32 operators",
    );
    assert_refused(
        &format!("service.labels{} == ''", "['b']".repeat(100)),
        "more than 32 operators",
    );
    assert_refused(
        &format!("user.name{}.contains('a')", ".trim()".repeat(100)),
        "more than 32 operators",
    );
}

#[test]
fn deep_brackets_are_refused() {
    assert_refused(
        &format!("{}true{}", "(".repeat(500), ")".repeat(500)),
        "nest deeper than 8",
    );
    assert_refused(
        &format!("{}1{} == []", "[".repeat(500), "]".repeat(500)),
        "nest deeper than 8",
    );
    assert_refused(&format!("{}true", "!".repeat(900)), "more than 32 operators");
    assert_refused(&format!("{}1 == 1", "-".repeat(900)), "more than 32 operators");
}

#[test]
fn an_expression_longer_than_a_kilobyte_is_refused() {
    assert_refused(
        &format!("user.name == '{}'", "a".repeat(1_100)),
        "at most 1024 are allowed",
    );
}

#[test]
fn comprehensions_do_not_nest() {
    let nested = "[1,2,3].all(a, [1,2,3].all(b, [1,2,3].all(c, [1,2,3].all(d, a + b + c + d > 0))))";
    assert_refused(nested, "do not nest");
    assert_refused(
        "user.groups.exists(g, user.groups.filter(h, h == g) == [g])",
        "do not nest",
    );
}

#[test]
fn comprehensions_may_follow_one_another() {
    let document = with_condition(
        "allow",
        "user.groups.filter(g, g.startsWith('okta:')).exists(g, g == 'okta:a')",
    );
    assert!(on_big_stack(|| Policy::load(&document).is_ok()));
}

#[test]
fn work_that_multiplies_is_refused() {
    assert_refused("user.groups.all(g, g in user.groups)", "steps");
    assert_refused(
        "user.groups.map(g, user.groups + user.groups) != []",
        "more than 256 elements",
    );
    assert_refused("user.groups.all(g, g.matches('a') && g.matches('b'))", "steps");
}

#[test]
fn lists_longer_than_256_elements_are_refused() {
    assert_refused(&format!("1 in [{}1]", "1,".repeat(300)), "more than 256 elements");
}

#[test]
fn huge_regular_expressions_are_refused() {
    assert_refused(r"user.name.matches('(a{1000}){1000}')", "too large");
    assert_refused(r"user.name.matches('(\\w{200}){20}')", "too large");
    assert_refused(
        &format!("user.name.matches('{}')", "a?".repeat(100)),
        "longer than 128 bytes",
    );
    assert_refused("user.name.matches('(')", "not a regular expression");
    assert_refused("user.name.matches(user.id)", "must be written as a string");
    assert_refused("matches(user.name, user.id + 'x')", "must be written as a string");
}

#[test]
fn a_condition_that_is_no_boolean_is_refused() {
    for condition in [
        "1",
        "'true'",
        "user.name",
        "[true]",
        "user.auth_age",
        "true ? 1 : 2",
        "now",
        "1 + 1",
        "null",
        "size(user.groups)",
    ] {
        assert_refused(condition, "not a boolean");
    }
}

#[test]
fn a_condition_whose_kind_is_not_known_is_tried_out_on_examples() {
    assert_refused("{'a': 1}['a']", "the condition is 1, not a boolean");
    assert_refused(
        "[1, 'b', login][2]",
        "the condition is \"example\", not a boolean",
    );
    assert_refused(
        "true ? user.name : false",
        "the condition is \"example\", not a boolean",
    );
    let document = with_condition("allow", "[true, 'b'][0]");
    assert!(on_big_stack(|| Policy::load(&document).is_ok()));
}

#[test]
fn the_deepest_expression_that_the_caps_allow_fits_the_stack() {
    let nested = format!("{}1{}", "(1 + -(1 * ".repeat(4), "))".repeat(4));
    let chained = format!("{nested}{} > 0", " + 1".repeat(18));
    let negated = format!("{}{}(true){}", "!".repeat(32), "(".repeat(7), ")".repeat(7));
    let chosen = format!("{}true", "true ? true : ".repeat(32));
    for condition in [chained, negated, chosen] {
        let document = with_condition("allow", &condition);
        on_big_stack(|| {
            let question = ask(user("alice", &[]), service("web", Protocol::Http, &[]));
            assert!(question.is_allowed(&load(&document)), "{condition}");
        });
    }
}

#[test]
fn a_value_found_to_be_no_boolean_fails() {
    on_big_stack(|| {
        // What a map holds is not known before it is looked at.
        let condition = "{'a': 1}[login]";
        let allow = load(&with_condition("allow", condition));
        let question = ask(user("alice", &[]), service("db", Protocol::Postgres, &[])).with_login("a");
        let denial = question.denial(&allow);
        assert_eq!(denial.code, iap_policy::DenialCode::ConditionFailed);
        assert!(denial.detail.contains("not a boolean"), "{}", denial.detail);
    });
}

#[test]
fn misspelt_names_are_refused() {
    assert_refused("usr.name == 'a'", "there is no variable `usr`");
    assert_refused("user.nam == 'a'", "`user` has no field `nam`");
    assert_refused("user == user", "`user` stands alone");
    assert_refused("user['name'] == 'a'", "`user` stands alone");
    assert_refused("has(user.mail)", "`user` has no field `mail`");
    assert_refused("user.name.startswith('a')", "there is no function `startswith`");
    assert_refused("startsWith(user.name, 'a')", "is called as `x.startsWith(...)`");
    assert_refused("user.groups.all(user, true)", "hides the variable");
    assert_refused("foo.Bar{a: 1} == foo.Bar{}", "message type");
    assert_refused("b == b'x'", "prefixed strings");
}

#[test]
fn operands_that_never_fit_are_refused() {
    assert_refused("user.auth_age < 4", "compares a duration with an int");
    assert_refused("user.name == 4", "compares a string with an int");
    assert_refused("user.name && true", "not a boolean");
    assert_refused("1 + 'a' == 2", "is given an int and a string");
    assert_refused("user.name in 'abc'", "looks into a string");
    assert_refused("4 in user.groups", "looks for an int");
    assert_refused("in_cidr(client.ip, '10.0.0.0/8')", "cannot be called with");
    assert_refused("in_cidr(client.ip, ['10.0.0.0/33'])", "no address range");
    assert_refused("user.auth_age < duration('4 hours')", "no duration");
    assert_refused("now < timestamp('yesterday')", "no timestamp");
    assert_refused("user.name.all(c, true)", "runs over a string");
}

#[test]
fn what_does_not_parse_is_refused() {
    for condition in [
        "user.name ==",
        "&& true",
        "true true",
        "a.?b",
        "[1,,2] == []",
        "f(",
        "user.'name'",
        "1..2 == 1",
    ] {
        let message = refused_for(condition);
        assert!(message.contains("`when`: "), "{condition}: {message}");
    }
}

#[test]
fn a_failing_allow_does_not_allow_and_a_failing_deny_denies() {
    on_big_stack(|| {
        let question = ask(user("alice", &[]), service("web", Protocol::Http, &[]));
        for failing in [
            "service.labels.env == 'prod'",
            "1 / 0 == 1",
            "user.groups[7] == 'x'",
            "int(user.name) == 1",
            "timestamp(user.name) < now",
        ] {
            let allow = load(&with_condition("allow", failing));
            assert!(!question.is_allowed(&allow), "{failing}");
            assert_eq!(
                question.denial(&allow).code,
                iap_policy::DenialCode::ConditionFailed,
                "{failing}"
            );
            let both = format!(
                "{}\n[[rule]]\nname = \"all\"\neffect = \"allow\"\nusers = {{ names = [\"*\"] }}\nservices = {{ names = [\"*\"] }}",
                with_condition("deny", failing)
            );
            let denial = question.denial(&load(&both));
            assert_eq!(denial.code, iap_policy::DenialCode::ConditionFailed, "{failing}");
            assert_eq!(denial.rule.as_deref(), Some("it"));
        }
    });
}

#[test]
fn the_dearest_condition_that_loads_is_evaluated() {
    on_big_stack(|| {
        let mut many = user("alice", &[]);
        many.groups = (0..128)
            .map(|number| support::group(&format!("okta:group-{number}")))
            .collect();
        let body = "g.contains('9') ? g.endsWith('127') : g.startsWith('okta:') || g.size() > 3";
        let policy = load(&with_condition(
            "allow",
            &format!("user.groups.filter(g, {body}).size() > 0"),
        ));
        assert!(
            ask(many, service("web", Protocol::Http, &[]))
                .at(now())
                .is_allowed(&policy)
        );
    });
}

#[test]
fn more_groups_than_a_condition_may_be_given_fail_it() {
    on_big_stack(|| {
        let mut many = user("alice", &[]);
        many.groups = (0..300)
            .map(|number| support::group(&format!("okta:group-{number}")))
            .collect();
        let policy = load(&with_condition("allow", "'group-1' in user.groups"));
        let denial = ask(many, service("web", Protocol::Http, &[])).denial(&policy);
        assert_eq!(denial.code, iap_policy::DenialCode::ConditionFailed);
    });
}

/// Pieces of CEL, put together at random: whatever comes of it, loading returns.
fn soup() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "user", ".", "name", "groups", "(", ")", "[", "]", "{", "}", "'a'", "\"", "1", "+", "-", "!", "?",
        ":", "&&", "||", "==", "in", ",", "all", "x", " ", "has", "duration", "\\", "r", "b", "//", "\n",
        "=", "0x", "1u", "1e9", ".5", "%", "true", "null", "@", "`",
    ]);
    prop::collection::vec(piece, 0..120).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_expressions_are_loaded_or_refused(source in soup()) {
        let document = with_condition("allow", &source);
        on_big_stack(|| {
            if let Ok(policy) = Policy::load(&document) {
                let _ = ask(user("alice", &["a"]), service("web", Protocol::Http, &[])).decide(&policy);
            }
        });
    }
}
