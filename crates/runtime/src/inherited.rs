//! Sockets that whoever started the program has bound for it: `sd_listen_fds(3)`.
//!
//! A socket unit holds the port while the program restarts, so that clients wait in its queue instead of being refused, and
//! the program needs no right to bind low ports. Sockets are found by the address in the configuration, which therefore
//! says the same with and without them.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use listenfd::ListenFd;

/// The sockets, until each is taken.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<(SocketAddr, TcpListener)>,
    udp: Vec<(SocketAddr, UdpSocket)>,
}

impl Inherited {
    /// Those that the environment (`LISTEN_PID`, `LISTEN_FDS`) names; none when it names none. Ask once: they are
    /// handed out once.
    ///
    /// # Errors
    /// When one is neither a TCP listener nor a UDP socket.
    pub fn from_environment() -> io::Result<Self> {
        let mut passed = ListenFd::from_env();
        let mut all = Self::default();
        for index in 0..passed.len() {
            if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
                all.add_tcp(listener)?;
            } else if let Some(socket) = passed.take_udp_socket(index)? {
                all.add_udp(socket)?;
            }
        }
        Ok(all)
    }

    fn add_tcp(&mut self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.tcp.push((listener.local_addr()?, listener));
        Ok(())
    }

    fn add_udp(&mut self, socket: UdpSocket) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        self.udp.push((socket.local_addr()?, socket));
        Ok(())
    }

    /// The TCP listener bound to exactly this address, not blocking.
    pub fn take_tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        take(&mut self.tcp, address)
    }

    /// The UDP socket bound to exactly this address, not blocking.
    pub fn take_udp(&mut self, address: SocketAddr) -> Option<UdpSocket> {
        take(&mut self.udp, address)
    }

    /// An address that was passed and nobody wanted: the socket unit and the configuration do not say the same.
    pub fn left_over(&self) -> Option<SocketAddr> {
        let tcp = self.tcp.first().map(|(address, _)| *address);
        tcp.or_else(|| self.udp.first().map(|(address, _)| *address))
    }
}

fn take<S>(sockets: &mut Vec<(SocketAddr, S)>, address: SocketAddr) -> Option<S> {
    let place = sockets.iter().position(|(bound, _)| *bound == address)?;
    Some(sockets.swap_remove(place).1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_socket_is_found_by_its_address_and_handed_out_once() {
        let mut inherited = Inherited::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        inherited.add_tcp(listener).unwrap();
        inherited.add_udp(UdpSocket::bind(address).unwrap()).unwrap();
        let other = SocketAddr::from(([127, 0, 0, 2], address.port()));
        assert!(inherited.take_tcp(other).is_none());
        assert_eq!(inherited.left_over(), Some(address));
        assert_eq!(
            inherited.take_tcp(address).unwrap().local_addr().unwrap(),
            address
        );
        assert!(inherited.take_tcp(address).is_none());
        assert!(inherited.take_udp(address).is_some());
        assert_eq!(inherited.left_over(), None);
    }

    #[test]
    fn without_an_environment_that_names_some_there_are_none() {
        assert_eq!(Inherited::from_environment().unwrap().left_over(), None);
    }
}
