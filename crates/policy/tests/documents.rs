//! Documents: what is refused, and how much of it at once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use iap_policy::limits::{DOCUMENT_BYTES_MAX, RULES_MAX};
use iap_policy::{Policy, Protocol};
use support::{ask, grant, group, load, on_big_stack, refusal, service, user};

fn errors(document: &str) -> String {
    on_big_stack(|| refusal(document)).to_string()
}

#[test]
fn an_empty_document_is_a_policy_that_allows_nothing() {
    on_big_stack(|| assert_eq!(load("").rule_count(), 0));
}

#[test]
fn every_mistake_is_reported_at_once_with_its_line_and_rule() {
    let document = r#"[[rule]]
name = "one"
effect = "permit"
users = { groups = [], nmes = ["a"] }
services = { names = ["UPPER", "auth"] }
colour = "red"
logins = ["{{user.shell}}", 7]
when = "usr.name == 'a'"
limits = { session = "forever" }

[[rule]]
name = "one"
effect = "deny"
users = {}
limits = { idle = "1m" }

[[admin]]
users = { kinds = ["agent"] }
verbs = ["policy.own"]

[unknown]
"#;
    let found = errors(document);
    for expected in [
        "line 3: rule \"one\": \"permit\" is no effect; allowed are \"allow\", \"deny\"",
        "line 4: rule \"one\", `users`: `groups` is empty; leave the key out or name something",
        "line 4: rule \"one\", `users`: unknown key \"nmes\"; allowed are names, groups, kinds",
        "line 5: rule \"one\": service name \"UPPER\"",
        "line 5: rule \"one\": service name \"auth\" is reserved",
        "line 6: rule \"one\": unknown key \"colour\"; allowed are name, effect,",
        "line 7: rule \"one\": {{user.shell}} in \"{{user.shell}}\" is no template",
        "line 7: rule \"one\": `logins` must be a list of strings, not integer",
        "line 8: rule \"one\": `when`: there is no variable `usr`",
        "line 9: rule \"one\": \"forever\" is no span of time",
        "line 12: rule \"one\": the rule on line 2 has this name too",
        "line 11: rule \"one\": `services` is missing",
        "line 14: rule \"one\": `users` is empty; for everybody write names = [\"*\"]",
        "line 15: rule \"one\": a deny rule has no `limits`",
        "line 18: admin 1: \"agent\" is no kind; allowed are \"user\", \"bot\", \"workload\"",
        "line 19: admin 1: \"policy.own\" is no verb",
        "line 21: the document: unknown key \"unknown\"; allowed are rule, admin, test",
    ] {
        assert!(found.contains(expected), "{expected}\nis not in\n{found}");
    }
}

#[test]
fn features_are_named_exactly_and_not_taken_away() {
    let rule = |effect: &str, feature: &str| {
        format!(
            "[[rule]]\nname = \"a\"\neffect = {effect:?}\nusers = {{ names = [\"*\"] }}\nservices = {{ names = [\"*\"] }}\nfeatures = [{feature:?}]"
        )
    };
    let found = errors(&rule("allow", "ssh.shell"));
    let expected = "line 6: rule \"a\": \"ssh.shell\" is no feature; allowed are \"postgres.options\", \"postgres.replication\", \"ssh.port_forwarding\"";
    assert!(found.contains(expected), "{found}");
    let found = errors(&rule("deny", "postgres.options"));
    assert!(
        found.contains("line 6: rule \"a\": a deny rule has no `features`"),
        "{found}"
    );
}

#[test]
fn what_is_not_toml_is_refused_with_its_line() {
    let found = errors("[[rule]]\nname = \"a\"\neffect = = \"allow\"\n");
    assert!(found.starts_with("line 3: not TOML: "), "{found}");
    assert!(errors("rule = 1").contains("must be written [[rule]]"));
    assert!(errors("rule = [1]").contains("must be written [[rule]]"));
    assert!(errors("[rule]\nname = \"a\"").contains("must be written [[rule]]"));
}

#[test]
fn names_that_cannot_be_told_apart_or_read_are_refused() {
    let named = |name: &str| {
        format!(
            "[[rule]]\nname = {name}\neffect = \"allow\"\nusers = {{ names = [\"*\"] }}\nservices = {{ names = [\"*\"] }}\n"
        )
    };
    assert!(errors(&named("\"\"")).contains("1 to 128 bytes"));
    assert!(errors(&named("\"a\\nb\"")).contains("without control characters"));
    assert!(errors(&named(&format!("{:?}", "n".repeat(129)))).contains("1 to 128 bytes"));
    assert!(errors(&named("7")).contains("`name` must be a string, not integer"));
}

