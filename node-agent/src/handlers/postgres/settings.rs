//! `[service.postgres]` in the agent's file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use iap_postgres::CaptureLimits;
use serde::Deserialize;

/// What is kept of a statement unless the file says otherwise.
const STATEMENT_BYTES_MAX: usize = 64 * 1024;
/// A record's payload takes at most 256 KiB, as JSON, together with as many parameters.
const STATEMENT_BYTES_LIMIT: usize = 64 * 1024;

/// How a PostgreSQL service that is inspected is served.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresSettings {
    /// For logins that the backend asks a password of: the file that holds it, by login.
    pub password_files: BTreeMap<String, PathBuf>,
    /// The authorities that the backend's certificate is verified by, PEM: with them it is reached by TLS alone.
    pub ca_file: Option<PathBuf>,
    /// The name in that certificate, where it is not the backend's host.
    pub server_name: Option<String>,
    /// Whether the login's own certificate, of the service's own authority, is shown to the backend.
    pub client_certificate: bool,
    /// How the backend learns who uses its login.
    pub announce: Announce,
    /// Whether clients may set run-time parameters by `options` (`PGOPTIONS`) as they connect; left out, rules decide.
    pub options: Option<bool>,
    /// Whether clients may ask for replication; left out, rules decide.
    pub replication: Option<bool>,
    /// What is kept of what clients send.
    pub capture: Capture,
}

/// How the backend learns who uses its login. For its log and its views; never for it to decide by.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Announce {
    /// Behind the client's own `application_name`, in brackets.
    #[default]
    ApplicationName,
    /// As a run-time parameter of that name, such as `iap.user`.
    Setting(SettingName),
    /// Not at all.
    Nothing,
}

/// The name of a customised option: two names with a dot between them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SettingName(String);

impl SettingName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SettingName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_name = |name: &str| {
            let mut bytes = name.bytes();
            bytes
                .next()
                .is_some_and(|first| first.is_ascii_lowercase() || first == b'_')
                && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        };
        match text.split_once('.') {
            Some((class, name)) if is_name(class) && is_name(name) => Ok(Self(text)),
            Some(_) | None => Err(format!("{text:?} is no name of a setting such as \"iap.user\"")),
        }
    }
}

/// What is kept of what clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capture {
    /// Of one statement, and of one statement's parameters.
    pub statement_bytes_max: usize,
    /// Whether the values of parameters are kept.
    pub parameters: ParameterCapture,
}

/// Whether the values of parameters are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParameterCapture {
    /// How many there are, and nothing else.
    #[default]
    Masked,
    /// All.
    Full,
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            statement_bytes_max: STATEMENT_BYTES_MAX,
            parameters: ParameterCapture::Masked,
        }
    }
}

impl PostgresSettings {
    /// What cannot be, with what is allowed, by key.
    #[must_use]
    pub fn problem(&self) -> Option<(&'static str, String)> {
        if let Some((key, allowed)) = self.capture.problem() {
            return Some((key, allowed));
        }
        let needs = |key, what: &str| Some((key, format!("{what} needs ca_file: the backend's authorities")));
        match (&self.ca_file, self.client_certificate, &self.server_name) {
            (None, true, _) => needs("client_certificate", "a client certificate"),
            (None, false, Some(_)) => needs("server_name", "a name to verify"),
            (Some(_), _, _) | (None, false, None) => None,
        }
    }
}

impl Capture {
    fn problem(&self) -> Option<(&'static str, String)> {
        let allowed = 1..=STATEMENT_BYTES_LIMIT;
        (!allowed.contains(&self.statement_bytes_max)).then(|| {
            let text = format!("allowed is 1 to {STATEMENT_BYTES_LIMIT}");
            ("capture.statement_bytes_max", text)
        })
    }

    pub(super) fn limits(self) -> CaptureLimits {
        CaptureLimits {
            bytes_max: self.statement_bytes_max,
            parameters: self.parameters == ParameterCapture::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn everything_has_a_default_that_keeps_secrets_out() {
        let settings: PostgresSettings = toml::from_str("").unwrap();
        assert_eq!(settings, PostgresSettings::default());
        assert!(settings.options.is_none() && settings.replication.is_none());
        assert!(!settings.capture.limits().parameters);
    }

    #[test]
    fn a_complete_section_is_read() {
        let text = r#"
            password_files = { readonly = "/etc/iap/readonly" }
            announce = { setting = "iap.user" }
            options = true
            capture = { statement_bytes_max = 100, parameters = "full" }
        "#;
        let settings: PostgresSettings = toml::from_str(text).unwrap();
        assert_eq!(
            settings.announce,
            Announce::Setting(SettingName("iap.user".to_owned()))
        );
        assert!(settings.capture.limits().parameters);
        assert_eq!(settings.problem(), None);
    }

    #[test]
    fn a_certificate_is_shown_to_nobody_whose_own_is_not_verified() {
        let settings: PostgresSettings = toml::from_str("client_certificate = true").unwrap();
        assert_eq!(settings.problem().unwrap().0, "client_certificate");
        let verified = "ca_file = \"/ca.pem\"\nclient_certificate = true\nserver_name = \"db\"";
        let settings: PostgresSettings = toml::from_str(verified).unwrap();
        assert_eq!(settings.problem(), None);
    }

    #[test]
    fn settings_that_could_do_something_are_refused_as_names() {
        for name in ["role", "search_path", "Iap.user", "a.b.c", ".x", "a.b=c"] {
            assert!(SettingName::try_from(name.to_owned()).is_err(), "{name}");
        }
    }

    #[test]
    fn statements_longer_than_a_record_are_refused() {
        let capture = Capture {
            statement_bytes_max: STATEMENT_BYTES_LIMIT + 1,
            ..Capture::default()
        };
        assert!(capture.problem().is_some());
    }
}
