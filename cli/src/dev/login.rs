//! Logins on the development plane: the ordinary login, with a program in the browser's place.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::config::CONNECTOR;
use super::descriptor::{Descriptor, users};
use super::layout::{CLUSTER, Layout};
use super::{robot, say};
use crate::address::ClusterAddress;
use crate::failure::Failure;
use crate::home::Home;
use crate::login::run_with_browser;
use crate::trust;

/// `iapctl dev login USER`: stores a login in `home` and makes the plane's cluster the current one.
///
/// # Errors
/// When no plane runs in `dir`, the user is unknown, or the login fails.
pub(crate) async fn run(dir: &Path, home: &Path, user: &str) -> anyhow::Result<()> {
    let descriptor = Descriptor::read(dir)?;
    let local = known_user(user)?;
    let proxy: SocketAddr = descriptor
        .proxy_addr
        .parse()
        .context("dev.json's proxy_addr is not an address")?;
    log_in_at(proxy, &descriptor.ca_file, home, local).await?;
    say(&format!(
        "logged in to {} as {local}@example.com",
        descriptor.cluster
    ));
    Ok(())
}

/// The same for the plane's own administrator, while `dev.json` is not there yet.
///
/// # Errors
/// When the login fails.
pub(crate) async fn log_in(layout: &Layout, home: &Path, user: &str) -> anyhow::Result<()> {
    let proxy: SocketAddr = layout
        .proxy_address()
        .parse()
        .context("the proxy's address is not one")?;
    log_in_at(proxy, &layout.root_certificate(), home, user).await
}

/// The home in `dev.json`: it trusts the cluster, and nobody is logged in.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn seed_home(layout: &Layout) -> anyhow::Result<()> {
    let home = Home::new(layout.dir.join("home"));
    let address = ClusterAddress::parse(&layout.cluster_address())?;
    let ca = layout.root_certificate().display().to_string();
    trust::remember(&home, &address, &trust::from_argument(&ca)?)?;
    home.make_current(&address.cluster)
}

/// Whether the service's name leads to an agent that proves it: the handshake's server side succeeds.
///
/// # Errors
/// Why it does not.
pub(crate) async fn probe_service(layout: &Layout, service: &str) -> anyhow::Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(layout.root_certificate())?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(format!("{service}.{CLUSTER}"))?;
    let stream = TcpStream::connect(layout.proxy_address()).await?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(())
}

async fn log_in_at(proxy: SocketAddr, ca_file: &Path, home: &Path, user: &str) -> anyhow::Result<()> {
    let home = Home::new(home);
    let address = ClusterAddress::parse(&format!("{CLUSTER}:{}", proxy.port()))?;
    let ca_pem = std::fs::read(ca_file).with_context(|| format!("cannot read {}", ca_file.display()))?;
    let trust = trust::from_argument(&ca_file.display().to_string())?;
    let browser = async |url: String| robot::log_in(&url, user, CLUSTER, proxy, &ca_pem).await;
    Box::pin(run_with_browser(&home, &address, trust, CONNECTOR, browser)).await?;
    home.make_current(&address.cluster)
}

fn known_user(user: &str) -> Result<&str, Failure> {
    let local = user.strip_suffix("@example.com").unwrap_or(user);
    let names: Vec<String> = users()
        .iter()
        .filter_map(|user| user.name.split('@').next().map(str::to_owned))
        .collect();
    if names.iter().any(|name| name == local) {
        return Ok(local);
    }
    Err(
        Failure::usage(format!("the development plane has no user '{user}'"))
            .because(format!("it has {}", names.join(", ")))
            .next("iapctl dev login alice"),
    )
}
