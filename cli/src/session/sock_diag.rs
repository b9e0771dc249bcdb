//! One question to the kernel: which user's socket is connected from here to there?
//!
//! `NETLINK_SOCK_DIAG` (sock_diag(7)) looks one connection up in a hash table; reading `/proc/net/tcp` lists every
//! connection of the machine each time, which costs milliseconds where there are many.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

/// `SOCK_DIAG_BY_FAMILY` in `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR` in `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
/// `NLM_F_REQUEST` in `linux/netlink.h`.
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `nlmsghdr` (16 bytes) and `inet_diag_req_v2` (56 bytes).
const REQUEST_BYTES: usize = 72;
/// Into the answer: `nlmsghdr`, four bytes, `inet_diag_sockid` (48), expiry and the two queues.
const UID_OFFSET: usize = 16 + 4 + 48 + 12;
const INODE_OFFSET: usize = UID_OFFSET + 4;
const ANSWER_BYTES_MAX: usize = 4096;
/// The kernel answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const NO_ENTRY: i32 = -2;

/// The user of the TCP socket whose own address is `own` and whose peer is `remote`; `None` when there is none, or
/// no process has it open any more: the kernel then says user 0, whoever it was.
///
/// # Errors
/// When the kernel cannot be asked: it was built without `inet_diag`, or a filter forbids it.
pub(super) fn owner(own: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(SOCK_DIAG),
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    sendto(
        &socket,
        &request(own, remote),
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    let mut answer = [0_u8; ANSWER_BYTES_MAX];
    let (_, length) = recv(&socket, &mut answer, RecvFlags::empty())?;
    read_answer(answer.get(..length).unwrap_or(&answer))
}

fn request(own: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST_BYTES);
    bytes.extend(u32::try_from(REQUEST_BYTES).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: one question, one answer.
    bytes.extend([0; 8]);
    bytes.extend([if own.is_ipv4() { AF_INET } else { AF_INET6 }, IPPROTO_TCP, 0, 0]);
    // Any state.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(own.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    bytes.extend(address(own.ip()));
    bytes.extend(address(remote.ip()));
    // Any interface, and no cookie (INET_DIAG_NOCOOKIE).
    bytes.extend([0; 4]);
    bytes.extend([0xff; 8]);
    bytes
}

/// Four 32-bit words in network order, of which IPv4 uses the first.
fn address(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => {
            for (slot, byte) in bytes.iter_mut().zip(ip.octets()) {
                *slot = byte;
            }
        }
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

fn read_answer(answer: &[u8]) -> io::Result<Option<u32>> {
    let kind = word(answer, 4).map(|word| u16::from_ne_bytes([word[0], word[1]]));
    match kind {
        Some(SOCK_DIAG_BY_FAMILY) => match (word(answer, UID_OFFSET), word(answer, INODE_OFFSET)) {
            (Some(_), Some([0, 0, 0, 0])) => Ok(None),
            (Some(uid), Some(_)) => Ok(Some(u32::from_ne_bytes(uid))),
            (_, None) | (None, _) => Err(io::Error::other("the kernel's answer is cut short")),
        },
        Some(NLMSG_ERROR) => match word(answer, 16).map(i32::from_ne_bytes) {
            Some(NO_ENTRY) => Ok(None),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            None => Err(io::Error::other("the kernel's answer is cut short")),
        },
        Some(other) => Err(io::Error::other(format!(
            "the kernel answered with message type {other}"
        ))),
        None => Err(io::Error::other("the kernel's answer is cut short")),
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<[u8; 4]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_request_has_the_kernels_layout() {
        let bytes = request("127.0.0.1:258".parse().unwrap(), "127.0.0.2:772".parse().unwrap());
        assert_eq!(bytes.len(), REQUEST_BYTES);
        assert_eq!(bytes[16..20], [AF_INET, IPPROTO_TCP, 0, 0]);
        assert_eq!(bytes[24..28], [1, 2, 3, 4]);
        assert_eq!(
            (&bytes[28..32], &bytes[44..48]),
            (&[127, 0, 0, 1][..], &[127, 0, 0, 2][..])
        );
    }

    #[test]
    fn an_answer_cut_short_and_an_unknown_one_are_errors() {
        for length in 0..INODE_OFFSET + 4 {
            let mut answer = vec![0; length];
            if let Some(kind) = answer.get_mut(4..6) {
                kind.copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            }
            assert!(read_answer(&answer).is_err(), "{length} bytes");
        }
        assert!(read_answer(&[9; 100]).is_err());
    }
}
