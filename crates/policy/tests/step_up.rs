//! Denials that another login would change say which.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use iap_policy::{Asked, Denial, DenialCode, Grant, Protocol, Question, StepUp, UserFacts, Vocabulary};
use support::{load, now, on_big_stack, service, user};

fn rules(condition: &str, more: &str) -> String {
    format!(
        "[[rule]]\nname = \"engineers\"\neffect = \"allow\"\nusers = {{ groups = [\"engineering\"] }}\nservices = {{ names = [\"db\"] }}\n\
         when = '{condition}'\n{more}"
    )
}

fn decide(document: &str, user: &UserFacts) -> Result<Grant, Denial> {
    on_big_stack(|| {
        let service = service("db", Protocol::Tcp, &[]);
        let question = Question {
            user,
            service: &service,
            login: Asked::Opaque,
            database: Asked::Opaque,
            client_ip: [192, 0, 2, 1].into(),
            now: now(),
        };
        load(document)
            .evaluate(&question, &Vocabulary::default())
            .into_result()
    })
}

/// What the denial of `user` says.
fn denial(document: &str, user: UserFacts) -> Denial {
    decide(document, &user).expect_err("a denial")
}

fn needed(document: &str, user: UserFacts) -> Option<StepUp> {
    match denial(document, user).code {
        DenialCode::StepUpNeeded(step_up) => Some(step_up),
        _ => None,
    }
}

fn alice() -> UserFacts {
    user("alice@example.com", &["engineering"])
}

fn step_up(mfa: bool, acr: Option<&str>) -> Option<StepUp> {
    Some(StepUp {
        mfa,
        acr: acr.map(str::to_owned),
    })
}

#[test]
fn an_old_login_needs_a_fresh_one_and_no_more() {
    let document = rules("user.auth_age < duration(\"5m\")", "");
    assert_eq!(needed(&document, alice()), step_up(false, None));
    let text = denial(&document, alice()).text;
    assert_eq!(text, "To reach db, log in anew.");
}

#[test]
fn a_rule_about_a_second_factor_needs_several_factors() {
    let document = rules("has(user.mfa_age) && user.mfa_age < duration(\"1h\")", "");
    assert_eq!(needed(&document, alice()), step_up(true, None));
    let failing = rules("user.mfa_age < duration(\"1h\")", "");
    assert_eq!(
        needed(&failing, alice()),
        step_up(true, None),
        "one whose condition fails too"
    );
    assert!(denial(&document, alice()).text.contains("several factors"));
}

#[test]
fn a_rule_about_a_class_needs_that_class_and_what_else_it_asks() {
    let document = rules("user.acr in [\"gold\", \"silver\"]", "");
    assert_eq!(needed(&document, alice()), step_up(false, Some("gold")));
    let both = rules("user.acr == \"gold\" && user.mfa_age < duration(\"1h\")", "");
    assert_eq!(needed(&both, alice()), step_up(true, Some("gold")));
}

#[test]
fn a_deny_rule_about_an_old_login_needs_a_fresh_one_too() {
    let deny = "\n[[rule]]\nname = \"stale\"\neffect = \"deny\"\nusers = { names = [\"*\"] }\nservices = { names = [\"*\"] }\nwhen = \
                'user.auth_age > duration(\"5m\")'\n";
    let document = rules("user.name != \"\"", deny);
    assert_eq!(needed(&document, alice()), step_up(false, None));
    let denied = denial(&document, alice());
    assert_eq!(denied.rule.as_deref(), Some("stale"));
    assert!(
        denied.detail.contains("\"engineers\" would allow"),
        "{}",
        denied.detail
    );
}

#[test]
fn whom_no_login_would_help_is_not_told_to_log_in() {
    let document = rules("user.auth_age < duration(\"5m\")", "");
    let bob = user("bob@example.com", &["support"]);
    assert_eq!(needed(&document, bob), None);
    let elsewhere = rules(
        "user.auth_age < duration(\"5m\") && client.ip == \"198.51.100.1\"",
        "",
    );
    assert_eq!(needed(&elsewhere, alice()), None);
    let bot = UserFacts {
        groups: alice().groups,
        ..UserFacts::bot("robot")
    };
    assert_eq!(needed(&document, bot), None, "a bot has nobody who could");
}

#[test]
fn a_class_that_was_reached_is_one_a_condition_can_read() {
    let document = rules("user.acr == \"gold\"", "");
    let gold = UserFacts {
        acr: Some("gold".to_owned()),
        ..alice()
    };
    let allowed = rules("has(user.acr) && user.acr == \"silver\"", "");
    assert_eq!(needed(&allowed, gold.clone()), step_up(false, Some("silver")));
    assert!(decide(&document, &gold).is_ok());
}
