//! Certificates as other implementations see them: one of each class, in PEM files beside their
//! authorities, for OpenSSL, webpki and Go to judge.

use std::fs;
use std::path::{Path, PathBuf};

use iap_identity::{AgentId, AuthId, CaClass, ProxyId};
use iap_testkit::certificates::pem;
use iap_testkit::{Credential, TestCluster};
use uuid::Uuid;

/// A leaf and what others must find in it.
pub struct Specimen {
    /// File name without its ending.
    pub name: &'static str,
    /// The leaf, its authority and key.
    pub credential: Credential,
    /// The authority that issued it.
    pub authority: CaClass,
    /// The host names it serves.
    pub hosts: Vec<String>,
    /// Whether it may be shown by a client.
    pub client: bool,
}

/// One leaf of each class.
///
/// # Errors
/// When issuing fails.
pub fn specimens(cluster: &TestCluster) -> anyhow::Result<Vec<Specimen>> {
    let agent = AgentId::from_uuid(Uuid::now_v7());
    let (proxy, auth) = (
        ProxyId::from_uuid(Uuid::now_v7()),
        AuthId::from_uuid(Uuid::now_v7()),
    );
    let name = &cluster.name;
    let groups = ["engineering", "on-call"];
    let rows = [
        (
            "user",
            cluster.user("alice@example.com", &groups)?,
            CaClass::User,
            vec![],
            true,
        ),
        (
            "user-without-email",
            cluster.user("Älice", &groups)?,
            CaClass::User,
            vec![],
            true,
        ),
        ("bot", cluster.bot("deployer")?, CaClass::User, vec![], true),
        (
            "agent",
            cluster.agent(agent)?,
            CaClass::System,
            vec![name.agent_host(&agent)],
            true,
        ),
        (
            "service",
            cluster.service_leaf(agent, "db-prod")?,
            CaClass::System,
            vec![format!("db-prod.{name}")],
            false,
        ),
        (
            "proxy",
            cluster.proxy(proxy)?,
            CaClass::System,
            vec![name.proxy_host()],
            true,
        ),
        (
            "auth",
            cluster.auth(auth)?,
            CaClass::System,
            vec![name.auth_host(), name.to_string()],
            true,
        ),
    ];
    Ok(rows
        .into_iter()
        .map(|(name, credential, authority, hosts, client)| Specimen {
            name,
            credential,
            authority,
            hosts,
            client,
        })
        .collect())
}

/// The PEM file of an authority.
#[must_use]
pub fn authority_file(folder: &Path, class: CaClass) -> PathBuf {
    folder.join(format!("ca-{class}.pem"))
}

/// Writes `root.pem`, `ca-<class>.pem`, `key.pem` (the certified signing key) and `<specimen>.pem`.
///
/// # Errors
/// When a file cannot be written.
pub fn write_files(folder: &Path, cluster: &TestCluster, specimens: &[Specimen]) -> anyhow::Result<()> {
    fs::write(folder.join("root.pem"), pem(cluster.root().der()))?;
    for class in CaClass::ALL {
        fs::write(authority_file(folder, class), pem(cluster.issuer(class).der()))?;
    }
    for key in cluster.bundle().signing_keys() {
        fs::write(folder.join("key.pem"), pem(key.der()))?;
    }
    for specimen in specimens {
        fs::write(
            folder.join(format!("{}.pem", specimen.name)),
            pem(specimen.credential.leaf()),
        )?;
    }
    Ok(())
}
