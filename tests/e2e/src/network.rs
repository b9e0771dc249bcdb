//! A small Internet of network namespaces: hosts around a router, whose links can be cut, lose UDP, be slow and lossy.
//!
//! Needs root and iproute2. Everything in it ends with it: namespaces are deleted when it is dropped.

mod slow_link;

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use slow_link::SlowLink;
use tempfile::TempDir;

const ROUTER: &str = "router";
/// The host's end of its link.
const DEVICE: &str = "eth0";

/// The namespaces of one test.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    hosts: Vec<&'static str>,
    slow_links: Vec<SlowLink>,
    folder: TempDir,
}

impl Network {
    /// Why there can be no such network here; nothing when there can.
    #[must_use]
    pub fn obstacle() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("network namespaces need root".to_owned());
        }
        let listed = Command::new("ip").args(["netns", "list"]).output();
        match listed {
            Ok(listed) if listed.status.success() => None,
            Ok(listed) => Some(String::from_utf8_lossy(&listed.stderr).into_owned()),
            Err(error) => Some(format!("ip (iproute2): {error}")),
        }
    }

    /// Hosts around a router. The n-th has the address 10.66.n.2, counted from 1.
    ///
    /// # Errors
    /// When the kernel or `ip` refuses something; what it said is in the message.
    pub fn of(hosts: &[&'static str]) -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            prefix: format!("iap{}n{number}", std::process::id()),
            hosts: hosts.to_vec(),
            slow_links: Vec::new(),
            folder: tempfile::tempdir()?,
        };
        for place in network.places() {
            ip(&["netns", "add", &network.namespace(place)])?;
            network.ip(place, &["link", "set", "lo", "up"])?;
        }
        let mut forward = network.inside(ROUTER, "sh");
        forward.args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        run(forward)?;
        for host in hosts {
            network.link(host)?;
        }
        Ok(network)
    }

    /// The host's address.
    #[must_use]
    pub fn address(&self, host: &str) -> Ipv4Addr {
        Ipv4Addr::new(10, 66, self.subnet(host), 2)
    }

    /// A command that runs `program` on `host`.
    #[must_use]
    pub fn inside(&self, host: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace(host)])
            .arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// The same command, run on `host`. Its standard streams are to be set anew.
    #[must_use]
    pub fn moved_inside(&self, host: &str, command: &Command) -> Command {
        let mut moved = self.inside(host, command.get_program());
        moved.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => moved.env(name, value),
                None => moved.env_remove(name),
            };
        }
        moved
    }

    /// The router drops every UDP packet without a word.
    ///
    /// # Errors
    /// As for [`Network::of`].
    pub fn block_udp(&self) -> anyhow::Result<()> {
        self.ip(ROUTER, &["rule", "add", "ipproto", "udp", "blackhole"])
    }

    /// Takes the host off the network; connections are not closed, nothing comes through any more.
    ///
    /// # Errors
    /// As for [`Network::of`].
    pub fn cut(&self, host: &str) -> anyhow::Result<()> {
        let route = format!("{}/32", self.address(host));
        self.ip(ROUTER, &["route", "add", "blackhole", &route])
    }

    /// Brings it back.
    ///
    /// # Errors
    /// As for [`Network::of`].
    pub fn mend(&self, host: &str) -> anyhow::Result<()> {
        let route = format!("{}/32", self.address(host));
        self.ip(ROUTER, &["route", "del", "blackhole", &route])
    }

    /// The host loses its address and gets 10.66.n.`last`, as by a walk from one network into another.
    ///
    /// # Errors
    /// As for [`Network::of`].
    pub fn move_to(&self, host: &str, last: u8) -> anyhow::Result<Ipv4Addr> {
        let address = Ipv4Addr::new(10, 66, self.subnet(host), last);
        self.ip(host, &["addr", "flush", "dev", DEVICE, "scope", "global"])?;
        self.give(host, address)?;
        Ok(address)
    }

    /// Replaces the host's link by one that takes `delay` for a round trip and loses `loss_percent` of the packets.
    ///
    /// # Errors
    /// As for [`Network::of`].
    pub fn slow_down(&mut self, host: &str, delay: Duration, loss_percent: u32) -> anyhow::Result<()> {
        let subnet = self.subnet(host);
        self.ip(host, &["link", "del", DEVICE])?;
        // Made here, then moved: a TUN device stays with its program in whatever namespace it is.
        let names = ["a", "b"].map(|end| format!("{}{subnet}{end}", self.prefix.trim_start_matches("iap")));
        let folder = self.folder.path();
        let link = SlowLink::between([&names[0], &names[1]], delay / 2, loss_percent, folder)?;
        self.slow_links.push(link);
        for (name, place, device) in [
            (&names[0], host, DEVICE.to_owned()),
            (&names[1], ROUTER, format!("h{subnet}")),
        ] {
            ip(&["link", "set", "dev", name, "netns", &self.namespace(place)])?;
            self.ip(place, &["link", "set", "dev", name, "name", &device])?;
        }
        self.configure(host)
    }

    fn places(&self) -> impl Iterator<Item = &'static str> {
        self.hosts.clone().into_iter().chain([ROUTER])
    }

    fn namespace(&self, place: &str) -> String {
        format!("{}-{place}", self.prefix)
    }

    fn subnet(&self, host: &str) -> u8 {
        let place = self.hosts.iter().position(|known| *known == host);
        place
            .and_then(|place| u8::try_from(place + 1).ok())
            .unwrap_or_default()
    }

    fn link(&self, host: &str) -> anyhow::Result<()> {
        let router_end = format!("h{}", self.subnet(host));
        ip(&[
            "link",
            "add",
            DEVICE,
            "netns",
            &self.namespace(host),
            "type",
            "veth",
            "peer",
            "name",
            &router_end,
            "netns",
            &self.namespace(ROUTER),
        ])?;
        self.configure(host)
    }

    /// Addresses and routes at both ends of the host's link.
    fn configure(&self, host: &str) -> anyhow::Result<()> {
        let subnet = self.subnet(host);
        let device = format!("h{subnet}");
        self.ip(
            ROUTER,
            &["addr", "add", &format!("10.66.{subnet}.1/24"), "dev", &device],
        )?;
        self.ip(ROUTER, &["link", "set", &device, "up"])?;
        self.give(host, self.address(host))
    }

    fn give(&self, host: &str, address: Ipv4Addr) -> anyhow::Result<()> {
        let gateway = format!("10.66.{}.1", self.subnet(host));
        self.ip(host, &["addr", "add", &format!("{address}/24"), "dev", DEVICE])?;
        self.ip(host, &["link", "set", DEVICE, "up"])?;
        self.ip(host, &["route", "replace", "default", "via", &gateway])
    }

    fn ip(&self, place: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let namespace = self.namespace(place);
        let mut all = vec!["-n", &namespace];
        all.extend(arguments);
        ip(&all)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in self.places() {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(place)])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments);
    run(command)
}

fn run(mut command: Command) -> anyhow::Result<()> {
    let done = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr).trim()
    );
    Ok(())
}
