//! PROXY protocol, version 2 (haproxy's `proxy-protocol.txt` §2.2): how a proxy of ours tells the auth server
//! whom it forwards. Believed only from listed addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::net::Cidr;

/// The twelve bytes every header starts with; the first one is 0x0D.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Addresses and extensions of a header longer than this are refused.
pub const BODY_BYTES_MAX: usize = 536;

const HEAD_BYTES: usize = 16;
const VERSION_2: u8 = 0x20;
const LOCAL: u8 = 0x00;
const PROXY: u8 = 0x01;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const IPV4_BODY_BYTES: u16 = 12;
const IPV6_BODY_BYTES: u16 = 36;

/// Why a header was refused.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderError {
    /// The sender is not among those who may assert client addresses.
    #[error("{peer} may not send PROXY headers: it is not in proxy_protocol_from")]
    NotAllowed {
        /// The sender.
        peer: IpAddr,
    },
    /// Not a version 2 header, or not one for TCP.
    #[error("malformed PROXY header: {0}")]
    Malformed(&'static str),
    /// Too slow.
    #[error("no complete PROXY header within {milliseconds} ms")]
    TimedOut {
        /// The limit.
        milliseconds: u128,
    },
    /// The socket failed or closed.
    #[error("cannot read the PROXY header: {0}")]
    Io(#[from] io::Error),
}

/// The header for a connection from `client` to `server`. Addresses of different families are both written as
/// IPv6.
pub fn encode(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(VERSION_2 | PROXY);
    match (client.ip().to_canonical(), server.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.push(TCP_OVER_IPV4);
            header.extend(IPV4_BODY_BYTES.to_be_bytes());
            header.extend(from.octets());
            header.extend(to.octets());
        }
        (from, to) => {
            header.push(TCP_OVER_IPV6);
            header.extend(IPV6_BODY_BYTES.to_be_bytes());
            header.extend(as_ipv6(from).octets());
            header.extend(as_ipv6(to).octets());
        }
    }
    header.extend(client.port().to_be_bytes());
    header.extend(server.port().to_be_bytes());
    header
}

/// Reads a header from `stream`, sent by `peer`, and returns the client's address: `peer` itself when the sender
/// speaks for itself (a health check). Reads not one byte beyond the header.
pub async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    peer: SocketAddr,
    allowed: &[Cidr],
    timeout: Duration,
) -> Result<SocketAddr, ProxyHeaderError> {
    if !may_send(peer.ip(), allowed) {
        return Err(ProxyHeaderError::NotAllowed { peer: peer.ip() });
    }
    match tokio::time::timeout(timeout, read_header(stream)).await {
        Ok(header) => Ok(header?.unwrap_or(peer)),
        Err(_) => Err(ProxyHeaderError::TimedOut {
            milliseconds: timeout.as_millis(),
        }),
    }
}

/// Whether `peer` may assert client addresses.
pub fn may_send(peer: IpAddr, allowed: &[Cidr]) -> bool {
    allowed.iter().any(|block| block.contains(peer))
}

async fn read_header<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head).await?;
    let (command, family, body_bytes) = parse_head(&head)?;
    let mut body = vec![0; body_bytes];
    stream.read_exact(&mut body).await?;
    parse_body(command, family, &body)
}

fn parse_head(head: &[u8; HEAD_BYTES]) -> Result<(u8, u8, usize), ProxyHeaderError> {
    let [signature @ .., command, family, high, low] = head;
    if *signature != SIGNATURE {
        return Err(ProxyHeaderError::Malformed("wrong signature"));
    }
    if command & 0xf0 != VERSION_2 {
        return Err(ProxyHeaderError::Malformed("not version 2"));
    }
    let body_bytes = usize::from(u16::from_be_bytes([*high, *low]));
    if body_bytes > BODY_BYTES_MAX {
        return Err(ProxyHeaderError::Malformed("too long"));
    }
    Ok((command & 0x0f, *family, body_bytes))
}

