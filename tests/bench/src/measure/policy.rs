//! One decision at 1,000 rules.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use anyhow::ensure;
use iap_identity::{Class, GroupName, ServiceName};
use iap_policy::{
    Asked, Connectors, Decision, LoadOptions, POLICY_STACK_BYTES, Policy, Question, ServiceFacts, UserFacts,
    Vocabulary,
};
use time::OffsetDateTime;

use crate::stats::median;

const RULES: u32 = 1_000;
const DECISIONS: u32 = 20_000;
const ROUNDS: usize = 7;

/// The median round's microseconds for one decision: five rules match the service, one of them with a condition.
///
/// # Errors
/// When the document does not load or the decision is not the expected one.
pub(crate) fn microseconds_per_decision() -> anyhow::Result<f64> {
    let measuring = std::thread::Builder::new()
        .stack_size(POLICY_STACK_BYTES)
        .spawn(measure)?;
    measuring
        .join()
        .map_err(|_| anyhow::anyhow!("the measuring thread failed"))?
}

fn measure() -> anyhow::Result<f64> {
    let options = LoadOptions {
        connectors: Connectors::One("dev".to_owned()),
        ..LoadOptions::default()
    };
    let policy = Policy::load_with(&document()?, &options).map_err(|errors| anyhow::anyhow!("{errors}"))?;
    let groups = vec![
        GroupName::new("dev", "engineering")?,
        GroupName::new("dev", "on-call")?,
    ];
    let vocabulary = Vocabulary::default();
    let user = UserFacts {
        id: "u-bench".to_owned(),
        name: "alice@example.com".to_owned(),
        kind: Class::User,
        groups,
        groups_vocabulary: None,
        auth_time: Some(OffsetDateTime::now_utc()),
        mfa_time: None,
        acr: None,
        idp: "dev".to_owned(),
        login_method: "browser".to_owned(),
    };
    let service = ServiceFacts::tcp(ServiceName::parse("svc-500")?);
    let question = Question {
        user: &user,
        service: &service,
        login: Asked::Opaque,
        database: Asked::Opaque,
        client_ip: "192.0.2.7".parse()?,
        now: OffsetDateTime::now_utc(),
    };
    let decided = policy.evaluate(&question, &vocabulary);
    ensure!(
        matches!(decided, Decision::Grant(_)),
        "the measured decision is not a grant: {decided:?}"
    );
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for _ in 0..DECISIONS {
            let _ = black_box(policy.evaluate(black_box(&question), &vocabulary));
        }
        rounds.push(begun.elapsed().as_secs_f64() * 1e6 / f64::from(DECISIONS));
    }
    Ok(median(&rounds))
}

fn document() -> anyhow::Result<String> {
    let mut text = String::new();
    for number in 0..RULES - 5 {
        writeln!(
            text,
            "[[rule]]\nname = \"r{number}\"\neffect = \"allow\"\nusers = {{ groups = [\"g{number}\"] }}\nservices = {{ names = [\"svc-{number}\"] }}\n"
        )?;
    }
    for number in 0..4 {
        writeln!(
            text,
            "[[rule]]\nname = \"near {number}\"\neffect = \"allow\"\nusers = {{ groups = [\"other-{number}\"] }}\nservices = {{ names = [\"svc-500\"] }}\n"
        )?;
    }
    text.push_str(
        "[[rule]]\nname = \"the one\"\neffect = \"allow\"\nusers = { groups = [\"engineering\"] }\nservices = { names = [\"svc-500\"] }\n\
         when = 'user.auth_age < duration(\"4h\") && !in_cidr(client.ip, [\"203.0.113.0/24\"])'\n",
    );
    Ok(text)
}
