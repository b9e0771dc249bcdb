//! Trust first: the root of a cluster is known before anything is said to its auth server.
//!
//! In order: what `--ca` gives; what was stored; what the cluster's web page says under public web PKI.
//! There is no trust on first use.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use iap_identity::Pin;
use iap_runtime::net::{self, HostPort};
use reqwest::header::HeaderValue;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

use crate::address::ClusterAddress;
use crate::api;
use crate::failure::Failure;
use crate::home::{ClusterHome, ClusterRecord, Home};

/// `/.well-known/iap` is a few kilobytes.
const WELL_KNOWN_BYTES_MAX: usize = 64 * 1024;
const WELL_KNOWN_SECONDS_MAX: u64 = 10;

/// What is known of a cluster before it is talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The hash of the root's public key.
    pub pin: Pin,
}

#[derive(Deserialize)]
struct WellKnown {
    cluster: String,
    pin: String,
    ca_pem: String,
}

/// Finds out whom to trust. `given` is `--ca FILE|PIN`.
///
/// # Errors
/// Bad input when nothing is known and the web page cannot be verified.
pub async fn establish(
    home: &ClusterHome,
    address: &ClusterAddress,
    given: Option<&str>,
) -> anyhow::Result<Trust> {
    if let Some(given) = given {
        return Ok(from_argument(given)?);
    }
    if let Some(record) = home.record()? {
        return Ok(Trust { pin: record.pin()? });
    }
    from_web_page(address).await
}

/// `--ca FILE|PIN`.
///
/// # Errors
/// Bad input when it is neither.
pub fn from_argument(given: &str) -> Result<Trust, Failure> {
    if given.starts_with("sha256:") {
        let pin = Pin::parse(given)
            .map_err(|error| Failure::usage(format!("'{given}' is not a pin")).because(error.to_string()))?;
        return Ok(Trust { pin });
    }
    let path = Path::new(given);
    let refuse = |why: String| {
        Failure::usage(format!("'{given}' holds no root certificate"))
            .because(why)
            .next("--ca FILE or --ca sha256:…")
    };
    let pem = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    of_pem(&pem).map_err(|error| refuse(error.to_string()))
}

/// Remembers a cluster and its pin without logging in.
///
/// # Errors
/// When the home cannot be written.
pub fn remember(home: &Home, address: &ClusterAddress, trust: &Trust) -> anyhow::Result<()> {
    let cluster = home.cluster(&address.cluster);
    cluster.remember(&record(&cluster, address, trust)?)
}

/// `cluster.json` for this address and pin; what was chosen before and proxies learnt are kept.
///
/// # Errors
/// When the stored one is malformed.
pub fn record(home: &ClusterHome, address: &ClusterAddress, trust: &Trust) -> anyhow::Result<ClusterRecord> {
    let stored = home.record()?;
    let no_renew = stored.as_ref().is_some_and(|record| record.no_renew);
    let (ports, mut known) = match stored {
        Some(record) => (record.ports, record.addresses),
        None => Default::default(),
    };
    let first = address.host_port();
    known.retain(|known| *known != first);
    known.insert(0, first);
    Ok(ClusterRecord {
        cluster: address.cluster.clone(),
        addresses: known,
        pin: trust.pin.to_string(),
        ports,
        no_renew,
    })
}

fn of_pem(pem: &[u8]) -> anyhow::Result<Trust> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    match certificates.as_slice() {
        [root] => Ok(Trust {
            pin: Pin::of_certificate(root)?,
        }),
        [] => anyhow::bail!("there is no certificate in it"),
        several => anyhow::bail!(
            "there are {} certificates in it, and only the root is wanted",
            several.len()
        ),
    }
}

