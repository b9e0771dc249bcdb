//! Random documents and questions, decided by the policy and by a model that knows no index, no
//! cache and no interpreter: each rule in turn, in plain words.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use iap_policy::{DenialCode, Policy, Protocol, RESERVED_LOGINS, ServiceFacts, StepUp, UserFacts};
use proptest::prelude::*;
use support::{Ask, ask, load, login, on_big_stack, service, user};

/// A rule as the model sees it; `document` writes the same as TOML.
#[derive(Debug, Clone)]
struct ModelRule {
    allow: bool,
    names: Vec<&'static str>,
    groups: Vec<&'static str>,
    kinds: Vec<&'static str>,
    services: Vec<&'static str>,
    env: Option<&'static str>,
    logins: Vec<&'static str>,
    databases: Vec<&'static str>,
    condition: Option<Condition>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Condition {
    True,
    False,
    Fails,
    LoginIsApp,
    DatabaseIsOrders,
    FreshLogin,
    InGroupA,
    InGroupNew,
    EnvIsProd,
}

impl Condition {
    fn source(self) -> &'static str {
        match self {
            Condition::True => "1 < 2",
            Condition::False => "false",
            Condition::Fails => "service.labels.nowhere == 'x'",
            Condition::LoginIsApp => "login == 'app'",
            Condition::DatabaseIsOrders => "database == 'orders'",
            Condition::FreshLogin => "user.auth_age < duration('5m')",
            Condition::InGroupA => "'a' in user.groups",
            Condition::InGroupNew => "'okta:new' in user.groups",
            Condition::EnvIsProd => "service.labels.env == 'prod'",
        }
    }
}

/// What is asked for in a login's or database's place.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Target<'a> {
    Named(&'a str),
    Unseen,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    Yes,
    No,
    Fails,
    /// It depends on a group that the certificate is too old to carry.
    Newer,
}

struct Model<'a> {
    rules: &'a [ModelRule],
    ask: &'a Ask,
    /// Whether the user has just logged in.
    fresh: bool,
}