/// Extensions behind the addresses are skipped: their bytes were read, their content is nothing to us.
fn parse_body(command: u8, family: u8, body: &[u8]) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    match (command, family) {
        (LOCAL, _) => Ok(None),
        (PROXY, TCP_OVER_IPV4) => {
            let (addresses, _) = body.split_first_chunk::<12>().ok_or(TRUNCATED)?;
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *addresses;
            let address = Ipv4Addr::new(a, b, c, d);
            Ok(Some(SocketAddr::new(
                address.into(),
                u16::from_be_bytes([high, low]),
            )))
        }
        (PROXY, TCP_OVER_IPV6) => {
            let (from, rest) = body.split_first_chunk::<16>().ok_or(TRUNCATED)?;
            let (_to, rest) = rest.split_first_chunk::<16>().ok_or(TRUNCATED)?;
            let (ports, _) = rest.split_first_chunk::<4>().ok_or(TRUNCATED)?;
            let [high, low, _, _] = *ports;
            let address = IpAddr::from(Ipv6Addr::from(*from)).to_canonical();
            Ok(Some(SocketAddr::new(address, u16::from_be_bytes([high, low]))))
        }
        (PROXY, _) => Err(ProxyHeaderError::Malformed("not TCP over IPv4 or IPv6")),
        (_, _) => Err(ProxyHeaderError::Malformed("unknown command")),
    }
}

const TRUNCATED: ProxyHeaderError = ProxyHeaderError::Malformed("shorter than its addresses");

fn as_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn trusted() -> Vec<Cidr> {
        vec![Cidr::parse("127.0.0.0/8").unwrap()]
    }

    fn peer() -> SocketAddr {
        "127.0.0.1:5000".parse().unwrap()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn read_bytes(bytes: &[u8]) -> (Result<SocketAddr, ProxyHeaderError>, usize) {
        let mut rest = bytes;
        let result = block_on(read(&mut rest, peer(), &trusted(), TIMEOUT));
        (result, rest.len())
    }

    #[test]
    fn a_header_is_as_the_specification_draws_it() {
        let header = encode(
            "192.0.2.7:1025".parse().unwrap(),
            "192.0.2.1:443".parse().unwrap(),
        );
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
        expected.extend([192, 0, 2, 7, 192, 0, 2, 1, 4, 1, 1, 187]);
        assert_eq!(header, expected);
    }

    #[test]
    fn a_sender_that_is_not_listed_is_refused_before_anything_is_read() {
        let header = encode(
            "192.0.2.7:1025".parse().unwrap(),
            "192.0.2.1:443".parse().unwrap(),
        );
        let mut rest = header.as_slice();
        let stranger = "192.0.2.99:1".parse().unwrap();
        let result = block_on(read(&mut rest, stranger, &trusted(), TIMEOUT));
        assert!(matches!(result, Err(ProxyHeaderError::NotAllowed { .. })));
        assert_eq!(rest.len(), header.len());
    }

    #[test]
    fn a_local_header_speaks_for_its_sender() {
        let mut header = SIGNATURE.to_vec();
        header.extend([VERSION_2 | LOCAL, 0, 0, 0]);
        assert_eq!(read_bytes(&header).0.unwrap(), peer());
    }

    #[test]
    fn faulty_headers_are_refused() {
        let good = encode(
            "192.0.2.7:1025".parse().unwrap(),
            "192.0.2.1:443".parse().unwrap(),
        );
        let changed = |place: usize, value: u8| {
            let mut header = good.clone();
            header[place] = value;
            read_bytes(&header).0
        };
        assert!(changed(12, 0x21).is_ok(), "unchanged");
        assert!(changed(0, b'\n').is_err(), "signature");
        assert!(changed(12, 0x11).is_err(), "version");
        assert!(changed(12, 0x22).is_err(), "command");
        assert!(changed(13, 0x12).is_err(), "UDP");
        assert!(changed(15, 11).is_err(), "too short for its addresses");
        assert!(changed(14, 0xff).is_err(), "too long");
        assert!(read_bytes(&good[..good.len() - 1]).0.is_err(), "truncated");
    }

    proptest! {
        #[test]
        fn a_header_is_read_back_and_nothing_behind_it(from: (u128, u16), to: (u128, u16), four: bool, tail: Vec<u8>) {
            let address = |bits: u128, port| match four {
                true => SocketAddr::new(IpAddr::from(Ipv4Addr::from_bits(bits as u32)), port),
                false => SocketAddr::new(IpAddr::from(Ipv6Addr::from_bits(bits)).to_canonical(), port),
            };
            let client = address(from.0, from.1);
            let mut bytes = encode(client, address(to.0, to.1));
            bytes.extend(&tail);
            let (read, left) = read_bytes(&bytes);
            prop_assert_eq!(read.unwrap(), client);
            prop_assert_eq!(left, tail.len());
        }

        #[test]
        fn no_bytes_make_the_parser_panic(mut bytes: Vec<u8>, with_signature: bool) {
            if with_signature {
                bytes.splice(0..0, SIGNATURE);
            }
            let _ = read_bytes(&bytes);
        }
    }
}