#[test]
fn templates_are_checked_when_they_are_read() {
    let with_login = |login: &str| {
        format!(
            "[[rule]]\nname = \"a\"\neffect = \"allow\"\nusers = {{ names = [\"*\"] }}\nservices = {{ names = [\"*\"] }}\nlogins = [{login:?}]"
        )
    };
    for (login, expected) in [
        ("{{user.local", "lacks a `}}`"),
        ("user.local}}", "may only have"),
        ("{{user.id}}", "is no template"),
        ("{{}}", "is no template"),
        ("App {{user.local}}", "may only have"),
        ("", "is empty"),
        (&"x".repeat(64), "longer than 63 bytes"),
    ] {
        assert!(
            errors(&with_login(login)).contains(expected),
            "{login}: {}",
            errors(&with_login(login))
        );
    }
}

#[test]
fn too_large_a_document_is_refused_before_it_is_read() {
    let found = errors(&"#".repeat(DOCUMENT_BYTES_MAX + 1));
    assert!(found.contains("at most 4194304 are allowed"), "{found}");
    let rules = "[[rule]]\n".repeat(RULES_MAX + 1);
    assert!(errors(&rules).contains("20001 [[rule]] tables; at most 20000 are allowed"));
    let names = "\"a\",".repeat(2_000);
    let list = format!(
        "[[rule]]\nname = \"a\"\neffect = \"allow\"\nusers = {{ names = [{names}] }}\nservices = {{ names = [\"*\"] }}"
    );
    assert!(errors(&list).contains("`names` has 2000 values; at most 1024"));
}

#[test]
fn errors_are_reported_up_to_a_limit() {
    let found = on_big_stack(|| refusal(&"[[rule]]\nx = 1\n".repeat(1_000)));
    assert_eq!(found.0.len(), 100);
}

#[test]
fn ten_thousand_rules_load_and_decide() {
    let mut document = String::new();
    for number in 0..10_000 {
        let (group, service) = (number % 50, number % 1_000);
        document.push_str(&format!(
            "[[rule]]\nname = \"rule {number}\"\neffect = \"allow\"\nusers = {{ groups = [\"g{group}\"] }}\n\
             services = {{ names = [\"db-{service}\"] }}\nlogins = [\"readonly\"]\n\
             when = 'user.auth_age < duration(\"{}h\")'\n",
            1 + number % 20
        ));
    }
    on_big_stack(|| {
        let policy = load(&document);
        assert_eq!(policy.rule_count(), 10_000);
        assert_eq!(policy.named_groups().len(), 50);
        let question = ask(user("alice", &["g7"]), service("db-57", Protocol::Postgres, &[]));
        assert_eq!(question.answer(&policy), grant("rule 57", Some("readonly")));
        assert!(!ask(user("alice", &["g8"]), service("db-57", Protocol::Postgres, &[])).is_allowed(&policy));
    });
}

#[test]
fn the_groups_a_policy_names_are_known() {
    on_big_stack(|| {
        let document = r#"
            [[rule]]
            name = "a"
            effect = "allow"
            users = { groups = ["sre", "corp:ops"] }
            services = { names = ["*"] }
            when = "'oncall' in user.groups && service.labels.env == 'prod'"
            [[rule]]
            name = "b"
            effect = "allow"
            users = { names = ["*"] }
            services = { names = ["*"] }
            when = "['ops1', 'ops2'].exists(g, g in user.groups) && in_cidr(client.ip, ['2001:db8::/32'])"
            [[admin]]
            users = { groups = ["platform"] }
            verbs = ["audit.read"]
        "#;
        let policy = load(document);
        let names: Vec<String> = policy.named_groups().iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "corp:ops",
                "okta:oncall",
                "okta:ops1",
                "okta:ops2",
                "okta:platform",
                "okta:sre"
            ]
        );
        assert!(policy.names_group(&group("okta:sre")));
        assert!(!policy.names_group(&group("corp:sre")));
        let bare = Policy::load(document).unwrap();
        assert!(bare.names_group(&group("whichever:sre")));
        assert!(!bare.names_group(&group("okta:ops")));
    });
}
