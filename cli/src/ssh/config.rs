//! Configuration for OpenSSH (ssh_config(5)): the same lines as a fragment of a file and as options of one call.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use iap_identity::backend::SshAuthority;
use iap_identity::{ClusterName, ServiceName};

use super::{AUTHORITIES_FILE, CONFIG_FILE, IDENTITY_FILE, SshService};
use crate::home::{ClusterHome, SSH_FOLDER};

/// Where keys of hosts are kept that no authority vouches for. It outlives a login.
const KNOWN_HOSTS_FILE: &str = "ssh_known_hosts";

/// What the configuration names.
#[derive(Clone, Debug)]
pub struct Paths {
    cluster: ClusterName,
    iapctl: PathBuf,
    home: PathBuf,
    folder: PathBuf,
    known_hosts: PathBuf,
}

impl Paths {
    /// Those of a cluster's folder and of this program.
    ///
    /// # Errors
    /// When the working directory is gone and the home is relative.
    pub fn of(home: &ClusterHome) -> anyhow::Result<Self> {
        let cluster_folder = std::path::absolute(home.file("."))?;
        let root = cluster_folder
            .ancestors()
            .nth(2)
            .context("the home has no folder")?;
        Ok(Self {
            cluster: home.cluster().clone(),
            iapctl: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("iapctl")),
            home: root.to_owned(),
            folder: cluster_folder.join(SSH_FOLDER),
            known_hosts: cluster_folder.join(KNOWN_HOSTS_FILE),
        })
    }

    /// The fragment that is written with each login and renewal.
    pub fn fragment(&self) -> PathBuf {
        self.folder.join(CONFIG_FILE)
    }

    fn proxy_command(&self, service: &ServiceName) -> String {
        let words = [
            self.iapctl.as_os_str(),
            "--home".as_ref(),
            self.home.as_os_str(),
            "--cluster".as_ref(),
            self.cluster.as_str().as_ref(),
            "proxy-command".as_ref(),
            "--login".as_ref(),
        ];
        let quoted: Vec<String> = words
            .iter()
            .map(|word| shell_quoted(&word.to_string_lossy()))
            .collect();
        format!("{} %r {service}", without_tokens(&quoted.join(" ")))
    }
}

/// The file of a service's certificate.
pub(super) fn certificate_file(service: &ServiceName) -> String {
    format!("{service}-cert.pub")
}

/// A line of known hosts: this key signs for the hosts of that service.
pub(super) fn authority_line(
    service: &ServiceName,
    cluster: &ClusterName,
    authority: &SshAuthority,
) -> String {
    let host = cluster.service_host(service);
    format!(
        "@cert-authority {host} {}\n",
        authority.line(&format!("SSH host CA of {service}"))
    )
}

/// Keyword and value of every setting for one service.
pub fn settings(service: &SshService, paths: &Paths) -> Vec<(&'static str, String)> {
    let host = paths.cluster.service_host(&service.name);
    let file = |path: &Path| quoted(&without_tokens(&path.to_string_lossy()));
    let authorities = file(&paths.folder.join(AUTHORITIES_FILE));
    let mut settings = vec![
        ("HostName", host.clone()),
        ("HostKeyAlias", host),
        ("ProxyCommand", paths.proxy_command(&service.name)),
        (
            "UserKnownHostsFile",
            format!("{} {authorities}", file(&paths.known_hosts)),
        ),
        // The tunnel is to an agent that has proven to serve this service. A key it leads to is noted the first
        // time and held to afterwards.
        ("StrictHostKeyChecking", "accept-new".to_owned()),
        ("CheckHostIP", "no".to_owned()),
        ("ServerAliveInterval", "30".to_owned()),
    ];
    if let Some(login) = &service.login {
        settings.push(("User", login.clone()));
    }
    if !service.principals.is_empty() {
        settings.push(("IdentityFile", file(&paths.folder.join(IDENTITY_FILE))));
        settings.push((
            "CertificateFile",
            file(&paths.folder.join(certificate_file(&service.name))),
        ));
        settings.push(("IdentitiesOnly", "yes".to_owned()));
    }
    settings
}

/// A block for each service, to be included from `~/.ssh/config`.
pub(super) fn fragment(services: &[SshService], paths: &Paths) -> String {
    let mut text = format!(
        "# The SSH services of {}, written by iapctl at each login and renewal. Include it, do not change it.\n",
        paths.cluster
    );
    for service in services {
        let host = paths.cluster.service_host(&service.name);
        text.push_str(&format!("\nHost {} {host}\n", service.name));
        for (keyword, value) in settings(service, paths) {
            text.push_str(&format!("    {keyword} {value}\n"));
        }
    }
    text
}

/// Between double quotes, in which ssh_config knows `\"` and `\\`.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', r"\\").replace('"', "\\\""))
}

/// A `%` that is no token.
fn without_tokens(value: &str) -> String {
    value.replace('%', "%%")
}

fn shell_quoted(value: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@".contains(&byte);
    match !value.is_empty() && value.bytes().all(is_plain) {
        true => value.to_owned(),
        false => format!("'{}'", value.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn paths(home: &str) -> Paths {
        let folder = Path::new(home).join("clusters/iap.example.com");
        Paths {
            cluster: ClusterName::parse("iap.example.com").unwrap(),
            iapctl: "/usr/bin/iapctl".into(),
            home: home.into(),
            folder: folder.join(SSH_FOLDER),
            known_hosts: folder.join(KNOWN_HOSTS_FILE),
        }
    }

    fn service(principals: &[&str]) -> SshService {
        SshService {
            name: ServiceName::parse("web-1").unwrap(),
            login: Some("deploy".to_owned()),
            principals: principals.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_service_whose_server_reads_certificates_gets_key_and_certificate() {
        let text = fragment(&[service(&["deploy"])], &paths("/home/alice/.iapctl"));
        for line in [
            "Host web-1 web-1.iap.example.com",
            "    HostKeyAlias web-1.iap.example.com",
            "    ProxyCommand /usr/bin/iapctl --home /home/alice/.iapctl --cluster iap.example.com proxy-command --login %r web-1",
            "    User deploy",
            "    CertificateFile \"/home/alice/.iapctl/clusters/iap.example.com/ssh/web-1-cert.pub\"",
            "    IdentitiesOnly yes",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn a_service_whose_agent_logs_in_by_itself_gets_no_key() {
        let text = fragment(&[service(&[])], &paths("/home/alice/.iapctl"));
        assert!(!text.contains("IdentityFile") && text.contains("UserKnownHostsFile"));
    }

    #[test]
    fn folders_with_blanks_quotes_and_percent_signs_are_named_as_they_are() {
        let text = fragment(&[service(&["deploy"])], &paths("/home/a b/50%'"));
        assert!(text.contains(r"--home '/home/a b/50%%'\''' --cluster"), "{text}");
        assert!(text.contains("IdentityFile \"/home/a b/50%%'/clusters"), "{text}");
    }
}
