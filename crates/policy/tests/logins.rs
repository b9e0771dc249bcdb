//! Logins and databases: literals, templates, reserved ones, the default, and what an agent cannot see.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use iap_policy::{Asked, DenialCode, Policy, Protocol, Question, ServiceFacts};
use support::{Ask, ask, grant, load, login, on_big_stack, service, user};

fn rule(name: &str, effect: &str, more: &str) -> String {
    format!(
        "[[rule]]\nname = \"{name}\"\neffect = \"{effect}\"\nusers = {{ names = [\"*\"] }}\nservices = {{ names = [\"*\"] }}\n{more}\n"
    )
}

fn allow(more: &str) -> String {
    rule("allow", "allow", more)
}

fn database() -> ServiceFacts {
    service("db", Protocol::Postgres, &[])
}

fn alice() -> Ask {
    ask(user("alice@example.com", &[]), database())
}

#[test]
fn a_template_gives_the_users_own_login_and_no_other() {
    on_big_stack(|| {
        let policy = load(&allow("logins = [\"{{user.local}}\", \"app_{{user.local}}\"]"));
        assert!(alice().with_login("alice").is_allowed(&policy));
        assert!(alice().with_login("app_alice").is_allowed(&policy));
        assert_eq!(
            alice().with_login("bob").answer(&policy),
            Err(DenialCode::LoginNotAllowed)
        );
        assert_eq!(
            alice().with_login("{{user.local}}").answer(&policy),
            Err(DenialCode::LoginNotAllowed)
        );
    });
}

#[test]
fn a_template_never_gives_a_reserved_or_odd_login() {
    on_big_stack(|| {
        let policy = load(&allow("logins = [\"{{user.local}}\", \"{{user.name}}\"]"));
        for local in [
            "root",
            "postgres",
            "Alice",
            "1alice",
            "al ice",
            "al'ice",
            "",
            "al.ice",
            "ålice",
            &"a".repeat(33),
        ] {
            let question = ask(user(&format!("{local}@example.com"), &[]), database());
            assert!(!question.is_allowed(&policy), "{local:?} as the default");
            if !local.is_empty() {
                assert!(
                    !question.with_login(local).is_allowed(&policy),
                    "{local:?} by name"
                );
            }
        }
        assert!(ask(user(&"a".repeat(32), &[]), database()).is_allowed(&policy));
    });
}

#[test]
fn a_reserved_login_written_literally_is_given() {
    on_big_stack(|| {
        let policy = load(&allow("logins = [\"root\", \"{{user.local}}\"]"));
        assert!(alice().with_login("root").is_allowed(&policy));
        assert!(
            ask(user("root@example.com", &[]), database())
                .with_login("root")
                .is_allowed(&policy)
        );
    });
}

#[test]
fn reserved_logins_are_the_callers_to_name() {
    on_big_stack(|| {
        let mut options = iap_policy::LoadOptions::default();
        options.reserved_logins.insert("alice".to_owned());
        let policy = Policy::load_with(&allow("logins = [\"{{user.local}}\"]"), &options).unwrap();
        assert!(!alice().is_allowed(&policy));
    });
}

#[test]
fn a_deny_rule_takes_a_login_alone_and_a_template_takes_whatever_it_comes_to() {
    on_big_stack(|| {
        let policy = load(&format!(
            "{}{}",
            allow(""),
            rule("deny", "deny", "logins = [\"admin\", \"{{user.local}}\"]")
        ));
        assert_eq!(
            alice().with_login("admin").answer(&policy),
            Err(DenialCode::DeniedByRule)
        );
        assert_eq!(
            alice().with_login("alice").answer(&policy),
            Err(DenialCode::DeniedByRule)
        );
        assert!(alice().with_login("bob").is_allowed(&policy));
        let root = ask(user("root@example.com", &[]), database()).with_login("root");
        assert_eq!(root.answer(&policy), Err(DenialCode::DeniedByRule));
    });
}

#[test]
fn the_default_login_is_the_services_then_the_users_own_then_the_only_literal_one() {
    on_big_stack(|| {
        let policy = load(&allow("logins = [\"readonly\", \"app\", \"{{user.local}}\"]"));
        let mut with_default = alice();
        with_default.service.default_login = Some(login("app"));
        assert_eq!(with_default.answer(&policy), grant("allow", Some("app")));
        assert_eq!(
            alice().with_login("readonly").answer(&policy),
            grant("allow", Some("readonly"))
        );
        assert_eq!(alice().answer(&policy), grant("allow", Some("alice")));

        let ungranted = load(&allow("logins = [\"readonly\", \"{{user.local}}\"]"));
        assert_eq!(
            with_default.answer(&ungranted),
            grant("allow", Some("alice")),
            "a default that is not granted is passed over"
        );

        let literal = load(&allow("logins = [\"readonly\"]"));
        assert_eq!(alice().answer(&literal), grant("allow", Some("readonly")));
        let literals = load(&allow("logins = [\"readonly\", \"app\"]"));
        assert_eq!(
            alice().answer(&literals),
            Err(DenialCode::LoginChoice(vec![login("app"), login("readonly")]))
        );
    });
}

