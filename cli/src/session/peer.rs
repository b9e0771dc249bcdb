//! Who is at the other end of a local connection: on Linux only the user who runs `iapctl` may be.
//!
//! Loopback is open to every account of the machine; the kernel's socket tables say whose socket it is.

use std::net::SocketAddr;

/// Whose process is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// One of the user who runs `iapctl`.
    Ours,
    /// Another user's.
    Others,
    /// No process has it open any more: the kernel does not say whose it was.
    Nobodys,
}

/// Whose process a connection accepted at `local` from `peer` comes from.
///
/// # Errors
/// When the kernel's tables cannot be read.
#[cfg(target_os = "linux")]
pub(super) fn whose(local: SocketAddr, peer: SocketAddr) -> std::io::Result<Whose> {
    let own = rustix::process::geteuid().as_raw();
    Ok(match owner(local, peer)? {
        Some(owner) if owner == own => Whose::Ours,
        Some(_) => Whose::Others,
        None => Whose::Nobodys,
    })
}

/// Elsewhere there is no such table to ask.
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub(super) fn whose(_local: SocketAddr, _peer: SocketAddr) -> std::io::Result<Whose> {
    Ok(Whose::Ours)
}

/// The user whose socket is connected from `peer` to `local`.
#[cfg(target_os = "linux")]
fn owner(local: SocketAddr, peer: SocketAddr) -> std::io::Result<Option<u32>> {
    match super::sock_diag::owner(peer, local) {
        Ok(owner) => Ok(owner),
        Err(_) => owner_in_tables(local, peer),
    }
}

/// The same from the tables that every kernel has. A client with a dual-stack socket is listed among the IPv6
/// sockets even when it speaks IPv4.
#[cfg(target_os = "linux")]
fn owner_in_tables(local: SocketAddr, peer: SocketAddr) -> std::io::Result<Option<u32>> {
    if local.is_ipv4() {
        let found = owner_in(
            &std::fs::read_to_string("/proc/net/tcp")?,
            &row(peer),
            &row(local),
        );
        if found.is_some() {
            return Ok(found);
        }
    }
    let table = match std::fs::read_to_string("/proc/net/tcp6") {
        Ok(table) => table,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(owner_in(&table, &row(mapped(peer)), &row(mapped(local))))
}

/// The uid in the row of the socket whose own address is `own` and whose peer is `remote`. A socket that no process
/// has open any more (inode 0) is nobody's, although its row says 0.
#[cfg(target_os = "linux")]
fn owner_in(table: &str, own: &str, remote: &str) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let matches = fields.next()? == own && fields.next()? == remote;
        // After the addresses: state, queues, timer, retransmits, uid, timeout, inode (proc_pid_net(5)).
        if !matches {
            return None;
        }
        let uid = fields.nth(4)?.parse().ok()?;
        let inode: u64 = fields.nth(1)?.parse().ok()?;
        (inode != 0).then_some(uid)
    })
}

/// An address as the tables write it: 32-bit words in the machine's byte order, then the port.
#[cfg(target_os = "linux")]
fn row(address: SocketAddr) -> String {
    let word = |bytes: &[u8]| {
        let bytes: [u8; 4] = bytes.try_into().unwrap_or_default();
        format!("{:08X}", u32::from_ne_bytes(bytes))
    };
    let text: String = match address {
        SocketAddr::V4(address) => word(&address.ip().octets()),
        SocketAddr::V6(address) => address.ip().octets().chunks(4).map(word).collect(),
    };
    format!("{text}:{:04X}", address.port())
}

#[cfg(target_os = "linux")]
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
        SocketAddr::V6(_) => address,
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::{TcpListener, TcpStream};

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n\
        \x20  1: 0100007F:D431 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1234        0 2 1\n\
        \x20  2: 0100007F:D432 0100007F:1F90 05 00000000:00000000 00:00000000 00000000     0        0 0 1\n";

    #[test]
    fn the_owner_is_that_of_the_clients_end() {
        assert_eq!(owner_in(TABLE, "0100007F:D431", "0100007F:1F90"), Some(1234));
        assert_eq!(owner_in(TABLE, "0100007F:1F90", "0100007F:D431"), None);
        assert_eq!(owner_in(TABLE, "0100007F:D432", "0100007F:1F90"), None);
    }

    #[test]
    fn a_client_that_has_closed_its_socket_is_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let client = TcpStream::connect(local).unwrap();
        let (_accepted, peer) = listener.accept().unwrap();
        drop(client);
        assert_eq!(super::super::sock_diag::owner(peer, local).unwrap(), None);
        assert_eq!(owner_in_tables(local, peer).unwrap(), None);
        assert_eq!(whose(local, peer).unwrap(), Whose::Nobodys);
    }

    #[test]
    fn a_connection_of_our_own_is_ours_and_one_nobody_holds_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let client = TcpStream::connect(local).unwrap();
        let (_accepted, peer) = listener.accept().unwrap();
        assert_eq!(whose(local, peer).unwrap(), Whose::Ours);
        let own = Some(rustix::process::geteuid().as_raw());
        assert_eq!(
            owner_in_tables(local, peer).unwrap(),
            own,
            "the slow way says the same"
        );
        drop(client);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(whose(local, nowhere).unwrap(), Whose::Nobodys);
    }

    #[test]
    fn a_dual_stack_client_is_recognised() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None);
        let Ok(socket) = socket else {
            return;
        };
        if socket.set_only_v6(false).is_err() || socket.connect(&mapped(local).into()).is_err() {
            return;
        }
        let (_accepted, peer) = listener.accept().unwrap();
        assert_eq!(whose(local, peer).unwrap(), Whose::Ours);
    }
}
