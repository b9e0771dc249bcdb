//! Addresses as people write them, their resolution, and the socket options every connection of ours gets.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::net::TcpStream;

pub mod accept;
pub mod dial;
#[cfg(unix)]
pub mod family;
pub mod http_proxy;
pub mod no_proxy;
#[cfg(unix)]
pub mod tcp_counts;

pub use accept::{accept, listen};
pub use dial::{connect, race};
#[cfg(unix)]
pub use family::{Family, stream_family};
pub use http_proxy::{HttpProxy, HttpProxyError, Route, proxied, reach};
pub use no_proxy::NoProxy;
#[cfg(unix)]
pub use tcp_counts::{TcpCounts, tcp_counts};

const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const HOST_BYTES_MAX: usize = 253;

/// `host:port`, where host is a name, an IPv4 address or a bracketed IPv6 address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// The text is not `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not HOST:PORT (IPv6 addresses in brackets)")]
pub struct HostPortError {
    text: String,
}

impl HostPort {
    /// Reads `host:port`.
    pub fn parse(text: &str) -> Result<Self, HostPortError> {
        let refused = || HostPortError {
            text: text.chars().take(HOST_BYTES_MAX).collect(),
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let port = port.parse().map_err(|_| refused())?;
        Self::new(unbracketed(host).ok_or_else(refused)?, port).map_err(|_| refused())
    }

    /// From its parts; `host` without brackets.
    pub fn new(host: &str, port: u16) -> Result<Self, HostPortError> {
        let is_address = host.parse::<IpAddr>().is_ok();
        if !is_address && !is_host_name(host) {
            return Err(HostPortError {
                text: host.chars().take(HOST_BYTES_MAX).collect(),
            });
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// The host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its addresses, see [`resolve`].
    pub async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        resolve(&self.host, self.port).await
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

impl std::str::FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

/// A block of addresses such as `203.0.113.0/24`; a bare address is a block of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: IpAddr,
    prefix_bits: u8,
}

/// The text is not a block of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a block of addresses such as \"203.0.113.0/24\" or \"2001:db8::/32\"")]
pub struct CidrError {
    text: String,
}

impl Cidr {
    /// Reads `address/bits` or a bare address.
    pub fn parse(text: &str) -> Result<Self, CidrError> {
        let refused = || CidrError {
            text: text.chars().take(64).collect(),
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| refused())?)),
            None => (text, None),
        };
        let network: IpAddr = address.parse().map_err(|_| refused())?;
        let width = if network.is_ipv4() { 32 } else { 128 };
        let prefix_bits = bits.unwrap_or(width);
        if prefix_bits > width {
            return Err(refused());
        }
        Ok(Self { network, prefix_bits })
    }

    /// Whether `address` lies in the block. IPv4-mapped IPv6 addresses count as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                same_prefix(mask_v4(network), mask_v4(address), self.prefix_bits, 32)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                same_prefix(network.to_bits(), address.to_bits(), self.prefix_bits, 128)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.network, self.prefix_bits)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

/// The addresses of `host`. `localhost` and every name under it are loopback without asking anyone
/// (RFC 6761 §6.3), since system resolvers do not agree on that.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if is_localhost(host) {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        return Ok(loopback.map(|address| SocketAddr::new(address, port)).to_vec());
    }
    let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    if found.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{host} has no address"),
        ));
    }
    Ok(found)
}

/// No Nagle delay, and probes that find a peer that vanished.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn unbracketed(host: &str) -> Option<&str> {
    match host.strip_prefix('[') {
        Some(inner) => inner
            .strip_suffix(']')
            .filter(|inner| inner.parse::<Ipv6Addr>().is_ok()),
        None => Some(host).filter(|host| !host.contains(':')),
    }
}

fn is_host_name(host: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !host.is_empty() && host.len() <= HOST_BYTES_MAX && host.bytes().all(allowed)
}

fn mask_v4(address: Ipv4Addr) -> u128 {
    u128::from(address.to_bits())
}

fn same_prefix(left: u128, right: u128, prefix_bits: u8, width: u8) -> bool {
    let ignored = u32::from(width.saturating_sub(prefix_bits));
    left.checked_shr(ignored).unwrap_or(0) == right.checked_shr(ignored).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn host_and_port_are_read_and_written_alike() {
        for text in ["iap.example.com:443", "127.0.0.1:1", "[::1]:65535", "a_b.svc:80"] {
            assert_eq!(HostPort::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_host_and_port_is_refused() {
        for text in [
            "",
            "host",
            "host:",
            ":80",
            "host:65536",
            "::1:80",
            "[::1",
            "a b:80",
            "host:+1x",
            "[host]:80",
        ] {
            assert!(HostPort::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_block_contains_its_addresses_and_no_others() {
        let inside =
            |block: &str, address: &str| Cidr::parse(block).unwrap().contains(address.parse().unwrap());
        assert!(inside("203.0.113.0/24", "203.0.113.255"));
        assert!(!inside("203.0.113.0/24", "203.0.114.0"));
        assert!(inside("203.0.113.0/24", "::ffff:203.0.113.7"));
        assert!(inside("0.0.0.0/0", "8.8.8.8"));
        assert!(!inside("0.0.0.0/0", "2001:db8::1"));
        assert!(inside("127.0.0.1", "127.0.0.1") && !inside("127.0.0.1", "127.0.0.2"));
        assert!(inside("2001:db8::/32", "2001:db8:ffff::1") && !inside("2001:db8::/32", "2001:db9::1"));
        assert!(inside("::/0", "::1"));
    }

    #[test]
    fn malformed_blocks_are_refused() {
        for text in [
            "",
            "/8",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "::/129",
            "10.0.0/8",
            "host/8",
        ] {
            assert!(Cidr::parse(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn names_under_localhost_are_loopback_without_a_lookup() {
        for host in ["localhost", "db.iap.localhost", "IAP.LOCALHOST."] {
            let found = resolve(host, 7).await.unwrap();
            assert!(
                found
                    .iter()
                    .all(|address| address.ip().is_loopback() && address.port() == 7),
                "{host}"
            );
            assert!(!found.is_empty());
        }
    }
}
