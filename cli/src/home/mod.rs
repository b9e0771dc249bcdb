//! The home folder: which clusters are known, which is current, and what a login left behind.
//!
//! ```text
//! config.toml                    the current cluster
//! clusters/<cluster>/
//!     cluster.json               how to reach it, the pin of its root, the ports of local listeners
//!     ca.pem, bundle.bin         the root, and the signed list of its authorities
//!     cert.pem, key.pem, key.pk8, identity.p12
//!                                the login: links through `current` into one generation
//!     ssh                        a key, certificates and a configuration for SSH, a link like the others
//!     ssh_known_hosts            keys of SSH hosts that no authority vouches for
//!     current -> generations/N   replaced in one step
//!     services.json              what `ls` showed last
//!     lock                       held while logging in or renewing
//!     record.lock                held while cluster.json is read, changed and replaced
//!     renewer.lock, renewer.json, renewer.log
//!                                the renewer: that it lives, what it plans, what it did
//! ```
//!
//! Folders are 0700 and files 0600.

mod files;
mod generation;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use iap_identity::{ClusterName, Pin};
use iap_runtime::net::HostPort;
use serde::{Deserialize, Serialize};

pub use files::{make_private_folder, write_private};
pub use generation::{Credentials, Generation, SSH_FOLDER};

use crate::services::KnownService;

/// Proxies of one cluster that are remembered.
const PROXIES_MAX: usize = 64;

/// The home folder.
#[derive(Clone, Debug)]
pub struct Home {
    path: PathBuf,
}

/// The folder of one cluster.
#[derive(Clone, Debug)]
pub struct ClusterHome {
    cluster: ClusterName,
    path: PathBuf,
}

/// `cluster.json`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct ClusterRecord {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// `host:port` of its proxies, the first choice first.
    pub addresses: Vec<String>,
    /// `sha256:` and the hash of the root's public key.
    pub pin: String,
    /// Ports of local listeners by service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// Whether the person wants nothing left running that renews (`login --no-renew`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_renew: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
}

impl Home {
    /// The home at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a cluster, which need not exist yet.
    pub fn cluster(&self, cluster: &ClusterName) -> ClusterHome {
        ClusterHome {
            cluster: cluster.clone(),
            path: self.path.join("clusters").join(cluster.as_str()),
        }
    }

    /// The current cluster, if one was chosen.
    ///
    /// # Errors
    /// When `config.toml` is there and malformed.
    pub fn current(&self) -> anyhow::Result<Option<ClusterName>> {
        let path = self.settings_path();
        let Some(bytes) = files::read_if_there(&path)? else {
            return Ok(None);
        };
        let text = String::from_utf8(bytes).with_context(|| format!("{} is not text", path.display()))?;
        let settings: Settings =
            toml::from_str(&text).with_context(|| format!("{} is malformed", path.display()))?;
        settings
            .cluster
            .map(|name| ClusterName::parse(&name).with_context(|| format!("{} is malformed", path.display())))
            .transpose()
    }

    /// Makes a cluster the current one.
    ///
    /// # Errors
    /// When the home cannot be written.
    pub fn make_current(&self, cluster: &ClusterName) -> anyhow::Result<()> {
        make_private_folder(&self.path)?;
        let settings = Settings {
            cluster: Some(cluster.as_str().to_owned()),
        };
        write_private(&self.settings_path(), toml::to_string(&settings)?.as_bytes())
    }

    /// Every cluster with a folder, by name.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn clusters(&self) -> anyhow::Result<Vec<ClusterName>> {
        let folder = self.path.join("clusters");
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot list {}", folder.display())),
        };
        let mut clusters: Vec<ClusterName> = entries
            .filter_map(|entry| ClusterName::parse(&entry.ok()?.file_name().into_string().ok()?).ok())
            .filter(|cluster| folder.join(cluster.as_str()).join("cluster.json").exists())
            .collect();
        clusters.sort();
        Ok(clusters)
    }

    fn settings_path(&self) -> PathBuf {
        self.path.join("config.toml")
    }
}

