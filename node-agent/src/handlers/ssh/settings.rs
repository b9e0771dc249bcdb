//! `[service.ssh]` in the agent's own file: how its host's sshd is known and logged in to, and what passes.

use std::path::PathBuf;

use iap_runtime::config::ConfigErrors;
use serde::Deserialize;

use crate::backend::BackendAddress;

/// Variables that pass by default: those that stock clients and servers agree on.
const ENVIRONMENT: [&str; 3] = ["LANG", "LC_*", "COLORTERM"];
/// Names in the list of variables, at most.
const ENVIRONMENT_NAMES_MAX: usize = 64;

/// How a service's sshd is dealt with when its sessions are recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSettings {
    /// The key that clients see; where none is named, one that was made in the state directory, with a certificate of the
    /// service's host CA.
    pub host_key: Option<PathBuf>,
    /// A certificate for the named key, so that clients need not know it.
    pub host_certificate: Option<PathBuf>,
    /// The key this agent logs in to sshd with; where none is named, certificates of the service's user CA are used.
    pub user_key: Option<PathBuf>,
    /// A certificate for the named key, which sshd trusts by its CA.
    pub user_certificate: Option<PathBuf>,
    /// How sshd proves that it is the right one.
    pub server: KnownServer,
    /// The variables that a client may set.
    pub environment: Environment,
    /// Whether connections to other ports may be opened through the session (`ssh -L`); left out, rules decide.
    pub port_forwarding: Option<bool>,
    /// Whether whoever sits at a terminal is told by a line who watches.
    pub watch_notice: bool,
}

/// How sshd proves that it is the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownServer {
    /// Under which name it is known.
    pub host: String,
    /// And which port.
    pub port: u16,
    /// By what.
    pub by: KnownBy,
}

/// What a host key is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownBy {
    /// A file in the format of OpenSSH's `known_hosts`.
    KnownHosts(PathBuf),
    /// A file of public keys, one a line, of CAs that sign host certificates.
    Authorities(PathBuf),
}

/// The variables that a client may set: names, of which one may end in `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment(Vec<String>);

impl Environment {
    /// Whether a variable passes.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        self.0.iter().any(|entry| match entry.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => entry == name,
        })
    }
}

/// The table as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSsh {
    #[serde(default)]
    host_key_file: Option<PathBuf>,
    #[serde(default)]
    host_certificate_file: Option<PathBuf>,
    #[serde(default)]
    user_key_file: Option<PathBuf>,
    #[serde(default)]
    user_certificate_file: Option<PathBuf>,
    #[serde(default)]
    known_hosts_file: Option<PathBuf>,
    #[serde(default)]
    host_ca_file: Option<PathBuf>,
    #[serde(default)]
    host_name: Option<String>,
    #[serde(default)]
    environment: Option<Vec<String>>,
    #[serde(default)]
    port_forwarding: Option<bool>,
    #[serde(default)]
    watch_notice: Option<bool>,
}

impl RawSsh {
    /// The valid form; what is wrong goes into `errors` under `key`.
    pub(crate) fn check(
        self,
        backend: &BackendAddress,
        key: &str,
        errors: &mut ConfigErrors,
    ) -> Option<SshSettings> {
        let (own_host, port) = match backend {
            BackendAddress::Tcp(address) => (Some(address.host().to_owned()), address.port()),
            BackendAddress::Unix(_) => (None, 22),
        };
        let host = self.host_name.or(own_host);
        if host.as_ref().is_none_or(String::is_empty) {
            errors.push(
                &format!("{key}.host_name"),
                "say under which name sshd's key is known: a Unix socket has none",
            );
        }
        let by = match (self.known_hosts_file, self.host_ca_file) {
            (Some(file), None) => Some(KnownBy::KnownHosts(file)),
            (None, Some(file)) => Some(KnownBy::Authorities(file)),
            (None, None) | (Some(_), Some(_)) => {
                errors.push(
                    &format!("{key}.known_hosts_file"),
                    "say how sshd proves who it is, in one way: known_hosts_file, or host_ca_file",
                );
                None
            }
        };
        for (name, certificate, file) in [
            ("user", &self.user_certificate_file, &self.user_key_file),
            ("host", &self.host_certificate_file, &self.host_key_file),
        ] {
            if certificate.is_some() && file.is_none() {
                errors.push(
                    &format!("{key}.{name}_certificate_file"),
                    format!("a certificate is for a key: name it with {name}_key_file"),
                );
            }
        }
        let environment = self
            .environment
            .unwrap_or_else(|| ENVIRONMENT.map(str::to_owned).to_vec());
        if environment.len() > ENVIRONMENT_NAMES_MAX || !environment.iter().all(|entry| is_pattern(entry)) {
            errors.push(
                &format!("{key}.environment"),
                format!(
                    "allowed are {ENVIRONMENT_NAMES_MAX} names of letters, digits and _, with a * at the end at most"
                ),
            );
        }
        Some(SshSettings {
            host_key: self.host_key_file,
            host_certificate: self.host_certificate_file,
            user_key: self.user_key_file,
            user_certificate: self.user_certificate_file,
            server: KnownServer {
                host: host?,
                port,
                by: by?,
            },
            environment: Environment(environment),
            port_forwarding: self.port_forwarding,
            watch_notice: self.watch_notice.unwrap_or(true),
        })
    }
}

/// A lone `*` would let `LD_PRELOAD` through.
fn is_pattern(entry: &str) -> bool {
    let name = entry.strip_suffix('*').unwrap_or(entry);
    !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn variables_pass_by_name_or_by_their_beginning() {
        let environment = Environment(vec!["LANG".to_owned(), "LC_*".to_owned()]);
        for (name, passes) in [
            ("LANG", true),
            ("LANGUAGE", false),
            ("LC_ALL", true),
            ("LC_", true),
            ("LD_PRELOAD", false),
            ("", false),
        ] {
            assert_eq!(environment.allows(name), passes, "{name}");
        }
    }

    #[test]
    fn a_pattern_names_something() {
        for (entry, is_one) in [
            ("LANG", true),
            ("LC_*", true),
            ("*", false),
            ("", false),
            ("A*B", false),
            ("A B", false),
        ] {
            assert_eq!(is_pattern(entry), is_one, "{entry}");
        }
    }
}
