//! Policy documents, conditions and search expressions: refused or bounded, and the answers agree with each
//! other: a grant names an allow rule, an explanation says what the decision says, and a deny rule for
//! everybody denies whatever else the document says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use iap_identity::{Class, GroupName, LoginName, ServiceName};
use iap_policy::{
    Asked, Connectors, Decision, Effect, Filter, LoadOptions, Policy, Protocol, Question, ServiceFacts,
    UserFacts, Vocabulary,
};
use time::{Duration, OffsetDateTime};

use super::Seeds;
use crate::input::choice;

const DENY_EVERYBODY: &str = "\n[[rule]]\nname = \"zz fuzz denies\"\neffect = \"deny\"\nusers = { names = [\"*\"] }\nservices = { names = [\"*\"] }\n";

pub(crate) fn run(bytes: &[u8]) {
    let Some((kind, text)) = choice(bytes, 4) else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    match kind {
        0 => document(text),
        1 => document(&with_condition("allow", text)),
        2 => document(&with_condition("deny", text)),
        _ => search(text),
    }
}

fn document(source: &str) {
    let options = LoadOptions {
        connectors: Connectors::One("okta".to_owned()),
        ..LoadOptions::default()
    };
    let policy = match Policy::load_with(source, &options) {
        Ok(policy) => policy,
        Err(errors) => {
            assert!(!errors.to_string().is_empty(), "a refusal says why");
            return;
        }
    };
    drop(policy.run_tests());
    let closed = Policy::load_with(&format!("{source}{DENY_EVERYBODY}"), &options).ok();
    let vocabulary = Vocabulary::default().advance(policy.vocabulary_groups(), 1);
    for (user, service) in subjects() {
        let answer = ask(&policy, &user, &service, &vocabulary);
        assert_eq!(
            answer,
            ask(&policy, &user, &service, &vocabulary),
            "the same twice"
        );
        if let Some(closed) = &closed {
            let denied = ask(closed, &user, &service, &vocabulary);
            assert!(
                matches!(denied, Decision::Denial(_)),
                "{denied:?} in spite of a deny rule"
            );
        }
    }
}

/// Asks with and without a login; returns the answer without one.
fn ask(policy: &Policy, user: &UserFacts, service: &ServiceFacts, vocabulary: &Vocabulary) -> Decision {
    let readonly = LoginName::parse("readonly").unwrap();
    let now = now();
    let client_ip: IpAddr = "198.51.100.7".parse().unwrap();
    let mut answer = None;
    for login in [Some(&readonly), None] {
        let question = Question {
            user,
            service,
            login: Asked::Visible(login),
            database: Asked::Visible(None),
            client_ip,
            now,
        };
        let decision = policy.evaluate(&question, vocabulary);
        agrees(policy, &question, vocabulary, &decision);
        answer = Some(decision);
    }
    drop(policy.visible(user, service, vocabulary, client_ip, now));
    answer.unwrap()
}

fn agrees(policy: &Policy, question: &Question<'_>, vocabulary: &Vocabulary, decision: &Decision) {
    let explained = policy.explain(question, vocabulary);
    match decision {
        Decision::Grant(grant) => {
            assert_eq!(
                (explained.effect, explained.code.as_deref()),
                (Effect::Allow, None)
            );
            assert_eq!(explained.rule.as_deref(), Some(grant.rule()));
            let deciding = explained.rules.iter().find(|rule| rule.name == grant.rule());
            assert_eq!(
                deciding.map(|rule| rule.effect),
                Some(Effect::Allow),
                "{}",
                grant.rule()
            );
        }
        Decision::Denial(denial) => {
            assert_eq!(explained.effect, Effect::Deny);
            assert_eq!(explained.code.as_deref(), Some(denial.code.as_str()));
            assert!(!denial.text.is_empty());
        }
    }
}

