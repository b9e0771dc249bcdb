//! The document's own `[[test]]`s.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use iap_identity::{Class, GroupName, LoginName, ServiceName};
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::decision::{Decision, DenialCode};
use crate::document::{Errors, Located, TestEntry, TestUserEntry};
use crate::facts::{Asked, Protocol, Question, ServiceFacts, UserFacts, Vocabulary};
use crate::options::Connectors;
use crate::policy::Policy;
use crate::rule::Effect;
use crate::spans::parse_span;

/// The moment of a test that names none: a Thursday at noon.
const NOW_UNIX_SECONDS: i64 = 1_767_268_800;
/// How long ago the user of a test logged in, if it does not say.
const AUTH_AGE: Duration = Duration::from_secs(60);
/// The connector of a test's bare groups where there is no single one.
const CONNECTOR: &str = "test";

/// All tests passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestsPassed {
    /// How many there are.
    pub count: usize,
}

/// A test that failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct TestFailure {
    /// `test "name"` or `test 3`.
    pub test: String,
    /// Its line in the document.
    pub line: usize,
    /// What it expects.
    pub expected: String,
    /// What it got.
    pub got: String,
    /// Why: an [`crate::Explanation`], rendered.
    pub explanation: String,
}

impl fmt::Display for TestFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let explanation = self.explanation.trim_end();
        write!(
            formatter,
            "{} (line {}) expects {} but got {}\n{explanation}",
            self.test, self.line, self.expected, self.got
        )
    }
}

/// `[[test]]`, in its valid form.
#[derive(Debug)]
pub(crate) struct TestCase {
    what: String,
    line: usize,
    user: UserFacts,
    service: ServiceName,
    /// Stated by the test; else the registered service's.
    labels: Option<Vec<(String, String)>>,
    protocol: Option<Protocol>,
    inspect: Option<bool>,
    login: Option<LoginName>,
    database: Option<String>,
    client_ip: IpAddr,
    now: OffsetDateTime,
    expect: Effect,
    rule: Option<String>,
}

impl Policy {
    /// Runs the document's tests without knowing any service: each has the labels its test states.
    ///
    /// # Errors
    ///
    /// Every test that fails.
    pub fn run_tests(&self) -> Result<TestsPassed, Vec<TestFailure>> {
        self.run_tests_with(&[])
    }

    /// Runs the document's tests. A test's service is the one registered under its name, except for
    /// what the test itself states.
    ///
    /// # Errors
    ///
    /// Every test that fails.
    pub fn run_tests_with(&self, services: &[ServiceFacts]) -> Result<TestsPassed, Vec<TestFailure>> {
        let failures: Vec<TestFailure> = self
            .tests
            .iter()
            .filter_map(|test| test.run(self, services))
            .collect();
        if failures.is_empty() {
            Ok(TestsPassed {
                count: self.tests.len(),
            })
        } else {
            Err(failures)
        }
    }
}

impl TestCase {
    pub(crate) fn read_all(entries: &[TestEntry], connectors: &Connectors, errors: &mut Errors) -> Vec<Self> {
        let mut cases = Vec::with_capacity(entries.len());
        for entry in entries {
            cases.extend(Self::read(entry, connectors, errors));
        }
        cases
    }

