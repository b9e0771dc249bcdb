//! PROXY protocol, version 2 (haproxy's `proxy-protocol.txt` §2.2): how a proxy of ours tells the auth server
//! whom it forwards, a balancer tells a proxy, and an agent tells a backend. Believed only from listed addresses.

pub mod extensions;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::net::Cidr;
use extensions::CRC32C_EXTENSION_BYTES;
pub use extensions::{ExtensionTooLong, Extensions};

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
const UNIX_STREAM: u8 = 0x31;
const IPV4_BODY_BYTES: usize = 12;
const IPV6_BODY_BYTES: usize = 36;
const UNIX_BODY_BYTES: usize = 216;

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
    header(client, server, &[], 0)
}

/// The header with extensions, and a checksum behind them.
pub fn encode_with(client: SocketAddr, server: SocketAddr, extensions: &Extensions) -> Vec<u8> {
    let mut header = header(client, server, extensions.bytes(), CRC32C_EXTENSION_BYTES);
    header.extend([extensions::CRC32C, 0, 4, 0, 0, 0, 0]);
    let sum = extensions::crc32c(header.iter().copied());
    header.truncate(header.len() - 4);
    header.extend(sum.to_be_bytes());
    header
}

/// `more` bytes follow what is returned.
fn header(client: SocketAddr, server: SocketAddr, extensions: &[u8], more: usize) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(VERSION_2 | PROXY);
    // No overflow: Extensions is far shorter than a u16 tells.
    let length = |addresses: usize| {
        let all = addresses + extensions.len() + more;
        u16::try_from(all).unwrap_or(u16::MAX).to_be_bytes()
    };
    match (client.ip().to_canonical(), server.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.push(TCP_OVER_IPV4);
            header.extend(length(IPV4_BODY_BYTES));
            header.extend(from.octets());
            header.extend(to.octets());
        }
        (from, to) => {
            header.push(TCP_OVER_IPV6);
            header.extend(length(IPV6_BODY_BYTES));
            header.extend(as_ipv6(from).octets());
            header.extend(as_ipv6(to).octets());
        }
    }
    header.extend(client.port().to_be_bytes());
    header.extend(server.port().to_be_bytes());
    header.extend(extensions);
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
    let mut header = head.to_vec();
    header.resize(HEAD_BYTES + body_bytes, 0);
    let body = header.get_mut(HEAD_BYTES..).unwrap_or_default();
    stream.read_exact(body).await?;
    parse_body(command, family, &header)
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

/// A sender that speaks for itself is believed whatever else it says (§2.2: the receiver must use the real
/// addresses). One that forwards from a Unix socket is on its own machine: the peer is all there is to know.
fn parse_body(command: u8, family: u8, header: &[u8]) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    let body = header.get(HEAD_BYTES..).unwrap_or_default();
    let (address, extensions) = match (command, family) {
        (LOCAL, _) => return Ok(None),
        (PROXY, TCP_OVER_IPV4) => {
            let (addresses, extensions) = body.split_first_chunk::<IPV4_BODY_BYTES>().ok_or(TRUNCATED)?;
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *addresses;
            (
                Some(client(Ipv4Addr::new(a, b, c, d).into(), [high, low])),
                extensions,
            )
        }
        (PROXY, TCP_OVER_IPV6) => {
            let (from, rest) = body.split_first_chunk::<16>().ok_or(TRUNCATED)?;
            let (_to, rest) = rest.split_first_chunk::<16>().ok_or(TRUNCATED)?;
            let ([high, low, _, _], extensions) = rest.split_first_chunk::<4>().ok_or(TRUNCATED)?;
            (
                Some(client(Ipv6Addr::from(*from).into(), [*high, *low])),
                extensions,
            )
        }
        (PROXY, UNIX_STREAM) => (None, body.get(UNIX_BODY_BYTES..).ok_or(TRUNCATED)?),
        (PROXY, _) => {
            return Err(ProxyHeaderError::Malformed(
                "not a stream over IPv4, IPv6 or a Unix socket",
            ));
        }
        (_, _) => return Err(ProxyHeaderError::Malformed("unknown command")),
    };
    extensions::check(header, extensions)?;
    Ok(address)
}

fn client(address: IpAddr, port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(address.to_canonical(), u16::from_be_bytes(port))
}

const TRUNCATED: ProxyHeaderError = ProxyHeaderError::Malformed("shorter than its addresses");

fn as_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests;
