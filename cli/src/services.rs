//! Services as the auth server lists them to a user, and how they are remembered.

use std::collections::BTreeMap;

use iap_proto::v1;
use serde::{Deserialize, Serialize};

/// One service this login may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownService {
    /// Its name.
    pub name: String,
    /// `tcp`, `postgres`, `ssh` or `http`.
    pub protocol: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The logins the policy grants; `*` is any.
    #[serde(default)]
    pub logins: Vec<String>,
    /// The databases the policy grants; `*` is any.
    #[serde(default)]
    pub databases: Vec<String>,
    /// The login used when none is named.
    #[serde(default)]
    pub login: Option<String>,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// Whom to ask for access.
    #[serde(default)]
    pub contact: String,
    /// Whether the agent reads the protocol or only carries bytes.
    #[serde(default)]
    pub inspect: bool,
}

/// The protocol of PostgreSQL services.
pub const POSTGRES: &str = "postgres";

impl KnownService {
    /// From a service's record, when nothing is known of logins.
    pub fn from_record(service: v1::Service) -> Self {
        Self {
            name: service.name,
            protocol: service.protocol,
            labels: service.labels.into_iter().collect(),
            logins: Vec::new(),
            databases: Vec::new(),
            login: non_empty(service.default_login),
            description: service.description,
            contact: service.contact,
            inspect: service.inspect,
        }
    }

    /// From what `User.Services` says.
    pub fn from_visible(visible: v1::VisibleService) -> Self {
        let known = Self::from_record(visible.service.unwrap_or_default());
        let login = non_empty(visible.login).or_else(|| known.login.clone());
        Self {
            logins: visible.logins,
            databases: visible.databases,
            login,
            ..known
        }
    }

    /// `key=value` pairs on one line.
    pub fn labels_text(&self) -> String {
        self.labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The granted logins on one line, the default first.
    pub fn logins_text(&self) -> String {
        let others = self
            .logins
            .iter()
            .filter(|login| Some(login.as_str()) != self.login.as_deref());
        self.login
            .iter()
            .chain(others)
            .cloned()
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// The login to use when none is named: the service's own choice, else the only literal one
/// granted, else the user's local name where anything goes.
pub fn default_login(service: Option<&KnownService>, user_name: &str) -> Result<String, Vec<String>> {
    let local = user_name.split('@').next().unwrap_or(user_name);
    let Some(service) = service else {
        return Ok(local.to_owned());
    };
    if let Some(login) = &service.login {
        return Ok(login.clone());
    }
    let any = service.logins.is_empty() || service.logins.iter().any(|login| login == "*" || login == local);
    if any {
        return Ok(local.to_owned());
    }
    match service.logins.as_slice() {
        [only] => Ok(only.clone()),
        several => Err(several.to_vec()),
    }
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(login: Option<&str>, logins: &[&str]) -> KnownService {
        KnownService {
            login: login.map(str::to_owned),
            logins: logins.iter().map(|login| (*login).to_owned()).collect(),
            ..KnownService::default()
        }
    }

    #[test]
    fn the_default_login_is_the_services_then_the_users_own_then_the_only_one() {
        let chosen = |service: &KnownService| default_login(Some(service), "alice@example.com");
        assert_eq!(chosen(&service(Some("app"), &["*"])), Ok("app".to_owned()));
        assert_eq!(
            chosen(&service(None, &["readonly", "alice"])),
            Ok("alice".to_owned())
        );
        assert_eq!(chosen(&service(None, &["readonly"])), Ok("readonly".to_owned()));
        assert_eq!(chosen(&service(None, &["*"])), Ok("alice".to_owned()));
        assert_eq!(
            chosen(&service(None, &["a", "b"])),
            Err(vec!["a".to_owned(), "b".to_owned()])
        );
    }
}