#[test]
fn the_default_login_is_one_that_no_deny_rule_takes() {
    on_big_stack(|| {
        let rules = format!(
            "{}{}",
            allow("logins = [\"readonly\", \"app\"]"),
            rule("deny", "deny", "logins = [\"app\"]")
        );
        assert_eq!(alice().answer(&load(&rules)), grant("allow", Some("readonly")));
    });
}

#[test]
fn any_login_means_the_users_own_by_default_but_never_a_reserved_one() {
    on_big_stack(|| {
        let policy = load(&allow("logins = [\"*\"]"));
        assert_eq!(alice().answer(&policy), grant("allow", Some("alice")));
        assert_eq!(
            alice().with_login("whoever").answer(&policy),
            grant("allow", Some("whoever"))
        );
        let root = ask(user("root@example.com", &[]), database());
        assert_eq!(root.answer(&policy), Err(DenialCode::LoginChoice(Vec::new())));
    });
}

#[test]
fn conditions_see_the_login_that_is_chosen() {
    on_big_stack(|| {
        let policy = load(&allow(
            "logins = [\"readonly\", \"app\"]\nwhen = \"login != 'app'\"",
        ));
        assert_eq!(alice().answer(&policy), grant("allow", Some("readonly")));
        assert_eq!(
            alice().with_login("app").answer(&policy),
            Err(DenialCode::NoRuleMatches)
        );
    });
}

#[test]
fn databases_are_held_to_their_list() {
    on_big_stack(|| {
        let policy = load(&allow(
            "logins = [\"app\"]\ndatabases = [\"orders\", \"dev_{{user.local}}\"]",
        ));
        let question = || alice().with_login("app");
        assert!(question().on_database("orders").is_allowed(&policy));
        assert!(question().on_database("dev_alice").is_allowed(&policy));
        let denial = question().on_database("billing").denial(&policy);
        assert_eq!(denial.code, DenialCode::LoginNotAllowed);
        assert_eq!(
            denial.text,
            "Policy does not allow alice@example.com to reach database billing of db as app."
        );
        assert!(!question().is_allowed(&policy), "no database is none of the list");
    });
}

#[test]
fn where_logins_cannot_be_seen_an_allow_that_names_some_does_not_match_and_a_deny_does() {
    on_big_stack(|| {
        let mut uninspected = database();
        uninspected.inspect = false;
        for unseen in [service("db", Protocol::Tcp, &[]), uninspected] {
            let question = || {
                ask(user("alice@example.com", &[]), unseen.clone())
                    .with_login("app")
                    .on_database("orders")
            };
            for (rules, expected) in [
                (allow(""), grant("allow", None)),
                (
                    allow("logins = [\"*\"]\ndatabases = [\"*\"]"),
                    grant("allow", None),
                ),
                (allow("logins = [\"app\"]"), Err(DenialCode::NoRuleMatches)),
                (allow("databases = [\"orders\"]"), Err(DenialCode::NoRuleMatches)),
                (
                    allow("when = \"login == 'app'\""),
                    Err(DenialCode::ConditionFailed),
                ),
                (
                    format!("{}{}", allow(""), rule("deny", "deny", "logins = [\"root\"]")),
                    Err(DenialCode::DeniedByRule),
                ),
                (
                    format!("{}{}", allow(""), rule("deny", "deny", "databases = [\"x\"]")),
                    Err(DenialCode::DeniedByRule),
                ),
                (
                    format!(
                        "{}{}",
                        allow(""),
                        rule("deny", "deny", "when = \"login == 'root'\"")
                    ),
                    Err(DenialCode::ConditionFailed),
                ),
            ] {
                assert_eq!(question().answer(&load(&rules)), expected, "{rules}");
            }
        }
    });
}

#[test]
fn where_there_are_no_logins_neither_matches() {
    on_big_stack(|| {
        let question = || {
            ask(
                user("alice@example.com", &[]),
                service("web", Protocol::Http, &[]),
            )
        };
        assert_eq!(
            question().answer(&load(&allow("logins = [\"app\"]"))),
            Err(DenialCode::NoRuleMatches)
        );
        let rules = format!("{}{}", allow(""), rule("deny", "deny", "logins = [\"root\"]"));
        assert_eq!(question().answer(&load(&rules)), grant("allow", None));
        let shell = ask(
            user("alice@example.com", &[]),
            service("host", Protocol::Ssh, &[]),
        );
        let rules = format!("{}{}", allow(""), rule("deny", "deny", "databases = [\"prod\"]"));
        assert_eq!(shell.answer(&load(&rules)), grant("allow", Some("alice")));
    });
}