fn subjects() -> [(UserFacts, ServiceFacts); 2] {
    let user = |name: &str, groups: &[&str], mfa_time| UserFacts {
        id: format!("u-{name}"),
        name: name.to_owned(),
        kind: Class::User,
        groups: groups
            .iter()
            .map(|group| GroupName::new("okta", group).unwrap())
            .collect(),
        groups_vocabulary: Some(1),
        auth_time: Some(now() - Duration::minutes(10)),
        mfa_time,
        acr: None,
        idp: "okta".to_owned(),
        login_method: "browser".to_owned(),
    };
    let database = ServiceFacts {
        name: ServiceName::parse("db-prod").unwrap(),
        protocol: Protocol::Postgres,
        inspect: true,
        labels: BTreeMap::from([("env".to_owned(), "prod".to_owned())]),
        default_login: LoginName::parse("readonly").ok(),
    };
    let alice = user("alice@example.com", &["engineering", "oncall"], Some(now()));
    let bob = user("bob@example.com", &[], None);
    [
        (alice, database),
        (bob, ServiceFacts::tcp(ServiceName::parse("web").unwrap())),
    ]
}

/// An expression of `audit search`, and records it is tried on.
fn search(source: &str) {
    let Ok(filter) = Filter::parse(source) else {
        return;
    };
    let record = serde_json::json!({
        "event": "session.start", "code": "S1000I", "seq": 7, "big": u64::MAX, "part": 0.5, "none": null,
        "user": { "name": "alice@example.com", "groups": ["okta:engineering"] },
        "decision": { "effect": "allow", "rule": "engineers" },
    });
    let nothing = serde_json::json!({});
    assert_eq!(filter.matches(&record), filter.matches(&record));
    assert_eq!(filter.matches(&nothing), filter.matches(&nothing));
}

fn with_condition(effect: &str, condition: &str) -> String {
    let quoted = serde_json::Value::from(condition).to_string();
    format!(
        "[[rule]]\nname = \"it\"\neffect = \"{effect}\"\nusers = {{ names = [\"*\"] }}\nservices = {{ names = [\"*\"] }}\nwhen = {quoted}\n"
    )
}

/// 2026-01-01 12:00:00 UTC, a Thursday.
fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_767_268_800).unwrap()
}

/// A document that uses most of what there is.
pub(crate) const DOCUMENT: &str = r#"
[[rule]]
name = "engineers read"
effect = "allow"
users = { groups = ["engineering"] }
services = { labels = { env = "prod" } }
logins = ["readonly", "{{user.local}}"]
databases = ["orders"]
when = 'user.auth_age < duration("8h") && now.getDayOfWeek() < 6'
limits = { session = "8h", idle = "15m" }

[[rule]]
name = "nobody from there"
effect = "deny"
users = { names = ["*"] }
services = { names = ["*"] }
when = 'in_cidr(client.ip, ["203.0.113.0/24"])'

[[admin]]
users = { groups = ["admins"] }
verbs = ["policy.write", "audit.read"]

[[test]]
user = { name = "alice@example.com", groups = ["engineering"] }
service = "db-prod"
protocol = "postgres"
labels = { env = "prod" }
login = "readonly"
database = "orders"
expect = "allow"
rule = "engineers read"
"#;

pub(crate) fn seeds() -> Seeds {
    let conditions = [
        "user.name == 'alice@example.com'",
        "'okta:oncall' in user.groups || user.groups.exists(g, g.startsWith('okta:on'))",
        "has(user.mfa_age) && user.mfa_age < duration('15m') && user.auth_age < duration('8h')",
        "now > timestamp('2026-01-01T00:00:00Z') && now.getHours('Europe/Berlin') < 18",
        "service.labels['env'] == 'prod' && has(service.labels.team)",
        "client.ip.startsWith('198.51.100.') ? true : 1 / 0 == 1",
        "user.name.matches('^[a-z]+@example[.]com$')",
        "[1, 2, 3].all(a, a < 4) && size(user.groups) == 2 && !in_cidr(client.ip, ['10.0.0.0/8'])",
        "login == 'readonly' && database == 'orders' && service.protocol == 'postgres'",
    ];
    let mut seeds = vec![
        ("document".to_owned(), [b"\0", DOCUMENT.as_bytes()].concat()),
        ("document-empty".to_owned(), vec![0]),
        ("search-words".to_owned(), b"\x03alice db-prod".to_vec()),
        (
            "search".to_owned(),
            b"\x03user.name == \"alice@example.com\" && seq > 3 && decision.rule.contains('eng')".to_vec(),
        ),
    ];
    for (number, condition) in (1..).zip(conditions) {
        let kind = [1 + number % 2];
        seeds.push((
            format!("condition-{number}"),
            [&kind, condition.as_bytes()].concat(),
        ));
    }
    seeds
}