impl ClusterHome {
    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// A file of this cluster.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(&self) -> anyhow::Result<()> {
        make_private_folder(&self.path)
    }

    /// Whether the cluster is known here still.
    pub fn is_there(&self) -> bool {
        self.file("cluster.json").exists()
    }

    /// Whether a login's files are there, good or not.
    pub fn has_generation(&self) -> bool {
        self.file("cert.pem").exists()
    }

    /// Which generation is the current one: differs after each renewal and each login. None where there is
    /// none, or the system has no links.
    pub fn generation_mark(&self) -> Option<(PathBuf, SystemTime)> {
        generation::mark(&self.path)
    }

    /// Opens or makes a private file of this cluster.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_private(&self, name: &str) -> anyhow::Result<File> {
        files::open_private(&self.file(name))
    }

    /// Replaces a private file of this cluster in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_private(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        write_private(&self.file(name), content)
    }

    /// `cluster.json`, if the cluster is known here.
    ///
    /// # Errors
    /// When it is there and malformed.
    pub fn record(&self) -> anyhow::Result<Option<ClusterRecord>> {
        let path = self.file("cluster.json");
        files::read_if_there(&path)?
            .map(|bytes| {
                serde_json::from_slice(&bytes).with_context(|| format!("{} is malformed", path.display()))
            })
            .transpose()
    }

    /// Replaces `cluster.json` with what `change` makes of it, while nobody else changes it; the record as it is
    /// then. `None` in, where the cluster is unknown; `None` out leaves it so.
    ///
    /// # Errors
    /// When the stored one is malformed, the folder cannot be written, or `change` fails.
    pub fn change_record(
        &self,
        change: impl FnOnce(Option<ClusterRecord>) -> anyhow::Result<Option<ClusterRecord>>,
    ) -> anyhow::Result<Option<ClusterRecord>> {
        make_private_folder(&self.path)?;
        let lock = files::open_private(&self.file("record.lock"))?;
        lock.lock().context("cannot lock cluster.json")?;
        let stored = self.record()?;
        let changed = change(stored.clone())?;
        if let Some(record) = changed.as_ref().filter(|_| changed != stored) {
            write_private(&self.file("cluster.json"), &serde_json::to_vec_pretty(record)?)?;
        }
        Ok(changed)
    }

    /// Remembers how the cluster is reached and known. Ports and choices stored meanwhile are kept.
    ///
    /// # Errors
    /// When the stored record is malformed or the folder cannot be written.
    pub fn remember(&self, record: &ClusterRecord) -> anyhow::Result<()> {
        self.change_record(|stored| {
            let mut record = record.clone();
            if let Some(stored) = stored {
                record.ports = stored.ports;
                record.no_renew = stored.no_renew;
            }
            Ok(Some(record))
        })?;
        Ok(())
    }

    /// Remembers the cluster's proxies behind the address one logged in at, which stays the first choice.
    ///
    /// # Errors
    /// When `cluster.json` is malformed or cannot be written.
    pub fn learn_proxies(&self, proxies: &[String]) -> anyhow::Result<()> {
        self.change_record(|stored| {
            let Some(record) = stored else { return Ok(None) };
            let mut addresses: Vec<String> = record.addresses.first().cloned().into_iter().collect();
            let usable = proxies.iter().filter(|proxy| HostPort::parse(proxy).is_ok());
            for proxy in usable.take(PROXIES_MAX) {
                if !addresses.contains(proxy) {
                    addresses.push(proxy.clone());
                }
            }
            Ok(Some(ClusterRecord { addresses, ..record }))
        })?;
        Ok(())
    }

    /// Remembers the root and the signed list of its authorities.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_trust(&self, root_pem: &str, bundle: &[u8]) -> anyhow::Result<()> {
        make_private_folder(&self.path)?;
        write_private(&self.file("ca.pem"), root_pem.as_bytes())?;
        write_private(&self.file("bundle.bin"), bundle)
    }

    /// The signed bundle, if one was stored.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn bundle(&self) -> anyhow::Result<Option<Vec<u8>>> {
        files::read_if_there(&self.file("bundle.bin"))
    }

    /// The login's files, all of one generation.
    ///
    /// # Errors
    /// When they are there and cannot be read.
    pub fn generation(&self) -> anyhow::Result<Option<Generation>> {
        generation::read(&self.path)
    }

    /// Replaces the login's files in one step.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_generation(&self, credentials: &Credentials) -> anyhow::Result<()> {
        make_private_folder(&self.path)?;
        generation::write(&self.path, credentials)
    }

    /// The request with which the current generation was to be renewed, if one was sent and its answer not
    /// stored.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn renewal_request(&self) -> anyhow::Result<Option<Vec<u8>>> {
        generation::renewal_request(&self.path)
    }

    /// Keeps the request before it is sent, so that the same one is sent again if its answer is lost.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_renewal_request(&self, request: &[u8]) -> anyhow::Result<()> {
        generation::keep_renewal_request(&self.path, request)
    }

    /// Removes the login's files; the trust in the cluster stays.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove_generation(&self) -> anyhow::Result<bool> {
        files::remove_if_there(&self.file("services.json"))?;
        generation::remove(&self.path)
    }

    /// Removes everything about the cluster.
    ///
    /// # Errors
    /// When the folder cannot be removed.
    pub fn forget(&self) -> anyhow::Result<()> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What `ls` showed last; empty when nothing did.
    ///
    /// # Errors
    /// When it is there and malformed.
    pub fn services(&self) -> anyhow::Result<Vec<KnownService>> {
        let path = self.file("services.json");
        match files::read_if_there(&path)? {
            Some(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{} is malformed", path.display()))
            }
            None => Ok(Vec::new()),
        }
    }

    /// Remembers the services this login reaches.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_services(&self, services: &[KnownService]) -> anyhow::Result<()> {
        write_private(&self.file("services.json"), &serde_json::to_vec_pretty(services)?)
    }

    /// Waits for the cluster's lock and holds it until the file is dropped.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub async fn lock(&self) -> anyhow::Result<File> {
        let file = self.lock_file()?;
        tokio::task::spawn_blocking(move || file.lock().map(|()| file))
            .await?
            .context("cannot lock the cluster's folder")
    }

    /// Takes the lock if nobody holds it.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn try_lock(&self) -> anyhow::Result<Option<File>> {
        let file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => {
                Err(error).context("cannot lock the cluster's folder")
            }
        }
    }

    fn lock_file(&self) -> anyhow::Result<File> {
        make_private_folder(&self.path)?;
        files::open_private(&self.file("lock"))
    }
}

impl ClusterRecord {
    /// The pin as a value.
    ///
    /// # Errors
    /// When `cluster.json` was damaged.
    pub fn pin(&self) -> anyhow::Result<Pin> {
        Pin::parse(&self.pin)
            .with_context(|| format!("the stored pin of {} is malformed", self.cluster.as_str()))
    }
}
