//! A network in between: passes TCP and UDP of one port on, may be slow, may lose datagrams, and may change the
//! address that the far end sees.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

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
    plain_swallowed: AtomicBool,
    delay_milliseconds: AtomicU64,
    /// Of a thousand datagrams, how many are lost.
    lost_per_mille: AtomicU64,
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
            plain_swallowed: AtomicBool::new(false),
            delay_milliseconds: AtomicU64::new(0),
            lost_per_mille: AtomicU64::new(0),
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

    /// Swallows what comes on TCP connections that do not begin with TLS, as networks do that let nothing else
    /// out; or no longer.
    pub fn swallow_plain(&self, swallowed: bool) {
        self.state.plain_swallowed.store(swallowed, Ordering::Relaxed);
    }

    /// From now on everything takes `delay` each way, and of a thousand datagrams `lost_per_mille` are lost.
    pub fn slow_down(&self, delay: Duration, lost_per_mille: u64) {
        let milliseconds = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.state
            .delay_milliseconds
            .store(milliseconds, Ordering::Relaxed);
        self.state.lost_per_mille.store(lost_per_mille, Ordering::Relaxed);
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

    /// Evenly spread, so that a test loses the same every time.
    fn loses(&self, number: u64) -> bool {
        let per_mille = self.lost_per_mille.load(Ordering::Relaxed);
        self.udp_lost.load(Ordering::Relaxed) || number * per_mille / 1000 != (number - 1) * per_mille / 1000
    }

    fn due(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.delay_milliseconds.load(Ordering::Relaxed))
    }

    fn outer(&self) -> Arc<UdpSocket> {
        Arc::clone(&self.outer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn datagrams_there(self: &Arc<Self>, inner: &UdpSocket) {
        let sending = Arc::clone(self);
        let line = delayed(move |bytes| {
            let _ = sending.outer().send_to(&bytes, sending.target);
            true
        });
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        let mut number = 0;
        while self.runs() {
            let Ok((bytes, client)) = inner.recv_from(&mut buffer) else {
                continue;
            };
            *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client);
            number += 1;
            if !self.loses(number) {
                let _ = line.send((self.due(), buffer.get(..bytes).unwrap_or_default().to_vec()));
            }
        }
    }

    fn datagrams_back(self: &Arc<Self>, inner: &Arc<UdpSocket>) {
        let (sending, socket) = (Arc::clone(self), Arc::clone(inner));
        let line = delayed(move |bytes| {
            let client = *sending.client.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(client) = client {
                sending.datagrams_back.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send_to(&bytes, client);
            }
            true
        });
        let mut number = 0;
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        while self.runs() {
            let Ok((bytes, _)) = self.outer().recv_from(&mut buffer) else {
                continue;
            };
            number += 1;
            if !self.loses(number) {
                let _ = line.send((self.due(), buffer.get(..bytes).unwrap_or_default().to_vec()));
            }
        }
    }

    fn pass(&self, mut from: &TcpStream, mut to: TcpStream) {
        let line = delayed(move |bytes| {
            if bytes.is_empty() {
                let _ = to.shutdown(Shutdown::Write);
            }
            !bytes.is_empty() && to.write_all(&bytes).is_ok()
        });
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let bytes = from.read(&mut buffer).unwrap_or_default();
            let piece = buffer.get(..bytes).unwrap_or_default().to_vec();
            if line.send((self.due(), piece)).is_err() || bytes == 0 {
                return;
            }
        }
    }

    fn connections(self: &Arc<Self>, listener: &TcpListener) {
        while self.runs() {
            match listener.accept() {
                Ok((client, _)) if self.tcp_refused.load(Ordering::Relaxed) => drop(client),
                Ok((client, _)) => {
                    let state = Arc::clone(self);
                    thread::spawn(move || state.connection(client));
                }
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    fn connection(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_nodelay(true)?;
        if self.plain_swallowed.load(Ordering::Relaxed) && !begins_with_tls(&client)? {
            io::copy(&mut &client, &mut io::sink())?;
            return Ok(());
        }
        let server = TcpStream::connect(self.target)?;
        server.set_nodelay(true)?;
        let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
        let (there, back) = (Arc::clone(self), Arc::clone(self));
        thread::spawn(move || there.pass(&client, server));
        thread::spawn(move || back.pass(&server_too, client_too));
        Ok(())
    }
}

/// A handshake record (RFC 8446 §5.1).
fn begins_with_tls(client: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    client.peek(&mut first)?;
    Ok(first == [0x16])
}

/// Hands each piece over when it is due; ends with the sender, or when the receiver has enough.
fn delayed(mut deliver: impl FnMut(Vec<u8>) -> bool + Send + 'static) -> mpsc::Sender<(Instant, Vec<u8>)> {
    let (sender, pieces) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        for (due, bytes) in pieces {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if !deliver(bytes) {
                return;
            }
        }
    });
    sender
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
