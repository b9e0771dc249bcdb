//! What a system is started with.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Certificates;
use crate::link::Link;

/// Programs that are looked for in `PATH` unless a file is named.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Programs {
    /// The folder of our own release programs.
    #[arg(long, default_value = "target/release")]
    pub(crate) bin: PathBuf,
    /// rathole, where it is installed.
    #[arg(long, env = "IAP_BENCH_RATHOLE", default_value = "rathole")]
    pub(crate) rathole: PathBuf,
    /// ghostunnel, where it is installed.
    #[arg(long, env = "IAP_BENCH_GHOSTUNNEL", default_value = "ghostunnel")]
    pub(crate) ghostunnel: PathBuf,
}

/// What is between the hops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Loopback,
    /// A link so long, each way, between any two.
    Wan(Duration),
}

/// Where a system is started, and in front of what.
pub(crate) struct Site<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) certificates: &'a Certificates,
    /// The system's own, empty.
    pub(crate) folder: PathBuf,
    /// The backend's port.
    pub(crate) backend: u16,
    pub(crate) network: Network,
    links: RefCell<Vec<Link>>,
}

impl<'a> Site<'a> {
    /// With a new folder below `parent`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(crate) fn new(
        programs: &'a Programs,
        certificates: &'a Certificates,
        parent: &Path,
        backend: u16,
        network: Network,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("system.").tempdir_in(parent)?;
        Ok(Self {
            programs,
            certificates,
            folder: folder.keep(),
            backend,
            network,
            links: RefCell::default(),
        })
    }

    /// Where the hop before finds a hop that listens at `port`: there, or where the links in between begin. Between
    /// connector and proxy, and between proxy and agent, there is one; between the two hops of a pair there are both.
    ///
    /// # Errors
    /// When no link can be made.
    pub(crate) fn reach(&self, port: u16, links: u32) -> anyhow::Result<u16> {
        match self.network {
            Network::Loopback => Ok(port),
            Network::Wan(one_way) => {
                let link = Link::start(port, one_way * links)?;
                let entrance = link.port;
                self.links.borrow_mut().push(link);
                Ok(entrance)
            }
        }
    }

    /// A file in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn into_links(self) -> Vec<Link> {
        self.links.into_inner()
    }
}
