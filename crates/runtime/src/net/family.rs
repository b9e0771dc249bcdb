//! What kind of connection a descriptor is that somebody else has opened.

use std::io;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketType, getsockname, sockopt};

/// What a stream runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// TCP, over IPv4 or IPv6.
    Tcp,
    /// A Unix socket.
    Unix,
}

/// What a stream runs over.
///
/// # Errors
/// When it is no stream's socket.
pub fn stream_family(descriptor: impl AsFd) -> io::Result<Family> {
    let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if sockopt::socket_type(&descriptor)? != SocketType::STREAM {
        return Err(refused("it is no stream"));
    }
    match getsockname(&descriptor)?.address_family() {
        AddressFamily::INET | AddressFamily::INET6 => Ok(Family::Tcp),
        AddressFamily::UNIX => Ok(Family::Unix),
        _ => Err(refused("it is neither TCP nor a Unix socket")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn streams_are_told_from_everything_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(stream_family(&stream).unwrap(), Family::Tcp);
        let (stream, _other) = UnixStream::pair().unwrap();
        assert_eq!(stream_family(&stream).unwrap(), Family::Unix);
        assert!(stream_family(UdpSocket::bind("127.0.0.1:0").unwrap()).is_err());
        assert!(stream_family(UnixDatagram::unbound().unwrap()).is_err());
        assert!(stream_family(tempfile::tempfile().unwrap()).is_err());
    }
}
