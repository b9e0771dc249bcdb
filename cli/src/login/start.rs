//! `Login.Start`: a fresh key, and a login bound to its hash.

use std::time::Duration;

use anyhow::Context as _;
use iap_identity::LoginId;
use iap_proto::v1;
use iap_proto::v1::login_client::LoginClient;
use rcgen::{KeyPair, PublicKeyData as _};
use time::OffsetDateTime;
use tonic::transport::Channel;

use super::LoginRequest;
use crate::address::ClusterAddress;
use crate::api;
use crate::duration::from_unix_ms;
use crate::failure::Failure;
use crate::trust::Trust;

/// Host and account names are cut to what the approval page shows.
const SHOWN_NAME_BYTES_MAX: usize = 64;
/// However long the auth server would wait.
const LOGIN_SECONDS_MAX: i64 = 15 * 60;

/// How the person reaches the identity provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// A browser is opened.
    #[default]
    Browser,
    /// The address is printed.
    NoBrowser,
    /// A code is typed on another device.
    Headless,
}

/// A login that waits for the person.
pub struct Started {
    /// The login's id.
    pub login_id: LoginId,
    /// What the browser opens.
    pub url: String,
    /// The words both sides show.
    pub words: String,
    /// What is typed on another device.
    pub user_code: String,
    pub(super) key: KeyPair,
    pub(super) key_thumbprint: [u8; 32],
    pub(super) client: LoginClient<Channel>,
    poll_secret: Vec<u8>,
    expires: OffsetDateTime,
}

impl Method {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Browser => "browser",
            Method::NoBrowser => "no-browser",
            Method::Headless => "headless",
        }
    }
}

impl Started {
    /// How long the person has left.
    pub(super) fn remaining(&self) -> Duration {
        let left = (self.expires - OffsetDateTime::now_utc())
            .whole_seconds()
            .clamp(1, LOGIN_SECONDS_MAX);
        Duration::from_secs(left.unsigned_abs())
    }
}

pub(super) async fn start(
    address: &ClusterAddress,
    trust: &Trust,
    request: &LoginRequest,
    redirect_port: u16,
) -> anyhow::Result<Started> {
    let key = iap_runtime::keys::generate(iap_runtime::keys::KeyKind::P256)?;
    let key_thumbprint = api::sha256(&key.subject_public_key_info());
    let channel = api::first_contact(address, trust)?;
    let mut client = LoginClient::new(channel);
    let message = v1::LoginStart {
        method: request.method.as_str().to_owned(),
        connector: request.connector.clone(),
        key_thumbprint: key_thumbprint.to_vec(),
        host_name: shown(&host_name()),
        user_name: shown(&account_name()),
        redirect_port: u32::from(redirect_port),
        client_version: env!("CARGO_PKG_VERSION").to_owned(),
        fresh: request.proof.fresh,
        mfa: request.proof.mfa,
        acr: request.proof.acr.clone().unwrap_or_default(),
    };
    let started = api::answer(client.start(message).await)?;
    check_url(&started.url, address)?;
    Ok(Started {
        login_id: LoginId::from_bytes(&started.login_id)
            .context("the auth server sent a malformed login id")?,
        url: started.url,
        words: started.words,
        user_code: started.user_code,
        key,
        key_thumbprint,
        client,
        poll_secret: started.poll_secret,
        expires: from_unix_ms(started.expires_unix_ms),
    })
}

/// Waits until a headless login is approved; the code to finish it with.
pub(super) async fn await_approval(started: &Started) -> anyhow::Result<String> {
    let mut client = started.client.clone();
    loop {
        let message = v1::LoginAwait {
            login_id: started.login_id.as_bytes().to_vec(),
            poll_secret: started.poll_secret.clone(),
        };
        let answer = api::answer(client.r#await(message).await)?;
        match answer.state.as_str() {
            "pending" => {}
            "approved" => return Ok(answer.code),
            "denied" => {
                return Err(Failure::denied("the login was refused")
                    .because(answer.message)
                    .into());
            }
            other => {
                let why = if answer.message.is_empty() {
                    other.to_owned()
                } else {
                    answer.message
                };
                return Err(Failure::failed("the login was not completed")
                    .because(why)
                    .next("iapctl login --headless")
                    .into());
            }
        }
    }
}

/// Ends only when the login was refused or nobody came: what iapctl would never hear of from the browser.
pub(super) async fn await_refusal(started: &Started) -> anyhow::Error {
    let mut client = started.client.clone();
    loop {
        let message = v1::LoginAwait {
            login_id: started.login_id.as_bytes().to_vec(),
            poll_secret: started.poll_secret.clone(),
        };
        match client.r#await(message).await.map(tonic::Response::into_inner) {
            Ok(answer) if answer.state == "pending" => {}
            Ok(answer) if answer.state == "denied" => {
                return Failure::denied("the login was refused")
                    .because(answer.message)
                    .into();
            }
            // Approved: the code comes through the browser. Anything else is for the time limit to end.
            Ok(_) | Err(_) => std::future::pending::<()>().await,
        }
    }
}

/// The page is the cluster's own: nothing else is opened in the person's browser.
fn check_url(url: &str, address: &ClusterAddress) -> Result<(), Failure> {
    let refuse = || {
        Failure::failed("the auth server sent an address that is not the cluster's").because(url.to_owned())
    };
    if url.is_empty() {
        return Ok(());
    }
    let parsed = reqwest::Url::parse(url).map_err(|_| refuse())?;
    let ours = parsed.scheme() == "https"
        && parsed.host_str() == Some(address.cluster.as_str())
        && parsed.username().is_empty()
        && parsed.password().is_none();
    if ours { Ok(()) } else { Err(refuse()) }
}

fn shown(name: &str) -> String {
    let clean: String = name.chars().filter(|character| !character.is_control()).collect();
    let end = clean.floor_char_boundary(SHOWN_NAME_BYTES_MAX);
    clean.get(..end).unwrap_or_default().to_owned()
}

fn host_name() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let from_environment = || {
        ["HOSTNAME", "COMPUTERNAME"]
            .iter()
            .find_map(|name| std::env::var(name).ok())
    };
    kernel
        .or_else(from_environment)
        .unwrap_or_else(|| "unknown host".to_owned())
        .trim()
        .to_owned()
}

fn account_name() -> String {
    let names = ["USER", "LOGNAME", "USERNAME"];
    names
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .unwrap_or_else(|| "unknown account".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_pages_of_the_cluster_are_opened() {
        let address = ClusterAddress::parse("iap.example.com").unwrap();
        assert!(check_url("https://iap.example.com/login/1", &address).is_ok());
        assert!(check_url("https://iap.example.com:8443/login/1", &address).is_ok());
        for bad in [
            "http://iap.example.com/login",
            "https://evil.example/login",
            "https://iap.example.com.evil.example/",
            "https://iap.example.com@evil.example/",
            "javascript:alert(1)",
            "not a url",
        ] {
            assert!(check_url(bad, &address).is_err(), "{bad}");
        }
    }

    #[test]
    fn shown_names_are_short_and_printable() {
        assert_eq!(shown(&"é".repeat(64)).len(), 64);
        assert_eq!(shown("a\u{1b}[31m"), "a[31m");
    }
}
