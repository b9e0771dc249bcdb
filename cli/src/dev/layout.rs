//! Where everything of a development plane lies: one readable folder.
//!
//! ```text
//! DIR/dev.json            what programs read; its presence means ready
//! DIR/ports.json          the ports, kept across runs
//! DIR/config/*.toml       the servers' configuration, services and policy, as an operator would write them
//! DIR/auth, proxy, agent  the servers' state
//! DIR/logs/*.log          what they say
//! DIR/postgres            the demo database
//! DIR/sshd                the demo's SSH server
//! DIR/home                an iapctl home that trusts this cluster
//! DIR/operator            the home of the administrator who set the plane up
//! ```

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

/// The cluster every development plane serves; names under `.localhost` never leave the machine (RFC 6761 §6.3).
pub(crate) const CLUSTER: &str = "iap.localhost";

/// The ports of one plane, all on 127.0.0.1.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ports {
    pub(crate) proxy: u16,
    pub(crate) auth: u16,
    pub(crate) identity_provider: u16,
    pub(crate) auth_admin: u16,
    pub(crate) proxy_admin: u16,
    pub(crate) agent_admin: u16,
    pub(crate) echo: u16,
    pub(crate) web: u16,
    /// 0 in a file of before there was one.
    #[serde(default)]
    pub(crate) sshd: u16,
}

/// The folder of one plane and its ports.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) ports: Ports,
}

impl Layout {
    /// The folder when none is named: `~/.iap-dev`.
    pub(crate) fn default_dir() -> anyhow::Result<PathBuf> {
        let home = std::env::var_os("HOME").context("HOME is not set: name a folder with --dir")?;
        Ok(PathBuf::from(home).join(".iap-dev"))
    }

    /// Makes the folder (0700) and chooses ports, or takes those of the last run.
    ///
    /// # Errors
    /// When the folder cannot be made, or a port of the last run is taken by another program.
    pub(crate) fn prepare(dir: &Path) -> anyhow::Result<Self> {
        for name in [
            "", "config", "logs", "auth", "proxy", "agent", "home", "operator", "secrets",
        ] {
            private_folder(&dir.join(name))?;
        }
        let dir = dir
            .canonicalize()
            .with_context(|| format!("cannot resolve {}", dir.display()))?;
        let file = dir.join("ports.json");
        let ports = match std::fs::read(&file) {
            Ok(bytes) => {
                let mut ports: Ports = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} is not readable", file.display()))?;
                ports.check_free(&file)?;
                if ports.sshd == 0 {
                    ports.sshd = Ports::choose()?.sshd;
                    ports.write(&file)?;
                }
                ports
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let ports = Ports::choose()?;
                ports.write(&file)?;
                ports
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        Ok(Self { dir, ports })
    }

    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.dir.join("config").join(name)
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    pub(crate) fn secret(&self, name: &str) -> PathBuf {
        self.dir.join("secrets").join(name)
    }

    pub(crate) fn proxy_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.proxy)
    }

    /// The cluster as `iapctl login` takes it.
    pub(crate) fn cluster_address(&self) -> String {
        format!("{CLUSTER}:{}", self.ports.proxy)
    }

    pub(crate) fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.identity_provider)
    }

    pub(crate) fn web_url(&self) -> String {
        format!("https://{CLUSTER}:{}", self.ports.proxy)
    }

    pub(crate) fn root_certificate(&self) -> PathBuf {
        self.dir.join("auth").join("root.pem")
    }

    pub(crate) fn operator_home(&self) -> PathBuf {
        self.dir.join("operator")
    }

    pub(crate) fn descriptor(&self) -> PathBuf {
        self.dir.join("dev.json")
    }
}

impl Ports {
    /// Binds all at once, so that no port is chosen twice.
    fn choose() -> anyhow::Result<Self> {
        let mut held = Vec::new();
        let mut any = || -> anyhow::Result<SocketAddr> {
            let listener =
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
            let address = listener.local_addr()?;
            held.push(listener);
            Ok(address)
        };
        // Agents reach the proxy by QUIC, at the same port.
        let mut proxy = any()?;
        while UdpSocket::bind(proxy).is_err() {
            proxy = any()?;
        }
        let mut next = || any().map(|address| address.port());
        Ok(Self {
            proxy: proxy.port(),
            auth: next()?,
            identity_provider: next()?,
            auth_admin: next()?,
            proxy_admin: next()?,
            agent_admin: next()?,
            echo: next()?,
            web: next()?,
            sshd: next()?,
        })
    }

    fn write(&self, file: &Path) -> anyhow::Result<()> {
        std::fs::write(file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn check_free(&self, file: &Path) -> anyhow::Result<()> {
        let taken: Vec<String> = self
            .all()
            .into_iter()
            .filter(|port| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).is_err())
            .map(|port| port.to_string())
            .collect();
        if !taken.is_empty() {
            bail!(
                "ports of the last run are taken by another program: {}. End it, or delete {} to choose new ones",
                taken.join(", "),
                file.display()
            );
        }
        Ok(())
    }

    fn all(&self) -> [u16; 9] {
        [
            self.proxy,
            self.auth,
            self.identity_provider,
            self.auth_admin,
            self.proxy_admin,
            self.agent_admin,
            self.echo,
            self.web,
            self.sshd,
        ]
    }
}

pub(crate) fn private_folder(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the folder {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot close {} to others", path.display()))
}
