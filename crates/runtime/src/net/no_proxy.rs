//! `NO_PROXY`: which targets are dialled directly although an HTTP proxy is set, read as curl and Go read it.

use std::net::IpAddr;

use super::{Cidr, HostPort, is_localhost};

/// Entries of one list that count.
pub const ENTRIES_MAX: usize = 1024;

/// The list. Loopback addresses and names under `localhost` are always on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    /// `*`
    Everything,
    /// An address or a block of them, on one port or all.
    Block(Cidr, Option<u16>),
    /// A name and every name under it, on one port or all.
    Domain(String, Option<u16>),
}

impl NoProxy {
    /// Reads a list separated by commas or spaces. What is no entry matches nothing, as with curl and Go.
    #[must_use]
    pub fn parse(list: &str) -> Self {
        let entries = list.split(|letter: char| letter == ',' || letter.is_whitespace());
        Self {
            entries: entries.filter_map(Entry::parse).take(ENTRIES_MAX).collect(),
        }
    }

    /// Whether `target` is dialled directly. Names are compared as names: nothing is resolved.
    #[must_use]
    pub fn excepts(&self, target: &HostPort) -> bool {
        let host = target.host().trim_end_matches('.').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        let is_this_machine = match address {
            Some(address) => address.is_loopback(),
            None => is_localhost(&host),
        };
        let port_matches = |port: Option<u16>| port.is_none_or(|port| port == target.port());
        is_this_machine
            || self.entries.iter().any(|entry| match entry {
                Entry::Everything => true,
                Entry::Block(block, port) => {
                    port_matches(*port) && address.is_some_and(|address| block.contains(address))
                }
                Entry::Domain(domain, port) => {
                    port_matches(*port) && address.is_none() && is_under(&host, domain)
                }
            })
    }
}

impl Entry {
    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return Some(Self::Everything);
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Ok(block) = Cidr::parse(bare.unwrap_or(text)) {
            return Some(Self::Block(block, None));
        }
        // `*.example.com` and `.example.com` are `example.com` to curl.
        let name = text.strip_prefix('*').unwrap_or(text).trim_start_matches('.');
        let (host, port) = match HostPort::parse(name) {
            Ok(with_port) => (with_port.host().to_owned(), Some(with_port.port())),
            Err(_) => (name.to_owned(), None),
        };
        if let Ok(block) = Cidr::parse(&host) {
            return Some(Self::Block(block, port));
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        (!host.is_empty()).then_some(Self::Domain(host, port))
    }
}

fn is_under(host: &str, domain: &str) -> bool {
    match host.strip_suffix(domain) {
        Some(rest) => rest.is_empty() || rest.ends_with('.'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn excepts(list: &str, target: &str) -> bool {
        NoProxy::parse(list).excepts(&HostPort::parse(target).unwrap())
    }

    #[test]
    fn a_domain_excepts_itself_and_what_is_under_it() {
        for list in [
            "example.com",
            ".example.com",
            "*.example.com",
            "a.test, EXAMPLE.com.",
            "x example.com",
        ] {
            assert!(excepts(list, "example.com:443"), "{list}");
            assert!(excepts(list, "iap.Example.COM.:443"), "{list}");
            assert!(!excepts(list, "badexample.com:443"), "{list}");
            assert!(!excepts(list, "example.com.evil.test:443"), "{list}");
        }
        assert!(!excepts("", "example.com:443"));
        assert!(!excepts(" , ,", "example.com:443"));
    }

    #[test]
    fn addresses_and_blocks_except_addresses_and_never_names() {
        assert!(excepts("192.0.2.7", "192.0.2.7:443") && !excepts("192.0.2.7", "192.0.2.8:443"));
        assert!(excepts("10.0.0.0/8", "10.9.8.7:443") && !excepts("10.0.0.0/8", "11.0.0.1:443"));
        assert!(
            excepts("2001:db8::/32", "[2001:db8::1]:443") && excepts("[2001:db8::1]", "[2001:db8::1]:443")
        );
        assert!(excepts("192.0.2.7", "[::ffff:192.0.2.7]:443"));
        assert!(!excepts("7", "192.0.2.7:443"), "an address has no domains");
    }

    #[test]
    fn an_entry_may_name_a_port() {
        assert!(excepts("example.com:8443", "iap.example.com:8443"));
        assert!(!excepts("example.com:8443", "iap.example.com:443"));
        assert!(excepts("[2001:db8::1]:8443", "[2001:db8::1]:8443"));
        assert!(!excepts("192.0.2.7:8443", "192.0.2.7:443"));
    }

    #[test]
    fn a_star_excepts_everything_and_loopback_needs_no_entry() {
        assert!(excepts("*", "iap.example.com:443"));
        for local in [
            "localhost:1",
            "iap.localhost:1",
            "127.0.0.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(excepts("", local), "{local}");
        }
        assert!(!excepts("", "notlocalhost:1"));
    }
}