async fn from_web_page(address: &ClusterAddress) -> anyhow::Result<Trust> {
    let body = fetch(address).await?;
    let page: WellKnown = serde_json::from_slice(&body)
        .with_context(|| format!("https://{address}/.well-known/iap is not what a cluster says of itself"))?;
    let trust = of_pem(page.ca_pem.as_bytes())?;
    if page.cluster != address.cluster.as_str() || page.pin != trust.pin.to_string() {
        return Err(Failure::failed(format!("https://{address}/.well-known/iap contradicts itself")).into());
    }
    Ok(trust)
}

async fn fetch(address: &ClusterAddress) -> anyhow::Result<Vec<u8>> {
    let host = address.cluster.as_str();
    let unreachable = |why: String| {
        Failure::failed(format!("cannot reach {address}"))
            .because(why)
            .next("check the name, the port and the network")
    };
    let client = page_client(&HostPort::new(host, address.port)?)
        .await
        .map_err(|error| unreachable(format!("{error:#}")))?;
    let url = format!("https://{host}:{}/.well-known/iap", address.port);
    let sent = client.get(&url).send().await;
    let mut response = match sent {
        Ok(response) => response,
        Err(error) if is_certificate_problem(&error) => return Err(unknown(address).into()),
        Err(error) => return Err(unreachable(innermost(&error)).into()),
    };
    if !response.status().is_success() {
        return Err(unreachable(format!("{url} answered {}", response.status())).into());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > WELL_KNOWN_BYTES_MAX {
            return Err(unreachable(format!("{url} is larger than {WELL_KNOWN_BYTES_MAX} bytes")).into());
        }
    }
    Ok(body)
}

/// A client for one host: through an HTTP proxy, which then resolves the name, where the environment says so.
async fn page_client(target: &HostPort) -> anyhow::Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(WELL_KNOWN_SECONDS_MAX));
    let builder = match net::proxied(target)? {
        Some(proxy) => {
            let mut through = reqwest::Proxy::all(format!("http://{}", proxy.address()))?;
            if let Some(authorization) = proxy.authorization() {
                through = through.custom_http_auth(HeaderValue::from_str(authorization)?);
            }
            builder.proxy(through)
        }
        None => builder
            .no_proxy()
            .resolve_to_addrs(target.host(), &target.resolve().await?),
    };
    Ok(builder.build()?)
}

fn unknown(address: &ClusterAddress) -> Failure {
    Failure::usage(format!(
        "the certificate authority of {address} is not known here"
    ))
    .because("it has no public certificate, and nothing is trusted on first use")
    .next(format!(
        "iapctl login {address} --ca FILE|PIN (the root certificate or its pin sha256:…, from your operator)"
    ))
}

fn is_certificate_problem(error: &reqwest::Error) -> bool {
    let tls = api::causes(error).find_map(api::tls_error);
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

fn innermost(error: &reqwest::Error) -> String {
    api::causes(error)
        .last()
        .map(ToString::to_string)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pin_is_taken_and_anything_else_is_bad_input() {
        let pin = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(from_argument(&pin).unwrap().pin.to_string(), pin);
        for bad in ["sha256:12", "sha256:", "/nowhere/ca.pem", "Cargo.toml"] {
            assert_eq!(from_argument(bad).unwrap_err().status().code(), 2, "{bad}");
        }
    }

    #[tokio::test]
    async fn stored_trust_is_used_and_the_ports_chosen_before_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path());
        let address = ClusterAddress::parse("iap.localhost:1").unwrap();
        let trust = from_argument(&format!("sha256:{}", "ab".repeat(32))).unwrap();
        remember(&home, &address, &trust).unwrap();
        let cluster = home.cluster(&address.cluster);
        assert_eq!(establish(&cluster, &address, None).await.unwrap(), trust);
        cluster
            .change_record(|stored| {
                let mut record = stored.unwrap();
                record.ports.insert("echo".to_owned(), 20_001);
                Ok(Some(record))
            })
            .unwrap();
        remember(&home, &address, &trust).unwrap();
        assert_eq!(
            cluster.record().unwrap().unwrap().ports.get("echo"),
            Some(&20_001)
        );
    }
}