#[test]
fn a_listing_shows_what_may_be_used() {
    on_big_stack(|| {
        let rules = format!(
            "{}{}",
            allow("logins = [\"readonly\", \"app\", \"{{user.local}}\"]\ndatabases = [\"orders\"]"),
            rule("deny", "deny", "logins = [\"app\"]")
        );
        let policy = load(&rules);
        let question = alice();
        let visible = |service: &ServiceFacts, policy: &Policy| {
            policy.visible(
                &question.user,
                service,
                &question.vocabulary,
                question.client_ip,
                question.now,
            )
        };
        let shown = visible(&database(), &policy).unwrap();
        assert_eq!(shown.logins, ["alice", "readonly"]);
        assert_eq!(shown.databases, ["orders"]);
        assert_eq!(shown.login, Some(login("alice")));
        assert_eq!(visible(&service("db", Protocol::Tcp, &[]), &policy), None);
        assert_eq!(visible(&database(), &load("")), None);
        let any = load(&allow(""));
        let shown = visible(&service("db", Protocol::Tcp, &[]), &any).unwrap();
        assert_eq!(
            (shown.logins.len(), shown.databases.len(), shown.login),
            (0, 0, None)
        );
        assert_eq!(visible(&database(), &any).unwrap().logins, ["*"]);
    });
}

#[test]
fn rules_that_name_what_the_agent_cannot_see_are_warned_of() {
    on_big_stack(|| {
        let policy = load(&allow("logins = [\"app\"]"));
        let warnings = policy.warnings(&[service("tunnel", Protocol::Tcp, &[]), database()]);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains("does not see on tunnel; it does not allow them"),
            "{warnings:?}"
        );
        assert!(policy.warnings(&[database()]).is_empty());
    });
}

/// An SSH service whose bytes the agent passes on: its server reads the login in a certificate.
fn relayed() -> ServiceFacts {
    ServiceFacts {
        inspect: false,
        ..service("host", Protocol::Ssh, &[])
    }
}

#[test]
fn a_server_that_reads_logins_in_certificates_is_reached_by_whoever_has_any() {
    on_big_stack(|| {
        let opaque = |rules: &str| {
            let ask = ask(user("alice@example.com", &[]), relayed());
            let question = Question {
                login: Asked::Opaque,
                ..ask.question()
            };
            let decision = load(rules).evaluate(&question, &ask.vocabulary).into_result();
            decision.map(|grant| {
                assert_eq!(grant.login(), None, "which one it will be is not known");
                grant.rule().to_owned()
            })
        };
        let allowed = |rules: &str| opaque(rules).is_ok();
        assert!(allowed(&allow("logins = [\"deploy\"]")));
        assert!(allowed(&allow("logins = [\"{{user.local}}\"]")));
        assert!(allowed(&allow("")));
        assert!(allowed(&allow(
            "logins = [\"deploy\"]\nwhen = \"login == 'deploy'\""
        )));
        let deny = |logins: &str| rule("deny", "deny", logins);
        let two = allow("logins = [\"deploy\", \"root\"]");
        assert!(allowed(&format!("{two}{}", deny("logins = [\"root\"]"))));
        assert!(!allowed(&format!(
            "{two}{}",
            deny("logins = [\"root\", \"deploy\"]")
        )));
        assert!(!allowed(&format!("{}{}", allow(""), deny(""))));
        assert!(!allowed(""));
    });
}

#[test]
fn of_a_server_that_reads_logins_in_certificates_the_logins_are_listed_and_can_be_asked_about() {
    on_big_stack(|| {
        let rules = format!(
            "{}{}",
            allow("logins = [\"deploy\", \"root\"]"),
            rule("deny", "deny", "logins = [\"root\"]")
        );
        let policy = load(&rules);
        let asked = |login: &str| ask(user("alice@example.com", &[]), relayed()).with_login(login);
        assert!(asked("deploy").is_allowed(&policy));
        assert!(!asked("root").is_allowed(&policy));
        let alice = asked("deploy");
        let shown = policy.visible(
            &alice.user,
            &relayed(),
            &alice.vocabulary,
            alice.client_ip,
            alice.now,
        );
        let shown = shown.unwrap();
        assert_eq!(
            (shown.logins, shown.login),
            (vec!["deploy".to_owned()], Some(login("deploy")))
        );
        assert!(policy.warnings(&[relayed()]).is_empty());
    });
}
