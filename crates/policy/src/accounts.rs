//! The accounts that rules could ever give at one service: what agents hold credentials for in advance.
//!
//! Wider than any decision: conditions and deny rules depend on the moment, and are left to it. Who may use an
//! account is decided when a session begins.

use std::collections::BTreeSet;

use iap_identity::LoginName;

use crate::evaluate::own_login;
use crate::facts::{ServiceFacts, UserFacts, Vocabulary};
use crate::policy::Policy;
use crate::rule::{Effect, Rule};
use crate::selector::UserMatch;

/// What the rules say of one service's accounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Those that can be told, the most general first: the service's default, those that rules write down, those
    /// that come of users' names.
    pub named: Vec<LoginName>,
    /// Whether a rule gives any account, so that there may be others.
    pub any: bool,
    /// Whether `named` has all that can be told.
    pub complete: bool,
}

impl Accounts {
    /// Whether some rule could give this account.
    #[must_use]
    pub fn could_be(&self, login: &LoginName) -> bool {
        self.any || self.named.contains(login)
    }
}

impl Policy {
    /// The accounts that allow rules could give at `service` to any of `users`, at most `max`.
    #[must_use]
    pub fn accounts(&self, service: &ServiceFacts, users: &[UserFacts], max: usize) -> Accounts {
        let rules: Vec<&Rule> = self
            .index
            .candidates(service)
            .into_iter()
            .filter_map(|position| self.rules.get(position))
            .filter(|rule| rule.effect == Effect::Allow && rule.services.matches(service))
            .collect();
        let any = rules.iter().any(|rule| rule.logins.is_any());
        let mut found = Found::new(max);
        let default = service.default_login.as_ref();
        for login in default.into_iter().filter(|login| any || written(&rules, login)) {
            found.add(login.as_str());
        }
        for login in rules.iter().flat_map(|rule| rule.logins.literals()) {
            found.add(login);
        }
        // Whom no rule names at this service costs one look at each rule.
        for user in users {
            self.add_of_user(&rules, user, &mut found);
        }
        Accounts {
            named: found.logins,
            any,
            complete: found.complete,
        }
    }

    fn add_of_user(&self, rules: &[&Rule], user: &UserFacts, found: &mut Found) {
        let by_name = |rule: &&&Rule| rule.logins.is_any() || rule.logins.has_templates();
        if !rules.iter().any(|rule| by_name(&rule)) {
            return;
        }
        let vocabulary = Vocabulary::default();
        let memberships = self.groups.memberships(user, &vocabulary);
        let reserved = &self.options.reserved_logins;
        for rule in rules.iter().filter(by_name) {
            match rule.users.matches(user, &memberships) {
                UserMatch::Yes => {}
                UserMatch::No | UserMatch::Newer(_) => continue,
            }
            for login in rule.logins.rendered(user, reserved) {
                found.add(&login);
            }
            if let Some(login) = own_login(user, reserved).filter(|_| rule.logins.is_any()) {
                found.add(login);
            }
        }
    }
}

fn written(rules: &[&Rule], login: &LoginName) -> bool {
    rules
        .iter()
        .any(|rule| rule.logins.literals().any(|literal| literal == login.as_str()))
}

struct Found {
    logins: Vec<LoginName>,
    seen: BTreeSet<LoginName>,
    max: usize,
    complete: bool,
}

impl Found {
    fn new(max: usize) -> Self {
        Self {
            logins: Vec::new(),
            seen: BTreeSet::new(),
            max,
            complete: true,
        }
    }

    fn add(&mut self, login: &str) {
        let Ok(login) = LoginName::parse(login) else {
            return;
        };
        if self.seen.contains(&login) {
            return;
        }
        if self.logins.len() >= self.max {
            self.complete = false;
            return;
        }
        self.seen.insert(login.clone());
        self.logins.push(login);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use iap_identity::{Class, GroupName, ServiceName};

    use super::*;
    use crate::facts::Protocol;

    fn service() -> ServiceFacts {
        ServiceFacts {
            protocol: Protocol::Postgres,
            inspect: true,
            default_login: Some(LoginName::parse("app").unwrap()),
            ..ServiceFacts::tcp(ServiceName::parse("db").unwrap())
        }
    }

    fn user(name: &str, group: &str) -> UserFacts {
        UserFacts {
            id: String::new(),
            name: name.to_owned(),
            kind: Class::User,
            groups: vec![GroupName::new("okta", group).unwrap()],
            groups_vocabulary: None,
            auth_time: None,
            mfa_time: None,
            acr: None,
            idp: "okta".to_owned(),
            login_method: "browser".to_owned(),
        }
    }

    fn accounts(logins: &str, max: usize) -> Accounts {
        let text = format!(
            "[[rule]]\nname = \"a\"\neffect = \"allow\"\nusers = {{ groups = [\"okta:eng\"] }}\n\
             services = {{ names = [\"db\"] }}\nlogins = {logins}\nwhen = 'user.auth_age < duration(\"1s\")'\n\
             [[rule]]\nname = \"b\"\neffect = \"allow\"\nusers = {{ names = [\"*\"] }}\n\
             services = {{ names = [\"other\"] }}\nlogins = [\"elsewhere\"]\n"
        );
        let users = [
            user("alice@example.com", "eng"),
            user("bob@example.com", "support"),
            user("root@x", "eng"),
        ];
        Policy::load(&text).unwrap().accounts(&service(), &users, max)
    }

    fn names(accounts: &Accounts) -> Vec<&str> {
        accounts.named.iter().map(LoginName::as_str).collect()
    }

    #[test]
    fn literal_logins_are_those_of_the_services_own_rules_whatever_their_conditions() {
        let found = accounts(r#"["readonly", "writer"]"#, 10);
        assert_eq!(names(&found), ["readonly", "writer"]);
        assert!(!found.any && found.complete);
        assert!(!found.could_be(&LoginName::parse("app").unwrap()));
    }

    #[test]
    fn templates_come_to_the_users_the_rule_is_about_and_to_no_reserved_login() {
        assert_eq!(names(&accounts(r#"["{{user.local}}"]"#, 10)), ["alice"]);
    }

    #[test]
    fn where_any_login_is_given_the_default_and_the_users_own_can_be_told() {
        let found = accounts(r#"["*"]"#, 10);
        assert_eq!(names(&found), ["app", "alice"]);
        assert!(found.any && found.could_be(&LoginName::parse("postgres").unwrap()));
    }

    #[test]
    fn more_than_fit_are_said_to_be_more() {
        let found = accounts(r#"["one", "two", "three"]"#, 2);
        assert_eq!(names(&found), ["one", "two"]);
        assert!(!found.complete);
    }
}
