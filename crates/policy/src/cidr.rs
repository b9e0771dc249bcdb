//! Address ranges, for `in_cidr`.

use std::net::{IpAddr, Ipv6Addr};

/// A range in CIDR notation; a bare address is a range of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AddressRange {
    bits: u128,
    prefix: u32,
    version_4: bool,
}

impl AddressRange {
    /// Reads `203.0.113.0/24`, `2001:db8::/32` or `192.0.2.7`. Bits behind the prefix are ignored;
    /// IPv4-mapped ranges (`::ffff:192.0.2.0/120`) are IPv4 ranges.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(parse_prefix(prefix)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let (width, written_prefix) = match address {
            IpAddr::V4(_) => (32, prefix.unwrap_or(32)),
            IpAddr::V6(_) => (128, prefix.unwrap_or(128)),
        };
        if written_prefix > width {
            return None;
        }
        let prefix = match (address, address.to_canonical()) {
            // An IPv4-mapped range that reaches beyond the mapped block is an IPv6 range.
            (IpAddr::V6(_), IpAddr::V4(_)) if written_prefix < 96 => {
                return Some(Self {
                    bits: to_bits(address),
                    prefix: written_prefix,
                    version_4: false,
                });
            }
            (IpAddr::V6(_), IpAddr::V4(_)) => written_prefix - 96,
            (IpAddr::V4(_) | IpAddr::V6(_), _) => written_prefix,
        };
        let canonical = address.to_canonical();
        Some(Self {
            bits: to_bits(canonical),
            prefix,
            version_4: canonical.is_ipv4(),
        })
    }

    /// Whether `address` lies in the range.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if address.is_ipv4() != self.version_4 {
            return false;
        }
        let width: u32 = if self.version_4 { 32 } else { 128 };
        let ignored = width - self.prefix.min(width);
        // `>> 128` is an overflow, and a prefix of 0 contains everything.
        let shift = |bits: u128| bits.checked_shr(ignored).unwrap_or(0);
        shift(to_bits(address)) == shift(self.bits)
    }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(Ipv6Addr::from(address.octets())),
    }
}

fn parse_prefix(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    let padded = text.len() > 1 && text.starts_with('0');
    if plain && !padded { text.parse().ok() } else { None }
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

    fn contains(range: &str, address: &str) -> bool {
        AddressRange::parse(range)
            .expect(range)
            .contains(address.parse().expect(address))
    }

    #[test]
    fn addresses_inside_and_outside_are_told_apart() {
        for (range, address, expected) in [
            ("203.0.113.0/24", "203.0.113.255", true),
            ("203.0.113.0/24", "203.0.114.0", false),
            ("203.0.113.7/24", "203.0.113.1", true),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "::1", true),
            ("::/0", "1.2.3.4", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "11.1.2.3", false),
        ] {
            assert_eq!(contains(range, address), expected, "{address} in {range}");
        }
    }

    #[test]
    fn malformed_ranges_are_refused() {
        for text in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "a/8",
            "1.2.3.4/8/8",
        ] {
            assert_eq!(AddressRange::parse(text), None, "{text}");
        }
    }
}
