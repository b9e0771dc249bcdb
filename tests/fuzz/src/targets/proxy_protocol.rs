//! PROXY protocol, version 2: not one byte beyond the header is read, and the `ppp` crate reads the same client.

use std::net::SocketAddr;
use std::time::Duration;

use iap_runtime::net::Cidr;
use iap_runtime::proxy_protocol::extensions::{CRC32C, USER_NAME};
use iap_runtime::proxy_protocol::{BODY_BYTES_MAX, Extensions, SIGNATURE, encode, encode_with, read};
use ppp::v2::{Addresses, Command, Header, Protocol};

use super::Seeds;
use crate::input::{Wire, block_on, choice};

const HEAD_BYTES: usize = 16;

pub(crate) fn run(bytes: &[u8]) {
    let Some((size, stream)) = choice(bytes, u8::MAX) else {
        return;
    };
    raw(stream, size);
    raw(&[&SIGNATURE, stream].concat(), size);
}

fn raw(stream: &[u8], size: u8) {
    let peer: SocketAddr = "127.0.0.1:5000".parse().unwrap();
    let allowed = [Cidr::parse("127.0.0.0/8").unwrap()];
    let mut wire = Wire::new(stream, size);
    let ours = block_on(read(&mut wire, peer, &allowed, Duration::from_secs(5)));
    let used = stream.len() - wire.rest().len();
    assert!(used <= HEAD_BYTES + BODY_BYTES_MAX, "{used} bytes were read");
    let theirs = Header::try_from(stream).ok();
    match &ours {
        Ok(client) => {
            let length = usize::from(u16::from_be_bytes([stream[14], stream[15]]));
            assert_eq!(used, HEAD_BYTES + length, "the header and nothing else");
            // What stands in the place of a family is ignored with LOCAL (§2.2), which ppp does not do.
            if stream[12] & 0x0f == 0 {
                assert_eq!(*client, peer);
                return;
            }
            let theirs = theirs.unwrap_or_else(|| panic!("ppp refuses what was read as {client}"));
            // Behind a Unix socket there is only the peer to know.
            assert_eq!(source(&theirs).unwrap_or(peer), *client);
            assert!(
                theirs.tlvs().all(|extension| extension.is_ok()),
                "an extension is cut short"
            );
        }
        Err(error) => {
            let acceptable = theirs.filter(|theirs| {
                source(theirs).is_some()
                    && theirs.protocol == Protocol::Stream
                    && theirs.length() <= BODY_BYTES_MAX
                    // ppp does not check sums.
                    && theirs.tlvs().all(|extension| extension.is_ok_and(|extension| extension.kind != CRC32C))
            });
            assert!(acceptable.is_none(), "{error}: {acceptable:?}");
        }
    }
}

/// The client that a header speaks for.
fn source(header: &Header<'_>) -> Option<SocketAddr> {
    if header.command == Command::Local {
        return None;
    }
    match header.addresses {
        Addresses::IPv4(addresses) => Some(SocketAddr::new(
            addresses.source_address.into(),
            addresses.source_port,
        )),
        Addresses::IPv6(addresses) => {
            let address = std::net::IpAddr::from(addresses.source_address).to_canonical();
            Some(SocketAddr::new(address, addresses.source_port))
        }
        Addresses::Unspecified | Addresses::Unix(_) => None,
    }
}

pub(crate) fn seeds() -> Seeds {
    let four = encode(
        "192.0.2.7:1025".parse().unwrap(),
        "192.0.2.1:443".parse().unwrap(),
    );
    let six = encode(
        "[2001:db8::7]:9".parse().unwrap(),
        "[2001:db8::1]:443".parse().unwrap(),
    );
    let mixed = encode(
        "192.0.2.7:1025".parse().unwrap(),
        "[2001:db8::1]:443".parse().unwrap(),
    );
    let local = [SIGNATURE.as_slice(), &[0x20, 0, 0, 0]].concat();
    let mut extended = four.clone();
    extended[15] += 7;
    extended.extend([4, 0, 4, 1, 2, 3, 4]);
    let mut extensions = Extensions::default();
    extensions.push(USER_NAME, "alice@example.com").unwrap();
    let summed = encode_with(
        "192.0.2.7:1025".parse().unwrap(),
        "192.0.2.1:443".parse().unwrap(),
        &extensions,
    );
    let unix = [SIGNATURE.as_slice(), &[0x21, 0x31, 0, 216], &[0; 216]].concat();
    let named = |name: &str, size: u8, bytes: &[u8]| (name.to_owned(), [&[size], bytes].concat());
    vec![
        named("ipv4", 0, &four),
        named("ipv6", 5, &six),
        named("mixed", 0, &mixed),
        named("local", 1, &local),
        named("extended", 0, &[extended.as_slice(), b"\x16\x03\x01"].concat()),
        named("unix", 0, &unix),
        named("summed", 0, &summed),
        named("without-signature", 0, &four[SIGNATURE.len()..]),
    ]
}
