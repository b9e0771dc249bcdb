//! A network in between: passes TCP and UDP of one port on, may lose all UDP, and may change the address that
//! the far end sees.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

const POLL: Duration = Duration::from_millis(20);
const DATAGRAM_BYTES_MAX: usize = 65_536;
const PORT_CHOICES_MAX: usize = 64;

/// A relay to one server. It ends with the value; connections that are open end with their peers.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    udp_lost: AtomicBool,
    tcp_refused: AtomicBool,
    datagrams_back: AtomicU64,
    stopped: AtomicBool,
    /// What the far end sees.
    outer: Mutex<Arc<UdpSocket>>,
    client: Mutex<Option<SocketAddr>>,
}

impl Relay {
    /// Passes on to `target` whatever comes to [`address`](Self::address).
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        let (listener, inner) = bind_both()?;
        let address = listener.local_addr()?;
        let outer = outer_socket(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        let state = Arc::new(State {
            target,
            udp_lost: AtomicBool::new(false),
            tcp_refused: AtomicBool::new(false),
            datagrams_back: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            outer: Mutex::new(Arc::new(outer)),
            client: Mutex::default(),
        });
        inner.set_read_timeout(Some(POLL))?;
        listener.set_nonblocking(true)?;
        let inner = Arc::new(inner);
        let (there, back, tcp) = (Arc::clone(&state), Arc::clone(&state), Arc::clone(&state));
        let inner_back = Arc::clone(&inner);
        thread::spawn(move || there.datagrams_there(&inner));
        thread::spawn(move || back.datagrams_back(&inner_back));
        thread::spawn(move || tcp.connections(&listener));
        Ok(Self { address, state })
    }

    /// Where the relay listens, TCP and UDP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Loses every datagram from now on, or no longer.
    pub fn lose_udp(&self, lost: bool) {
        self.state.udp_lost.store(lost, Ordering::Relaxed);
    }

    /// Closes every TCP connection that comes from now on, or no longer.
    pub fn refuse_tcp(&self, refused: bool) {
        self.state.tcp_refused.store(refused, Ordering::Relaxed);
    }

    /// From now on the far end sees datagrams come from another port of `address`.
    ///
    /// # Errors
    /// When no port is free.
    pub fn move_to(&self, address: IpAddr) -> io::Result<()> {
        let socket = Arc::new(outer_socket(address)?);
        *self.state.outer.lock().unwrap_or_else(PoisonError::into_inner) = socket;
        Ok(())
    }

    /// How many datagrams came back from the far end.
    #[must_use]
    pub fn datagrams_back(&self) -> u64 {
        self.state.datagrams_back.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
    }
}

impl State {
    fn runs(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    fn loses(&self) -> bool {
        self.udp_lost.load(Ordering::Relaxed)
    }

    fn outer(&self) -> Arc<UdpSocket> {
        Arc::clone(&self.outer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn datagrams_there(&self, inner: &UdpSocket) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        while self.runs() {
            let Ok((bytes, client)) = inner.recv_from(&mut buffer) else {
                continue;
            };
            *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client);
            if !self.loses() {
                let _ = self
                    .outer()
                    .send_to(buffer.get(..bytes).unwrap_or_default(), self.target);
            }
        }
    }

    fn datagrams_back(&self, inner: &UdpSocket) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        while self.runs() {
            let Ok((bytes, _)) = self.outer().recv_from(&mut buffer) else {
                continue;
            };
            let client = *self.client.lock().unwrap_or_else(PoisonError::into_inner);
            if let (Some(client), false) = (client, self.loses()) {
                self.datagrams_back.fetch_add(1, Ordering::Relaxed);
                let _ = inner.send_to(buffer.get(..bytes).unwrap_or_default(), client);
            }
        }
    }

    fn connections(&self, listener: &TcpListener) {
        while self.runs() {
            match listener.accept() {
                Ok((client, _)) if self.tcp_refused.load(Ordering::Relaxed) => drop(client),
                Ok((client, _)) => {
                    let _ = self.connection(client);
                }
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    fn connection(&self, client: TcpStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_nodelay(true)?;
        let server = TcpStream::connect(self.target)?;
        server.set_nodelay(true)?;
        let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || pass(&client, &server));
        thread::spawn(move || pass(&server_too, &client_too));
        Ok(())
    }
}

fn pass(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(bytes) = from.read(&mut buffer) {
        let piece = buffer.get(..bytes).unwrap_or_default();
        if bytes == 0 || to.write_all(piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn outer_socket(address: IpAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, 0))?;
    socket.set_read_timeout(Some(POLL))?;
    Ok(socket)
}

/// The same port for both.
fn bind_both() -> io::Result<(TcpListener, UdpSocket)> {
    let mut last = io::Error::other("no port");
    for _ in 0..PORT_CHOICES_MAX {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        match UdpSocket::bind(listener.local_addr()?) {
            Ok(socket) => return Ok((listener, socket)),
            Err(error) => last = error,
        }
    }
    Err(last)
}
