//! What the kernel knows of how far a TCP connection has come, whoever has read and written it: sock_diag(7), and `struct
//! tcp_info` of `linux/tcp.h`.

use std::io;
use std::os::fd::AsFd;

/// How far a connection has come. The numbers are to be compared with others of the same connection: what counts besides
/// bytes (the connection's beginning) is in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpCounts {
    /// Bytes that were given to the connection, sent or not.
    pub written: u64,
    /// Whether its end was given to it.
    pub is_shut: bool,
    /// Bytes that were read from it. Looking (`MSG_PEEK`) is not reading.
    pub read: u64,
    /// Whether all were read that will ever come.
    pub is_at_end: bool,
}

/// How far this connection has come. Nobody may read or write it meanwhile.
///
/// # Errors
/// When it is no TCP connection, or none any more, or the process may not ask (`AF_NETLINK`).
pub fn tcp_counts(connection: impl AsFd) -> io::Result<TcpCounts> {
    #[cfg(target_os = "linux")]
    {
        linux::tcp_counts(connection.as_fd())
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = connection;
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::net::{IpAddr, SocketAddr};
    use std::os::fd::{BorrowedFd, OwnedFd};

    use rustix::io::Errno;
    use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, getpeername, getsockname, recv, sendto,
        socket_with, sockopt,
    };

    use super::TcpCounts;

    /// `struct nlmsghdr`.
    const HEADER_BYTES: usize = 16;
    /// `struct inet_diag_req_v2`.
    const REQUEST_BYTES: usize = 56;
    /// `struct inet_diag_msg`.
    const ANSWER_BYTES: usize = 72;
    /// Any answer is shorter.
    const MESSAGE_BYTES_MAX: usize = 8192;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    const NLMSG_ERROR: u16 = 2;
    const INET_DIAG_INFO: u16 = 2;
    /// How often it is asked until nothing arrives between two answers.
    const TRIES_MAX: usize = 1000;

    /// What one answer says.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Answer {
        state: u8,
        unread: u32,
        unacknowledged: u32,
        acknowledged: u64,
        received: u64,
    }

    pub(super) fn tcp_counts(connection: BorrowedFd<'_>) -> io::Result<TcpCounts> {
        let request = request(connection)?;
        let looked = recv(connection, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        let is_at_end = match looked {
            Ok((_, count)) => count == 0,
            Err(Errno::AGAIN) => false,
            Err(error) => return Err(error.into()),
        };
        let flags = SocketFlags::CLOEXEC;
        let netlink = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(SOCK_DIAG))?;
        // The queues and the rest of an answer are not looked at in one moment. As the numbers only grow while nobody
        // reads and writes, two answers that are equal are of one.
        let mut before = ask(&netlink, &request)?;
        for _ in 0..TRIES_MAX {
            let answer = ask(&netlink, &request)?;
            if answer == before {
                return answer
                    .counts(is_at_end)
                    .ok_or_else(|| unusable("it makes no sense"));
            }
            before = answer;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    impl Answer {
        fn counts(&self, is_at_end: bool) -> Option<TcpCounts> {
            // Of `enum` in `net/tcp_states.h`: FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING.
            let is_shut = matches!(self.state, 4 | 5 | 9 | 11);
            let written = self.acknowledged.checked_add(self.unacknowledged.into())?;
            // An end counts as a byte. Whoever reads the last byte may have read the end with it, or not.
            let read = match is_at_end {
                true => self.received.checked_sub(1)?,
                false => self.received.checked_sub(self.unread.into())?,
            };
            Some(TcpCounts {
                written: written.checked_sub(is_shut.into())?,
                is_shut,
                read,
                is_at_end,
            })
        }

        fn parse(message: &[u8]) -> io::Result<Self> {
            let kind = u16_at(message, 4);
            if kind == Some(NLMSG_ERROR) {
                let code = u32_at(message, HEADER_BYTES).unwrap_or_default();
                return Err(io::Error::from_raw_os_error(0_i32.wrapping_sub_unsigned(code)));
            }
            Self::read(message)
                .filter(|_| kind == Some(SOCK_DIAG_BY_FAMILY))
                .ok_or_else(|| unusable("it says less than it should"))
        }

        fn read(message: &[u8]) -> Option<Self> {
            let body = message.get(HEADER_BYTES..)?;
            let info = attribute(body.get(ANSWER_BYTES..)?, INET_DIAG_INFO)?;
            Some(Self {
                state: *body.get(1)?,
                unread: u32_at(body, 56)?,
                unacknowledged: u32_at(body, 60)?,
                acknowledged: u64_at(info, 120)?,
                received: u64_at(info, 128)?,
            })
        }
    }

    /// The `struct rtattr` of that kind.
    fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
        loop {
            let length = usize::from(u16_at(attributes, 0)?);
            let content = attributes.get(4..length)?;
            if u16_at(attributes, 2)? == wanted {
                return Some(content);
            }
            attributes = attributes.get(length.next_multiple_of(4)..)?;
        }
    }

    fn request(connection: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
        let address = |named: rustix::net::SocketAddrAny| {
            SocketAddr::try_from(named).map_err(|_| unusable("it is no TCP connection"))
        };
        let near = address(getsockname(connection)?)?;
        let far = getpeername(connection)?.ok_or(io::ErrorKind::NotConnected)?;
        let far = address(far)?;
        let (family, scope) = match far {
            SocketAddr::V4(_) => (AddressFamily::INET, 0),
            SocketAddr::V6(far) => (AddressFamily::INET6, far.scope_id()),
        };
        let mut request = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
        let length = (HEADER_BYTES + REQUEST_BYTES) as u32;
        request.extend_from_slice(&length.to_ne_bytes());
        request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        request.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        // Its number and whose it is, which the kernel repeats.
        request.extend_from_slice(&[0; 8]);
        let family = u8::try_from(family.as_raw()).unwrap_or_default();
        let extensions = 1 << (INET_DIAG_INFO - 1);
        request.extend_from_slice(&[family, TCP, extensions, 0]);
        // In any state.
        request.extend_from_slice(&u32::MAX.to_ne_bytes());
        request.extend_from_slice(&near.port().to_be_bytes());
        request.extend_from_slice(&far.port().to_be_bytes());
        for address in [near.ip(), far.ip()] {
            request.extend_from_slice(&sixteen_bytes(address));
        }
        request.extend_from_slice(&scope.to_ne_bytes());
        // This very socket, and none that has its addresses by now.
        let cookie = sockopt::socket_cookie(connection)?;
        for half in [cookie & u64::from(u32::MAX), cookie >> 32] {
            request.extend_from_slice(&u32::try_from(half).unwrap_or_default().to_ne_bytes());
        }
        Ok(request)
    }

    const TCP: u8 = 6;

    fn sixteen_bytes(address: IpAddr) -> [u8; 16] {
        match address {
            IpAddr::V6(address) => address.octets(),
            IpAddr::V4(address) => {
                let mut all = [0; 16];
                for (to, from) in all.iter_mut().zip(address.octets()) {
                    *to = from;
                }
                all
            }
        }
    }

    /// The kernel has answered once it has taken the question.
    fn ask(netlink: &OwnedFd, request: &[u8]) -> io::Result<Answer> {
        sendto(
            netlink,
            request,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )?;
        let mut message = [0; MESSAGE_BYTES_MAX];
        let (_, length) = recv(netlink, &mut message, RecvFlags::DONTWAIT)?;
        Answer::parse(message.get(..length).unwrap_or_default())
    }

    fn unusable(what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
    }

    fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
    }

    fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
    }

    fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use rustix::net::{RecvFlags, recv};

    use super::*;

    fn pair(address: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(address).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    /// What was written and read since `start`.
    fn since(start: TcpCounts, connection: &TcpStream) -> (u64, u64) {
        let now = tcp_counts(connection).unwrap();
        assert!(!now.is_shut && !now.is_at_end, "{now:?}");
        (now.written - start.written, now.read - start.read)
    }

    #[test]
    fn what_was_read_and_written_is_counted_whether_or_not_it_has_arrived() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (mut near, mut far) = pair(address);
            let start = tcp_counts(&near).unwrap();
            near.write_all(&[1; 1000]).unwrap();
            assert_eq!(since(start, &near), (1000, 0));
            far.write_all(&[2; 500]).unwrap();
            assert_eq!(since(start, &near), (1000, 0));
            let mut piece = [0; 200];
            recv(&near, &mut piece, RecvFlags::PEEK).unwrap();
            assert_eq!(since(start, &near), (1000, 0));
            near.read_exact(&mut piece).unwrap();
            assert_eq!(since(start, &near), (1000, 200));
            // Thrown away without a copy.
            piece.fill(9);
            let (_, thrown) = recv(&near, &mut piece[..150], RecvFlags::TRUNC).unwrap();
            assert_eq!((thrown, piece[0]), (150, 9));
            assert_eq!(since(start, &near), (1000, 350));
            // More than the other end takes.
            near.set_nonblocking(true).unwrap();
            let mut written = 1000;
            while let Ok(count) = near.write(&[3; 60_000]) {
                written += count as u64;
            }
            assert_eq!(since(start, &near), (written, 350));
            let mut arrived = vec![0; usize::try_from(written).unwrap()];
            far.read_exact(&mut arrived).unwrap();
            assert_eq!(since(start, &near), (written, 350));
        }
    }

    #[test]
    fn an_end_is_no_byte_whether_it_was_read_with_the_last_one_or_not() {
        for sizes in [[3, 10], [10, 10], [2, 1]] {
            let (near, mut far) = pair("127.0.0.1:0");
            let start = tcp_counts(&near).unwrap();
            far.write_all(b"all").unwrap();
            far.shutdown(Shutdown::Write).unwrap();
            assert_eq!(since(start, &near), (0, 0));
            let mut space = [0; 10];
            let mut read = 0;
            for size in sizes {
                read += recv(&near, &mut space[..size], RecvFlags::TRUNC).unwrap().1;
            }
            let now = tcp_counts(&near).unwrap();
            assert_eq!(
                (read, now.read - start.read, now.is_at_end),
                (3, 3, true),
                "{sizes:?}"
            );
        }
        let (mut near, _far) = pair("127.0.0.1:0");
        let start = tcp_counts(&near).unwrap();
        near.write_all(b"hello").unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        let now = tcp_counts(&near).unwrap();
        assert_eq!((now.written - start.written, now.is_shut), (5, true));
    }

    #[test]
    fn what_is_no_connection_any_more_is_not_counted() {
        let (near, far) = pair("127.0.0.1:0");
        near.shutdown(Shutdown::Write).unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        assert!(tcp_counts(&near).is_err());
        assert!(tcp_counts(UnixStream::pair().unwrap().0).is_err());
        assert!(tcp_counts(TcpListener::bind("127.0.0.1:0").unwrap()).is_err());
    }
}