impl Model<'_> {
    fn in_group(&self, name: &str) -> Answer {
        if self.ask.user.groups.iter().any(|group| group.group() == name) {
            return Answer::Yes;
        }
        let too_old = name == "new" && self.ask.user.groups_vocabulary == Some(1);
        if too_old { Answer::Newer } else { Answer::No }
    }

    fn about_user(&self, rule: &ModelRule) -> Answer {
        let kinds = match (rule.kinds.is_empty(), rule.allow) {
            (true, true) => vec!["user"],
            (true, false) => vec!["user", "bot", "workload"],
            (false, _) => rule.kinds.clone(),
        };
        let name = self.ask.user.name.as_str();
        let named = rule.names.is_empty() || rule.names.contains(&"*") || rule.names.contains(&name);
        if !kinds.contains(&self.ask.user.kind.as_str()) || !named {
            return Answer::No;
        }
        let answers: Vec<Answer> = rule.groups.iter().map(|group| self.in_group(group)).collect();
        let says = |wanted: Answer| answers.contains(&wanted);
        if answers.is_empty() || says(Answer::Yes) {
            Answer::Yes
        } else if says(Answer::Newer) {
            Answer::Newer
        } else {
            Answer::No
        }
    }

    fn about_service(&self, rule: &ModelRule) -> bool {
        let name = self.ask.service.name.as_str();
        let named = rule.services.is_empty() || rule.services.contains(&"*") || rule.services.contains(&name);
        named
            && rule
                .env
                .is_none_or(|env| self.ask.service.labels.get("env").map(String::as_str) == Some(env))
    }

    fn about_target(&self, rule: &ModelRule, list: &[&str], target: Target<'_>, reserve: bool) -> bool {
        if list.is_empty() || list.contains(&"*") {
            return true;
        }
        let local = self.ask.user.local();
        let template = !(rule.allow && reserve && RESERVED_LOGINS.contains(&local));
        match target {
            Target::Named(name) => {
                list.contains(&name) || (template && list.contains(&"{{user.local}}") && local == name)
            }
            Target::Unseen => !rule.allow,
            Target::None => false,
        }
    }

    fn condition(&self, rule: &ModelRule, login: Target<'_>, database: Target<'_>) -> Answer {
        let is = |target: Target<'_>, wanted: &str| match target {
            Target::Named(name) if name == wanted => Answer::Yes,
            Target::Named(_) | Target::None => Answer::No,
            Target::Unseen => Answer::Fails,
        };
        match rule.condition {
            None | Some(Condition::True) => Answer::Yes,
            Some(Condition::False) => Answer::No,
            Some(Condition::Fails) => Answer::Fails,
            Some(Condition::LoginIsApp) => is(login, "app"),
            Some(Condition::DatabaseIsOrders) => is(database, "orders"),
            Some(Condition::FreshLogin) if self.ask.user.auth_time.is_none() => Answer::Fails,
            Some(Condition::FreshLogin) if self.fresh => Answer::Yes,
            // Every user of these tests logged in ten minutes ago.
            Some(Condition::FreshLogin) => Answer::No,
            Some(Condition::InGroupA) => self.in_group("a"),
            Some(Condition::InGroupNew) => self.in_group("new"),
            Some(Condition::EnvIsProd) => match self.ask.service.labels.get("env").map(String::as_str) {
                None => Answer::Fails,
                Some("prod") => Answer::Yes,
                Some(_) => Answer::No,
            },
        }
    }

    fn decide(&self, login: Target<'_>, database: Target<'_>) -> Result<usize, DenialCode> {
        let (mut renew_deny, mut renew_allow, mut failed, mut other) = (false, false, false, false);
        let mut allowed = None;
        for (number, rule) in self
            .rules
            .iter()
            .enumerate()
            .filter(|(_, rule)| self.about_service(rule))
        {
            let user = self.about_user(rule);
            let target = self.about_target(rule, &rule.logins, login, true)
                && self.about_target(rule, &rule.databases, database, false);
            let named = matches!(login, Target::Named(_)) || matches!(database, Target::Named(_));
            match (rule.allow, user, target, self.condition(rule, login, database)) {
                (_, Answer::No, _, _) | (false, _, false, _) | (_, _, _, Answer::No) => {}
                (false, Answer::Yes, true, Answer::Yes) => return Err(DenialCode::DeniedByRule),
                (false, Answer::Yes, true, Answer::Fails) => return Err(DenialCode::ConditionFailed),
                (false, _, true, _) => renew_deny = true,
                (true, Answer::Yes, false, Answer::Yes) => other |= named,
                (true, _, false, _) => {}
                (true, Answer::Yes, true, Answer::Yes) => allowed = allowed.or(Some(number)),
                (true, Answer::Yes, true, Answer::Fails) => failed = true,
                (true, _, true, Answer::Newer) | (true, Answer::Newer, true, Answer::Yes) => {
                    renew_allow = true
                }
                (true, _, true, _) => {}
            }
        }
        match (allowed, renew_deny, renew_allow) {
            (Some(_), true, _) | (None, _, true) => Err(DenialCode::RenewNeeded),
            (Some(number), false, _) => Ok(number),
            (None, _, false) if failed => Err(DenialCode::ConditionFailed),
            (None, _, false) if other => Err(DenialCode::LoginNotAllowed),
            (None, _, false) => Err(DenialCode::NoRuleMatches),
        }
    }
}