    fn read(entry: &TestEntry, connectors: &Connectors, errors: &mut Errors) -> Option<Self> {
        let what = entry.what.as_str();
        let now = read(what, entry.now.as_ref(), errors, |text| {
            OffsetDateTime::parse(text, &Rfc3339).map_err(|_| format!("{text:?} is no RFC 3339 time"))
        });
        let now = now.or_else(|| OffsetDateTime::from_unix_timestamp(NOW_UNIX_SECONDS).ok());
        let expect = read(what, entry.expect.as_ref(), errors, |text| match text {
            "allow" => Ok(Effect::Allow),
            "deny" => Ok(Effect::Deny),
            _ => Err(format!("`expect` is {text:?}; allowed are \"allow\", \"deny\"")),
        });
        let user = read_user(what, &entry.user, connectors, now, errors);
        let service = read(what, entry.service.as_ref(), errors, |text| {
            ServiceName::parse(text).map_err(|error| error.to_string())
        });
        let protocol = read(what, entry.protocol.as_ref(), errors, |text| {
            Protocol::parse(text).map_err(|error| error.to_string())
        });
        let login = read(what, entry.login.as_ref(), errors, |text| {
            LoginName::parse(text).map_err(|error| error.to_string())
        });
        let client_ip = read(what, entry.client_ip.as_ref(), errors, |text| {
            text.parse::<IpAddr>()
                .map_err(|_| format!("{text:?} is no address"))
        });
        Some(Self {
            what: entry.what.clone(),
            line: entry.line,
            user: user?,
            service: service?,
            labels: entry.labels.clone(),
            protocol,
            inspect: entry.inspect,
            login,
            database: entry.database.as_ref().map(|database| database.value.clone()),
            // RFC 5737: an address of nobody's.
            client_ip: client_ip.unwrap_or(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
            now: now?,
            expect: expect?,
            rule: entry.rule.as_ref().map(|rule| rule.value.clone()),
        })
    }

    fn run(&self, policy: &Policy, services: &[ServiceFacts]) -> Option<TestFailure> {
        let service = self.service_facts(services);
        let question = Question {
            user: &self.user,
            service: &service,
            login: Asked::Visible(self.login.as_ref()),
            database: Asked::Visible(self.database.as_deref()),
            client_ip: self.client_ip,
            now: self.now,
        };
        let vocabulary = Vocabulary::default();
        let (effect, rule) = match policy.evaluate(&question, &vocabulary) {
            Decision::Grant(grant) => (Effect::Allow, Some(grant.rule().to_owned())),
            Decision::Denial(denial) => match denial.code {
                // The test names no login and the user may enter with several.
                DenialCode::LoginChoice(_) => (Effect::Allow, None),
                _ => (Effect::Deny, denial.rule),
            },
        };
        if effect == self.expect && (self.rule.is_none() || self.rule == rule) {
            return None;
        }
        Some(TestFailure {
            test: self.what.clone(),
            line: self.line,
            expected: outcome(self.expect, self.rule.as_deref()),
            got: outcome(effect, rule.as_deref()),
            explanation: policy.explain(&question, &vocabulary).render(),
        })
    }

    fn service_facts(&self, services: &[ServiceFacts]) -> ServiceFacts {
        let registered = services.iter().find(|service| service.name == self.service);
        let mut facts = registered.cloned().unwrap_or_else(|| self.unregistered());
        if let Some(labels) = &self.labels {
            facts.labels = labels.iter().cloned().collect();
        }
        if let Some(protocol) = self.protocol {
            facts.protocol = protocol;
        }
        if let Some(inspect) = self.inspect {
            facts.inspect = inspect;
        }
        facts
    }

    /// A service that is not there (yet): one whose logins are seen if the test names one.
    fn unregistered(&self) -> ServiceFacts {
        let mut facts = ServiceFacts::tcp(self.service.clone());
        facts.inspect = true;
        if self.login.is_some() || self.database.is_some() {
            facts.protocol = Protocol::Postgres;
        }
        facts
    }
}

fn outcome(effect: Effect, rule: Option<&str>) -> String {
    match rule {
        Some(rule) => format!("{} by rule {rule:?}", effect.as_str()),
        None => effect.as_str().to_owned(),
    }
}

fn read<T>(
    what: &str,
    entry: Option<&Located<String>>,
    errors: &mut Errors,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    let entry = entry?;
    parse(&entry.value)
        .map_err(|problem| errors.add(Some(entry.line), format!("{what}: {problem}")))
        .ok()
}

fn read_user(
    what: &str,
    entry: &TestUserEntry,
    connectors: &Connectors,
    now: Option<OffsetDateTime>,
    errors: &mut Errors,
) -> Option<UserFacts> {
    let connector = match connectors {
        Connectors::One(connector) => connector.as_str(),
        Connectors::Unknown | Connectors::Several => CONNECTOR,
    };
    let mut groups = Vec::new();
    for group in entry.groups.iter().flatten() {
        let full = read(what, Some(group), errors, |text| {
            let full = if text.contains(':') {
                GroupName::parse(text)
            } else {
                GroupName::new(connector, text)
            };
            full.map_err(|error| error.to_string())
        });
        groups.extend(full);
    }
    let kind = read(what, entry.kind.as_ref(), errors, |text| {
        Class::parse(text)
            .ok_or_else(|| format!("{text:?} is no kind; allowed are \"user\", \"bot\", \"workload\""))
    });
    let auth_age = read(what, entry.auth_age.as_ref(), errors, parse_span);
    let mfa_age = read(what, entry.mfa_age.as_ref(), errors, parse_span);
    let acr = entry.acr.as_ref().map(|acr| acr.value.clone());
    let name = entry.name.as_ref()?.value.clone();
    let text = |entry: &Option<Located<String>>, default: &str| {
        entry
            .as_ref()
            .map_or_else(|| default.to_owned(), |entry| entry.value.clone())
    };
    Some(UserFacts {
        id: name.clone(),
        name,
        kind: kind.unwrap_or(Class::User),
        groups,
        groups_vocabulary: None,
        auth_time: now.map(|now| now - auth_age.unwrap_or(AUTH_AGE)),
        mfa_time: now.zip(mfa_age).map(|(now, age)| now - age),
        acr,
        idp: text(&entry.idp, connector),
        login_method: text(&entry.login_method, "browser"),
    })
}
