//! Which addresses a request to an identity provider may go to.
//!
//! A provider's discovery document names further URLs, and its names resolve to whatever DNS says: both
//! are somebody else's word. Unless the operator configured such a host, nothing but public addresses is
//! reached, so that a hostile document cannot make the auth server talk to its neighbours or to a cloud's
//! metadata service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How far requests for one connector may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// A development plane: loopback is allowed, and `http` to it.
    pub(crate) development: bool,
    /// The issuer's own host, when the connector says `allow_private = true`.
    pub(crate) private_host: Option<String>,
}

/// What kind of network an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    Public,
    Loopback,
    Private,
    /// Link-local (cloud metadata lives there), multicast, unspecified, reserved: never a provider.
    Never,
}

impl Reach {
    /// Whether a connection to `host` may go to `address`.
    pub(crate) fn allows(&self, host: &str, address: IpAddr) -> bool {
        match network(address) {
            Network::Public => true,
            Network::Loopback => self.development || self.is_private_host(host),
            Network::Private => self.is_private_host(host),
            Network::Never => false,
        }
    }

    /// Whether plain `http` to this host is allowed: only to loopback on a development plane.
    pub(crate) fn allows_http(&self, host: &str) -> bool {
        self.development
            && (is_localhost(host)
                || literal(host).is_some_and(|address| network(address) == Network::Loopback))
    }

    fn is_private_host(&self, host: &str) -> bool {
        self.private_host
            .as_deref()
            .is_some_and(|allowed| allowed.eq_ignore_ascii_case(host))
    }
}

/// The address a host is written as, brackets of IPv6 included, if it is not a name.
pub(crate) fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// `localhost` and names below it are loopback (RFC 6761 §6.3), whatever a resolver says.
pub(crate) fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn network(address: IpAddr) -> Network {
    match address {
        IpAddr::V4(address) => network_v4(address),
        IpAddr::V6(address) => network_v6(address),
    }
}

/// IANA IPv4 special-purpose registry (RFC 6890), the entries that are not globally reachable.
fn network_v4(address: Ipv4Addr) -> Network {
    let [first, second, third, _] = address.octets();
    let shared = first == 100 && (64..128).contains(&second);
    let benchmarking = first == 198 && (second == 18 || second == 19);
    let protocol_assignments = first == 192 && second == 0 && third == 0;
    if address.is_loopback() {
        Network::Loopback
    } else if address.is_private() || shared || benchmarking || protocol_assignments {
        Network::Private
    } else if address.is_link_local() || address.is_documentation() || first == 0 || first >= 224 {
        Network::Never
    } else {
        Network::Public
    }
}

/// IANA IPv6 special-purpose registry; forms that embed an IPv4 address are judged by it.
fn network_v6(address: Ipv6Addr) -> Network {
    if let Some(embedded) = embedded_v4(address) {
        return network_v4(embedded);
    }
    let [first, second, ..] = address.segments();
    let unique_local = first & 0xfe00 == 0xfc00;
    let global_unicast = first & 0xe000 == 0x2000;
    if address.is_loopback() {
        Network::Loopback
    } else if unique_local && first != 0xfd00 {
        Network::Private
    } else if unique_local {
        // fd00:ec2::/32 is a metadata service; the rest of fd00:: is as good as any private network.
        if second == 0x0ec2 {
            Network::Never
        } else {
            Network::Private
        }
    } else if global_unicast && !(first == 0x2001 && second == 0x0db8) {
        Network::Public
    } else {
        Network::Never
    }
}

/// IPv4-mapped, NAT64 (64:ff9b::/96) and 6to4 (2002::/16) addresses reach an IPv4 host.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [first, second, third, fourth, fifth, sixth, seventh, eighth] = address.segments();
    let from = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match (first, second, third, fourth, fifth, sixth) {
        (0, 0, 0, 0, 0, 0xffff) | (0x64, 0xff9b, 0, 0, 0, 0) => Some(from(seventh, eighth)),
        (0x2002, ..) => Some(from(second, third)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;

    const PRODUCTION: Reach = Reach {
        development: false,
        private_host: None,
    };
    const DEVELOPMENT: Reach = Reach {
        development: true,
        private_host: None,
    };

    fn allows(reach: &Reach, address: &str) -> bool {
        reach.allows("idp.example.com", address.parse().unwrap())
    }

    #[test]
    fn public_addresses_are_reached() {
        for address in ["8.8.8.8", "203.0.114.1", "2606:4700::1111", "64:ff9b::808:808"] {
            assert!(allows(&PRODUCTION, address), "{address}");
        }
    }

    #[test]
    fn neighbours_and_metadata_services_are_not_reached() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "100.100.100.200",
            "198.18.0.1",
            "192.0.0.192",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
            "fc00::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "ff02::1",
        ] {
            assert!(!allows(&PRODUCTION, address), "{address}");
        }
    }

    #[test]
    fn development_reaches_loopback_and_nothing_else_that_is_private() {
        assert!(allows(&DEVELOPMENT, "127.0.0.1") && allows(&DEVELOPMENT, "::1"));
        assert!(!allows(&DEVELOPMENT, "10.0.0.1") && !allows(&DEVELOPMENT, "169.254.169.254"));
    }

    #[test]
    fn a_private_issuer_is_reached_by_its_own_host_alone_and_never_link_local() {
        let reach = Reach {
            development: false,
            private_host: Some("sso.corp.example".to_owned()),
        };
        let private = "10.0.0.5".parse().unwrap();
        assert!(reach.allows("sso.corp.example", private));
        assert!(!reach.allows("other.corp.example", private));
        assert!(!reach.allows("sso.corp.example", "169.254.169.254".parse().unwrap()));
    }

    #[test]
    fn plain_http_is_for_loopback_on_a_development_plane() {
        assert!(DEVELOPMENT.allows_http("127.0.0.1") && DEVELOPMENT.allows_http("iap.localhost"));
        assert!(!DEVELOPMENT.allows_http("example.com") && !DEVELOPMENT.allows_http("localhost.example.com"));
        assert!(!PRODUCTION.allows_http("127.0.0.1"));
    }
}