fn document(rules: &[ModelRule]) -> String {
    let list = |key: &str, values: &[&str]| match values {
        [] => String::new(),
        values => format!("{key} = {values:?}"),
    };
    let join = |parts: Vec<String>| {
        parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut text = String::new();
    for (number, rule) in rules.iter().enumerate() {
        let mut users = join(vec![
            list("names", &rule.names),
            list("groups", &rule.groups),
            list("kinds", &rule.kinds),
        ]);
        if users.is_empty() {
            users = "names = [\"*\"]".to_owned();
        }
        let labels = rule
            .env
            .map(|env| format!("labels = {{ env = {env:?} }}"))
            .unwrap_or_default();
        let mut services = join(vec![list("names", &rule.services), labels]);
        if services.is_empty() {
            services = "names = [\"*\"]".to_owned();
        }
        let condition = rule
            .condition
            .map(|condition| format!("when = {:?}", condition.source()))
            .unwrap_or_default();
        text.push_str(&format!(
            "[[rule]]\nname = \"{number}\"\neffect = \"{}\"\nusers = {{ {users} }}\nservices = {{ {services} }}\n{}\n{}\n{condition}\n",
            if rule.allow { "allow" } else { "deny" },
            list("logins", &rule.logins),
            list("databases", &rule.databases),
        ));
    }
    text
}

fn some_of(values: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop_oneof![3 => Just(Vec::new()), 2 => prop::sample::subsequence(values, 1..=values.len())]
}

fn rules() -> impl Strategy<Value = Vec<ModelRule>> {
    use Condition::*;
    let conditions = vec![
        True,
        False,
        Fails,
        LoginIsApp,
        DatabaseIsOrders,
        FreshLogin,
        InGroupA,
        InGroupNew,
        EnvIsProd,
    ];
    let who = (
        some_of(&["alice@example.com", "root@example.com", "ci"]),
        some_of(&["a", "b", "new"]),
        prop_oneof![3 => Just(Vec::new()), 1 => some_of(&["user", "bot"])],
    );
    let what = (
        some_of(&["s1", "s2"]),
        prop::option::weighted(0.3, prop::sample::select(vec!["prod", "dev"])),
    );
    let target = (
        some_of(&["app", "root", "{{user.local}}", "*"]),
        some_of(&["orders", "*"]),
    );
    let condition = prop::option::of(prop::sample::select(conditions));
    let rule = (prop::bool::weighted(0.7), who, what, target, condition).prop_map(
        |(allow, (names, groups, kinds), (services, env), (logins, databases), condition)| ModelRule {
            allow,
            names,
            groups,
            kinds,
            services,
            env,
            logins,
            databases,
            condition,
        },
    );
    prop::collection::vec(rule, 1..7)
}

fn asker() -> impl Strategy<Value = UserFacts> {
    let name = prop::sample::select(vec!["alice@example.com", "root@example.com", "bob@example.com"]);
    let person = (
        name,
        some_of(&["a", "b", "new"]),
        prop::sample::select(vec![None, Some(1), Some(1), Some(2)]),
    )
        .prop_map(|(name, groups, known)| {
            let mut user = user(name, &groups);
            user.groups_vocabulary = known;
            user
        });
    prop_oneof![5 => person, 1 => Just(UserFacts::bot("ci"))]
}

fn asked_service() -> impl Strategy<Value = ServiceFacts> {
    let protocol = prop::sample::select(vec![
        Protocol::Tcp,
        Protocol::Postgres,
        Protocol::Ssh,
        Protocol::Http,
    ]);
    let name = prop::sample::select(vec!["s1", "s2", "s3"]);
    let env = prop::sample::select(vec![None, Some("prod"), Some("dev")]);
    (name, protocol, env, any::<bool>()).prop_map(|(name, protocol, env, inspect)| {
        let labels: Vec<(&str, &str)> = env.iter().map(|env| ("env", *env)).collect();
        ServiceFacts {
            inspect,
            ..service(name, protocol, &labels)
        }
    })
}

fn questions() -> impl Strategy<Value = Ask> {
    let database = prop::sample::select(vec![None, Some("orders"), Some("billing")]);
    let name = prop::sample::select(vec!["app", "root", "alice", "other"]);
    (asker(), asked_service(), name, database).prop_map(|(user, service, name, database)| {
        let mut ask = ask(user, service).with_vocabulary(&[("okta:a", 1), ("okta:b", 1), ("okta:new", 2)]);
        ask.login = Some(login(name));
        ask.database = database.map(str::to_owned);
        ask
    })
}

fn model_answer(rules: &[ModelRule], ask: &Ask) -> Result<usize, DenialCode> {
    let inspected = ask.service.inspect;
    let login = match ask.service.protocol {
        Protocol::Http => Target::None,
        Protocol::Postgres if !inspected => Target::Unseen,
        Protocol::Tcp => Target::Unseen,
        Protocol::Postgres | Protocol::Ssh => Target::Named(ask.login.as_ref().unwrap().as_str()),
    };
    let database = match ask.service.protocol {
        Protocol::Http | Protocol::Ssh => Target::None,
        Protocol::Postgres if inspected => ask.database.as_deref().map_or(Target::None, Target::Named),
        Protocol::Tcp | Protocol::Postgres => Target::Unseen,
    };
    let model = |fresh| Model { rules, ask, fresh }.decide(login, database);
    let answer = model(false);
    let is_person = ask.user.kind == iap_identity::Class::User;
    let would_change = rules
        .iter()
        .any(|rule| rule.condition == Some(Condition::FreshLogin));
    match answer {
        Err(code) if code != DenialCode::RenewNeeded && is_person && would_change && model(true).is_ok() => {
            Err(DenialCode::StepUpNeeded(StepUp::default()))
        }
        answer => answer,
    }
}

fn policy_answer(policy: &Policy, ask: &Ask) -> Result<usize, DenialCode> {
    ask.answer(policy)
        .map(|(rule, _)| rule.parse().expect("a rule's number"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    #[test]
    fn the_policy_decides_like_the_model(rules in rules(), questions in prop::collection::vec(questions(), 12)) {
        let document = document(&rules);
        let outcome = on_big_stack(|| {
            let policy = load(&document);
            for ask in &questions {
                let (expected, found) = (model_answer(&rules, ask), policy_answer(&policy, ask));
                prop_assert_eq!(&found, &expected, "{}\n{:?}\n{:?}", document, ask.user, ask.question());
            }
            Ok(())
        });
        outcome?;
    }
}
