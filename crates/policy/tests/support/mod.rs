//! What the tests share: big stacks, and users, services and questions to ask about.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use iap_identity::{Class, GroupName, LoginName, ServiceName};
use iap_policy::{
    Asked, Connectors, Decision, DenialCode, LoadOptions, POLICY_STACK_BYTES, Policy, PolicyErrors, Protocol,
    Question, ServiceFacts, UserFacts, Vocabulary,
};
use time::{Duration, OffsetDateTime};

/// Runs `work` on a thread with the stack that CEL needs, and hands its panic on.
pub(crate) fn on_big_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(POLICY_STACK_BYTES);
        match thread.spawn_scoped(scope, work).expect("a thread").join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// 2026-01-01 12:00:00 UTC, a Thursday.
pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_767_268_800).expect("a time")
}

pub(crate) fn load(document: &str) -> Policy {
    load_as(document, Connectors::One("okta".to_owned()))
}

pub(crate) fn load_as(document: &str, connectors: Connectors) -> Policy {
    let options = LoadOptions {
        connectors,
        ..LoadOptions::default()
    };
    Policy::load_with(document, &options).unwrap_or_else(|errors| panic!("refused:\n{errors}\n{document}"))
}

pub(crate) fn refusal(document: &str) -> PolicyErrors {
    match Policy::load(document) {
        Ok(_) => panic!("accepted: {document}"),
        Err(errors) => errors,
    }
}

/// A document whose only rule has this condition.
pub(crate) fn with_condition(effect: &str, condition: &str) -> String {
    let quoted = serde_json::Value::from(condition).to_string();
    format!(
        "[[rule]]\nname = \"it\"\neffect = \"{effect}\"\nusers = {{ names = [\"*\"] }}\nservices = {{ names = [\"*\"] }}\nwhen = {quoted}\n"
    )
}

pub(crate) fn group(name: &str) -> GroupName {
    GroupName::parse(name).expect(name)
}

pub(crate) fn login(name: &str) -> LoginName {
    LoginName::parse(name).expect(name)
}

/// A user of connector `okta` who logged in ten minutes ago and is in these of its groups.
pub(crate) fn user(name: &str, groups: &[&str]) -> UserFacts {
    UserFacts {
        id: format!("u-{name}"),
        name: name.to_owned(),
        kind: Class::User,
        groups: groups.iter().map(|name| group(&format!("okta:{name}"))).collect(),
        groups_vocabulary: Some(1),
        auth_time: Some(now() - Duration::minutes(10)),
        mfa_time: None,
        acr: None,
        idp: "okta".to_owned(),
        login_method: "browser".to_owned(),
    }
}

pub(crate) fn service(name: &str, protocol: Protocol, labels: &[(&str, &str)]) -> ServiceFacts {
    let labels: BTreeMap<String, String> = labels
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    ServiceFacts {
        name: ServiceName::parse(name).expect(name),
        protocol,
        inspect: true,
        labels,
        default_login: None,
    }
}

/// A question with the usual answers to what a test does not care about.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) user: UserFacts,
    pub(crate) service: ServiceFacts,
    pub(crate) login: Option<LoginName>,
    pub(crate) database: Option<String>,
    pub(crate) client_ip: IpAddr,
    pub(crate) now: OffsetDateTime,
    pub(crate) vocabulary: Vocabulary,
}

pub(crate) fn ask(user: UserFacts, service: ServiceFacts) -> Ask {
    let client_ip = "198.51.100.7".parse().expect("an address");
    Ask {
        user,
        service,
        login: None,
        database: None,
        client_ip,
        now: now(),
        vocabulary: Vocabulary::default(),
    }
}

impl Ask {
    pub(crate) fn with_login(mut self, name: &str) -> Self {
        self.login = Some(login(name));
        self
    }

    pub(crate) fn on_database(mut self, name: &str) -> Self {
        self.database = Some(name.to_owned());
        self
    }

    pub(crate) fn coming_from(mut self, address: &str) -> Self {
        self.client_ip = address.parse().expect(address);
        self
    }

    pub(crate) fn at(mut self, now: OffsetDateTime) -> Self {
        self.now = now;
        self
    }

    pub(crate) fn with_vocabulary(mut self, versions: &[(&str, u64)]) -> Self {
        self.vocabulary = versions
            .iter()
            .map(|(name, version)| (group(name), *version))
            .collect();
        self
    }

    pub(crate) fn question(&self) -> Question<'_> {
        Question {
            user: &self.user,
            service: &self.service,
            login: Asked::Visible(self.login.as_ref()),
            database: Asked::Visible(self.database.as_deref()),
            client_ip: self.client_ip,
            now: self.now,
        }
    }

    pub(crate) fn decide(&self, policy: &Policy) -> Decision {
        policy.evaluate(&self.question(), &self.vocabulary)
    }

    /// The granting rule and login, or the denial's code.
    pub(crate) fn answer(&self, policy: &Policy) -> Result<(String, Option<String>), DenialCode> {
        match self.decide(policy) {
            Decision::Grant(grant) => Ok((
                grant.rule().to_owned(),
                grant.login().map(|login| login.as_str().to_owned()),
            )),
            Decision::Denial(denial) => Err(denial.code),
        }
    }

    pub(crate) fn is_allowed(&self, policy: &Policy) -> bool {
        self.answer(policy).is_ok()
    }

    pub(crate) fn denial(&self, policy: &Policy) -> iap_policy::Denial {
        match self.decide(policy) {
            Decision::Grant(grant) => panic!("granted by {:?}", grant.rule()),
            Decision::Denial(denial) => denial,
        }
    }
}

pub(crate) fn grant(rule: &str, login: Option<&str>) -> Result<(String, Option<String>), DenialCode> {
    Ok((rule.to_owned(), login.map(str::to_owned)))
}
